"""Forgetting curves of the report: the same items over time, families of curves, and time to forget."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.metrics import compute
from palimpsest.analysis.report import ReportInputs, analyse, build
from palimpsest.analysis.report.forgetting import curves
from palimpsest.analysis.report.results import Results
from tests.analysis.synthetic import experiment

STEPS = (0, 10, 12, 16, 24, 40, 72, 136, 250)
AFTER, SCALE = 10, 60.0


def forgotten(gain: float) -> ReportInputs:
    """Inserted items gain ``gain`` nats a token at step 10, which falls exponentially, by 1/e in 60 steps."""
    base = experiment(steps=STEPS, effect=0.0, per_cell=4)
    inserted = base.items.filter(pl.col("dose") > 0)["item_id"].to_list()
    probes = base.probes.filter(pl.col("item_id").is_in(inserted))["probe_id"].to_list()
    left = {step: gain * math.exp(-(step - AFTER + 1) / SCALE) if step >= AFTER else 0.0 for step in STEPS}
    raised = (pl.col("run") == "perturbed") & pl.col("probe_id").is_in(probes)
    more = pl.when(raised).then(pl.col("step").replace_strict(left, return_dtype=pl.Float64)).otherwise(0.0)
    scores = base.scores.with_row_index().with_columns(more=more).explode("logprob", "rank")
    scores = scores.with_columns(logprob=(pl.col("logprob") + pl.col("more")).cast(pl.Float32))
    scores = scores.group_by("index", maintain_order=True).agg(
        pl.col("run", "step", "probe_id").first(), pl.col("logprob", "rank")
    )
    exposures = pl.DataFrame({"item_id": inserted, "step": [AFTER - 1] * len(inserted)})
    return dataclasses.replace(base, scores=scores.drop("index"), exposures=exposures, permutations=19)


def rows(inputs: ReportInputs) -> pl.DataFrame:
    found = compute(inputs.items, inputs.probes, inputs.scores, [inputs.primary], inputs.parameters)
    empty = pl.DataFrame()
    results = Results(
        rows=found,
        estimates=empty,
        step=STEPS[-1],
        last_steps={"perturbed": STEPS[-1], "twin": STEPS[-1]},
        ec50=empty,
        strata=empty,
        arms=empty,
        attacks=empty,
        questions=empty,
    )
    return curves(results, inputs, replicates=200)


def test_an_exponential_decay_is_found_with_its_scale_and_its_time_to_forget() -> None:
    found = rows(forgotten(1.2))
    assert found["arm"].to_list() == [f"dose {dose}" for dose in (1, 16, 4, 64)]
    assert found["n"].to_list() == [24] * 4
    assert found["checkpoints"].to_list() == [8] * 4
    assert found["since_first"].to_list() == [1.0] * 4
    for row in found.iter_rows(named=True):
        assert row["family"] in ("exponential", "exponential_floor", "weibull")
        assert row["share"] > 0.3
        # The controls' differences from the twin spread by some 0.03 to 0.05 nats a token: from 1.2 that takes
        # 60 ln(1.2 / 0.05) = 190 steps, between the checkpoints 126 and 240 steps after the last exposure.
        assert 100 < row["median"] < 260
        assert row["low"] < row["median"] < row["high"]
        assert row["never_learned"] == 0
        # exp(-t/60) between t = 1 and t = 240, by least squares on log10 t at these checkpoints.
        since = np.array([step - AFTER + 1.0 for step in STEPS[1:]])
        left = np.exp(-since / SCALE)
        slope, start = np.polyfit(np.log10(since), left / left[0], 1)
        assert row["horizon"] == pytest.approx(10 ** (-start / slope), rel=0.2)
        assert row["slope_low"] < row["slope"] < row["slope_high"] < 0


def test_nothing_learned_is_nothing_to_forget() -> None:
    # Four arms at the 5 % level.
    assert rows(forgotten(0.0)).height <= 1


def test_the_report_shows_the_curves(tmp_path: Path) -> None:
    build(forgotten(1.2), tmp_path)
    assert pl.read_csv(tmp_path / "forgetting_curves.csv").height == 4
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "median steps to forget" in page
    assert "steps since" in page


def test_too_few_checkpoints_make_no_curve() -> None:
    base = forgotten(1.2)
    few = dataclasses.replace(base, scores=base.scores.filter(pl.col("step") < 24))
    assert curves(analyse(few), few).is_empty()


def test_items_without_a_score_at_every_checkpoint_are_not_counted() -> None:
    base = forgotten(1.2)
    item = base.items.filter(pl.col("dose") == 64)["item_id"][0]
    probes = base.probes.filter(pl.col("item_id") == item)["probe_id"].to_list()
    lost = pl.col("probe_id").is_in(probes) & (pl.col("step") == 40)
    found = rows(dataclasses.replace(base, scores=base.scores.filter(~lost)))
    assert dict(found.select("arm", "n").iter_rows()) == {
        "dose 1": 24,
        "dose 4": 24,
        "dose 16": 24,
        "dose 64": 23,
    }


def test_on_the_summed_learning_rate_a_rate_that_falls_slows_time() -> None:
    base = forgotten(1.2)
    steps = np.arange(1, STEPS[-1] + 1)
    constant, falling = (
        dataclasses.replace(
            base,
            training=pl.DataFrame(
                {"run": "perturbed", "step": steps, "loss": 1.0, "tokens": steps, "learning_rate": rate}
            ),
        )
        for rate in (np.full(len(steps), 1e-3), 1e-3 * 0.97**steps)
    )
    found = rows(constant)
    # A constant rate only changes the unit of time.
    assert found["rate_slope"].to_list() == pytest.approx(found["slope"].to_list())
    assert found["rate_slope_low"].to_list() == pytest.approx(found["slope_low"].to_list())
    # The same loss in less time: steeper by decade.
    slower = rows(falling)
    assert (slower["rate_slope"] < 1.2 * slower["slope"]).all()
    assert rows(base)["rate_slope"].null_count() == 4
