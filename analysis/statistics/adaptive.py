"""EC50 from adaptive arms, whose doses depend on the scores, and interaction of experiments that share a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit

from palimpsest.analysis.statistics.ec50 import Ec50, profile_ec50

Floats = NDArray[np.float64]


def staircase_ec50(dose_N: ArrayLike, hit_N: ArrayLike, *, ceiling: float = 1.0) -> Ec50:
    """EC50 from a staircase: the dose goes up after a miss and down after a hit, with new items at each trial.
    Profile-likelihood interval.

    The likelihood is ``prod P(d_i)^h_i (1 - P(d_i))^(1 - h_i)``, the same as for fixed doses, because earlier trials
    determine a trial's dose (Dixon & Mood 1948). Rates by dose are biased, so pass the single trials, not averages of
    reversals.

    Args:
        dose_N: dose of each trial.
        hit_N: 1 if the trial's item was remembered, else 0.
        ceiling: rate at infinite dose.
    """
    dose, hit = np.asarray(dose_N, np.float64), np.asarray(hit_N, np.float64)
    levels, codes = np.unique(dose, return_inverse=True)
    hits, trials = np.bincount(codes, weights=hit), np.bincount(codes)
    return profile_ec50(levels, hits, trials, ceiling=ceiling, alpha=1.0)  # a rise is assumed, not tested


class Thresholds(NamedTuple):
    """EC50 of items that were inserted until they were remembered."""

    ec50: Ec50
    reached: int
    censored: int
    """Number of right-censored items, which were not remembered up to their last dose."""


def insert_until_ec50(lower_N: ArrayLike, upper_N: ArrayLike, *, level: float = 0.95) -> Thresholds:
    """EC50 of arms that insert an item until it is remembered, so that each item's threshold is interval-censored.

    ``F(d) = sigma(b (log2 d - log2 EC50))`` is the distribution of thresholds, and an item that was not remembered
    after ``lower`` insertions and was after ``upper`` has the likelihood ``F(upper) - F(lower)``; one never remembered
    ``1 - F(lower)``. The checks of one item are not independent trials; treating them as such makes the interval too
    narrow. Profile-likelihood interval, ``2 (nll(m) - nll_min) <= chi2_1`` for m = log2 EC50: where all items passed
    between the same two checks, the likelihood is flat between them, and so is the interval.

    Args:
        lower_N: dose at the item's last failed check; 0 if its first check succeeded.
        upper_N: dose at the item's successful check; infinite if none succeeded.
        level: confidence level of the interval.
    """
    lower, upper = np.asarray(lower_N, np.float64), np.asarray(upper_N, np.float64)
    if np.any(lower < 0) or np.any(upper <= lower):
        raise ValueError("every item needs 0 <= lower < upper")
    reached = np.isfinite(upper)
    if not reached.any():
        raise ValueError("no item was ever remembered: there is no EC50 to estimate")
    with np.errstate(divide="ignore"):
        low, high = np.log2(lower), np.log2(upper)

    def nll(theta: Floats) -> float:
        return _threshold_nll(theta, low, high, reached)

    middle = float(np.median(np.where(reached, high, low + 1)))
    # Named corners: the default simplex takes a step of 0.00025 from a coordinate that is 0, and may stay there.
    simplex = np.array([[middle, 0.0], [middle + 1, 0.0], [middle, 0.7]])
    options = {"xatol": 1e-8, "fatol": 1e-10, "initial_simplex": simplex, "maxiter": 1000}
    best = minimize(nll, simplex[0], method="Nelder-Mead", options=options).x
    limit = min(nll(best), _profile(nll, best[0])) + float(stats.chi2.ppf(level, 1)) / 2
    lowest, highest = (_limit(nll, float(best[0]), step, limit) for step in (-1.0, 1.0))
    top = float(np.max(np.where(reached, upper, lower)))
    answer = Ec50(
        float(2 ** best[0]),
        float(np.exp2(lowest)),
        float(np.exp2(highest)),
        math.exp(best[1]),
        0.0,
        top,
        "interval-censored thresholds, profile likelihood",
    )
    return Thresholds(answer, int(reached.sum()), int((~reached).sum()))


def _threshold_nll(theta: Floats, low_N: Floats, high_N: Floats, reached_N: NDArray[np.bool_]) -> float:
    """Negative log-likelihood of ``theta`` = (log2 EC50, ln slope), for items whose thresholds lie between ``low`` and
    ``high`` (log2 doses; ``high`` is infinite if not reached).
    """
    slope = math.exp(theta[1])
    a, b = slope * (low_N - theta[0]), slope * (high_N - theta[0])
    censored = log_expit(-a[~reached_N]).sum()
    inside = np.log(np.maximum(expit(b[reached_N]) - expit(a[reached_N]), 1e-300)).sum()
    return -float(censored + inside)


def _profile(nll: Callable[[Floats], float], middle: float) -> float:
    """Smallest negative log-likelihood at a log2 EC50 over slopes of 0.02 to 50 per doubling."""
    bounds = math.log(0.02), math.log(50.0)
    minimum = minimize_scalar(lambda s: nll(np.array([middle, s])), bounds=bounds, method="bounded")
    return min(float(minimum.fun), *(nll(np.array([middle, s])) for s in bounds))


def _limit(nll: Callable[[Floats], float], middle: float, step: float, limit: float) -> float:
    """log2 EC50 at which the profile crosses the limit, on one side of the estimate; infinite if beyond 60
    doublings.
    """
    inside, outside = middle, middle + step
    while _profile(nll, outside) <= limit:
        inside, outside = outside, outside + 2 * (outside - middle)
        if abs(outside - middle) > 60:
            return math.copysign(math.inf, step)
    for _ in range(25):
        between = (inside + outside) / 2
        inside, outside = (between, outside) if _profile(nll, between) <= limit else (inside, between)
    return inside


def total_doses(decisions: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Item -> exposures so far, before each decision and at the end.

    Args:
        decisions: as in ``adaptive/decisions.json``, in their order.
    """
    totals: list[dict[str, int]] = [{}]
    for decision in decisions:
        now = dict(totals[-1])
        for item, count in decision["exposures"].items():
            now[item] = now.get(item, 0) + count
        totals.append(now)
    return totals


