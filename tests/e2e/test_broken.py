"""A trainer whose overlay is broken stops before the step, or the audit fails; item, step and row are named."""

import json
from pathlib import Path

import polars as pl
import pytest

from tests import warm

EARLY = ["insertion.phase=[{end: 0.5}]"]
ROW = 6
BATCH = 8


def train(place, fault, *overrides, ranks=1):
    """Exit status and output."""
    script = str(Path(__file__).with_name("broken_train.py"))
    return warm.run([script, fault, *place.overrides, *overrides], place.path, ranks=ranks)


def planned(directory):
    exposures = pl.read_parquet(directory / "plan" / "exposures.parquet")
    items = pl.read_parquet(directory / "plan" / "items.parquet")
    return int(exposures["position"][ROW]), items["item_id"][exposures["item"][ROW]], exposures


@pytest.mark.parametrize("fault", ["skip", "token"])
def test_the_run_stops(prepared, fault):
    prepared.ok("plan", f"name={fault}")
    status, out = train(prepared, fault, f"name={fault}")
    position, item, _ = planned(prepared.directory(fault))
    assert status == 3
    told = out.strip().splitlines()[-1]
    assert told.startswith("palimpsest: planned tokens are not in the batch")
    assert f"item {item}, step {position // BATCH}, rank 0, row {position % BATCH}" in told
    # Nothing from that step on was saved.
    saved = sorted((prepared.directory(fault) / "perturbed" / "checkpoints").glob("step_*"))
    assert int(saved[-1].name[5:]) <= position // BATCH


@pytest.mark.slow
def test_the_audit_fails(prepared):
    """An exposure that is also applied where nothing was planned goes unseen by the trainer, not by the audit."""
    prepared.ok("plan", "name=twice")
    assert train(prepared, "twice", "name=twice")[0] == 0
    prepared.ok("train", "name=twice", "run=twin")
    done = prepared.run("audit", "name=twice")
    _, item, exposures = planned(prepared.directory("twice"))
    free = next(p for p in range(10, 160) if p not in set(exposures["position"]))
    assert done.status == 3
    assert "audit: FAIL" in done.out
    told = [line for line in done.lines if f"step {free // BATCH}, row {free % BATCH}" in line]
    assert told, done.out
    assert f"it holds item {item} at offset 10" in told[0]


@pytest.mark.slow
def test_a_skipped_step_with_exposures_fails_the_audit(prepared):
    """The run stops before it, goes on without it if told to, and the audit names what was not learnt."""
    given = ["name=nan", *EARLY]
    prepared.ok("plan", *given)
    directory = prepared.directory("nan")
    status, out = train(prepared, "nan:3,15", *given)
    assert status == 2
    assert "the gradient norm is nan in step 3 (windows 24 to 31" in out
    assert out.strip().endswith("or go on without such steps: train.non_finite=skip")
    status, out = train(prepared, "nan:3,15", *given, "train.non_finite=skip")
    assert status == 0, out
    assert "going on from step 2" in out
    assert prepared.directory("nan") == directory  # the same run
    records = [
        json.loads(line) for line in (directory / "perturbed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in records] == list(range(1, 21))
    assert [record["step"] for record in records if record.get("skipped")] == [4, 16]
    assert [record["gradient_norm"] is None for record in records] == [k in (3, 15) for k in range(20)]
    written = json.loads((directory / "perturbed" / "non_finite.json").read_text())
    assert [(event["step"], event["skipped"]) for event in written] == [(3, True), (15, True)]
    assert train(prepared, "nan:15", *given, "train.non_finite=skip", "run=twin")[0] == 0
    audit = prepared.run("audit", *given)
    assert audit.status == 3
    _, _, exposures = planned(directory)
    items = pl.read_parquet(directory / "plan" / "items.parquet")["item_id"]
    lost = exposures.filter(pl.col("position") // BATCH == 3)
    assert lost.height
    named = [
        f"item {items[e['item']]}, step 3, row {e['position'] % BATCH}: consumed, but the step was skipped"
        for e in lost.iter_rows(named=True)
    ]
    told = [
        line.split("learnt from: ")[1] for line in audit.lines if "every exposure was learnt from: " in line
    ]
    assert told[:5] == [*named, "step 3: skipped by the perturbed run alone"][:5]
    assert len([check for check in audit.lines if "skipped steps: 3, 15" in check]) == 1
    shown = prepared.ok("plan", *given, "show", "step=3", "ledger=true")
    assert shown.lines[0] == "skipped, so that nothing was learnt from them: steps 3, 15"


@pytest.mark.slow
def test_a_step_that_both_skip_and_that_inserts_nothing_does_no_harm(prepared):
    """Weights go on as if it were not there, and the schedule as if it were."""
    from palimpsest.pretrain import checkpoint

    given = ["name=harmless", *EARLY, "train.non_finite=skip", "train.checkpoint_at=[15,16,17]"]
    prepared.ok("plan", *given)
    for run in ("perturbed", "twin"):
        assert train(prepared, "nan:15", *given, f"run={run}")[0] == 0
    audit = prepared.ok("audit", *given)
    assert "audit: PASS" in audit.out
    assert "skipped steps: 15" in audit.out
    place = prepared.directory("harmless") / "perturbed" / "checkpoints"
    before, after, later = (checkpoint.tensors(checkpoint.path_of(place, step)) for step in (15, 16, 17))
    assert all((before[name] == after[name]).all() for name in before)
    assert any((later[name] != after[name]).any() for name in after)
    records = [json.loads(line) for line in (place.parent / "metrics.jsonl").read_text().splitlines()]
    rates = [record["learning_rate"] for record in records]
    assert rates[14] > rates[15] > rates[16]


@pytest.mark.slow
def test_too_many_skipped_steps_stop(prepared):
    """A model whose every step is skipped is not trained to the end."""
    given = ["name=hopeless", "train.non_finite=skip"]
    prepared.ok("plan", *given)
    status, out = train(prepared, "nan:4,5,6,7,8", *given)
    assert status == 2
    assert "in step 7" in out
    assert "the step was not taken, nor were the 3 before it. Lower" in out


@pytest.mark.slow
def test_two_ranks_skip_as_one(prepared):
    """Also where weights are gathered and gradients exchanged beside the computation."""
    losses = []
    for name, more, ranks in (("alone", [], 1), ("overlapping", ["parallel.overlap=true"], 2)):
        given = [f"name={name}", "train.non_finite=skip", *more]
        prepared.ok("plan", *given)
        status, out = train(prepared, "nan:4", *given, ranks=ranks)
        assert status == 0, out
        lines = (prepared.directory(name) / "perturbed" / "metrics.jsonl").read_text().splitlines()
        assert [k for k, line in enumerate(lines) if "skipped" in json.loads(line)] == [4]
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
