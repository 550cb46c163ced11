"""Every level of every factor, and the assignment, from the command line: what is planned is what the words mean."""

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest

from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.launch.inputs import open_order
from tests.launch.test_schedules import audited
from tests.launch.test_shared import planned

BATCH, STEPS, LENGTH = 8, 20, 64
GHOSTS = ("~insertion.families.passages", "insertion.doses=[0,4]")


def exposures(prepared, name, *overrides):
    """The plan's exposures with their steps, item by item; the plan, its order and tokenizer. It passes the audit."""
    made, setting = planned(prepared, name, *overrides)
    order, tokenizer = open_order(setting), corpus.load_tokenizer(setting.corpus_directory)
    assert audited(made, order, tokenizer) == "PASS"
    lengths = made.wordings["tokens"].list.len()
    table = made.exposures.with_columns(
        step=pl.col("position") // BATCH, length=lengths[made.exposures["wording"]]
    )
    steps = [
        one["step"].to_numpy() for _, one in table.sort("position").group_by("item", maintain_order=True)
    ]
    assert {len(one) for one in steps} == {4}
    return table, steps, made, order, tokenizer


@pytest.mark.parametrize(
    ("overrides", "holds"),
    [
        (["insertion.spacing=[even]"], lambda s: (np.diff(s) == 5).all()),
        (["insertion.spacing=['massed:3']"], lambda s: s.max() - s.min() < 3),
        (["insertion.spacing=[expanding]"], lambda s: (np.diff(np.diff(s)) > 0).all()),
        (["insertion.spacing=[expanding]", "insertion.last_exposure_within=1"], lambda s: s[-1] == 19),
        (
            ["insertion.spacing=['massed:4']", "insertion.last_exposure_within=2"],
            lambda s: s[-1] >= 18 and s[0] >= 15,
        ),
        (["insertion.batch=[together]"], lambda s: s.min() == s.max()),
        (["insertion.batch=[apart]"], lambda s: len(set(s.tolist())) == 4),
        (["insertion.phase=[{unit: step, start: 3, end: 9}]"], lambda s: s.min() >= 3 and s.max() < 9),
        (["insertion.phase=[{unit: token, start: 1536, end: 4096}]"], lambda s: s.min() >= 3 and s.max() < 8),
        (["insertion.phase=[{start: 0.75}]"], lambda s: s.min() >= 15),
        (["insertion.phase=[{at: [2, 5, 11, 17]}]"], lambda s: s.tolist() == [2, 5, 11, 17]),
    ],
    ids=lambda value: "-".join(value).replace("insertion.", "") if isinstance(value, list) else "",
)
def test_when(prepared, overrides, holds):
    _, steps, *_ = exposures(prepared, "arms", *GHOSTS, *overrides)
    assert len(steps) == 4
    assert all(holds(one) for one in steps), steps


@pytest.mark.parametrize("frame", ["document", "inline"])
@pytest.mark.parametrize("displace", ["tail", "around", "overwrite"])
def test_where(prepared, displace, frame):
    """Every position, in one design: each item is where its arm says, and what gives way is what its arm says."""
    levels = ["start", "token", "sentence", "word", "offset:9", "offset:5-20"]
    given = [
        f"insertion.position=[{','.join(repr(one) for one in levels)}]",
        f"insertion.displace=[{displace}]",
    ]
    given += [f"insertion.frame=[{frame}]", "insertion.items_per_dose=2"]
    table, _, made, order, tokenizer = exposures(prepared, "places", *GHOSTS, *given)
    overlay, eod = made.overlay(), tokenizer.eod
    arms = made.items["arm"].to_list()
    assert Counter(arms) == {"dose 0": 2} | {f"dose 4, position {one}": 2 for one in levels}
    for row in table.iter_rows(named=True):
        position, offset, end = row["position"], row["offset"], row["offset"] + row["length"]
        base = order.window(position)
        found = overlay.apply(position, base)
        before, after = found[: offset - row["lead"]], found[end + row["trail"] :]
        if frame == "document":
            assert row["trail"]
            assert found[end] == eod
            assert not row["lead"] or found[offset - 1] == eod
        else:
            assert not row["lead"]
            assert not row["trail"]
        if displace == "overwrite":
            assert before.tolist() == base[: len(before)].tolist()
            assert after.tolist() == base[len(base) - len(after) :].tolist()
        else:
            kept = [*before.tolist(), *after.tolist()]
            assert kept == base[row["cut"] : row["cut"] + len(kept)].tolist()
            assert row["cut"] == 0 or displace == "around"
        kind = arms[row["item"]].removeprefix("dose 4, position ")
        point = len(before) + row["cut"]
        if kind == "start":
            assert point - row["cut"] == 0
        if displace != "around":
            assert kind != "offset:9" or offset == 9
            assert kind != "offset:5-20" or 5 <= offset <= 20
        if kind == "word" and frame == "inline":
            text = tokenizer.decode(base[:point].tolist()), tokenizer.decode(base[point:].tolist())
            starts = text[1][:1].isspace() or text[0][-1:].isspace() or base[point - 1] == eod
            assert starts or not any(c.isspace() for c in tokenizer.decode(base.tolist()))