def decided_ec50(decisions: Sequence[Mapping[str, Any]], policy: str, threshold: float) -> Ec50 | None:
    """EC50 of an adaptive run: number of exposures after which half of the items are remembered.

    Args:
        decisions: as in ``adaptive/decisions.json``, in their order.
        policy: name of the policy that took them.
        threshold: score from which an item counts as remembered.

    Returns:
        None if the policy does not estimate it, or all items or none were remembered.
    """
    if policy == "staircase":
        state = decisions[-1]["state"]
        after = decisions[-1]["after"]
        last = [[dose, int(after[item] >= threshold)] for item, dose in sorted(state["running"].items())]
        trials = [*state["trials"], *last]
        if not {0, 1} <= {hit for _, hit in trials} or len({dose for dose, _ in trials}) < 2:
            return None
        return staircase_ec50([dose for dose, _ in trials], [hit for _, hit in trials])
    if policy != "insert_until":
        return None
    checks = [*(decision["seen"] for decision in decisions[1:]), decisions[-1]["after"]]
    totals = total_doses(decisions)[1:]
    lower, upper = [], []
    for item in decisions[0]["seen"]:
        below, above = 0, math.inf
        for scores, total in zip(checks, totals, strict=True):
            if scores[item] >= threshold:
                above = total.get(item, 0)
                break
            below = total.get(item, 0)
        lower.append(below)
        upper.append(above)
    pairs = [(low, high) for low, high in zip(lower, upper, strict=True) if high > low]
    if not any(math.isfinite(high) for _, high in pairs):
        return None
    return insert_until_ec50(*zip(*pairs, strict=True)).ec50
