"""Forget quality: the distance of an unlearned model's truth ratios from those of the retain model.

The leave-out twin is the true retain model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.analysis.checks import numbers
from palimpsest.analysis.statistics.clusters import resampled_weights


class ForgetQuality(NamedTuple):
    """Two-sample Kolmogorov-Smirnov test of truth ratios: unlearned against retain model."""

    distance: float
    """Kolmogorov-Smirnov distance D in [0, 1]: 0 = equal, 1 = disjoint distributions."""
    low: float
    high: float
    """95 % percentile bootstrap of D over questions, or clusters of them."""
    p: float
    """Chance of a D this large if the distributions are equal; takes questions as independent."""


def forget_quality(
    ratios_unlearned: ArrayLike,
    ratios_retain: ArrayLike,
    cluster_N: ArrayLike | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> ForgetQuality:
    """Forget quality: KS distance D of the truth ratios with an interval, and its p, which is TOFU's
    ``forget_quality``.

    Args:
        ratios_unlearned: truth ratio of each question under the unlearned model.
        ratios_retain: those under the retain model.
        cluster_N: cluster of each question, which both models were asked, so that clusters are drawn for both at once;
            None: the questions of either are drawn apart.
        replicates: number of draws.
        seed: of the draws.
    """
    x = numbers(ratios_unlearned, "truth ratios of the unlearned model", 2)
    y = numbers(ratios_retain, "truth ratios of the retain model", 2)
    test = stats.ks_2samp(x, y)
    # Weighted ECDFs on the pooled points: a replicate is a vector of counts, not a new sort.
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, kind="stable")
    last = np.append(np.diff(pooled[order]) > 0, True)
    if cluster_N is None:
        sides = [resampled_weights(np.arange(part.size), replicates, rng)[1:] for part in (x, y)]
    else:
        sides = [resampled_weights(cluster_N, replicates, rng)[1:]] * 2
    weights = np.hstack([sides[0], -sides[1]])
    distance = np.abs(np.cumsum(weights[:, order], axis=1)[:, last]).max(axis=1)
    low, high = np.quantile(distance, [0.025, 0.975])
    return ForgetQuality(float(test.statistic), float(low), float(high), float(test.pvalue))
