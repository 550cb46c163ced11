"""Multiple testing (Holm, Benjamini-Hochberg), and ratios by Fieller's theorem."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


def _adjusted(p_values: ArrayLike, method: str) -> Floats:
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method=method)[1]
    return adjusted


def holm(p_values: ArrayLike) -> Floats:
    """Holm (1979): adjusted p-values that control the familywise error of a family of tests.

    ``p_(i) -> max_{j<=i} min(1, (m - j + 1) p_(j))``. NaN (not computed) stays NaN and is not counted as a test.
    """
    return _adjusted(p_values, "holm")


class Ratio(NamedTuple):
    """A ratio of means with Fieller's confidence set."""

    estimate: float
    low: float
    high: float
    bounded: bool
    """False if the denominator does not differ significantly from 0; the confidence set is then everything outside
    (low, high), or the whole line if both are infinite."""


def fieller(
    numerator: float,
    denominator: float,
    var_numerator: float,
    var_denominator: float,
    covariance: float = 0.0,
    df: float = math.inf,
    level: float = 0.95,
) -> Ratio:
    """Confidence set of the ratio a / b by Fieller's theorem (1954): all r with ``(a - r b)^2 <= t^2 (v_aa - 2 r v_ab +
    r^2 v_bb)``.

    Exact for normal a and b, unlike the delta method where b is near 0.

    Args:
        numerator: a.
        denominator: b.
        var_numerator: variance of a.
        var_denominator: variance of b.
        covariance: covariance of a and b.
        df: degrees of freedom of the variances.
        level: confidence.
    """
    t2 = (
        float(stats.t.ppf((1 + level) / 2, df)) ** 2 if math.isfinite(df) else float(stats.chi2.ppf(level, 1))
    )
    estimate = numerator / denominator if denominator else math.nan
    square = denominator**2 - t2 * var_denominator
    middle = numerator * denominator - t2 * covariance
    constant = numerator**2 - t2 * var_numerator
    root = middle**2 - square * constant
    if square == 0 or root < 0:
        return Ratio(estimate, -math.inf, math.inf, False)
    ends = sorted(((middle - math.sqrt(root)) / square, (middle + math.sqrt(root)) / square))
    return Ratio(estimate, ends[0], ends[1], square > 0)