def test_wordings(prepared, tmp_path):
    """In rotation each of two wordings is met twice; fresh ones are met once."""
    rows = [
        {"text": f"Number {k} zero.", "wordings": [f"Number {k} form {n}." for n in range(5)]}
        for k in range(8)
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = [
        "insertion=table",
        f"insertion.families.table.path={tmp_path / 'table.jsonl'}",
        *("insertion.doses=[0,4]", "insertion.items_per_dose=4", "insertion.heldout_probes=8"),
    ]
    for wording, counts in (("rotate:2", [2, 2]), ("fresh", [1, 1, 1, 1]), ("verbatim", [4])):
        table, *_ = exposures(prepared, "wordings", *own, f"insertion.wording=['{wording}']")
        for _, one in table.group_by("item"):
            assert sorted(one["wording"].value_counts()["count"]) == counts
    with pytest.raises(UserError, match=r"needs 7 wordings an item"):
        exposures(prepared, "wordings", *own, "insertion.wording=['rotate:7']")


@pytest.mark.parametrize("percent", [10, 50])
def test_fuzzy_wordings_differ_from_the_item_in_that_share_of_its_words(prepared, tmp_path, percent):
    words = [f"w{chr(97 + k)}{chr(97 + j)}" for k in range(10) for j in range(20)]
    rows = [{"text": " ".join(words[k * 20 : k * 20 + 20])} for k in range(8)]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = [
        "insertion=table",
        f"insertion.families.table.path={tmp_path / 'table.jsonl'}",
        *("insertion.doses=[0,4]", "insertion.items_per_dose=4", "insertion.heldout_probes=8"),
        "insertion.preflight.near_duplicate=skip",
        "train.sequence_length=128",
    ]
    table, steps, made, _, tokenizer = exposures(
        prepared, "fuzzy", *own, f"insertion.wording=['fuzzy:{percent}']"
    )
    _, plain, *_ = exposures(prepared, "exact", *own)
    assert [one.tolist() for one in steps] == [one.tolist() for one in plain]
    assert table["wording"].n_unique() == len(table)
    read = made.wordings[table["wording"]]
    for row in read.iter_rows(named=True):
        original = made.items["text"][row["item"]].split()
        changed = [old != new for old, new in zip(original, row["text"].split(), strict=True)]
        assert sum(changed) == 20 * percent // 100
        assert row["tokens"] == tokenizer.encode_batch([row["text"]])[0].tolist()
        assert len(row["tokens"]) == made.items["length"][row["item"]]
    assert made.items["wordings"].to_list() == [5 if dose else 1 for dose in made.items["dose"]]


@pytest.mark.parametrize(
    ("texts", "wording", "part"),
    [
        (["one"] * 8, "fuzzy:0", "must lie between 1 and 99"),
        ([f"word{k}" for k in range(8)], "fuzzy:20", "fewer than two words"),
    ],
)
def test_what_cannot_be_fuzzy_is_named(prepared, tmp_path, texts, wording, part):
    (tmp_path / "table.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    own = [
        "insertion=table",
        f"insertion.families.table.path={tmp_path / 'table.jsonl'}",
        *("insertion.doses=[0,4]", "insertion.items_per_dose=4", "insertion.heldout_probes=8"),
    ]
    with pytest.raises(UserError, match=part):
        exposures(prepared, "wordings", *own, f"insertion.wording=['{wording}']")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Three rows about each of twelve persons."""
    path = tmp_path_factory.mktemp("people") / "people.jsonl"
    told = ("born in", "at home in", "buried near")
    rows = [
        {"text": f"Person {k} was {told[n]} place {'x' * k}{n}.", "cluster": f"person {k}", "id": f"{k}-{n}"}
        for k in range(12)
        for n in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return [
        "insertion=table",
        f"insertion.families.table.path={path}",
        *("insertion.doses=[0,2,4]", "insertion.items_per_dose=12", "insertion.heldout_probes=8"),
        *("insertion.preflight.near_duplicate=skip", "insertion.max_share=0.9"),
    ]


@pytest.mark.slow
def test_the_lot(prepared, people):
    """Whole clusters, exact counts, strata of length and of a reference's likelihood, and the table of balance."""
    given = [*people, "insertion.likelihood_model=trained", "insertion.likelihood_quantiles=2"]
    done = prepared.ok("plan", "name=draw", *given)
    assert "balance of reference loss: largest difference" in done.out
    assert "balance of all together: largest difference" in done.out
    made, _ = planned(prepared, "draw", *given)
    assert Counter(made.items["dose"].to_list()) == {0: 12, 2: 12, 4: 12}
    both = made.items.group_by("cluster").agg(
        pl.col("dose").n_unique(), pl.col("stratum").n_unique(), pl.len()
    )
    assert both.select("dose", "stratum", "len").unique().rows() == [(1, 1, 3)]
    strata = made.items.group_by("stratum").agg(pl.len(), pl.col("length").mean()).sort("stratum")
    assert strata["stratum"].to_list() == [
        f"table/length{n}of2/likelihood{m}of2" for n in (1, 2) for m in (1, 2)
    ]
    assert strata["len"].to_list() == [9, 9, 9, 9]
    assert strata["length"].to_list()[1] < strata["length"].to_list()[2]
    for one in made.items.partition_by("stratum"):
        assert Counter(one["dose"].to_list()) == {0: 3, 2: 3, 4: 3}  # a person of each dose


def test_lots_that_cannot_be(prepared, people):
    for overrides, told in (
        (
            ["insertion.items_per_dose=[10,13,13]"],
            "clusters of 3 to 3 items cannot fill arms of 10, 13 items exactly",
        ),
        (
            ["insertion.likelihood_quantiles=2"],
            "needs insertion.likelihood_model, the path of a model or trained",
        ),
        (["insertion.likelihood_model=nothing"], "insertion.likelihood_model=nothing: there is no such file"),
    ):
        with pytest.raises(UserError, match=told):
            planned(prepared, "wrong", *people, *overrides)
