"""The audit's rank test: weights that remember in the order of the ledger, and a ledger that lies about it."""

import json

import numpy as np
import polars as pl
import pytest

from palimpsest.insertion.settings import RunShape
from palimpsest.launch.pair_audit import evidence
from tests.launch.test_shared import planned

SHAPE = RunShape(steps=100, global_batch_size=10, sequence_length=8)
DOSES = np.repeat([0, 1, 4], 40)


def world(rng):
    """Items, their true exposures, and scores of weights that forget: a gain of 0.95 ** (steps since the last one)."""
    items = pl.DataFrame(
        {"item_id": [f"i{k}" for k in range(120)], "family": ["f"] * 120, "dose": DOSES.astype(np.int32)}
    )
    owner = np.repeat(np.arange(120), DOSES)
    positions = rng.permutation(1000)[: len(owner)]
    exposures = pl.DataFrame({"position": positions, "item_id": [f"i{k}" for k in owner]})
    rows = []
    for step in (0, 40, 51, 100):
        for k in range(120):
            hard = rng.normal(0, 5)  # how hard an item is, twin and perturbed run share
            seen = positions[(owner == k) & (positions < step * 10)]
            gain = 0.95 ** (step - seen.max() / 10) if len(seen) else 0.0
            rows += [
                (f"i{k}", "twin", step, hard),
                (f"i{k}", "perturbed", step, hard + gain + rng.normal(0, 0.2)),
            ]
    return items, exposures, pl.DataFrame(rows, schema=["item_id", "run", "step", "loglik"], orient="row")


def test_a_true_ledger_and_one_that_lies():
    rng = np.random.default_rng(5)
    items, exposures, scores = world(rng)
    found = evidence(items, exposures, scores, SHAPE)
    assert found["checkpoint"] == 51  # nearest to the middle
    assert found["items"] == 80
    assert found["rho"] > 0.4
    assert found["p"] < 1e-4
    lies = []
    for _ in range(200):  # the same exposures in another order
        wrong = exposures.with_columns(position=pl.Series(rng.permutation(exposures["position"].to_numpy())))
        lies.append(evidence(items, wrong, scores, SHAPE)["p"])
    assert np.mean(np.array(lies) < 0.05) < 0.1  # a test of size .05; 3.2 standard errors
    assert np.median(lies) > 0.3


def test_the_dose_alone_is_no_evidence():
    """Items that were met more often gain more whatever the order: compared within doses, that says nothing."""
    rng = np.random.default_rng(6)
    items, exposures, scores = world(rng)
    dose = dict(items.select("item_id", "dose").iter_rows())
    gain = np.array(
        [dose[i] if run == "perturbed" else 0 for i, run in scores.select("item_id", "run").iter_rows()]
    )
    scores = scores.with_columns(loglik=pl.Series(gain + rng.normal(0, 0.1, len(scores))))
    assert evidence(items, exposures, scores, SHAPE)["p"] > 0.01


def test_nothing_to_compare():
    items, exposures, scores = world(np.random.default_rng(7))
    assert evidence(items, exposures, scores.filter(pl.col("step").is_in([0, 100])), SHAPE) is None
    assert evidence(items, exposures, scores.filter(pl.col("run") == "twin"), SHAPE) is None


@pytest.mark.slow
def test_the_audit_tells(prepared):
    """After scoring, the audit adds the correlation: that of the ledger's positions and the stored scores."""
    _, setting = planned(prepared, "evidence", "optimizer.learning_rate=0.01")
    given = ("name=evidence", "optimizer.learning_rate=0.01")
    prepared.ok("train", *given)
    prepared.ok("train", *given, "run=twin")
    assert "evidence" not in prepared.ok("audit", *given).out
    prepared.ok("score", *given)
    done = prepared.ok("audit", *given)
    assert "evidence of the weights at step 8" in done.out
    found = json.loads((setting.directory / "audit" / "audit.json").read_text())["evidence"]
    assert found["items"] == 16  # of 2 families, 4 of dose 1 and 4 of dose 4
    assert found["low"] < found["rho"] < found["high"]
