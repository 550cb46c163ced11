"""True positive rate at a low false positive rate, without interpolation, with exact limits and a chance band."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.analysis.statistics.intervals import clopper_pearson


class LowFpr(NamedTuple):
    """True positive rate (TPR) at a false positive rate (FPR) that does not exceed the limit a."""

    tpr: float
    low: float
    high: float
    """95 % Clopper-Pearson limit over members, given the threshold."""
    fpr: float
    """FPR of the controls at the threshold; at most a."""
    threshold: float
    """Score from which on items are called members; infinite if no threshold satisfies the FPR."""
    members: int
    controls: int
    chance_mean: float
    """Mean TPR of random scores at this number of controls; more than a."""
    chance_high: float
    """97.5th percentile of the TPR of random scores; a lower TPR is not evidence of membership."""


def tpr_at_fpr(
    members: ArrayLike, controls: ArrayLike, max_fpr: float, *, strict: bool = False, level: float = 0.95
) -> LowFpr:
    """Largest TPR over thresholds with ``FPR <= max_fpr`` (``<`` with ``strict``, as in mimir).

    Under the null of exchangeable scores the number of members above the (f+1)-th highest of n controls, f the false
    positives allowed, is beta-binomial(m, f + 1, n - f), which gives the chance band: at FPR 0.1 % and a thousand
    controls its mean is 0.2 % and its 97.5th percentile 0.7 %.

    Args:
        members: scores, higher = member.
        controls: scores of never-inserted items.
        max_fpr: a.
        strict: demand FPR < a.
        level: of the interval.
    """
    x, y = np.asarray(members, np.float64), np.sort(np.asarray(controls, np.float64))[::-1]
    m, n = x.size, y.size
    if not m or not n or np.isnan(x).any() or np.isnan(y).any() or not 0 <= max_fpr <= 1:
        raise ValueError("TPR at FPR needs members, controls, no NaN, and an FPR in [0, 1]")
    product = round(max_fpr * n, 9)
    allowed = math.ceil(product) - 1 if strict else math.floor(product)
    if allowed < 0:
        return LowFpr(0.0, 0.0, float(clopper_pearson(0, m, level)[1]), 0.0, math.inf, m, n, 0.0, 0.0)
    # Everything above the (f+1)-th highest control may be called; ties with it would call that control too.
    edge = float(y[allowed]) if allowed < n else -math.inf
    called = int(np.sum(x > edge))
    low, high = clopper_pearson(called, m, level)
    above = np.concatenate([x[x > edge], y[y > edge]])
    null = stats.betabinom(m, allowed + 1, n - allowed) if allowed < n else None
    return LowFpr(
        called / m,
        float(low),
        float(high),
        float(np.mean(y > edge)),
        float(above.min()) if above.size else math.inf,
        m,
        n,
        float(null.mean()) / m if null else 1.0,
        float(null.ppf(0.975)) / m if null else 1.0,
    )
