"""Dose-response of continuous measures: lower level, rise, slope and EC50 by least squares on the doses' means.

Shape suffixes: E separate fits, D doses, M values of log2 EC50, S slopes, C clusters, N items.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit

from palimpsest.analysis.statistics.ec50 import Ec50
from palimpsest.analysis.statistics.trends import trend_permutation_p

Floats = NDArray[np.float64]

_SLOPES = (math.log(0.1), math.log(10.0))
"""ln of the smallest and largest slope (per doubling) in the search."""
_FAR = 15
"""Upper end of the search for an EC50, in doublings beyond the highest dose."""
METHOD = "least squares on the doses' means, profile F"


class CurveFit(NamedTuple):
    """Fitted curves ``mean(d) = low + rise sigma(slope (log2 d - log2 EC50))``, one per entry of the leading axes."""

    ec50: Floats
    """EC50, in insertions; infinite if the mean does not rise with the dose."""
    slope: Floats
    """Slope per doubling of the dose."""
    low: Floats
    """Level at dose 0."""
    rise: Floats
    """Rise of the mean from dose 0 to infinite dose; positive."""
    rss: Floats
    """Weighted residual sum of squares over the doses' means."""


def _axis(doses: ArrayLike) -> Floats:
    dose = np.asarray(doses, np.float64)
    if dose.size < 4:
        raise ValueError(f"four parameters need four doses, not {dose.size}")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(dose))


def _surface(
    x_D: Floats, mean_D: Floats, precision_DD: Floats, middle_M: Floats, ln_slope_S: Floats
) -> tuple[Floats, Floats, Floats]:
    """Weighted sums of squares, and the best low level and rise, at each log2 EC50 and slope, (..., M, S) each; the
    rise is not negative.
    """
    s = expit(np.exp(ln_slope_S)[None, :, None] * (x_D - middle_M[:, None, None]))
    ones = precision_DD.sum(0)
    a, u = float(ones.sum()), float(ones @ mean_D)
    b, weighted = s @ ones, s @ precision_DD
    c, v = (weighted * s).sum(-1), weighted @ mean_D
    spread = a * c - b**2
    rise = np.maximum(np.divide(a * v - b * u, spread, out=np.zeros_like(b), where=spread > 1e-12 * a * c), 0)
    low = (u - b * rise) / a
    residual = mean_D - low[..., None] - rise[..., None] * s
    return ((residual @ precision_DD) * residual).sum(-1), low, rise


def _best(x_D: Floats, mean_D: Floats, precision_DD: Floats) -> tuple[float, float, float, float, float]:
    """Best fit by a grid search that is refined around its best point: log2 EC50, ln slope, low level, rise and sum of
    squares.
    """
    finite = x_D[np.isfinite(x_D)]
    middle: Floats = np.linspace(finite.min() - 1, finite.max() + 3, 33, dtype=np.float64)
    slope = np.linspace(*_SLOPES, 16)
    span_m, span_s = (float(axis[1] - axis[0]) for axis in (middle, slope))
    for _ in range(16):
        squares, low, rise = _surface(x_D, mean_D, precision_DD, middle, slope)
        at = np.unravel_index(np.argmin(squares), squares.shape)
        best = (
            float(middle[at[0]]),
            float(slope[at[1]]),
            float(low[at]),
            float(rise[at]),
            float(squares[at]),
        )
        middle = best[0] + span_m * np.linspace(-1, 1, 9)
        slope = best[1] + span_s * np.linspace(-1, 1, 9)
        span_m, span_s = span_m * 0.5, span_s * 0.5
    return best


def fit_means(doses: ArrayLike, means: ArrayLike, weights: ArrayLike) -> CurveFit:
    """Fit the curve by weighted least squares, one fit per entry of the leading axes.

    With fewer than four doses the curve is not identified. An EC50 far beyond the highest dose cannot be distinguished
    from an unlimited rise; report it as "> max dose".

    Args:
        doses: (D,); dose 0 gives the lower level.
        means: (..., D) mean of each dose.
        weights: (..., D) or (D,): number of items at each dose, or inverse variances.
    """
    x, y = _axis(doses), np.asarray(means, np.float64)
    w = np.broadcast_to(np.asarray(weights, np.float64), y.shape)
    rows = []
    for mean, weight in zip(y.reshape(-1, x.size), w.reshape(-1, x.size), strict=True):
        middle, ln_slope, low, rise, squares = _best(x, mean, np.diag(weight / weight.sum()))
        flat = rise <= 0 or np.ptp(mean) <= 1e-12 * np.abs(mean).max()
        rows.append((math.inf if flat else 2**middle, math.exp(ln_slope), low, rise, squares))
    return CurveFit(*(np.array(column).reshape(y.shape[:-1]) for column in zip(*rows, strict=True)))


