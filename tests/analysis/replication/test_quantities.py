"""Quantities of cells on runs with known values."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.replication.claims import Along, Claim
from palimpsest.analysis.replication.page import arms_of
from palimpsest.analysis.replication.quantities import QUANTITIES, Posttrained, crossing
from palimpsest.data.errors import UserError


def run_of(values: dict[int, list[float]], twin: float | None = None, arms: dict[int, str] | None = None):
    """A run whose items of each dose have the given values of a metric, and its twin the same one everywhere."""
    rows = [
        (f"{dose}-{k}", dose, (arms or {}).get(dose, f"dose {dose}"), value)
        for dose, of_dose in values.items()
        for k, value in enumerate(of_dose)
    ]
    items = pl.DataFrame(
        [(item, dose, arm) for item, dose, arm, _ in rows],
        schema={"item_id": pl.String, "dose": pl.Int32, "arm": pl.String},
        orient="row",
    )
    exposures = pl.DataFrame(
        [(item, 10 * k) for k, (item, dose, _, _) in enumerate(rows) if dose],
        schema={"item_id": pl.String, "position": pl.Int64},
        orient="row",
    )

    def metrics(name, *, steps, **settings):
        both = [("perturbed", 0.0), *([("twin", twin)] if twin is not None else [])]
        return pl.DataFrame(
            [
                {
                    **{"run": which, "step": steps[0], "metric": name, "probe_id": item, "item_id": item},
                    **{"family": "passages", "stratum": "", "cluster": "", "question": "", "dose": dose},
                    "value": value if which == "perturbed" else fixed,
                }
                for which, fixed in both
                for item, dose, _, value in rows
            ],
            schema_overrides={"dose": pl.Int32},
        )

    return SimpleNamespace(
        directory=Path("nowhere"),
        name="a run",
        last_step=10,
        metrics=metrics,
        plan=SimpleNamespace(items=items),
        exposures=exposures,
    )


LOGLIK = {"metric": "loglik_per_byte"}


def test_a_gain_is_over_the_never_inserted_and_its_error_over_both():
    run = run_of({0: [1.0, 3.0], 4: [5.0, 7.0, 9.0]})
    estimate = QUANTITIES["gain"](run, {**LOGLIK, "dose": 4})
    assert estimate.value == pytest.approx(7 - 2)
    assert estimate.error == pytest.approx(math.sqrt(4 / 3 + 2 / 2))


def test_values_are_differences_from_the_twin_except_in_a_mean():
    run = run_of({0: [1.0, 3.0], 4: [5.0, 7.0]}, twin=2.0)
    assert QUANTITIES["gain"](run, {**LOGLIK, "dose": 4}).value == pytest.approx(4)
    assert QUANTITIES["mean"](run, {**LOGLIK, "dose": 4}).value == pytest.approx(6)


def test_a_share_of_one_has_an_error():
    run = run_of({0: [0.0] * 8, 4: [1.0] * 8})
    estimate = QUANTITIES["gain"](run, {"metric": "extracted", "dose": 4})
    likely = 10 / 12
    assert estimate.value == 1
    assert estimate.error == pytest.approx(math.sqrt(2 * likely * (1 - likely) / 12))


def test_an_area_under_the_curve():
    run = run_of({0: [0.0, 1.0, 2.0, 3.0], 4: [1.5, 2.5, 2.0]})
    won = (2 + 3 + 2.5) / 12  # pairs in which the inserted item is higher; ties count by half
    assert QUANTITIES["auc"](run, {**LOGLIK, "dose": 4}).value == pytest.approx(won)


def test_the_order_of_exposures():
    run = run_of({0: [0.0, 0.0], 1: list(np.linspace(0, 1, 20))})
    assert QUANTITIES["order"](run, {**LOGLIK, "dose": 1}).value == pytest.approx(1)


def test_a_threshold_lies_between_the_doses_that_enclose_it():
    doses = np.array([1.0, 4.0, 16.0])
    assert crossing(doses, np.array([0.1, 0.4, 0.8]), 0.4).value == pytest.approx(2)
    assert crossing(doses, np.array([0.1, 0.4, 0.8]), 0.6).value == pytest.approx(3)
    assert crossing(doses, np.array([0.4, 0.1, 0.8]), 0.25).value == pytest.approx(0)  # made monotone
    assert crossing(doses, np.array([0.8, 0.8, 0.8]), 0.4).value == pytest.approx(
        -0.5
    )  # below the lowest dose
    never = crossing(doses, np.array([0.1, 0.2, 0.3]), 0.5)
    assert math.isnan(never.value)
    assert "0.5 is not reached: 0.3 at the highest dose, 16" in never.reason
    assert "nothing is gained" in crossing(doses, np.array([0.0, 0.0, -0.1]), -0.05).reason


def test_a_threshold_of_a_run_is_at_half_of_its_highest_gain():
    run = run_of({0: [0.0, 0.0], 1: [0.0, 0.0], 4: [1.0, 1.0], 16: [2.0, 2.0]})
    assert QUANTITIES["threshold"](run, LOGLIK).value == pytest.approx(2)


def test_what_is_retained():
    run = run_of({0: [0.0, 0.0], 4: [1.0, 1.0]})
    later = run.metrics

    def metrics(name, *, steps, **settings):
        return later(name, steps=steps).with_columns(pl.col("value") * (1.0 if steps[0] == 5 else 0.25))

    run.metrics = metrics
    assert QUANTITIES["retained"](run, {**LOGLIK, "dose": 4, "since": 5}).value == pytest.approx(0.25)


def test_a_contrast_and_a_slope_of_a_claim():
    run = run_of({0: [0.0, 0.0], 1: [1.0, 1.0], 4: [2.0, 2.0], 16: [3.0, 3.0]})
    usual = {"text": "", "published": "", "quantity": "gain", "expected": 1.0, "deviation": 1.0}
    contrast = Claim(**usual, cell={**LOGLIK, "dose": 16}, minus={"dose": 1})
    assert contrast.measure({"main": run}).value == pytest.approx(2)
    slope = Claim(**usual, cell=LOGLIK, along=Along(field="dose", values=(1, 4, 16)))
    assert slope.measure({"main": run}).value == pytest.approx(0.5)  # a doubling
    runs = {"small": run, "large": run_of({0: [0.0, 0.0], 16: [7.0, 7.0]})}
    sizes = Claim(
        **usual, cell={**LOGLIK, "dose": 16}, along=Along(field="run", values=("small", "large"), x=(0, 2))
    )
    assert sizes.measure(runs).value == pytest.approx(2)


def test_arms_are_chosen_by_all_of_their_levels():
    arms = {4: "dose 4, phase 0-0.5", 16: "dose 4, phase 0.5-1"}
    run = run_of({0: [0.0, 0.0], 4: [1.0, 1.0], 16: [2.0, 2.0]}, arms=arms)
    assert QUANTITIES["gain"](run, {**LOGLIK, "arm": "phase 0.5-1"}).value == pytest.approx(2)


@pytest.mark.parametrize(
    ("cell", "part"),
    [
        ({"metric": "loglik_per_bite"}, "metric=loglik_per_bite is unknown; did you mean 'loglik_per_byte'?"),
        ({**LOGLIK, "family": "passage"}, "family=passage is not in a run; did you mean 'passages'?"),
        ({**LOGLIK, "dose": 5}, "no item has dose=5"),
        ({**LOGLIK, "arm": "dose 5"}, "no item has arm=dose 5"),
    ],
)
def test_a_cell_that_is_not_there_is_named(cell, part):
    with pytest.raises(UserError) as error:
        QUANTITIES["gain"](run_of({0: [0.0, 0.0], 4: [1.0, 1.0]}), cell)
    assert part in str(error.value)


def test_an_ec50_of_fixed_doses():
    """Half of the items of dose 8 are 0.5 above the never-inserted ones, fewer below and more above."""
    rates = {2: 0, 4: 1, 8: 4, 16: 7, 32: 8}
    values = {dose: [1.6] * hits + [1.1] * (8 - hits) for dose, hits in rates.items()}
    found = QUANTITIES["ec50"](run_of({0: [0.9, 1.1], **values}), {**LOGLIK, "level": 0.5})
    assert found.value == pytest.approx(3, abs=0.05)
    assert 0.1 < found.error < 0.6


def test_no_ec50_where_nothing_is_remembered():
    found = QUANTITIES["ec50"](run_of({0: [1.0], 2: [1.0], 4: [1.0]}), {**LOGLIK, "level": 0.5})
    assert math.isnan(found.value)
    assert found.reason == "all items are remembered, or none"


def test_an_ec50_of_an_adaptive_run_follows_from_its_decisions(tmp_path):
    """Eight items with thresholds of 4 to 12 exposures, two at a time: half of them are reached after 8."""
    thresholds = {f"i{k}": 4 + 8 * k / 7 for k in range(8)}
    decisions = [
        {
            "seen": {i: float(2 * n >= t) for i, t in thresholds.items()},
            "exposures": dict.fromkeys(thresholds, 2),
        }
        for n in range(7)
    ]
    decisions[-1]["after"] = dict.fromkeys(thresholds, 1.0)
    record = {"policy": "insert_until", "threshold": 0.5, "decisions": decisions}
    (tmp_path / "adaptive").mkdir()
    (tmp_path / "adaptive" / "decisions.json").write_text(json.dumps(record))
    run = SimpleNamespace(directory=tmp_path, name="a run")
    found = QUANTITIES["ec50"](run, {**LOGLIK, "level": 0.5})
    assert 2**found.value == pytest.approx(8, rel=0.15)
    assert 0 < found.error < 0.5
    with pytest.raises(UserError, match=r"cell\.level=0\.4: a run decided at 0\.5"):
        QUANTITIES["ec50"](run, {**LOGLIK, "level": 0.4})


@pytest.fixture
def posttrained(tmp_path) -> Posttrained:
    """A run of NPO with two checkpoints, beside another run's rows."""
    (tmp_path / "estimates.csv").write_text(
        "run,step,group,dose,statistic,estimate,low,high,n\n"
        "npo-1,0,forget set,,shift,0.5,0.3,0.7,8\n"
        "npo-1,20,forget set,,shift,0.2,0.1,0.3,8\n"
        "npo-1,20,forget set,4,shift,0.1,0.0,0.2,4\n"
        "npo-1,20,forget set,16,shift,0.3,0.2,0.4,4\n"
        "npo-1,20,forget set,,half_back,,,,8\n"
        "rmu-1,20,forget set,,shift,9,8,10,8\n"
    )
    return Posttrained(tmp_path, tmp_path, "npo-1")


