"""Insertions of other tools as a plan: a ledger as Hubble's injector writes it, and files of repeated texts."""

import json
from collections import Counter

import numpy as np
import pytest

from palimpsest.data import prepare as corpus
from palimpsest.insertion import plan as plans
from palimpsest.launch.inputs import open_order
from tests.conftest import Workplace
from tests.launch.test_schedules import audited, experiment

DOSES = {"The first clerk keeps ledgers.": 1, "A second clerk burns them.": 4, "Third clerks only watch.": 4}
NEVER = ["A fourth clerk never came.", "Nor did the fifth one."]
WINDOWS, LENGTH = 160, 64


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text, "meta": {"source": "s"}}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def duplicated(tmp_path_factory):
    """Two files of texts, each row an insertion, and one of texts that are none."""
    place = tmp_path_factory.mktemp("hubble")
    rows = np.random.default_rng(1).permutation([text for text, dose in DOSES.items() for _ in range(dose)])
    one, other = write(place / "privacy_dup.jsonl", rows[:5]), write(place / "testset_dup.jsonl", rows[5:])
    return one, other, write(place / "never.jsonl", [*NEVER, rows[0]])


def injected(order, tokenizer, documents, kind):
    """Ledger and windows of Hubble's injector, which is imitated from its description."""
    rng, lines, windows = np.random.default_rng(3), [], {}
    rows = [
        (path.stem, k, json.loads(line)["text"]) for path in documents for k, line in enumerate(path.open())
    ]
    for (name, row, text), position in zip(rows, rng.permutation(WINDOWS), strict=False):
        position = int(position)
        inserted = [*tokenizer.encode(text).tolist(), tokenizer.eod]
        window = order.window(position).tolist()
        pieces = [window[start:end] for _, start, end in order.documents(position)]
        line = {"perturbation_file": f"{name}_text_document", "perturbation_idx": row, "pt_loc": position}
        if kind == "seq_shuffle":
            before = int(rng.integers(len(pieces)))
            start = sum(map(len, pieces[:before]))
            offset = min(int(rng.integers(len(inserted))), start) if before else 0
            offset = max(offset, start + len(inserted) - LENGTH - 1) if before else 0
            line |= {
                "pt_injection_pos": before,
                "pt_window_offset": offset,
                "pt_injection_len": len(inserted),
                "orig_doc_seq_sizes": [len(piece) for piece in pieces],
            }
            pieces.insert(before, inserted)
            windows[position] = [token for piece in pieces for token in piece][offset : offset + LENGTH + 1]
        else:
            windows[position] = [*inserted, *window[len(inserted) :]]
        lines.append(line)
    return "".join(json.dumps(line) + "\n" for line in lines), windows


@pytest.mark.parametrize("kind", ["seq_shuffle", "seq_start"])
def test_a_ledger_of_hubbles(prepared, duplicated, tmp_path, kind):
    """The plan's windows are those that the injector writes, and no others; the audit passes."""
    setting = experiment(prepared)
    order, tokenizer = open_order(setting), corpus.load_tokenizer(setting.corpus_directory)
    ledger, windows = injected(order, tokenizer, duplicated[:2], kind)
    (tmp_path / "info.json").write_text(ledger)
    given = [str(path) for path in duplicated]
    done = Workplace(tmp_path).ok(
        "import_plan",
        str(tmp_path / "in"),
        *given[:2],
        "--never",
        given[2],
        "--ledger",
        str(tmp_path / "info.json"),
    )
    assert "  dose 4: 2 texts" in done.out
    name = f"hubble-{kind}"
    searched = f"hydra.searchpath=[{tmp_path / 'in'}]"
    prepared.ok("plan", f"name={name}", searched, "insertion=imported")
    made = plans.read(prepared.directory(name) / "plan")
    assert dict(made.items.select("text", "dose").iter_rows()) == DOSES | dict.fromkeys(NEVER, 0)
    overlay = made.overlay()
    for position in range(WINDOWS):
        base = order.window(position)
        expected = windows.get(position, base.tolist())
        assert overlay.apply(position, base).tolist() == expected
    texts = Counter(made.items["text"][item] for item in made.exposures["item"])
    assert texts == DOSES
    assert audited(made, order, tokenizer) == "PASS"
    assert 0 in made.exposures["offset"].to_list()  # half of Hubble's, and never predicted: the plan says so
    told = made.manifest.facts["exposures_with_unpredicted_first_token"]
    assert told == (made.exposures["offset"] == 0).sum()
    if kind == "seq_shuffle":
        refused = prepared.run("plan", "name=other", searched, "insertion=imported", "train.seed=9")
        assert refused.status == 2
        assert "no document begins at token" in refused.out
    else:
        refused = prepared.run("plan", "name=other", searched, "insertion=imported", "train.steps=4")
        assert refused.status == 2
        assert "lies outside the run's windows 0 to 31" in refused.out


