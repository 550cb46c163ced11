"""Every formula against a plain loop written from its definition, on small random inputs full of ties and edges.

Nothing here uses the implementation's way of computing: probabilities are fractions or 60-digit decimals, ranks are
counted, areas are double loops, permutations are enumerated.
"""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from palimpsest.analysis.metrics import METRICS, Parameters, compute
from palimpsest.analysis.metrics import contamination as con
from palimpsest.analysis.metrics import extraction as ext
from palimpsest.analysis.metrics import factual as fac
from palimpsest.analysis.metrics import likelihood as lik
from palimpsest.analysis.metrics import membership as mem
from palimpsest.analysis.metrics import order as order_
from palimpsest.analysis.metrics import personal as per
from palimpsest.analysis.metrics import profiles as pro
from palimpsest.analysis.metrics import similarity as sim
from palimpsest.analysis.metrics import unlearning as unl
from palimpsest.analysis.metrics import watermark as wat
from palimpsest.analysis.metrics.reasoning import limem
from palimpsest.analysis.statistics import (
    auc_limits,
    cluster_mean,
    curve_ec50,
    delong,
    fit_curve,
    fit_means,
    fit_rates,
    forgetting_intervals,
    insert_until_ec50,
    learning_rate_time,
    permutation_p,
    profile_ec50,
    rate,
    tpr_at_fpr,
    trend_permutation_p,
)
from tests.analysis.synthetic import drawn_from
from tests.analysis.test_metrics import frames

getcontext().prec = 60
SEED = st.integers(0, 10**6)
NAN = math.nan


def coarse(rng: np.random.Generator, *shape: int, levels: int = 5) -> np.ndarray:
    """Numbers of which many are equal."""
    return rng.integers(0, levels, shape) / 2 - 1


def auc_by_counting(x: np.ndarray, y: np.ndarray) -> Fraction:
    pairs = [Fraction(2 if a > b else 1 if a == b else 0, 2) for a in x for b in y]
    return sum(pairs, Fraction(0)) / len(pairs)


# Likelihood and extraction


