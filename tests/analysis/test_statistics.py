"""Statistics against worked examples, closed forms, and truths that the data were made with."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from palimpsest.analysis.statistics import (
    PAIRED,
    auc,
    auc_limits,
    clopper_pearson,
    delong,
    difference_to_twin,
    gain_over_control,
    mean_by_dose,
    minimum_effective_dose,
    share_limits,
    split_controls,
)
from palimpsest.analysis.statistics.intervals import skewed_limits

RATE = (0.0, 1.0)
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


def test_mid_p_limits_solve_their_equations() -> None:
    hits, trials = np.array([0, 1, 5, 10, 76]), np.array([10, 30, 759, 10, 76])
    low, high = share_limits(hits / trials, trials)
    for x, n, a, b in zip(hits, trials, low, high, strict=True):
        above, below = (stats.binom(n, a), stats.binom(n, b))
        assert x == 0 or above.sf(x - 1) + above.sf(x) == pytest.approx(0.05, rel=1e-6)
        assert x == n or below.cdf(x) + below.cdf(x - 1) == pytest.approx(0.05, rel=1e-6)
    assert (low[0], high[3]) == (0.0, 1.0)
    # A share that is not a count over n lies between its neighbours; of very many, limits are the normal ones.
    between = share_limits([1.5 / 30], [30.0])[0][0]
    assert low[1] < between < share_limits([2 / 30], [30.0])[0][0]
    many = share_limits([0.3], [1e7])
    assert [float(m[0]) for m in many] == pytest.approx(
        [0.3 - 1.96 * (0.21 / 1e7) ** 0.5, 0.3 + 1.96 * (0.21 / 1e7) ** 0.5], abs=1e-7
    )


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("copies", [1, 4])
def test_no_interval_of_a_share_has_width_0(value: float, copies: int) -> None:
    dose, cluster = np.repeat([4, 0], 10 * copies), np.repeat(np.char.mod("c%d", np.arange(20)), copies)
    data = rows(np.full(dose.size, value), dose).with_columns(cluster=pl.Series(cluster))
    for found in (gain_over_control(data, bounds=RATE), split_controls(data, bounds=RATE)):
        row = one(found, family="all")
        assert row["low"] < 0 < row["high"]  # type: ignore[operator]
    level = one(mean_by_dose(data, bounds=(0, 1)), family="all", dose=4)
    assert level["high"] - level["low"] > 0.2  # type: ignore[operator]
    assert 0 <= level["low"] <= value <= level["high"] <= 1  # type: ignore[operator]
    # Copies of an item in its cluster say nothing new.
    assert (level["n"], level["clusters"]) == (10 * copies, 10)
    assert level["high"] == pytest.approx(value + (1 - value) * (1 - 0.05**0.1))


def test_families_of_unequal_shares_are_not_pooled() -> None:
    """Rates of .5 and .02 and no effect: pooled, the dose of the easy family's items looks like an effect."""
    counts = {("a", 0): 5, ("a", 64): 30, ("b", 0): 30, ("b", 64): 5}
    cells = [(f, d) for (f, d), count in counts.items() for _ in range(count)]
    family, dose = [f for f, _ in cells], np.array([d for _, d in cells])
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(40):
        hit = rng.random(70) < np.where(np.array(family) == "a", 0.5, 0.02)
        row = one(gain_over_control(rows(hit.astype(float), dose, family, family), bounds=RATE), family="all")
        above += row["low"] > 0  # type: ignore[operator]
    assert above <= 4


def test_auc_worked_example_o10() -> None:
    found = delong([-x for x in MEMBERS], [-x for x in CONTROLS])
    assert found.auc == pytest.approx(0.781250, abs=5e-7)
    assert found.variance**0.5 == pytest.approx(0.119289, abs=5e-7)
    data = rows(-np.array(MEMBERS + CONTROLS), np.array([64] * 8 + [0] * 8))
    row = one(auc(data), family="all")
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx((0.781250, *auc_limits([found], [1])))
    assert row["low"] < 0.53 < 0.9 < row["high"]  # type: ignore[operator]
    assert (row["n"], row["n_control"], row["clusters"], row["clusters_control"]) == (8, 8, 8, 8)


