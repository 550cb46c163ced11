"""Bootstrap by counts: a replicate is how often each item was drawn, and every statistic a weighted one.

Drawing once serves every metric, dose and statistic: means are one matrix product, AUCs one cumulative sum. Shape
suffixes: N items, B replicates, M metrics, G groups.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.uint8]

_COLUMNS = 128
"""Replicates worked on at once: what they need stays in a core's cache."""


def draw_counts(cell_N: ArrayLike, replicates: int, seed: int = 0) -> Counts:
    """How often each item occurs in each replicate, resampled within its cell; (N, B) uint8.

    Args:
        cell_N: what is held fixed: stratum x dose. Every column sums to the cell's size within each cell.
        replicates: B.
        seed: of the draws.
    """
    cells = np.unique(np.asarray(cell_N), return_inverse=True)[1]
    order = np.argsort(cells, kind="stable")
    bounds = np.append(0, np.cumsum(np.bincount(cells)))
    rng = np.random.default_rng(seed)
    counts = np.empty((cells.size, replicates), np.uint8)
    for start, stop in itertools.pairwise(bounds):
        size = int(stop - start)
        drawn = rng.integers(0, size, (replicates, size), dtype=np.int32)
        drawn += np.arange(replicates, dtype=np.int32)[:, None] * size
        found = np.bincount(drawn.ravel(), minlength=replicates * size).reshape(replicates, size)
        counts[order[start:stop]] = found.astype(np.uint8).T
    return counts


class Sums(NamedTuple):
    """Weighted sums of each group in each replicate; means follow for any union of groups."""

    total: Floats
    """(G, B, M): sum of value x weight."""
    weight: Floats
    """(G, B, M): sum of the weights of items that have a value."""
    labels: NDArray[Any]
    """G: sorted labels."""


def bootstrap_sums(counts_NB: Counts, values_NM: ArrayLike, group_N: ArrayLike) -> Sums:
    """Weighted sums by group: one matrix product a group. NaN values are no items: they take no weight."""
    values = np.asarray(values_NM, np.float64)
    values = values.reshape(len(values), -1)
    labels, codes = np.unique(np.asarray(group_N), return_inverse=True)
    shape = (labels.size, counts_NB.shape[1], values.shape[1])
    total, weight = np.empty(shape), np.empty(shape)
    for group in range(labels.size):
        here = np.flatnonzero(codes == group)
        own, weights = values[here], counts_NB[here].astype(np.float32)
        known = np.isfinite(own)
        # Deviations from a centre keep float32 products exact to seven digits of the spread, not of the level.
        centre = np.where(known, own, 0).sum(0) / np.maximum(known.sum(0), 1)
        deviation = np.where(known, own - centre, 0).astype(np.float32)
        weight[group] = (
            weights.sum(0, dtype=np.float64)[:, None] if known.all() else weights.T @ known.astype(np.float32)
        )
        total[group] = weights.T @ deviation + centre * weight[group]
    return Sums(total, weight, labels)


def bootstrap_means(counts_NB: Counts, values_NM: ArrayLike, group_N: ArrayLike) -> Floats:
    """Weighted mean of each group in each replicate: (G, B, M), groups in the order of their sorted labels."""
    sums = bootstrap_sums(counts_NB, values_NM, group_N)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums.total / sums.weight


def bootstrap_auc(counts_NB: Counts, score_N: ArrayLike, group_N: ArrayLike, control: object) -> Floats:
    """AUC of every other group against ``control`` in each replicate; (G - 1, B), groups in sorted order.

    ``sum_ij w_i w_j ([s_i > s_j] + [=]/2) / (W_members W_controls)`` by one sort and one cumulative sum over all
    replicates. Items whose score is NaN are left out.
    """
    score, group = np.asarray(score_N, np.float64), np.asarray(group_N)
    known = np.isfinite(score)
    controls = np.flatnonzero(known & (group == control))
    controls = controls[np.argsort(score[controls], kind="stable")]
    sides = []
    for label in np.unique(group[group != control]):
        members = np.flatnonzero(known & (group == label))
        members = members[np.argsort(score[members], kind="stable")]
        left = np.searchsorted(score[controls], score[members], "left")
        right = np.searchsorted(score[controls], score[members], "right")
        sides.append((members, left, right, not np.array_equal(left, right)))
    replicates = counts_NB.shape[1]
    found = np.empty((len(sides), replicates))
    for start in range(0, replicates, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        block = counts_NB[:, columns].astype(np.float32)
        below = np.zeros((controls.size + 1, block.shape[1]), np.float32)
        np.cumsum(block[controls], axis=0, out=below[1:])
        for side, (members, left, right, ties) in enumerate(sides):
            weights = block[members]
            beaten = below[left]
            if ties:
                beaten += below[right]
                beaten *= 0.5
            wins = np.einsum("nb,nb->b", weights, beaten, dtype=np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                found[side, columns] = wins / (weights.sum(0, dtype=np.float64) * below[-1])
    return found


def percentile_limits(replicates: ArrayLike, level: float = 0.95, axis: int = -1) -> tuple[Floats, Floats]:
    """Percentile interval along an axis; NaN replicates are left out."""
    low, high = np.nanquantile(
        np.asarray(replicates, np.float64), [(1 - level) / 2, (1 + level) / 2], axis=axis
    )
    return np.asarray(low), np.asarray(high)
