"""Forget quality: the distance of an unlearned model's truth ratios from those of the retain model.

The leave-out twin is the true retain model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.analysis.checks import numbers


class ForgetQuality(NamedTuple):
    """Two-sample Kolmogorov-Smirnov test of truth ratios: unlearned against retain model."""

    distance: float
    """Kolmogorov-Smirnov distance D in [0, 1]: 0 = equal, 1 = disjoint distributions."""
    low: float
    high: float
    """95 % percentile bootstrap of D over questions."""
    p: float


def forget_quality(
    ratios_unlearned: ArrayLike, ratios_retain: ArrayLike, *, replicates: int = 1000, seed: int = 0
) -> ForgetQuality:
    """Forget quality: KS distance D of the truth ratios with an interval, and its p, which is TOFU's
    ``forget_quality``.
    """
    x = np.sort(numbers(ratios_unlearned, "truth ratios of the unlearned model", 2))
    y = np.sort(numbers(ratios_retain, "truth ratios of the retain model", 2))
    test = stats.ks_2samp(x, y)
    # Weighted ECDFs on the pooled points: a replicate is a vector of counts, not a new sort.
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, kind="stable")
    last = np.append(np.diff(pooled[order]) > 0, True)
    counts = np.zeros((replicates, pooled.size))
    counts[:, : x.size] = rng.multinomial(x.size, np.full(x.size, 1 / x.size), replicates) / x.size
    counts[:, x.size :] = -rng.multinomial(y.size, np.full(y.size, 1 / y.size), replicates) / y.size
    distance = np.abs(np.cumsum(counts[:, order], axis=1)[:, last]).max(axis=1)
    low, high = np.quantile(distance, [0.025, 0.975])
    return ForgetQuality(float(test.statistic), float(low), float(high), float(test.pvalue))
