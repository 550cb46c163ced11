"""Permutation tests of a difference between arms, clusters permuted within cells.

Shape suffixes: N items, C clusters, B permutations.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from palimpsest.analysis.checks import numbers

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]
Alternative = Literal["greater", "two-sided"]

_ALL = 20_000
"""Largest number of assignments that are enumerated instead of sampled."""


def permutation_p(
    value_N: Floats,
    cell_N: Codes,
    treated_N: Bools,
    cluster_N: NDArray[np.generic] | None = None,
    *,
    permutations: int,
    seed: int,
    alternative: Alternative = "greater",
) -> float:
    """Permutation p that the treated items are higher than the controls, or different from them, under the
    randomisation that assigned them.

    The statistic is ``sum_s k_s (mean_s,treated - mean_s,control)`` over cells, k_s the treated clusters in cell s.
    Arms are permuted among the clusters of a cell, as they were assigned; the test is therefore exact for every
    distribution. With at most 20,000 assignments all are enumerated, and p is the share of those at least as extreme;
    otherwise p is ``(1 + #{stat* >= stat}) / (m + 1)`` (Phipson & Smyth 2010), at least ``1 / (permutations + 1)``.

    Args:
        value_N: one value per item.
        cell_N: code of the cell within which arms are exchangeable.
        treated_N: true for the treated.
        cluster_N: each item's cluster, within one cell and arm; None: every item is its own cluster.
        permutations: number of random permutations, if not all are enumerated.
        seed: seed of the permutations.
        alternative: ``greater`` or ``two-sided``.
    """
    value_N = numbers(value_N, "values of a permutation test")
    cluster = np.arange(value_N.size) if cluster_N is None else np.asarray(cluster_N)
    _, first, code = np.unique(cluster, return_index=True, return_inverse=True)
    sums: Floats = np.bincount(code, weights=value_N).astype(np.float64)
    sizes: Floats = np.bincount(code).astype(np.float64)
    cell, treated = np.asarray(cell_N)[first], np.asarray(treated_N)[first]
    cells = [np.flatnonzero(cell == one) for one in np.unique(cell)]
    counts = [int(treated[here].sum()) for here in cells]
    exact = math.prod(math.comb(len(h), k) for h, k in zip(cells, counts, strict=True)) <= _ALL
    rng = np.random.default_rng(seed)
    observed, drawn = 0.0, np.zeros(1 if exact else permutations)
    for here, count in zip(cells, counts, strict=True):
        own = sums[here], sizes[here]
        observed += float(_statistic(*own, treated[here][None])[0])
        if exact:
            drawn = np.add.outer(drawn, _statistic(*own, _every(len(here), count))).ravel()
        else:
            order = np.argsort(rng.random((permutations, len(here))), axis=1)
            drawn = drawn + _statistic(*own, order < count)
    # Equal statistics must count as equal although they were summed in another order.
    slack = 1e-12 * max(1.0, float(np.abs(value_N).max()) * len(value_N))
    if alternative == "two-sided":
        observed, drawn = abs(observed), np.abs(drawn)
    extreme = int(np.sum(drawn >= observed - slack))
    return extreme / drawn.size if exact else (1 + extreme) / (permutations + 1)


def _statistic(sum_C: Floats, size_C: Floats, treated_BC: Bools) -> Floats:
    """``k (mean_treated - mean_control)`` of one cell under each assignment, (B,); 0 if an arm is empty."""
    chosen = treated_BC.astype(np.float64)
    inside, items = chosen @ sum_C, chosen @ size_C
    outside, others = sum_C.sum() - inside, size_C.sum() - items
    both = (items > 0) & (others > 0)
    difference = inside / np.where(both, items, 1) - outside / np.where(both, others, 1)
    return np.asarray(np.where(both, chosen.sum(1) * difference, 0.0))


def _every(size: int, count: int) -> Bools:
    """All choices of ``count`` out of ``size`` indices, one per row."""
    rows = np.array(list(itertools.combinations(range(size), count)), np.int64).reshape(-1, count)
    chosen = np.zeros((len(rows), size), bool)
    np.put_along_axis(chosen, rows, True, axis=1)
    return chosen