@settings(max_examples=30, deadline=None)
@given(SEED)
def test_likelihood_moments_and_min_k(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, token = 3 * coarse(rng, 6, 5), rng.integers(0, 5, 6)
    logprob, means, variances = [], [], []
    for z, t in zip(logits.tolist(), token, strict=True):
        weights = [Decimal(v).exp() for v in z]
        p = [w / sum(weights) for w in weights]
        ln = [q.ln() for q in p]
        mean = sum(q * v for q, v in zip(p, ln, strict=True))
        variance = sum(q * (v - mean) ** 2 for q, v in zip(p, ln, strict=True))
        logprob.append(float(ln[t]))
        means.append(float(mean))
        variances.append(float(variance))
    told = lik.likelihood(logprob, 11)
    total = math.fsum(logprob)
    assert told == pytest.approx(
        (
            total,
            -total / 6,
            math.exp(-total / 6),
            total / 11,
            -total / 11 / math.log(2),
            math.exp(-total / 11),
        )
    )
    z = [(lp - mu) / math.sqrt(max(v, 1e-6)) for lp, mu, v in zip(logprob, means, variances, strict=True)]
    for percent in (1, 17, 20, 50, 84, 100):
        for rounding, cut in (("floor", math.floor), ("ceil", math.ceil)):
            kept = max(1, cut(Fraction(percent, 100) * 6))
            wanted = [math.fsum(sorted(values)[:kept]) / kept for values in (logprob, z)]
            told_k = mem.min_k(logprob, percent / 100, rounding)  # type: ignore[arg-type]
            plus = mem.min_k_plus_plus(logprob, means, variances, percent / 100, rounding)  # type: ignore[arg-type]
            assert (told_k, plus.score) == pytest.approx(wanted, abs=1e-9)
            assert plus.clamped == sum(v < 1e-6 for v in variances)


@settings(max_examples=60, deadline=None)
@given(
    SEED,
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([None, 1, 2, 4, 9]),
    st.sampled_from([None, 1e-13, 0.3, 0.9, 1.0]),
)
def test_what_sampling_draws_from(seed: int, t: float, k: int | None, p: float | None) -> None:
    logits = 2 * coarse(np.random.default_rng(seed), 7) + np.linspace(0, 0.01, 7) * (seed % 2)
    weight = {v: math.exp(z / t) for v, z in enumerate(logits)}
    if k is not None and k < 7:
        edge = sorted(logits, reverse=True)[k - 1]
        weight = {v: w for v, w in weight.items() if logits[v] >= edge}
    weight = {v: w / math.fsum(weight.values()) for v, w in weight.items()}
    if p is not None:
        mass, kept = 0.0, {}
        for v in sorted(weight, key=lambda v: (-logits[v], v)):
            if mass < p - 1e-12 or not kept:
                kept[v] = weight[v]
            mass += weight[v]
        weight = kept
    total = math.fsum(weight.values())
    found = np.exp(drawn_from(logits, temperature=t, top_k=k, top_p=p))
    assert found == pytest.approx([weight.get(v, 0.0) / total for v in range(7)], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.floats(-60, -1e-14), st.sampled_from([0.1, 0.5, 0.9, 0.99, 1e-9, 1 - 1e-9]))
def test_queries_are_the_fewest_in_exact_arithmetic(ln_pz: float, p: float) -> None:
    miss = 1 - Decimal(ln_pz).exp()
    exact = (1 - Decimal(p)).ln() / miss.ln()
    assert float(ext.log10_queries(ln_pz, p)) == pytest.approx(float(exact.log10()), abs=1e-9)
    n = ext.queries_needed(ln_pz, p)
    slack = max(Decimal(1), exact) * Decimal("1e-9")
    assert exact - slack <= n
    assert n == 1 or n - 1 <= exact + slack
    for queries in (1, 10, 1000):
        assert float(ext.extraction_probability(ln_pz, queries)) == pytest.approx(
            float(1 - miss**queries), rel=1e-9
        )


def test_extremes_of_extraction() -> None:
    assert [ext.queries_needed(v, 0.5) for v in (0.0, -1e-17, -1e-10)] == [1, 1, 1]
    assert float(Decimal(ext.queries_needed(-800.0, 0.5)).log10()) == pytest.approx(
        800 / math.log(10) + math.log10(math.log(2)), abs=1e-9
    )
    assert ext.extraction_probability([-math.inf, 0.0, 0.0], [5, 1, 0]).tolist() == [0, 1, 0]
    assert lik.likelihood([-800.0], 1).perplexity == math.inf
    assert lik.likelihood([0.0], 1).perplexity == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=9),
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    st.booleans(),
)
def test_similarity_is_the_textbooks_recursion(made: list[int], text: list[int], cut: bool) -> None:
    given_ = made[: len(text)] if cut else made
    shared = {(i, j): 0 for i in range(-1, len(given_)) for j in range(-1, len(text))}
    away = {(i, j): max(i, j) + 1 for i, j in shared}
    for i, j in itertools.product(range(len(given_)), range(len(text))):
        same = given_[i] == text[j]
        shared[i, j] = shared[i - 1, j - 1] + 1 if same else max(shared[i - 1, j], shared[i, j - 1])
        away[i, j] = min(away[i - 1, j - 1] + (not same), away[i - 1, j] + 1, away[i, j - 1] + 1)
    end = (len(given_) - 1, len(text) - 1)
    p, r = shared[end] / max(1, len(given_)), shared[end] / len(text)
    assert sim.rouge_l(made, text, truncate=cut) == pytest.approx((p, r, 2 * p * r / (p + r) if p else 0.0))
    found = sim.edit_similarity(made, text, truncate=cut)
    assert found == pytest.approx(1 - away[end] / max(len(given_), len(text)))
    over = sim.edit_similarity(made, text, over="reference", truncate=cut)
    assert over == pytest.approx(max(0.0, 1 - away[end] / len(text)))


# Ranks, areas, thresholds


