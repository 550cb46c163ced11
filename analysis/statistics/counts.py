"""Bootstrap by counts: a replicate is how often each item was drawn, and every statistic a weighted one.

Drawing once serves every metric, dose and statistic: means are one matrix product, AUCs one cumulative sum. Shape
suffixes: N items, B replicates, M metrics, G groups.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.float32]


def draw_counts(cell_N: ArrayLike, replicates: int, seed: int = 0) -> Counts:
    """How often each item occurs in each replicate, resampled within its cell; (N, B) float32.

    Args:
        cell_N: what is held fixed: stratum x dose. Every column sums to the cell's size within each cell.
        replicates: B.
        seed: of the draws.
    """
    cells = np.unique(np.asarray(cell_N), return_inverse=True)[1]
    order = np.argsort(cells, kind="stable")
    bounds = np.append(0, np.cumsum(np.bincount(cells)))
    rng = np.random.default_rng(seed)
    counts = np.empty((cells.size, replicates), np.float32)
    for start, stop in itertools.pairwise(bounds):
        size = int(stop - start)
        drawn = rng.integers(0, size, (replicates, size), dtype=np.int32)
        drawn += np.arange(replicates, dtype=np.int32)[:, None] * size
        found = np.bincount(drawn.ravel(), minlength=replicates * size).reshape(replicates, size)
        counts[order[start:stop]] = found.T
    return counts


def bootstrap_means(counts_NB: Counts, values_NM: ArrayLike, group_N: ArrayLike) -> Floats:
    """Weighted mean of each group in each replicate: (G, B, M), groups in the order of their sorted labels.

    NaN values are no items: they take no weight.
    """
    values = np.asarray(values_NM, np.float64)
    values = values.reshape(len(values), -1)
    labels, codes = np.unique(np.asarray(group_N), return_inverse=True)
    found = np.empty((labels.size, counts_NB.shape[1], values.shape[1]))
    for group in range(labels.size):
        here = codes == group
        own, weights = values[here], counts_NB[here]
        known = np.isfinite(own)
        # Deviations from a centre keep float32 products exact to seven digits of the spread, not of the level.
        with np.errstate(invalid="ignore"):
            centre = np.where(known, own, 0).sum(0) / known.sum(0)
        deviation = np.where(known, own - centre, 0).astype(np.float32)
        top = (weights.T @ deviation).astype(np.float64)
        bottom = (weights.T @ known.astype(np.float32)).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[group] = centre + top / bottom
    return found


def bootstrap_auc(counts_NB: Counts, score_N: ArrayLike, group_N: ArrayLike, control: object) -> Floats:
    """AUC of every other group against ``control`` in each replicate; (G - 1, B), groups in sorted order.

    ``sum_ij w_i w_j ([s_i > s_j] + [=]/2) / (W_members W_controls)`` by one sort and one cumulative sum over all
    replicates. Items whose score is NaN are left out.
    """
    score, group = np.asarray(score_N, np.float64), np.asarray(group_N)
    known = np.flatnonzero(np.isfinite(score))
    order = known[np.argsort(score[known], kind="stable")]
    ranked, labels = score[order], group[order]
    is_control = labels == control
    below = np.cumsum(counts_NB[order[is_control]], axis=0, dtype=np.float32)
    below = np.concatenate([np.zeros((1, below.shape[1]), np.float32), below])
    controls = ranked[is_control]
    found = []
    for label in np.unique(group[group != control]):
        here = labels == label
        weights = counts_NB[order[here]]
        beaten = below[np.searchsorted(controls, ranked[here], "left")]
        tied = below[np.searchsorted(controls, ranked[here], "right")]
        wins = np.einsum("nb,nb->b", weights, beaten + tied, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(wins / (2 * weights.sum(0, dtype=np.float64) * below[-1]))
    return np.array(found).reshape(len(found), counts_NB.shape[1])


def percentile_limits(replicates: ArrayLike, level: float = 0.95, axis: int = -1) -> tuple[Floats, Floats]:
    """Percentile interval along an axis; NaN replicates are left out."""
    low, high = np.nanquantile(
        np.asarray(replicates, np.float64), [(1 - level) / 2, (1 + level) / 2], axis=axis
    )
    return np.asarray(low), np.asarray(high)
