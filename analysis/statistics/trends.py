"""Tests of trend over doses: Cochran-Armitage, permutation within strata, and the minimum effective dose."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from palimpsest.analysis.checks import numbers

Floats = NDArray[np.float64]
Scores = Literal["raw", "log", "rank"]


class Trend(NamedTuple):
    """A trend test; positive z = rates rise with the dose."""

    z: float
    p_greater: float
    """One-sided p of a rising trend."""
    p: float
    """Two-sided p."""


def dose_scores(doses: ArrayLike, scores: Scores = "log") -> Floats:
    """Scores x of doses d, (D,): ``raw``: d; ``log``: log2(1 + d); ``rank``: 0, 1, 2, ... in order of the dose."""
    dose = np.asarray(doses, np.float64)
    if scores == "raw":
        return dose
    return (
        np.log2(1 + dose) if scores == "log" else np.unique(dose, return_inverse=True)[1].astype(np.float64)
    )


def cochran_armitage(doses: ArrayLike, hits: ArrayLike, trials: ArrayLike, scores: Scores = "log") -> Trend:
    """Cochran-Armitage test (Armitage 1955): ``z = sum x_i (h_i - n_i p) / sqrt(p (1-p) sum n_i (x_i - xbar)^2)``.

    Args:
        doses: doses of the arms.
        hits: number of successes at each dose.
        trials: number of items at each dose.
        scores: x; see :func:`dose_scores`.
    """
    h, n = np.asarray(hits, np.float64), np.asarray(trials, np.float64)
    x = dose_scores(doses, scores)
    p = float(h.sum() / n.sum())
    x = x - float((n * x).sum() / n.sum())
    variance = p * (1 - p) * float((n * x**2).sum())
    z = float((x * (h - n * p)).sum()) / math.sqrt(variance) if variance > 0 else 0.0
    return Trend(z, float(stats.norm.sf(z)), float(2 * stats.norm.sf(abs(z))))


def trend_permutation_p(
    values_N: ArrayLike,
    dose_N: ArrayLike,
    stratum_N: ArrayLike | None = None,
    *,
    scores: Scores = "log",
    permutations: int = 1999,
    seed: int = 0,
) -> float:
    """One-sided permutation test of a trend; doses are permuted within strata, as they were assigned.

    Statistic ``sum_i x(d_i) (y_i - mean of i's stratum)``; ``p = (1 + #{>= observed}) / (m + 1)``: exact for every
    distribution.
    """
    y, x = numbers(values_N, "values of a permutation test"), dose_scores(dose_N, scores)
    strata = np.zeros(y.size, np.int64)
    if stratum_N is not None:
        strata = np.unique(np.asarray(stratum_N), return_inverse=True)[1].astype(np.int64)
    rng = np.random.default_rng(seed)
    observed, drawn = 0.0, np.zeros(permutations)
    for stratum in range(int(strata.max()) + 1):
        here = strata == stratum
        centred, own = y[here] - y[here].mean(), x[here]
        observed += float(centred @ own)
        drawn += own[np.argsort(rng.random((permutations, own.size)), axis=1)] @ centred
    slack = 1e-12 * max(1.0, float(np.abs(y).max() * np.abs(x).max()) * y.size)
    return float((1 + np.sum(drawn >= observed - slack)) / (permutations + 1))
