"""Nominal 95 % intervals cover 93-97 % in 1,000 simulated experiments, with clustered items and autocorrelated
checkpoints; and the intervals in common use do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from palimpsest.analysis.statistics import (
    cluster_contrast,
    clustered_ec50,
    fieller,
    forgetting_slope,
    log_slopes,
)
from tests.analysis import coverage

pytestmark = pytest.mark.slow

EXPERIMENTS = 1000
DOSES = np.array([0, 1, 4, 16, 64, 256])


@pytest.mark.long
def test_every_interval_of_the_report_holds_what_it_says() -> None:
    """Every row within 92.5 to 97.5 %, distances up to 99 %; the table is printed."""
    found = list(coverage.table())
    print(*(f"{row.coverage:.3f}  {row.interval}: {row.design}" for row in found), sep="\n")
    most = {True: 0.99, False: 0.975}
    wrong = [row for row in found if not 0.925 <= row.coverage <= most[row.interval.startswith("distance")]]
    assert not wrong


@pytest.mark.long
def test_the_report_finds_what_the_plan_says_it_shows() -> None:
    for design, share in coverage.power_held(np.random.default_rng(0)):
        assert 0.74 <= share <= 0.86, design


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...], rho: float) -> np.ndarray:
    """Stationary AR(1) along the last axis, sd 1."""
    noise = rng.normal(size=shape)
    for t in range(1, shape[-1]):
        noise[..., t] = rho * noise[..., t - 1] + np.sqrt(1 - rho**2) * noise[..., t]
    return noise


def _clustered_rates(
    rng: np.random.Generator, clusters: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Hits per cluster and dose, trials, and the EC50 of the population's mean rate."""
    # Every person has a strength of memory, normal on the logit scale; the curve of the mean is the target.
    strength = np.polynomial.hermite_e.hermegauss(60)
    spread, total = 1.0, int(clusters.sum())

    def mean_rate(log2_dose: np.ndarray) -> np.ndarray:
        inner = expit(1.4 * (log2_dose[..., None] - 4.2) + spread * strength[0])
        return 0.02 + 0.98 * (inner @ strength[1]) / strength[1].sum()

    with np.errstate(divide="ignore"):
        x = np.log2(DOSES.astype(float))
    dose = np.repeat(np.arange(len(DOSES)), clusters)
    own = rng.normal(0, spread, (EXPERIMENTS, total))
    p = np.where(
        DOSES[dose] > 0, 0.02 + 0.98 * expit(1.4 * (x[dose] - 4.2) + own), expit(logit(0.02) + 0 * own)
    )
    drawn = rng.binomial(size, p)
    hits, trials = np.zeros((EXPERIMENTS, total, len(DOSES))), np.zeros((total, len(DOSES)))
    hits[:, np.arange(total), dose] = drawn
    trials[np.arange(total), dose] = size
    # What the fitted curve estimates is its closest logistic to the mean curve; by symmetry its middle is 4.2.
    assert mean_rate(np.array([4.2]))[0] == pytest.approx(0.51, abs=1e-6)
    return hits, trials, 2**4.2


def test_ec50_of_clustered_items_covers() -> None:
    rng = np.random.default_rng(0)
    clusters = np.array([60, 60, 60, 60, 60, 60])
    hits, trials, truth = _clustered_rates(rng, clusters, 7)
    found = clustered_ec50(DOSES, hits, trials)
    assert 0.93 <= covered(found.low, found.high, truth) <= 0.97
    # The same data as if its items were independent: one cluster an item has the dose's totals as sufficient.
    items = np.repeat(trials, 7, axis=0) / 7
    split = np.zeros((EXPERIMENTS, items.shape[0], len(DOSES)))
    for k in range(7):
        split[:, k::7] = hits > k
    naive = clustered_ec50(DOSES, split, items)
    assert covered(naive.low, naive.high, truth) < 0.90


TIMES = np.geomspace(1, 2000, 40)


def _curves(rng: np.random.Generator, clusters: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """l of treated and never-inserted facts at 40 checkpoints: own level and slope by cluster, AR(0.95) noise of
    each fact, and an AR(0.98) drift that all facts share."""
    cluster = np.repeat(np.arange(2 * clusters), size)
    treated = cluster < clusters
    shape = (EXPERIMENTS, len(cluster))
    own = rng.normal(0, 0.03, (EXPERIMENTS, 2 * clusters))[:, cluster] + rng.normal(0, 0.02, shape)
    level = rng.normal(0, 0.5, (EXPERIMENTS, 2 * clusters))[:, cluster] + rng.normal(0, 0.3, shape)
    x = np.log10(TIMES)
    y = level[..., None] + (own - 0.2 * treated)[..., None] * x
    y += 0.15 * autocorrelated(rng, (*shape, len(TIMES)), 0.95)
    y += 0.3 * autocorrelated(rng, (EXPERIMENTS, 1, len(TIMES)), 0.98)
    return y, treated, cluster


def test_forgetting_slope_covers_and_ordinary_least_squares_does_not() -> None:
    y, treated, cluster = _curves(np.random.default_rng(2), 12, 3)
    found = forgetting_slope(y, TIMES, treated, cluster)
    assert 0.93 <= covered(found.low, found.high, -0.2) <= 0.97
    # In common use: OLS of the mean curve on log time, with the residuals' error.
    mean = y[:, treated].mean(axis=1)
    x = np.log10(TIMES) - np.log10(TIMES).mean()
    slope = mean @ x / (x @ x)
    residual = mean - mean.mean(-1, keepdims=True) - slope[:, None] * x
    error = np.sqrt((residual**2).sum(-1) / (len(TIMES) - 2) / (x @ x))
    assert covered(slope - 1.96 * error, slope + 1.96 * error, -0.2) < 0.6


def test_decay_of_retainability_by_fieller_covers() -> None:
    rng = np.random.default_rng(3)
    gain = rng.normal(1.0, 0.4, (EXPERIMENTS, 40))
    y = gain[..., None] * (1 - 0.25 * np.log10(TIMES)) + 0.2 * autocorrelated(
        rng, (EXPERIMENTS, 40, 40), 0.95
    )
    top, bottom = -log_slopes(y, TIMES), gain + rng.normal(0, 0.1, gain.shape)
    inside = 0
    for a, b in zip(top, bottom, strict=True):
        v = np.cov(a, b) / 40
        found = fieller(a.mean(), b.mean(), v[0, 0], v[1, 1], v[0, 1], 39)
        inside += found.bounded and found.low <= 0.25 <= found.high
    assert 0.93 <= inside / EXPERIMENTS <= 0.97


def test_unequal_clusters_cover() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 9, 50)
    cluster = np.repeat(np.arange(50), sizes)
    treated = cluster < 25
    y = rng.normal(0, 1, (EXPERIMENTS, 50))[:, cluster] + rng.normal(0, 1, (EXPERIMENTS, len(cluster)))
    found = cluster_contrast(y + 0.7 * treated, treated, cluster)
    assert 0.93 <= covered(found.low, found.high, 0.7) <= 0.97