def test_an_area_near_1_moves_little_with_one_pair() -> None:
    family = [f for f in "abc" for _ in range(20)]
    dose = np.tile(np.repeat([64, 0], 10), 3)
    perfect = np.tile(np.r_[np.arange(10) + 100.0, np.arange(10)], 3)
    swapped = perfect.copy()
    swapped[0], swapped[19] = 8.5, 9.0
    first, second = (one(auc(rows(v, dose, family, family)), family="all") for v in (perfect, swapped))
    assert (first["estimate"], first["high"]) == (1.0, 1.0)
    assert 0.85 < first["low"] < 0.97  # type: ignore[operator]
    assert second["estimate"] == pytest.approx(1 - 1 / 300)
    assert abs(first["low"] - second["low"]) < 0.02  # type: ignore[operator]
    flipped = one(auc(rows(-perfect, dose, family, family)), family="all")
    assert (flipped["estimate"], flipped["low"]) == (0.0, 0.0)
    assert flipped["high"] == pytest.approx(1 - first["low"])  # type: ignore[operator]


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

    def welch(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Welch's interval, with his degrees of freedom of 1947."""
        parts = [(a.var(ddof=1) / a.size, a.size - 1) for a in (x, y)]
        v = sum(part for part, _ in parts)
        df = v**2 / sum(part**2 / (n + 2) for part, n in parts) - 2
        half = stats.t.ppf(0.975, df) * v**0.5
        return x.mean() - y.mean() - half, x.mean() - y.mean() + half

    low, high = welch(treated, control)
    # Without skewness it is Welch's t; with it one of the limits is farther out, none farther in.
    even = np.r_[treated - treated.mean(), treated.mean() - treated]
    row_even = one(gain_over_control(rows(np.r_[even, 0.5 * even], np.repeat([4, 0], 18))), family="all")
    assert (row_even["low"], row_even["high"]) == pytest.approx(welch(even, 0.5 * even))
    assert row["low"] <= low + 1e-12  # type: ignore[operator]
    assert row["high"] >= high - 1e-12  # type: ignore[operator]
    mean = one(mean_by_dose(rows(even, np.full(18, 4))), family="all")
    assert (mean["low"], mean["high"]) == pytest.approx(stats.t.interval(0.95, 17, 0, stats.sem(even)))


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_limits_of_ten_against_ten_hold_skewed_effects(spread: float) -> None:
    """Of 20,000 experiments with lognormal effects of that sd, and normal noise."""
    rng = np.random.default_rng(4)
    n, many = 10, 20_000
    arms = [
        rng.normal(0, 0.5, (many, n)) + rng.lognormal(0, spread, (many, n)),
        rng.normal(0, 0.5, (many, n)),
    ]
    mean, variance, third = (
        np.array([function(arm) for arm in arms])
        for function in (
            lambda arm: arm.mean(1),
            lambda arm: arm.var(1, ddof=1) / n,
            lambda arm: stats.skew(arm, axis=1, bias=False) * arm.std(1, ddof=1) ** 3 / n**2,
        )
    )
    v = variance.sum(0)
    df = np.maximum(v**2 / (variance**2 / (n + 1)).sum(0) - 2, 1.0)
    low, high = skewed_limits(mean[0] - mean[1], v, third[0] - third[1], df)
    truth = np.exp(spread**2 / 2)
    assert 0.925 <= np.mean((low <= truth) & (truth <= high)) <= 0.975


def test_copies_of_an_item_in_a_cluster_are_the_item() -> None:
    rng = np.random.default_rng(6)
    family, stratum, dose = design(5, (0, 4))
    value = rng.exponential(size=len(dose)) + 0.3 * (dose == 4)
    own = rows(value, dose, family, stratum)
    copies = pl.concat(
        own.with_columns(
            item_id=pl.format("{}-{}", "item_id", pl.lit(k)),
            probe_id=pl.format("{}-{}", "item_id", pl.lit(k)),
            cluster="item_id",
        )
        for k in range(5)
    )
    columns = ["estimate", "low", "high"]
    for found in (
        lambda data: gain_over_control(data, permutations=99).filter(pl.col("p") > 0),
        mean_by_dose,
        split_controls,
        auc,
    ):
        one_each, five = found(own), found(copies)
        assert five["clusters"].to_list() == one_each["n"].to_list()
        assert five["n"].to_list() == [5 * n for n in one_each["n"]]
        for name in [*columns, *(["p"] if one_each["p"].null_count() == 0 else [])]:
            assert five[name].to_list() == pytest.approx(one_each[name].to_list(), abs=0.02)


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


def test_a_known_effect_is_recovered_and_tested() -> None:
    family, stratum, dose = design()
    rng = np.random.default_rng(2)
    truth = 0.1 * np.log2(1 + dose)
    data = rows(
        truth + np.array([ord(f) for f in family]) + rng.normal(0, 0.15, len(dose)), dose, family, stratum
    )
    gains = gain_over_control(data, permutations=999).filter(pl.col("family") == "all")
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
    assert "one item or cluster" in str(row["method"])


def test_rates_get_exact_intervals() -> None:
    data = rows(np.r_[np.ones(5), np.zeros(754)], np.zeros(759, int))
    row = one(mean_by_dose(data, bounds=RATE), family="all")
    low, high = share_limits(5 / 759, 759)
    assert (row["low"], row["high"]) == pytest.approx((float(low), float(high)))
    assert 0.002142 < row["low"] < row["high"] < 0.015306  # type: ignore[operator]  # within Clopper-Pearson's


def test_rows_without_values_are_no_items() -> None:
    assert mean_by_dose(rows(np.zeros(0), np.zeros(0, int))).is_empty()
    assert auc(rows(np.zeros(0), np.zeros(0, int))).is_empty()
    assert gain_over_control(rows(np.zeros(3), np.zeros(3, int))).is_empty()