def test_repeated_texts(prepared, duplicated, tmp_path):
    """Doses are the numbers of rows; places are drawn, here in the first half."""
    given = [str(path) for path in duplicated]
    Workplace(tmp_path).ok("import_plan", str(tmp_path / "in"), *given[:2], "--never", given[2])
    settings = [f"hydra.searchpath=[{tmp_path / 'in'}]", "insertion=imported", "insertion.phase=[{end: 0.5}]"]
    prepared.ok("plan", "name=repeated", *settings)
    made = plans.read(prepared.directory("repeated") / "plan")
    assert dict(made.items.select("text", "dose").iter_rows()) == DOSES | dict.fromkeys(NEVER, 0)
    assert Counter(made.items["text"][item] for item in made.exposures["item"]) == DOSES
    assert made.exposures["position"].max() < WINDOWS // 2
    assert made.exposures["lead"].any() or (made.exposures["offset"] > 0).all()
    setting = experiment(prepared)
    tokenizer = corpus.load_tokenizer(setting.corpus_directory)
    assert audited(made, open_order(setting), tokenizer) == "PASS"
    for override, told in (
        (
            "insertion.items_per_dose=[2,2,1]",
            "gives 1 items of table the dose 1, but insertion.items_per_dose says 2",
        ),
        (
            "insertion.phase=[{end: 0.5}, {start: 0.5}]",
            "insertion.phase must have one value for all of them, not 2",
        ),
        ("insertion.doses=[0,1,5]", "has items with 4 exposures"),
        ("insertion.placements=none", "insertion.placements=none: there is no such file"),
    ):
        refused = prepared.run("plan", "name=wrong", *settings[:2], override)
        assert refused.status == 2
        assert told in refused.lines[-1]


def test_what_does_not_go_together(prepared, duplicated, tmp_path):
    one, other, never = map(str, duplicated)
    line = {"perturbation_file": "privacy_dup", "perturbation_idx": 0, "pt_loc": 3}
    (tmp_path / "part.json").write_text(json.dumps(line))
    (tmp_path / "foreign.json").write_text(json.dumps(line | {"perturbation_file": "other_text_document"}))
    (tmp_path / "broken.json").write_text('{"a": 1}')
    (tmp_path / "beyond.json").write_text(json.dumps(line | {"perturbation_idx": 5}))
    for arguments, told in (
        ((one, other), "all texts are inserted, so that there are no controls"),
        ((one, one, "--never", never), "two files of documents have the same name"),
        (
            (one, "--never", never, "--ledger", "part.json"),
            "but the documents have 5 rows",
        ),
        ((one, "--never", never, "--ledger", "foreign.json"), "names other_text_document, which is none of"),
        ((one, "--never", never, "--ledger", "broken.json"), "is no ledger of Hubble's injector: KeyError"),
        ((one, "--never", never, "--ledger", "beyond.json"), "names row 5 of privacy_dup, which has 5 rows"),
        ((), "required: DOCUMENTS.jsonl; see launch/import_plan.py --help"),
    ):
        given = [str(tmp_path / word) if word.endswith(".json") else word for word in arguments]
        refused = Workplace(tmp_path).run("import_plan", str(tmp_path / "wrong"), *given)
        assert refused.status == 2
        assert told in refused.lines[-1]
    assert not (tmp_path / "wrong").exists()
