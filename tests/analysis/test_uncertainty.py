"""Power, clusters, bootstraps by counts, multiplicity, TPR at low FPR, forgetting: closed forms, nulls, controls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from palimpsest.analysis.statistics import (
    auc_error,
    auc_limits,
    cluster_contrast,
    compare_families,
    delong,
    fieller,
    fit_curve,
    forgetting_intervals,
    forgetting_slope,
    holm,
    learning_rate_time,
    time_to_forget,
    tpr_at_fpr,
)

MEMBERS = -np.array([2.1, 2.4, 2.5, 2.7, 2.9, 3.0, 3.1, 3.4])
CONTROLS = -np.array([2.5, 2.8, 3.0, 3.2, 3.3, 3.5, 3.6, 3.9])


def test_o10_membership_evaluation() -> None:
    assert auc_error(0.78125, 8, 8) == pytest.approx(0.119262, abs=5.1e-7)
    assert [tpr_at_fpr(MEMBERS, CONTROLS, a).tpr for a in (0.01, 0.125, 0.25)] == [0.25, 0.5, 0.625]
    assert tpr_at_fpr(MEMBERS, CONTROLS, 0.125, strict=True).tpr == 0.25


def test_the_error_of_an_auc_without_effect() -> None:
    errors = [auc_error(0.5, n, n) for n in (100, 500, 1000, 2500)]
    assert errors == pytest.approx([0.0409, 0.0183, 0.0129, 0.0082], abs=5.1e-5)


def test_clusters_of_one_are_welch_and_clusters_of_copies_count_once() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 2, 12), rng.normal(0, 1, 15)
    treated = np.r_[np.ones(12, bool), np.zeros(15, bool)]
    plain = cluster_contrast(np.r_[x, y], treated)
    welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    assert (plain.low, plain.high) == pytest.approx((welch.low, welch.high))
    copied = cluster_contrast(np.repeat(np.r_[x, y], 7), np.repeat(treated, 7), np.repeat(np.arange(27), 7))
    assert (copied.low, copied.high) == pytest.approx((welch.low, welch.high))


def test_clusters_in_both_arms_are_pairs() -> None:
    rng = np.random.default_rng(2)
    own = rng.normal(0, 5, 20)
    y = np.r_[own + 1 + rng.normal(0, 0.1, 20), own + rng.normal(0, 0.1, 20)]
    found = cluster_contrast(y, np.arange(40) < 20, np.tile(np.arange(20), 2))
    paired = stats.ttest_rel(y[:20], y[20:]).confidence_interval()
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high))


def test_a_shared_drift_of_the_checkpoints_cancels() -> None:
    rng = np.random.default_rng(4)
    times, treated = np.geomspace(1, 1000, 12), np.arange(40) < 20
    memory = np.where(treated, -0.2, 0)[:, None] * np.log10(times) + rng.normal(0, 0.05, (40, 12))
    drift = np.cumsum(rng.normal(0, 1, 12))
    calm, stormy = (forgetting_slope(memory + d, times, treated) for d in (0.0, drift))
    assert calm.estimate == pytest.approx(float(stormy.estimate))
    assert stormy.low < -0.2 < stormy.high < -0.1


def test_clustered_auc_is_delong_for_single_items_and_wider_for_copies() -> None:
    plain = delong(MEMBERS, CONTROLS)
    copied = delong(
        np.repeat(MEMBERS, 3),
        np.repeat(CONTROLS, 3),
        np.repeat(np.arange(8), 3),
        np.repeat(np.arange(8, 16), 3),
    )
    assert copied.variance == pytest.approx(plain.variance)
    assert (copied.members, copied.controls) == (8, 8)
    assert auc_limits([copied], [1]) == pytest.approx(auc_limits([plain], [1]), abs=0.01)
    with pytest.raises(ValueError, match="clusters are needed"):
        delong(MEMBERS, CONTROLS, np.zeros(8), np.arange(8))


def test_holm() -> None:
    p = [0.01, 0.04, 0.03, math.nan, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True)


def test_fieller_solves_its_quadratic_and_says_when_it_is_unbounded() -> None:
    found = fieller(2.0, 4.0, 0.04, 0.09)
    for end in (found.low, found.high):
        assert (2 - 4 * end) ** 2 == pytest.approx(stats.chi2.ppf(0.95, 1) * (0.04 + 0.09 * end**2))
    assert found.low < 0.5 < found.high
    assert not fieller(2.0, 0.1, 0.04, 0.09).bounded


def test_chance_at_low_fpr_is_more_than_the_fpr() -> None:
    rng = np.random.default_rng(8)
    found = [tpr_at_fpr(rng.normal(size=1000), rng.normal(size=1000), 0.001) for _ in range(1000)]
    rates = np.array([f.tpr for f in found])
    assert found[0].chance_mean == pytest.approx(0.002, abs=1e-4)
    assert rates.mean() == pytest.approx(found[0].chance_mean, abs=2e-4)
    assert np.mean(rates > found[0].chance_high) <= 0.025 + 0.012
    assert found[0].chance_high == pytest.approx(0.007, abs=1e-9)
    shown = tpr_at_fpr(rng.normal(3, 1, 5000), rng.normal(size=5000), 0.001)
    assert shown.low > shown.chance_high
    assert shown.chance_high == pytest.approx(0.0028, abs=1e-9)


NELDER = {"xatol": 1e-9, "fatol": 1e-16, "maxiter": 4000, "maxfev": 4000}
TIMES = np.geomspace(1, 4096, 13)
TRUTHS = {
    "log_linear": 0.9 - 0.08 * np.log(TIMES),
    "power": 0.9 * TIMES**-0.3,
    "shifted_power": 0.9 * (1 + TIMES / 100) ** -1.2,
    "exponential": 0.9 * np.exp(-TIMES / 300),
    "exponential_floor": 0.3 + 0.6 * np.exp(-TIMES / 100),
    "weibull": 0.9 * np.exp(-((TIMES / 200) ** 0.5)),
}


@pytest.mark.parametrize("family", TRUTHS)
def test_each_family_is_told_from_the_others(family: str) -> None:
    rng = np.random.default_rng(9)
    found = compare_families(TIMES, TRUTHS[family] + rng.normal(0, 0.01, (60, 13)), replicates=200)
    assert found.identified
    assert found.curves[0].family == family
    assert max(found.weights, key=lambda name: found.weights[name]) == family
    assert sum(found.weights.values()) == pytest.approx(1)


def test_exact_curves_give_back_their_parameters() -> None:
    assert fit_curve(TIMES, TRUTHS["power"], "power").parameters == pytest.approx(
        {"A": 0.9, "b": 0.3}, rel=1e-4
    )
    floor = fit_curve(TIMES, TRUTHS["exponential_floor"], "exponential_floor").parameters
    assert floor == pytest.approx({"F": 0.3, "A": 0.6, "c": 100}, rel=1e-4)
    line = fit_curve(TIMES, TRUTHS["log_linear"], "log_linear").parameters
    assert line == pytest.approx({"a": 0.9, "b": 0.08}, rel=1e-6)
    assert math.isinf(fit_curve(TIMES[:4], TRUTHS["weibull"][:4], "weibull").aicc)


def test_a_weibull_fit_is_the_least_squares_minimum() -> None:
    """Along its ridge a search that zooms in stops short."""
    rng = np.random.default_rng(3)
    times = np.geomspace(1, 30_000, 12)
    for k, c in ((0.08, 20.0), (0.15, 3e5), (0.5, 200.0), (3.0, 2e4)):
        y = 0.9 * np.exp(-((times / c) ** k)) + rng.normal(0, 0.01, 12)

        def squares(theta: np.ndarray, y: np.ndarray = y) -> float:
            with np.errstate(over="ignore"):
                s = np.exp(-((times / math.exp(theta[1])) ** math.exp(theta[0])))
            return float(((y - s * (s @ y) / max(s @ s, 1e-300)) ** 2).sum())

        starts = [(math.log(a), math.log(b)) for a in (0.05, 0.2, 1.0) for b in (0.01, 10.0, 1e3, 1e6)]
        theirs = min(optimize.minimize(squares, s, method="Nelder-Mead", options=NELDER).fun for s in starts)
        assert fit_curve(times, y, "weibull").rss <= theirs * (1 + 1e-6)


def test_time_to_forget_is_found_between_checkpoints() -> None:
    rng = np.random.default_rng(10)
    gone = 200 * rng.weibull(1.5, 300)
    values = (gone[:, None] > TIMES).astype(float)
    found = time_to_forget(TIMES, values, 0.5)
    truth = 200 * math.log(2) ** (1 / 1.5)
    assert found.low < truth < found.high < 1.3 * truth
    assert found.shape == pytest.approx(1.5, rel=0.15)
    assert found.items + found.never_learned == 300
    assert found.still_held == 0
    lower, upper = forgetting_intervals([1, 2, 4], [[1, 1, 1], [1, 0, 1], [0, 0, 0]], 0.5)
    assert lower.tolist()[:2] == [4, 1]
    assert upper.tolist()[:2] == [math.inf, 2]
    assert math.isnan(lower[2])


def test_time_in_learning_rate() -> None:
    assert learning_rate_time([2, 4], [0.1, 0.2, 0.3, 0.4], 1).tolist() == pytest.approx([0.2, 0.9])