def dose_means(
    value_N: Floats, dose_N: Floats, stratum_N: NDArray[np.generic], cluster_N: NDArray[np.generic]
) -> tuple[Floats, Floats, Floats, int]:
    """Means by dose, adjusted for strata: doses (D,), means (D,), their covariance (D, D), and its degrees of freedom.

    Computed by ordinary least squares of the clusters' means on dose and stratum as factors.
    """
    _, first, code = np.unique(cluster_N, return_index=True, return_inverse=True)
    y = np.bincount(code, weights=value_N) / np.bincount(code)
    levels, dose = np.unique(dose_N[first], return_inverse=True)
    strata = np.unique(stratum_N[first], return_inverse=True)[1]
    blocks = np.eye(int(strata.max()) + 1)[strata][:, 1:]
    design = np.column_stack([np.eye(levels.size)[dose], blocks - blocks.mean(0)])
    solution = np.linalg.pinv(design)
    residual = y - design @ (solution @ y)
    df = y.size - int(np.linalg.matrix_rank(design))
    if df < 1:
        raise ValueError("an EC50 with an interval needs more clusters than doses and strata")
    covariance = (residual @ residual) / df * (solution @ solution.T)
    d = levels.size
    return levels, (solution @ y)[:d], covariance[:d, :d], df


def curve_ec50(
    values_N: ArrayLike,
    dose_N: ArrayLike,
    stratum_N: ArrayLike | None = None,
    cluster_N: ArrayLike | None = None,
    *,
    alpha: float = 0.05,
    level: float = 0.95,
) -> Ec50:
    """EC50 of a continuous measure with a profile interval: ``Q(m) - Q_min <= F_level(1, df)``, m = log2 EC50.

    Q(m) is the squared distance of the doses' means (:func:`dose_means`) from the curve, weighted by their inverse
    covariance and minimised over low level, rise and slope (Bates & Watts 1988). The EC50 is reported as not reached if
    a permutation test shows no trend.

    Args:
        values_N: one value per item, higher = more memorised.
        dose_N: its dose.
        stratum_N: its stratum, within which doses were assigned; None: a single stratum.
        cluster_N: its cluster, all of one dose and stratum; None: every item is its own cluster.
        alpha: significance level of the trend test.
        level: of the interval.
    """
    y, dose = np.asarray(values_N, np.float64), np.asarray(dose_N, np.float64)
    stratum = np.zeros(y.size, np.int64) if stratum_N is None else np.asarray(stratum_N)
    cluster = np.arange(y.size) if cluster_N is None else np.asarray(cluster_N)
    _axis(np.unique(dose))
    _, first, code = np.unique(cluster, return_index=True, return_inverse=True)
    own = np.bincount(code, weights=y) / np.bincount(code)
    p = trend_permutation_p(own, dose[first], stratum[first], permutations=999)
    levels, mean, covariance, df = dose_means(y, dose, stratum, cluster)
    x, top = _axis(levels), float(levels.max())
    if p > alpha or not covariance.any():
        return Ec50(math.inf, 0.0, math.inf, math.nan, float(mean[0]), top, METHOD)
    precision: Floats = np.linalg.pinv(covariance, hermitian=True).astype(np.float64)
    middle, ln_slope, low, _, least = _best(x, mean, precision)
    finite = x[np.isfinite(x)]
    grid = np.linspace(finite.min() - 10, finite.max() + _FAR, 801, dtype=np.float64)
    squares = _surface(x, mean, precision, grid, np.linspace(*_SLOPES, 61))[0].min(1)
    inside = np.flatnonzero(squares - least <= stats.f.ppf(level, 1, df))
    ends = (grid[inside[0]], grid[inside[-1]]) if inside.size else (middle, middle)
    return Ec50(
        2**middle,
        0.0 if inside.size and inside[0] == 0 else float(2 ** min(ends[0], middle)),
        math.inf if inside.size and inside[-1] == grid.size - 1 else float(2 ** max(ends[1], middle)),
        math.exp(ln_slope),
        low,
        top,
        METHOD,
    )