def test_a_statistic_of_a_post_trained_run(posttrained):
    cell = {"group": "forget set", "statistic": "shift"}
    last, first = (QUANTITIES["unlearned"](posttrained, {**cell, **step}) for step in ({}, {"step": 0}))
    assert (last.value, first.value) == (0.2, 0.5)
    assert last.error == pytest.approx(0.2 / 3.92, rel=1e-3)
    assert QUANTITIES["unlearned"](posttrained, {**cell, "dose": 16}).value == 0.3
    never = QUANTITIES["unlearned"](posttrained, {**cell, "statistic": "half_back"})
    assert math.isnan(never.value)
    assert never.reason == "half_back is not reached in 20 steps"
    with pytest.raises(
        UserError,
        match="statistic=shft: the comparison of npo-1 has no such row; did you mean 'forget set: shift'",
    ):
        QUANTITIES["unlearned"](posttrained, {**cell, "statistic": "shft"})
    with pytest.raises(UserError, match="a run is no post-trained run"):
        QUANTITIES["unlearned"](run_of({0: [1.0]}), cell)


def test_arms_of_a_post_trained_run_are_the_doses_of_its_forget_set(posttrained):
    rows = arms_of(posttrained, ["loglik_per_byte"])
    assert rows.select("family", "arm", "items", "gain").rows() == [
        ("forget set", "dose 4", 4, 0.1),
        ("forget set", "dose 16", 4, 0.3),
    ]
