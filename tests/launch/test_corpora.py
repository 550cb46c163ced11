"""Several corpora, or one read twice, through the programs: planned, trained on, audited, shown."""

import json
import re

import pytest

from tests.conftest import SMALL, Workplace, write_text
from tests.launch.test_misuse import refused

PHASES = "mixture.phases=[{until:0.5,weights:{corpus:1}},{until:1,weights:{corpus:1,letters:3}}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Workplace(tmp_path_factory.mktemp("mixture"), SMALL)
    write_text(made.path / "text.jsonl", 700)
    with (made.path / "letters.jsonl").open("w") as file:
        for number in range(300):
            file.write(json.dumps({"text": f"letter {number}: " + "abcdefgh"[number % 8] * 40}) + "\n")
    return made


def sources(shown):
    """Of every row of a step that ``show`` printed: the files its documents are from."""
    rows = re.split(r"^step .*$", shown, flags=re.MULTILINE)[1:]
    return [set(re.findall(r"corpus tokens .*: (\S+\.jsonl)", row)) for row in rows]


def test_phases_from_the_plan_to_the_audit(place):
    second = [
        "+mixture.corpora.letters={source:{kind:jsonl,paths:[letters.jsonl],min_words:1}}",
        PHASES,
        "name=mixed",
    ]
    for program in ("prepare", "plan", "train"):
        place.ok(program, *second)
    place.ok("train", *second, "run=twin")
    assert "audit: PASS" in place.ok("audit", *second).out
    for step, counts in ((4, {"text.jsonl": 8}), (15, {"text.jsonl": 2, "letters.jsonl": 6})):
        found = sources(place.ok("plan", *second, "show", f"step={step}").out)
        assert all(len(row) == 1 for row in found)
        assert {name: sum(name in row for row in found) for name in counts} == counts
    # the audit looks at every corpus
    (tokens,) = [p for p in place.path.glob("runs/corpora/*/train.bin") if p.stat().st_size < 40_000]
    data = bytearray(tokens.read_bytes())
    data[100] ^= 1
    tokens.write_bytes(data)
    failed = place.run("audit", *second)
    assert failed.status == 3
    assert "train.bin was changed" in failed.out


def test_a_second_epoch_is_another_order_of_the_same(place):
    steps = "train.steps=200"
    one = ["name=twice", steps]
    place.ok("prepare")
    refused(place.run("plan", *one), "one epoch of the corpus has", "mixture.epochs")
    place.ok("plan", *one, "mixture.epochs=2")
    refused(place.run("plan", "name=far", "train.steps=20000", "mixture.epochs=2"), "2 epoch(s)")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["+mixture.corpora.b={source:{kind:jsonl,paths:[letters.jsonl]}}"], "needs mixture.phases"),
        (["mixture.corpora={b:{source:{kind:jsonl,paths:[letters.jsonl]}}}"], "+mixture.corpora.NAME="),
        (["mixture.phases=[{until:0.5,weights:{corpus:1}}]"], "rise from above 0 to 1"),
        (["mixture.phases=[{until:1,weights:{corpse:1}}]"], "did you mean 'corpus'"),
        (["mixture.epochs=0"], "at least 1"),
    ],
)
def test_mistakes(place, overrides, told):
    refused(place.run("plan", *overrides), told)
