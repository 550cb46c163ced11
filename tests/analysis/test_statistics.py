"""Statistics against worked examples, closed forms, and truths that the data were made with."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from palimpsest.analysis.statistics import (
    PAIRED,
    auc,
    clopper_pearson,
    delong,
    difference_to_twin,
    gain_over_control,
    logit_interval,
    mean_by_dose,
    minimum_effective_dose,
    rate_difference,
    split_controls,
)

MEMBERS = [2.1, 2.4, 2.5, 2.7, 2.9, 3.0, 3.1, 3.4]
CONTROLS = [2.5, 2.8, 3.0, 3.2, 3.3, 3.5, 3.6, 3.9]


def rows(
    values: np.ndarray,
    dose: np.ndarray,
    family: list[str] | str = "f",
    stratum: list[str] | str = "f/s",
    run: str = "perturbed",
) -> pl.DataFrame:
    ids = [f"i{k}" for k in range(len(values))]
    return pl.DataFrame(
        {
            "run": run,
            "step": 8,
            "probe_id": ids,
            "item_id": ids,
            "family": family,
            "stratum": stratum,
            "dose": dose,
            "metric": "m",
            "value": values,
            "reason": None,
        },
        schema_overrides={"dose": pl.Int32, "reason": pl.String},
    )


def design(
    per_cell: int = 5, doses: tuple[int, ...] = (0, 1, 4, 16, 64)
) -> tuple[list[str], list[str], np.ndarray]:
    cells = [(f, f"{f}/{s}", d) for f in "abc" for s in "xy" for d in doses for _ in range(per_cell)]
    return [c[0] for c in cells], [c[1] for c in cells], np.array([c[2] for c in cells])


def one(estimates: pl.DataFrame, **where: object) -> dict[str, object]:
    found = estimates.filter(*[pl.col(name) == value for name, value in where.items()])
    assert found.height == 1
    return found.row(0, named=True)


def test_clopper_pearson_worked_example_o24() -> None:
    low, high = clopper_pearson([5, 0, 76], [759, 10, 76])
    assert (low[0], high[0]) == pytest.approx((0.002142, 0.015306), abs=5e-7)
    assert (low[1], high[2]) == (0.0, 1.0)
    assert high[1] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_a_difference_of_rates_never_shrinks_to_a_point() -> None:
    low, high = rate_difference([0, 10, 8], [10, 10, 10], [0, 0, 3], [10, 10, 10])
    assert np.all(high - low > 0.15)
    assert np.all((low >= -1) & (high <= 1))
    assert (low[0], high[0]) == pytest.approx((-0.308, 0.308), abs=1e-3)


def test_auc_worked_example_o10() -> None:
    found = delong([-x for x in MEMBERS], [-x for x in CONTROLS])
    assert found.auc == pytest.approx(0.781250, abs=5e-7)
    assert found.variance**0.5 == pytest.approx(0.119289, abs=5e-7)
    assert logit_interval(*found) == pytest.approx((0.476240, 0.933457), abs=5e-7)
    data = rows(-np.array(MEMBERS + CONTROLS), np.array([64] * 8 + [0] * 8))
    row = one(auc(data), family="all")
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx(
        (0.781250, 0.476240, 0.933457), abs=5e-7
    )
    assert (row["n"], row["n_control"]) == (8, 8)


def test_perfect_recognition_keeps_an_honest_interval() -> None:
    data = rows(np.r_[np.arange(10) + 100.0, np.arange(10)], np.array([64] * 10 + [0] * 10))
    row = one(auc(data), family="all")
    assert (row["estimate"], row["high"]) == (1.0, 1.0)
    assert row["low"] == pytest.approx(0.025**0.1)
    flipped = one(auc(data.with_columns(value=-pl.col("value"))), family="all")
    assert (flipped["estimate"], flipped["low"]) == (0.0, 0.0)
    assert flipped["high"] == pytest.approx(1 - 0.025**0.1)


def test_differences_between_families_are_not_taken_for_memory() -> None:
    family, stratum, dose = design(10, (0, 4))
    rng = np.random.default_rng(1)
    keep = np.array([(f == "a") == (d == 4) or rng.random() < 0.3 for f, d in zip(family, dose, strict=True)])
    level = np.array([50.0 if f == "a" else 0.0 for f in family]) + rng.normal(size=len(dose))
    data = rows(level, dose, family, stratum).filter(pl.Series(keep))
    assert (
        delong(data.filter(pl.col("dose") == 4)["value"], data.filter(pl.col("dose") == 0)["value"]).auc > 0.7
    )
    assert abs(one(auc(data), family="all")["estimate"] - 0.5) < 0.2  # type: ignore[operator]


def test_one_stratum_is_welchs_t() -> None:
    rng = np.random.default_rng(0)
    treated, control = rng.normal(1, 2, 9), rng.normal(0, 1, 14)
    row = one(gain_over_control(rows(np.r_[treated, control], np.array([4] * 9 + [0] * 14))), family="all")
    expected = stats.ttest_ind(treated, control, equal_var=False).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    mean = one(mean_by_dose(rows(treated, np.full(9, 4))), family="all")
    assert (mean["low"], mean["high"]) == pytest.approx(
        stats.t.interval(0.95, 8, treated.mean(), stats.sem(treated))
    )


def test_strata_are_weighted_by_their_treated_items() -> None:
    # Stratum x: gain 1, three treated; stratum y: gain 5, one treated. Controls lie mostly in y.
    data = pl.concat(
        [
            rows(np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.array([4, 4, 4, 0, 0]), stratum="f/x"),
            rows(np.array([15.0, 10.0, 10.0, 10.0]), np.array([4, 0, 0, 0]), stratum="f/y").with_columns(
                item_id=pl.col("item_id") + "y", probe_id=pl.col("probe_id") + "y"
            ),
        ]
    )
    assert one(gain_over_control(data), family="all")["estimate"] == pytest.approx((3 * 1 + 1 * 5) / 4)


def test_a_known_effect_is_recovered_by_both_intervals_and_tested() -> None:
    family, stratum, dose = design()
    rng = np.random.default_rng(2)
    truth = 0.1 * np.log2(1 + dose)
    data = rows(
        truth + np.array([ord(f) for f in family]) + rng.normal(0, 0.15, len(dose)), dose, family, stratum
    )
    for method in ("t", "bootstrap"):
        gains = gain_over_control(data, method=method, permutations=999).filter(pl.col("family") == "all")  # type: ignore[arg-type]
        assert gains["dose"].to_list() == [1, 4, 16, 64]
        assert gains["p"].to_list()[-1] == 0.001
        top = one(gains, dose=64)
        assert top["low"] < 0.1 * np.log2(65) < top["high"]  # type: ignore[operator]
        assert minimum_effective_dose(gains) in (1, 4)
    assert gain_over_control(data, permutations=99).equals(gain_over_control(data, permutations=99))


def test_permutation_p_is_uniform_when_nothing_was_inserted() -> None:
    family, stratum, dose = design(4, (0, 4))
    rng = np.random.default_rng(3)
    p = [
        one(
            gain_over_control(
                rows(rng.normal(size=len(dose)), dose, family, stratum), permutations=199, seed=k
            ),
            family="all",
        )["p"]
        for k in range(150)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_the_closed_test_stops_at_the_first_dose_that_shows_nothing() -> None:
    def gains(p: list[float | None]) -> pl.DataFrame:
        return pl.DataFrame({"dose": [1, 4, 16, 64], "p": p})

    assert minimum_effective_dose(gains([0.5, 0.03, 0.02, 0.001])) == 4
    assert minimum_effective_dose(gains([0.001, 0.2, 0.02, 0.001])) == 16
    assert minimum_effective_dose(gains([0.001, 0.001, 0.001, 0.06])) is None
    assert minimum_effective_dose(gains([0.001, 0.001, 0.001, None])) is None
    with pytest.raises(ValueError, match="more than one"):
        minimum_effective_dose(pl.concat([gains([0.1] * 4)] * 2))


def test_pairing_with_the_twin_removes_what_items_bring_along() -> None:
    family, stratum, dose = design(5, (0, 64))
    rng = np.random.default_rng(4)
    own = rng.normal(0, 1, len(dose))
    both = pl.concat(
        [
            rows(own + 0.2 * (dose == 64) + rng.normal(0, 0.05, len(dose)), dose, family, stratum),
            rows(own + rng.normal(0, 0.05, len(dose)), dose, family, stratum, run="twin"),
        ]
    )
    paired = one(gain_over_control(difference_to_twin(both)), family="all")
    alone = one(gain_over_control(both), family="all", run="perturbed")
    assert paired["run"] == PAIRED
    assert paired["low"] < 0.2 < paired["high"]  # type: ignore[operator]
    assert paired["high"] - paired["low"] < 0.2 * (alone["high"] - alone["low"])  # type: ignore[operator]


def test_halves_of_the_controls_agree_and_are_the_same_in_every_run() -> None:
    family, stratum, dose = design(5)
    rng = np.random.default_rng(5)
    ours = rows(rng.normal(size=len(dose)) + dose, dose, family, stratum)
    split = split_controls(pl.concat([ours, ours.with_columns(run=pl.lit("twin"))]))
    first, second = (one(split, family="all", run=run) for run in ("perturbed", "twin"))
    assert first["low"] < 0 < first["high"]  # type: ignore[operator]
    assert first["estimate"] == second["estimate"]
    assert (first["n"], first["n_control"]) == (15, 15)
    wrong = sum(
        one(split_controls(ours, seed=k), family="all")["low"] > 0
        or one(split_controls(ours, seed=k), family="all")["high"] < 0  # type: ignore[operator]
        for k in range(100)
    )
    assert wrong <= 15


def test_probes_of_one_item_count_once() -> None:
    data = rows(np.array([0.0, 2.0, 4.0, 6.0]), np.array([4, 4, 4, 4])).with_columns(
        item_id=pl.Series(["a", "a", "b", "b"])
    )
    row = one(mean_by_dose(data), family="all")
    assert (row["n"], row["estimate"]) == (2, 3.0)


def test_items_that_cannot_be_compared_are_counted() -> None:
    family = ["a"] * 8 + ["b"] * 3
    data = rows(np.arange(11.0), np.array([4] * 4 + [0] * 4 + [4] * 3), family, family)
    gains = gain_over_control(data)
    assert "3 items of families without controls left out" in str(one(gains, family="all")["method"])
    alone = one(gains, family="b")
    assert alone["estimate"] is None
    assert "not computed because" in str(alone["method"])


def test_a_single_item_has_no_interval() -> None:
    row = one(mean_by_dose(rows(np.array([1.0]), np.array([4]))), family="all")
    assert (row["estimate"], row["low"]) == (1.0, None)
    assert "one item" in str(row["method"])


def test_rates_get_exact_intervals() -> None:
    data = rows(np.r_[np.ones(5), np.zeros(754)], np.zeros(759, int))
    row = one(mean_by_dose(data, method="rate"), family="all")
    assert (row["low"], row["high"]) == pytest.approx((0.002142, 0.015306), abs=5e-7)
    none = one(
        gain_over_control(rows(np.zeros(20), np.array([4] * 10 + [0] * 10)), method="rate"), family="all"
    )
    assert none["low"] < 0 < none["high"]  # type: ignore[operator]


def test_rows_without_values_are_no_items() -> None:
    assert mean_by_dose(rows(np.zeros(0), np.zeros(0, int))).is_empty()
    assert auc(rows(np.zeros(0), np.zeros(0, int))).is_empty()
    assert gain_over_control(rows(np.zeros(3), np.zeros(3, int))).is_empty()


def _experiments(repeats: int, per_cell: int, strata: int, skewed: bool) -> tuple[pl.DataFrame, float]:
    """Experiments with unequal variances; one a step. Returns their rows and the true gain at dose 64."""
    rng = np.random.default_rng(per_cell)
    family, stratum, dose = (
        a.ravel() for a in np.meshgrid(range(3), range(strata), np.repeat([0, 64], per_cell), indexing="ij")
    )
    noise = (
        rng.gamma(2, size=(repeats, len(dose))) / 2**0.5 if skewed else rng.normal(size=(repeats, len(dose)))
    )
    if skewed:
        noise -= 2**0.5
    scale = (0.1 + 0.05 * family) * np.where(dose == 64, 1.5, 1) * (1 + 0.1 * stratum)
    values = 0.3 * (dose == 64) * (1 + family) + 0.2 * stratum + scale * noise
    base = rows(
        values[0],
        dose,
        [f"f{f}" for f in family],
        [f"f{f}/{s}" for f, s in zip(family, stratum, strict=True)],
    )
    frames = [base.with_columns(step=pl.lit(k, pl.Int64), value=pl.Series(v)) for k, v in enumerate(values)]
    return pl.concat(frames), 0.3 * 2


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize(("per_cell", "strata"), [(2, 4), (3, 3), (5, 2), (10, 1)])
def test_the_default_interval_covers_what_it_says(per_cell: int, strata: int, skewed: bool) -> None:
    data, truth = _experiments(2000, per_cell, strata, skewed)
    gains = gain_over_control(data).filter(pl.col("family") == "all")
    covered = gains.select(((pl.col("low") <= truth) & (pl.col("high") >= truth)).mean()).item()
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
def test_the_percentile_bootstrap_does_not_in_small_cells() -> None:
    data, truth = _experiments(500, 2, 4, False)
    gains = gain_over_control(data, method="bootstrap", replicates=400).filter(pl.col("family") == "all")
    covered = gains.select(((pl.col("low") <= truth) & (pl.col("high") >= truth)).mean()).item()
    assert covered < 0.88


@pytest.mark.slow
def test_the_interval_of_the_auc_covers() -> None:
    data, _ = _experiments(600, 5, 2, False)
    shifted = data.with_columns(
        value=pl.col("value") * 0
        + pl.Series(np.random.default_rng(9).normal(size=data.height))
        + (pl.col("dose") > 0)
    )
    truth = stats.norm.cdf(1 / 2**0.5)
    found = auc(shifted).filter(pl.col("family") == "all")
    covered = found.select(((pl.col("low") <= truth) & (pl.col("high") >= truth)).mean()).item()
    assert 0.93 <= covered <= 0.98
