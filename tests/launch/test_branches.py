"""Runs that go on from another run's checkpoint: branches, experiments compared alone and together, adaptive arms."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.insertion import explain
from palimpsest.insertion import plan as plans
from palimpsest.launch import pair_audit
from palimpsest.launch.adaptive import KIND, VERSION
from palimpsest.launch.inputs import open_order
from palimpsest.launch.show_plan import show
from palimpsest.pretrain import saved
from tests.conftest import write_text
from tests.launch.test_schedules import experiment
from tests.launch.test_shared import PEOPLE, SENTENCES, SHARED, planned

pytestmark = pytest.mark.slow
PARENT = ("name=parent", "insertion.phase=[{end: 0.4}]")


@pytest.fixture(scope="module")
def parent(prepared):
    """A run whose exposures all lie before step 8."""
    planned(prepared, "parent", *PARENT[1:])
    prepared.ok("train", *PARENT)
    return prepared.directory("parent") / "perturbed" / "checkpoints"


def weights(path):
    from palimpsest.pretrain import checkpoint

    return checkpoint.tensors(path, weights_only=True)


def test_branch(prepared, parent, caplog, monkeypatch):
    """With nothing inserted, a branch ends where its parent ended, bit for bit; insertions are its own and proven."""
    import torch

    given = ("name=branch", f"train.start_from={parent / 'step_00000008'}")
    made, setting = planned(prepared, "branch", given[1])
    directory = setting.directory
    assert made.exposures["position"].min() >= 8 * 8
    assert any("steps 8 to 19" in line for line in explain.summary(made))
    prepared.ok("train", *given, "run=twin")
    ours, theirs = (
        weights(place / "step_00000020") for place in (directory / "twin" / "checkpoints", parent)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "going on from step 8" in prepared.ok("train", *given).out
    changed = weights(directory / "perturbed" / "checkpoints" / "step_00000020")
    assert not all(torch.equal(changed[name], theirs[name]) for name in theirs)
    proof = pair_audit.audit(setting)
    assert proof["verdict"] == "PASS"
    details = {check["name"]: check["detail"] for check in proof["checks"]}
    assert "step_00000008, every weight" in details["the run began with the checkpoint that it names"]
    assert details["every window consumed exactly once"] == "96 windows in 12 steps"
    before = "what was planned was consumed before it, too"
    assert details[before] == "steps 0 to 7 of 1 run, 64 windows, 40 exposures"
    join = pair_audit.ledger.concatenated
    with monkeypatch.context() as patched:  # as if the parent had missed its first exposure

        def lying(runs, plan):
            whole = join(runs, plan)
            return replace(whole, exposures=whole.exposures[1:])

        patched.setattr(pair_audit.ledger, "concatenated", lying)
        found = pair_audit.audit(setting)
    assert found["verdict"] == "FAIL"
    assert [check["name"] for check in found["checks"] if not check["passed"]] == [before]
    assert any("planned 1 times, consumed 0 times" in line for line in found["failures"])
    gone, noted = parent / "away", parent / saved.REMOVED
    (parent / "step_00000008").rename(gone)  # as launch/runs.py prunes it
    noted.write_text("8\n")
    later = pair_audit.audit(setting)
    noted.unlink()
    gone.rename(parent / "step_00000008")
    assert later["verdict"] == "PASS"
    assert any("is gone: only its digest" in check["detail"] for check in later["checks"])
    # What a checkpoint of the branch has seen: the parent's exposures and its own.
    item = made.items.filter(pl.col("dose") == 4)["item_id"][0]
    with caplog.at_level("INFO", logger="palimpsest"):
        show(setting, {"item": item})
    shown = [line for line in caplog.messages if line.startswith("  step")]
    steps = [int(line.split()[1].rstrip(",")) for line in shown]
    assert len(steps) == 8
    assert max(steps[:4]) < 8 <= min(steps[4:])
    assert sum("in the run before" in line for line in shown) == 4
    # Another optimizer could not go on with its state.
    planned(prepared, "wrong", given[1], "optimizer.beta2=0.9")
    wrong = prepared.run("train", "name=wrong", given[1], "optimizer.beta2=0.9")
    assert wrong.status == 2
    assert "step_00000008 does not fit this run: setting optimizer.beta2" in wrong.out


def test_a_branch_may_reshuffle_what_is_left_and_says_from_where_on_it_proves(prepared, parent):
    given = ("name=reshuffled", f"train.start_from={parent / 'step_00000008'}", "train.seed=5")
    made, setting = planned(prepared, "reshuffled", *given[1:])
    assert made.manifest.facts["changed_at_start"] == ["order"]
    for which in ("perturbed", "twin"):
        assert "going on from step 8 with another order" in prepared.ok("train", *given, f"run={which}").out
    assert setting.train.seed == 5
    proof = pair_audit.audit(setting)
    assert proof["verdict"] == "PASS"
    details = {check["name"]: check["detail"] for check in proof["checks"]}
    assert details["this proof begins at step 8"] == "the steps before it read another order: audit their run"
    assert "what was planned was consumed before it, too" not in details
    assert details["every window consumed exactly once"] == "96 windows in 12 steps"
    assert list(show_lines(setting, made))


def show_lines(setting, made):
    item = made.items.filter(pl.col("dose") == 4)["item_id"][0]
    order, tokenizer = open_order(setting), corpus.load_tokenizer(setting.corpus_directory)
    return explain.item(made, item, order, tokenizer, earlier=plans.earlier(made))


def test_a_branch_may_read_another_corpus_with_the_same_tokenizer(prepared, parent):
    write_text(prepared.path / "other.jsonl", 1700)
    start = f"train.start_from={parent / 'step_00000008'}"
    other = ["corpus.source.paths=[other.jsonl]"]
    prepared.ok("prepare", "name=elsewhere", *other)
    wrong = prepared.run("plan", "name=elsewhere", start, *other)
    assert wrong.status == 2
    assert "is of a run with another tokenizer" in wrong.out
    tokenizer = prepared.corpus("parent") / "tokenizer.json"
    other += ["corpus.tokenizer.kind=file", f"+corpus.tokenizer.path={tokenizer}"]
    prepared.ok("prepare", "name=elsewhere", *other)
    prepared.ok("plan", "name=elsewhere", start, *other)
    assert "with another corpus and order" in prepared.ok("train", "name=elsewhere", start, *other).out


def test_a_branch_has_its_own_learning_rate(prepared, parent):
    """Not the one that its parent's optimizer was saved with."""
    own = [f"train.start_from={parent / 'step_00000008'}", "train.stop_at=10", "optimizer.schedule=constant"]
    own += ["optimizer.learning_rate=1e-4", "optimizer.min_learning_rate=1e-4", "insertion.doses=[0,1]"]
    planned(prepared, "slower", *own)
    prepared.ok("train", "name=slower", *own)
    lines = (prepared.directory("slower") / "perturbed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["learning_rate"] for line in lines] == [1e-4, 1e-4]


def test_show_what_a_ledger_has(prepared, parent):
    """The item's exposures that were consumed, and how long ago; a step's windows, compared by their digests."""
    made = plans.read(parent.parents[1] / "plan")
    item = made.items.filter(pl.col("dose") == 4)["item_id"][0]
    steps = sorted(
        made.exposures.filter(made.items["item_id"][pl.Series(made.exposures["item"])] == item)["position"]
        // 8
    )
    shown = [
        line
        for line in prepared.ok("plan", "show", *PARENT, f"item={item}", "ledger=true").lines
        if ", row " in line
    ]
    assert [int(line.split()[1].rstrip(",")) for line in shown] == steps
    assert [int(line.split(" steps before")[0].split()[-1]) for line in shown] == [
        19 - step for step in steps
    ]
    done = prepared.ok("plan", "show", *PARENT, f"step={steps[0]}", "ledger=true")
    assert "the ledger has these 8 windows, by their digests" in done.out
    assert item in done.out
    for arguments, told in (
        (["ledger=true"], "write item=ID ledger=true"),
        (["step=20", "ledger=true"], "step=20: the ledger has steps 0 to 19"),
        ([f"item={item}", "ledger=no"], "ledger=no"),
    ):
        refused = prepared.run("plan", "show", *PARENT, *arguments)
        assert refused.status == 2
        assert told in refused.lines[-1]
    ledger = pair_audit.ledger_of(parent.parent, 20)[0]
    other = pl.col("digest") + (pl.col("position") == 8 * steps[0] + 3).cast(pl.UInt64)
    lying = replace(ledger, windows=ledger.windows.with_columns(other))
    setting = experiment(prepared, *PARENT)
    with pytest.raises(UserError, match=f"step={steps[0]}: row 3 of the ledger is another window"):
        explain.same(made, lying, steps[0], open_order(setting))


def test_dependence(prepared, parent):
    """Each experiment alone and both together, from one checkpoint: the interaction, recomputed from the scores."""
    given = ["name=both", f"train.start_from={parent / 'step_00000008'}", *SHARED]
    given += [f"{one}.doses=[0,3]" for one in (PEOPLE, SENTENCES)]
    done = prepared.ok("dependence", *given)
    assert done.out.count("audit: PASS") == 3
    (place,) = (prepared.path / "runs" / "small").glob("both-*/dependence")
    found = json.loads((place / "dependence.json").read_text())["interactions"]
    assert [(row["experiment"], row["dose"], row["items"]) for row in found] == [
        ("people", 3, 4),
        ("sentences", 3, 4),
    ]
    for row in found:
        assert row["low"] < row["estimate"] < row["high"]
        others = {"people": SENTENCES, "sentences": PEOPLE}
        setting = experiment(prepared, *given, f"~{others[row['experiment']]}")
        alone, both = (mean_scores(where, row["experiment"]) for where in (setting.directory, place.parent))
        difference = both.join(alone, on="item_id", suffix="_alone").with_columns(
            gain=pl.col("score") - pl.col("score_alone")
        )
        assert len(difference) == 8
        means = dict(difference.group_by("dose").agg(pl.col("gain").mean()).iter_rows())
        strata = difference.group_by("stratum", "dose").agg(pl.col("gain").mean(), pl.len())
        assert strata["len"].to_list() == [2] * 4  # equal strata: the weighted mean is the plain one
        assert np.isclose(row["estimate"], means[3] - means[0], atol=1e-6)


def mean_scores(directory, name):
    """Item -> log-likelihood a byte at the last checkpoint, from the stored log-probabilities."""
    made = plans.read(directory / "plan")
    parts = sorted((directory / "scores" / "perturbed").glob("step_00000020*/*.parquet"))
    scores = pl.concat([pl.read_parquet(part, columns=["probe_id", "logprob"]) for part in parts])
    verbatim = made.probes.filter(
        pl.col("item_id").str.starts_with(f"{name}:") & (pl.col("kind") == "verbatim")
    )
    return (
        verbatim.join(scores, on="probe_id")
        .with_columns(score=pl.col("logprob").list.sum() / pl.col("target_bytes"))
        .group_by("item_id")
        .agg(pl.col("score").mean())
        .join(made.items.select("item_id", "dose", "stratum"), on="item_id")
    )


def test_adaptive(prepared):
    """Insert until remembered: segments follow each other, stop at the criterion, and every decision is replayed."""
    given = [
        "name=adaptive",
        "~insertion.families.ghost_sentences",
        "insertion.doses=[0,1]",
        "insertion.adaptive={policy: insert_until, at: [8,14], threshold: 0.05, each: 2}",
        "optimizer.learning_rate=0.01",
    ]
    done = prepared.ok("adaptive", *given)
    assert "adaptive: PASS" in done.out
    assert [f"segment {n}: PASS" in done.out for n in range(3)] == [True] * 3
    directory = prepared.directory("adaptive")
    found = json.loads((directory / "adaptive" / "decisions.json").read_text())["decisions"]
    assert [record["end"] for record in found] == [8, 14, 20]
    assert [record["previous"] for record in found] == ["", *(record["digest"] for record in found[:-1])]
    first = found[0]["exposures"]
    assert set(first.values()) == {2}
    for before, record in pairwise(found):
        reached = {item for item, score in record["seen"].items() if score >= 0.05}
        assert set(record["exposures"]) == set(before["exposures"]) - reached
    for record, (begin, end) in zip(found, ((0, 8), (8, 14), (14, 20)), strict=True):
        made = plans.read(prepared.path / record["directory"] / "plan")
        counted = dict(made.exposures.group_by("item").len().iter_rows())
        names = made.items["item_id"].to_list()
        assert {names[item]: count for item, count in counted.items()} == record["exposures"]
        steps = made.exposures["position"] // 8
        assert steps.is_between(begin, end - 1).all()
    again = prepared.ok("adaptive", *given)  # nothing is trained again, and the file says the same
    assert "adaptive: PASS" in again.out
    assert "finished at step 20; nothing to do" in again.out
    proven = prepared.ok("audit", *given)
    assert "audit: PASS" in proven.out
    assert "policy insert_until, replayed" in proven.out
    last = json.loads((prepared.path / found[2]["directory"] / "audit" / "audit.json").read_text())
    details = {check["name"]: check["detail"] for check in last["checks"]}
    assert details["what was planned was consumed before it, too"].startswith(
        "steps 0 to 13 of 2 runs, 112 win"
    )
    # A record that says otherwise than the scores do, however well it is sealed.
    place, lie = directory / "adaptive", json.loads((directory / "adaptive" / "decisions.json").read_text())
    item = next(iter(found[1]["seen"]))
    lie["decisions"][1]["seen"][item] += 1
    with artifact.writing(place, kind=KIND, schema_version=VERSION, config={}, inputs={}) as draft:
        artifact.write_json(draft.path / "decisions.json", lie)
    refused = prepared.run("audit", *given)
    assert refused.status == 3
    assert "segment 1: the stored scores lead to another decision than the one recorded" in refused.out
    assert "decision 1 does not continue the one before it" in refused.out


def test_mistakes(prepared):
    for overrides, told in (
        (["train.start_from=runs/step"], "train.start_from=runs/step is no checkpoint"),
        (["train.start_from=x/step_00000020"], "is at step 20, and the run ends at step 20"),
        (["train.stop_at=21"], "train.stop_at=21 must lie between 1 and train.steps=20"),
        (["insertion.adaptive={policy: maintain, at: [5], threshold: 1}"], "needs a single family"),
    ):
        with pytest.raises(UserError, match=told):
            experiment(prepared, *overrides)
