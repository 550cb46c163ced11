"""Quantities of cells on runs with known values."""

import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.replication.claims import Along, Claim
from palimpsest.analysis.replication.quantities import QUANTITIES, crossing
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
        name="a run", last_step=10, metrics=metrics, plan=SimpleNamespace(items=items), exposures=exposures
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
