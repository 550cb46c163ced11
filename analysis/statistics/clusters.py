"""Clustered items and correlated checkpoints: means, contrasts, difference-in-differences, forgetting slopes.

Items of one person, book or template are correlated, and so are neighbouring checkpoints of one item. Time series are
therefore first reduced to one number per item; estimates are sums over clusters, and their errors come from the
variance between the clusters' sums. Shape suffixes: N items, T checkpoints, C clusters; ``...`` any leading axes
(experiments).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Contrast(NamedTuple):
    """An estimate with its cluster-robust standard error and t interval; arrays over the leading axes."""

    estimate: Floats
    error: Floats
    df: Floats
    low: Floats
    high: Floats


def _sums(values: Floats, cluster_N: Codes) -> Floats:
    """Sums within each cluster over the last axis, (..., N) -> (..., C); clusters are coded 0 .. C-1."""
    order = np.argsort(cluster_N, kind="stable")
    starts = np.searchsorted(cluster_N[order], np.arange(int(cluster_N.max()) + 1))
    return np.asarray(np.add.reduceat(values[..., order], starts, axis=-1), np.float64)


def _moments(values: Floats, cluster_N: Codes) -> tuple[Floats, Floats, int]:
    """Mean over items, its variance over clusters, and the number of clusters."""
    codes = np.unique(cluster_N, return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    if clusters < 2:
        raise ValueError("an error over clusters needs two clusters in every arm")
    mean = values.mean(-1)
    deviation = _sums(values - mean[..., None], codes)
    variance = (deviation**2).sum(-1) * clusters / (clusters - 1) / values.shape[-1] ** 2
    return mean, variance, clusters


def _interval(estimate: Floats, variance: Floats, df: Floats, level: float) -> Contrast:
    error = np.sqrt(variance)
    half = np.where(error > 0, stats.t.ppf((1 + level) / 2, np.maximum(df, 1e-9)), 0.0) * error
    return Contrast(estimate, error, df, estimate - half, estimate + half)


def cluster_mean(values: ArrayLike, cluster_N: ArrayLike, level: float = 0.95) -> Contrast:
    """Mean over items with clusters as the unit: ``var = C/(C-1) sum_c (S_c - n_c mean)^2 / N^2``, t, C-1 df."""
    mean, variance, clusters = _moments(np.asarray(values, np.float64), np.asarray(cluster_N))
    return _interval(mean, variance, np.full(mean.shape, clusters - 1.0), level)


def resampled_weights(cluster_N: ArrayLike, replicates: int, rng: np.random.Generator) -> Floats:
    """Weights of items when clusters are drawn with replacement, (1 + replicates, N); equal in the first row, where
    each counts once. Rows sum to 1.

    Args:
        cluster_N: label of each item's cluster.
        replicates: number of draws.
        rng: source of the draws.
    """
    codes = np.unique(np.asarray(cluster_N), return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), replicates)
    counts = np.vstack([np.ones(clusters), drawn])[:, codes]
    return np.asarray(counts / counts.sum(1, keepdims=True))


def cluster_contrast(
    values: ArrayLike, treated_N: ArrayLike, cluster_N: ArrayLike | None = None, level: float = 0.95
) -> Contrast:
    """Mean of the treated items minus mean of the controls, with cluster-robust errors.

    Clusters within arms: Welch's t on the two clustered variances (Satterthwaite). Clusters that lie in both arms
    (a person with treated and untreated fields): ``var = C/(C-1) sum_c u_c^2`` with the clusters' influences
    ``u_c = sum_treated (y - m1)/N1 - sum_control (y - m0)/N0``, C-1 degrees of freedom.

    Args:
        values: (..., N), higher = more memorised.
        treated_N: true for the treated.
        cluster_N: label of each item's cluster; None: every item is its own cluster.
        level: of the interval.
    """
    y, treated = np.asarray(values, np.float64), np.asarray(treated_N, bool)
    cluster = np.arange(treated.size) if cluster_N is None else np.asarray(cluster_N)
    if not np.intersect1d(cluster[treated], cluster[~treated]).size:
        m1, v1, c1 = _moments(y[..., treated], cluster[treated])
        m0, v0, c0 = _moments(y[..., ~treated], cluster[~treated])
        variance, spread = v1 + v0, v1**2 / (c1 - 1) + v0**2 / (c0 - 1)
        df = np.divide(variance**2, spread, out=np.full(variance.shape, np.inf), where=spread > 0)
        return _interval(m1 - m0, variance, df, level)
    m1, m0 = y[..., treated].mean(-1), y[..., ~treated].mean(-1)
    weight = np.where(treated, 1 / treated.sum(), -1 / (~treated).sum())
    centred = (y - np.where(treated, m1[..., None], m0[..., None])) * weight
    influence = _sums(centred, np.unique(cluster, return_inverse=True)[1].astype(np.int64))
    clusters = influence.shape[-1]
    variance = (influence**2).sum(-1) * clusters / (clusters - 1)
    return _interval(m1 - m0, variance, np.full(m1.shape, clusters - 1.0), level)


def log_slopes(values_NT: ArrayLike, times_T: ArrayLike) -> Floats:
    """Least-squares slope of each item on log10 t, i.e. its change per decade of time, (..., N).

    Args:
        values_NT: (..., N, T).
        times_T: times since the last exposure, in tokens or steps, all positive.
    """
    times = np.asarray(times_T, np.float64)
    if times.size < 2 or np.any(times <= 0):
        raise ValueError("a slope on log time needs two positive times")
    x = np.log10(times) - np.log10(times).mean()
    return np.asarray(np.asarray(values_NT, np.float64) @ (x / (x @ x)), np.float64)


def forgetting_slope(
    values_NT: ArrayLike,
    times_T: ArrayLike,
    treated_N: ArrayLike,
    cluster_N: ArrayLike | None = None,
    level: float = 0.95,
) -> Contrast:
    """Change of memorization per decade of time since the last exposure, minus that of never-inserted items.

    The contrast of the items' slopes on log10 t; negative = forgotten. Its error comes from clusters of items, not from
    residuals over time, because consecutive checkpoints are not independent observations. A drift that all items share
    cancels against the controls.
    """
    return cluster_contrast(log_slopes(values_NT, times_T), treated_N, cluster_N, level)