@settings(max_examples=60, deadline=None)
@given(SEED, st.integers(2, 7), st.integers(2, 7))
def test_areas_and_thresholds_by_counting(seed: int, m: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = coarse(rng, m), coarse(rng, n)
    area = auc_by_counting(x, y)
    assert delong(x, y).auc == pytest.approx(float(area))
    rows = [float(auc_by_counting(x[[i]], y)) for i in range(m)]
    columns = [float(auc_by_counting(x, y[[j]])) for j in range(n)]
    variance = np.var(rows, ddof=1) / m + np.var(columns, ddof=1) / n
    found = delong(x, y)
    assert found.variance == pytest.approx(variance, abs=1e-15)
    low, high = auc_limits([found], [1])
    assert 0 <= low <= float(area) <= high <= 1
    assert high > low
    for allowed in (0.0, 0.2, 1 / n, 0.5, 1.0):
        for strict in (False, True):
            rates = [(np.mean(x >= cut), np.mean(y >= cut)) for cut in [*np.unique(np.r_[x, y]), math.inf]]
            fits = [(a, b) for a, b in rates if (b < allowed - 1e-12 if strict else b <= allowed + 1e-12)]
            told = tpr_at_fpr(x, y, allowed, strict=strict)
            assert told.tpr == pytest.approx(max((a for a, _ in fits), default=0.0))
            assert told.fpr <= allowed + 1e-12


@settings(max_examples=30, deadline=None)
@given(SEED)
def test_ranks_by_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, others = float(coarse(rng, 1)[0]), coarse(rng, 6)
    above, level = sum(v > own for v in others), sum(v == own for v in others)
    assert wat.rank_test(-own, -others).p == (1 + above + level) / 7
    found = order_.reshuffle_test(own, others)
    assert found.p == (1 + above + level) / 7
    if np.ptp(others):
        # The same as a two-sample t-test of one against six with the six's variance: a prediction interval.
        t = (own - others.mean()) / (others.std(ddof=1) * math.sqrt(1 + 1 / 6))
        assert found.p_t == pytest.approx(stats.t.sf(t, 5))


@settings(max_examples=25, deadline=None)
@given(SEED, st.integers(4, 6))
def test_order_tests_over_all_orders(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = coarse(rng, n), coarse(rng, n)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        with pytest.raises(ValueError, match="differ"):
            order_.order_test(x, y)
        assert order_.order_permutation_p(x, y) == 1
        return
    told = stats.spearmanr(x, y)
    found = order_.order_test(x, y)
    assert found.rho == pytest.approx(told.statistic)
    assert found.p == pytest.approx(told.pvalue, abs=1e-9)
    every = [abs(stats.spearmanr(x, p).statistic) for p in itertools.permutations(y)] if n < 6 else None
    if every is not None:
        share = np.mean(np.array(every) >= abs(told.statistic) - 1e-9)
        assert order_.order_permutation_p(x, y) == pytest.approx(share)
    assert order_.order_test_within_epochs(x, y, np.zeros(n)) == pytest.approx(found)


def test_permutation_tests_approach_all_assignments() -> None:
    rng = np.random.default_rng(0)
    y, cell = coarse(rng, 9), np.repeat([0, 1], [5, 4])
    treated = np.array([1, 1, 0, 0, 0, 1, 0, 0, 1], bool)

    def difference(chosen: np.ndarray) -> float:
        cells = [(y[(cell == c) & chosen], y[(cell == c) & ~chosen]) for c in (0, 1)]
        return float(sum(len(x) * (x.mean() - z.mean()) for x, z in cells))

    every = [
        difference(np.isin(np.arange(9), [*first, *second]))
        for first in itertools.combinations(range(5), 2)
        for second in itertools.combinations(range(5, 9), 2)
    ]
    share = np.mean(np.array(every) >= difference(treated) - 1e-9)
    # 60 assignments are all tried, however many are asked for.
    assert permutation_p(y, cell, treated, permutations=3, seed=1) == pytest.approx(share)
    both = np.mean(np.abs(every) >= abs(difference(treated)) - 1e-9)
    told = permutation_p(y, cell, treated, permutations=3, seed=1, alternative="two-sided")
    assert told == pytest.approx(both)
    # Copies of an item in one cluster are no more evidence than the item.
    thrice = [np.repeat(a, 3) for a in (y, cell, treated, np.arange(9))]
    assert permutation_p(*thrice, permutations=3, seed=1) == pytest.approx(share)
    dose = np.array([0, 1, 4, 0, 1, 4])
    centred, x = y[:6] - y[:6].mean(), np.log2(1 + dose)
    shares = [np.dot(p, centred) >= x @ centred - 1e-9 for p in itertools.permutations(x)]
    assert trend_permutation_p(y[:6], dose, permutations=20_000) == pytest.approx(np.mean(shares), abs=0.015)


# Acquisition, forgetting, spacing


@settings(max_examples=30, deadline=None)
@given(SEED)
def test_acquisition_and_forgetting_by_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curve = coarse(rng, 9)
    start, window = int(rng.integers(0, 8)), int(rng.integers(1, 9))
    after = {t: curve[t] for t in range(start + 1, min(9, start + window + 1))}
    best = max(after, key=lambda t: (after[t], -t))
    assert fac.acquisition(curve, start, window) == (best, curve[best] - curve[start])
    line = stats.linregress(np.log10(np.arange(1, 10)), curve)
    found = fac.decay(np.arange(1, 10), curve)
    assert (found.per_decade, found.intercept) == pytest.approx((-line.slope, line.intercept), abs=1e-9)
    if line.slope < -1e-9:
        decades = -line.intercept / line.slope
        if -300 < decades < 300:
            assert line.intercept + line.slope * math.log10(found.horizon) == pytest.approx(0, abs=1e-6)
        else:  # near or beyond what a float can be
            assert found.horizon > 1e299 if decades > 0 else found.horizon < 1e-299
    values, times = coarse(rng, 5, 4), [1.0, 2.0, 5.0, 9.0]
    lower, upper = forgetting_intervals(times, values, 0.0)
    for row, a, b in zip(values, lower, upper, strict=True):
        lost = next((j for j, v in enumerate(row) if v < 0), None)
        told = (
            (NAN, NAN) if lost == 0 else (9.0, math.inf) if lost is None else (times[lost - 1], times[lost])
        )
        assert (a, b) == pytest.approx(told, nan_ok=True)
    assert learning_rate_time([4, 6], [1, 2, 3, 4, 5, 6], 2).tolist() == [3 + 4, 3 + 4 + 5 + 6]


# Contamination, personal data, membership, unlearning


@settings(max_examples=40, deadline=None)
@given(SEED)
def test_answers_and_their_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ll = 4 * coarse(rng, 4)
    size, bare = rng.integers(1, 5, 4), 4 * coarse(rng, 4)

    def first_best(scores: list[float]) -> int:
        return max(range(4), key=lambda c: (scores[c], -c))

    found = con.choose(ll, chars_C=size, bytes_C=size, unconditional_C=bare)
    per_size = [a / b for a, b in zip(ll, size, strict=True)]
    assert found[:4] == (
        first_best(ll.tolist()),
        first_best(per_size),
        first_best(per_size),
        first_best((ll - bare).tolist()),
    )
    assert found.tied == (sorted(ll)[-1] == sorted(ll)[-2])
    words, given_ = rng.choice(list("abc"), 4).tolist(), rng.choice(list("abcd"), 5).tolist()
    left, shared = list(given_), 0
    for word in words:
        if word in left:
            left.remove(word)
            shared += 1
    assert per.word_recall(words, given_) == shared / 4
    token, logprob = rng.integers(0, 3, 6), rng.uniform(-3, 0, 6)
    frequency = rng.uniform(0.01, 1, 3)
    seen: dict[int, float] = {}
    for t, lp in zip(token.tolist(), logprob, strict=True):
        seen.setdefault(t, min(0.3, math.exp(lp) * math.log(1 / frequency[t])))
    told = mem.dc_pdd_score(token, logprob, frequency[token], ceiling=0.3)
    assert told == pytest.approx(sum(seen.values()) / len(seen))
    solved, after = rng.integers(0, 2, 7), rng.integers(0, 2, 7)
    kept = sum(1 for a, b in zip(solved, after, strict=True) if a and not b) / 7
    assert limem(solved, after).score == pytest.approx(kept)


@settings(max_examples=30, deadline=None)
@given(SEED)
def test_the_distance_of_truth_ratios(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = coarse(rng, 6), coarse(rng, 6)
    gap = max(abs(np.mean(x <= v) - np.mean(y <= v)) for v in [*x, *y])
    found = unl.forget_quality(x, y, replicates=20)
    assert found.distance == pytest.approx(gap)


# Fits are at least as good as a general optimiser's


def test_fits_are_maxima() -> None:
    rng = np.random.default_rng(1)
    doses, trials = [0, 1, 4, 16, 64, 256], np.array([12, 10, 8, 8, 6, 5])
    for _ in range(2):
        hits = rng.binomial(
            trials, rate(doses, 2 ** rng.uniform(0, 7), rng.uniform(0.5, 3), rng.uniform(0, 0.3))
        )
        found = fit_rates(doses, hits, trials)

        def nll(theta: np.ndarray, hits: np.ndarray = hits) -> float:
            floor = 1 / (1 + math.exp(-theta[0]))
            p = np.clip(rate(doses, 2 ** theta[2], math.exp(theta[1]), floor), 1e-12, 1 - 1e-12)
            return -float(np.sum(hits * np.log(p) + (trials - hits) * np.log(1 - p)))

        starts = itertools.product((-5, -1), (-0.5, 1), (0, 3, 6))
        bounds = [(-25, 8), (math.log(0.02), math.log(50)), (-10, 23)]
        best = min(optimize.minimize(nll, s, bounds=bounds).fun for s in starts)
        assert float(found.nll) <= best + 1e-4
        means = rng.normal(size=6)
        curve = fit_means(doses, means, trials)
        theirs = min(
            optimize.minimize(_rss, start, (means, trials), "Nelder-Mead").fun
            for start in itertools.product((-0.5, 1), (0, 3, 6))
        )
        assert float(curve.rss) <= theirs + 1e-3
        times = np.array([1.0, 3, 10, 30, 100, 300, 1000])
        y = 0.9 * np.exp(-times / 200) + rng.normal(0, 0.02, 7)
        for name, model in {
            "power": lambda t, a, b: a * t**-b,
            "exponential_floor": lambda t, f, a, c: f + a * np.exp(-t / c),
            "weibull": lambda t, a, k, c: a * np.exp(-((t / c) ** k)),
        }.items():
            start = {"power": (1, 0.1), "exponential_floor": (0, 1, 100), "weibull": (1, 1, 100)}[name]
            positive = [-np.inf] * (1 if name != "exponential_floor" else 2)
            low = [*positive, *([0.02] * (len(start) - len(positive)))]
            best_fit, _ = optimize.curve_fit(model, times, y, start, bounds=(low, np.inf), maxfev=20_000)
            assert fit_curve(times, y, name).rss <= float(((y - model(times, *best_fit)) ** 2).sum()) + 1e-6


def _rss(theta: np.ndarray, mean_D: np.ndarray, weight_D: np.ndarray) -> float:
    """Of the best low and rise >= 0, slopes and EC50s kept inside the fit's own range."""
    slope, middle = math.exp(np.clip(theta[0], math.log(0.1), math.log(10))), np.clip(theta[1], -1, 11)
    s = rate([0, 1, 4, 16, 64, 256], 2**middle, slope, 0.0)
    w = weight_D / weight_D.sum()
    rise = max(0.0, np.sum(w * (s - w @ s) * (mean_D - w @ mean_D)) / np.sum(w * (s - w @ s) ** 2))
    return float(np.sum(w * (mean_D - w @ mean_D - rise * (s - w @ s)) ** 2))


def test_no_interval_is_surer_than_its_data() -> None:
    """Perfect steps, flat curves, items that all passed between the same checks, scores that are all equal."""
    doses = [0, 1, 4, 16, 64, 256]
    step = profile_ec50(doses, [0, 0, 0, 10, 10, 10], [10] * 6)
    assert step.low < 4.2
    assert step.high > 15
    same = insert_until_ec50([1.0] * 5, [4.0] * 5).ec50
    assert (same.low, same.high) == pytest.approx((1, 4), rel=0.02)
    flat = curve_ec50([1.0] * 12, np.repeat(doses, 2))
    assert (flat.text, flat.high) == ("not reached", math.inf)
    tied = delong([1.0] * 5, [1.0] * 5)
    assert auc_limits([tied], [1])[0] < 0.4
    low, high = auc_limits([delong([1.0] * 4, [1.0] * 4, [0, 0, 1, 1], [2, 2, 3, 3])], [1])
    assert high - low > 0.5


# No NaN passes for a number


SCORES = [1.0, NAN, 2.0, 3.0, 0.5]
OTHERS = [0.0, 1.0, 0.5, 2.0, 2.5]


@pytest.mark.parametrize(
    "made",
    [
        lambda: lik.likelihood(SCORES, 9),
        lambda: mem.min_k(SCORES),
        lambda: mem.neighbourhood_score(0.0, SCORES),
        lambda: mem.gradient_norm_score(SCORES),
        lambda: wat.rank_test(1.0, SCORES),
        lambda: wat.rank_test(NAN, OTHERS),
        lambda: wat.combined_p([0.5, NAN]),
        lambda: con.choose(SCORES),
        lambda: order_.order_test(SCORES, OTHERS),
        lambda: order_.order_permutation_p(OTHERS, SCORES),
        lambda: order_.order_test_within_epochs(SCORES, OTHERS, [0] * 5),
        lambda: order_.reshuffle_test(1.0, SCORES),
        lambda: unl.forget_quality(SCORES, OTHERS),
        lambda: delong(SCORES, OTHERS),
        lambda: tpr_at_fpr(SCORES, OTHERS, 0.1),
        lambda: permutation_p(np.array(SCORES), np.zeros(5, int), np.arange(5) > 2, permutations=9, seed=0),
        lambda: trend_permutation_p(SCORES, [0, 0, 1, 1, 1]),
    ],
)
def test_a_nan_is_refused(made) -> None:
    with pytest.raises(ValueError, match=r"NaN|finite"):
        made()


@pytest.mark.parametrize(
    "made",
    [
        lambda: lik.likelihood([], 9),
        lambda: mem.min_k([]),
        lambda: ext.extraction_strength([]),
        lambda: sim.rouge_l([1], []),
        lambda: wat.rank_test(1.0, []),
        lambda: con.choose([]),
        lambda: pro.counterfactual_memorization([1.0], [1.0, 2.0]),
        lambda: order_.order_test([1, 2, 3], [1, 2, 3]),
        lambda: delong([1.0], [1.0, 2.0]),
        lambda: cluster_mean([1.0, 2.0], [0, 0]),
        lambda: fit_rates([0], [1], [2]),
    ],
)
def test_too_few_are_refused(made) -> None:
    with pytest.raises(ValueError, match="need"):
        made()


# The registered forms


@settings(max_examples=20, deadline=None)
@given(SEED)
def test_registered_metrics_over_random_stores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logprobs = [(-rng.gamma(1, 2, rng.integers(1, 12))).astype(np.float32).tolist() for _ in range(6)]
    ranks = [rng.integers(0, 2, len(row)).tolist() for row in logprobs]
    items, probes, scores = frames(logprobs, ranks)
    of_float32 = pl.List(pl.Float32)
    extra = {
        name: pl.Series(
            [rng.gamma(1, 1, len(row)).astype(np.float32).tolist() for row in logprobs], dtype=of_float32
        )
        for name in ("entropy", "variance")
    }
    scores = scores.with_columns(**extra)
    fraction, k, m, n = (
        float(rng.choice([0.1, 0.2, 0.5, 1.0])),
        int(rng.integers(0, 4)),
        int(rng.integers(1, 4)),
        7,
    )
    names = [metric.name for metric in METRICS.values() if metric.needs == ("verbatim",)]
    rows = compute(items, probes, scores, names, Parameters(prefix=k, suffix=m, fraction=fraction, queries=n))
    found = {(row["metric"], row["probe_id"]): row["value"] for row in rows.iter_rows(named=True)}
    for i, (lp, rank) in enumerate(zip(logprobs, ranks, strict=True)):
        entropy, variance = (extra[name][i].to_list() for name in ("entropy", "variance"))
        hit = [r == 0 for r in rank]
        long = len(lp) >= k + m
        inner = math.fsum(lp[k : k + m])
        run = next((j for j, h in enumerate(hit[k:]) if not h), len(hit) - k)
        wanted = {
            "loglik_per_byte": math.fsum(lp) / 47,
            "loglik_per_token": math.fsum(lp) / len(lp),
            "exact_match": sum(hit) / len(hit),
            "extraction_strength": ext.extraction_strength(hit),
            "min_k_logprob": mem.min_k(lp, fraction),
            "min_k_plus_plus": mem.min_k_plus_plus(lp, [-h for h in entropy], variance, fraction).score,
            "clamped_variance_tokens": sum(v < 1e-6 for v in variance),
            "extracted": float(all(hit[k : k + m])) if long else None,
            "suffix_loglik": inner if long else None,
            "np_discoverable": 1 - (1 - math.exp(inner)) ** n if long else None,
            "longest_extracted": run if len(lp) > k else None,
        }
        for name, value in wanted.items():
            told = found[name, f"i{i}/p"]
            assert told is None if value is None else told == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_a_row_with_a_nan_has_no_value_of_any_metric() -> None:
    items, probes, scores = frames([[-1.0, NAN, -2.0], [-1.0, -1.0, -1.0]], [[0, 0, 0], [0, 0, 0]])
    names = ["exact_match", "extracted", "min_k_logprob", "longest_extracted", "extraction_strength"]
    rows = compute(items, probes, scores, names, Parameters(prefix=1, suffix=1))
    lost = rows.filter(pl.col("probe_id") == "i0/p")
    assert lost["value"].to_list() == [None] * 5
    assert set(lost["reason"]) == {"a score of it is not a finite number"}
    assert rows.filter(pl.col("probe_id") == "i1/p")["value"].null_count() == 0
