"""Counts, rates, tests and clusters against plain loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palimpsest.analysis.metrics import membership as mem
from palimpsest.analysis.metrics import watermark as wat
from palimpsest.analysis.run.time_rows import change_over_controls
from palimpsest.analysis.statistics import (
    clopper_pearson,
    cluster_contrast,
    cochran_armitage,
    fieller,
    forgetting_slope,
    holm,
)
from tests.analysis.synthetic import by_unit
from tests.analysis.test_first_principles import SEED

# Counts, rates, tests


@settings(max_examples=30, deadline=None)
@given(SEED)
def test_binomials_by_their_tails(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    x = int(rng.integers(0, n + 1))

    def tail(p: float, least: int) -> float:
        return math.fsum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(least, n + 1))

    low, high = (float(v) for v in clopper_pearson(x, n))
    assert tail(low, x) == pytest.approx(0.025) if x else low == 0
    assert 1 - tail(high, x + 1) == pytest.approx(0.025) if x < n else high == 1
    bound = mem.one_run_epsilon(x, n)
    if bound > 0:
        assert tail(1 / (1 + math.exp(-bound)), x) == pytest.approx(0.05)
    else:
        assert tail(0.5, x) >= 0.05
    doses, trials = [0, 2, 8], [n, 3, 5]
    hits = [x, int(rng.integers(0, 4)), int(rng.integers(0, 6))]
    found = cochran_armitage(doses, hits, trials, "raw").z
    answers = [(d, j < h) for d, h, t in zip(doses, hits, trials, strict=True) for j in range(t)]
    if len({hit for _, hit in answers}) == 2:
        # z^2 = N r^2 of doses and answers (Armitage 1955).
        r = np.corrcoef(np.array(answers, float).T)[0, 1]
        assert found == pytest.approx(r * math.sqrt(len(answers)))
    else:
        assert found == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.3, 0.3, 1.0]), min_size=1, max_size=6))
def test_adjusted_p_values_by_their_definitions(p: list[float]) -> None:
    order = sorted(range(len(p)), key=lambda k: p[k])
    m = len(p)
    down, up, least = [0.0] * m, [0.0] * m, 1.0
    most = 0.0
    for place, k in enumerate(order):
        most = max(most, min(1.0, (m - place) * p[k]))
        down[k] = most
    for place in reversed(range(m)):
        least = min(least, m / (place + 1) * p[order[place]])
        up[order[place]] = least
    assert holm(p) == pytest.approx(down)
    x = -2 * sum(math.log(q) for q in p) if min(p) else math.inf
    assert wat.combined_p(p) == pytest.approx(stats.chi2.sf(x, 2 * m))


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(-0.9, 0.9))
def test_fiellers_set_is_where_its_inequality_holds(
    a: float, b: float, va: float, vb: float, r: float
) -> None:
    cov = r * math.sqrt(va * vb)
    found = fieller(a, b, va, vb, cov)
    t2 = stats.chi2.ppf(0.95, 1)
    for ratio in [*np.linspace(-20, 20, 81), *(end for end in found[1:3] if math.isfinite(end))]:
        away = (a - ratio * b) ** 2 - t2 * (va - 2 * ratio * cov + ratio**2 * vb)
        if abs(away) < 1e-6 * (1 + ratio**2):
            continue
        inside = found.low <= ratio <= found.high
        if math.isinf(found.low):
            assert away < 0
        else:
            assert (away < 0) == (inside if found.bounded else not inside)


# Clusters, differences, bootstraps


@settings(max_examples=30, deadline=None)
@given(SEED)
def test_clustered_contrasts_by_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cluster = np.r_[0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6]
    treated = cluster >= 4
    y = rng.normal(size=12)
    estimate, variance, spread = 0.0, 0.0, 0.0
    for sign, arm in ((1, treated), (-1, ~treated)):
        mean = y[arm].mean()
        estimate += sign * mean
        labels = np.unique(cluster[arm])
        sums = [y[arm & (cluster == c)].sum() - mean * (arm & (cluster == c)).sum() for c in labels]
        part = len(labels) / (len(labels) - 1) * sum(s**2 for s in sums) / arm.sum() ** 2
        variance, spread = variance + part, spread + part**2 / (len(labels) - 1)
    found = cluster_contrast(y, treated, cluster)
    assert (found.estimate, found.error, found.df) == pytest.approx(
        (estimate, math.sqrt(variance), variance**2 / spread)
    )
    half = stats.t.ppf(0.975, variance**2 / spread) * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((estimate - half, estimate + half))
    values = rng.normal(size=(12, 4))
    gain = [row[3] - row[1] for row in values]
    times = [1.0, 3.0, 10.0, 200.0]
    slopes = [stats.linregress(np.log10(times), row).slope for row in values]
    told = forgetting_slope(values, times, treated, cluster), cluster_contrast(slopes, treated, cluster)
    assert np.array(told[0]) == pytest.approx(np.array(told[1]))
    arms = by_unit(values[treated], "t"), by_unit(values[~treated], "c")
    effect, same = change_over_controls(*arms, 1, 3), change_over_controls(*arms, 1, 1)
    assert effect is not None
    assert same is not None
    test = stats.ttest_ind(np.array(gain)[treated], np.array(gain)[~treated], equal_var=False)
    limits = test.confidence_interval()
    assert (float(effect.estimate[0]), *effect.limits()) == pytest.approx(
        (np.mean(np.array(gain)[treated]) - np.mean(np.array(gain)[~treated]), limits.low, limits.high)
    )
    assert same.estimate[0] == 0
