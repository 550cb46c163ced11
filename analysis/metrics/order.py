"""Palimpsestic order tests (Kuditipudi et al. 2025): later data is better remembered. Shape suffix: N documents."""

from __future__ import annotations

import math
from itertools import permutations as all_orders
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


class OrderTest(NamedTuple):
    """Does what came later in training score higher? The palimpsest."""

    rho: float
    """Spearman correlation of training position with the statistic."""
    low: float
    high: float
    """95 % interval: Fisher z with Bonett & Wright's error sqrt((1 + rho^2/2) / (n - 3))."""
    p: float
    """Two-sided, t with n - 2 degrees of freedom."""
    n: int


def spearman_p(rho: float, n: int) -> float:
    """Two-sided p of a Spearman correlation: ``t = rho sqrt((n-2) / (1-rho^2))``; from the tail, no underflow."""
    if n < 3:
        raise ValueError("a correlation with a p-value needs three points")
    if abs(rho) >= 1:
        return 0.0
    return float(2 * stats.t.sf(abs(rho) * math.sqrt((n - 2) / (1 - rho * rho)), n - 2))


def order_test(position_N: ArrayLike, statistic_N: ArrayLike, level: float = 0.95) -> OrderTest:
    """Palimpsestic test (Kuditipudi et al. 2025): ``rho = Spearman(position, statistic)``.

    ``statistic = nll_reference - nll`` (higher = more memorised) is positively correlated if later data is
    better remembered; the paper's statistic has the other sign. The reference must not have met the data in
    the same order.

    Args:
        position_N: training position of each document, NOT a shuffle: argsort of positions is another thing
            (the paper's code correlates it, right only if ``order`` lists documents by position).
        statistic_N: one value a document.
        level: of the interval.
    """
    x, y = np.asarray(position_N, np.float64), np.asarray(statistic_N, np.float64)
    n = x.size
    if n < 4 or x.shape != y.shape:
        raise ValueError("the order test needs four documents or more, each with a position")
    rho = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    z = math.atanh(min(max(rho, -1 + 1e-15), 1 - 1e-15))
    return OrderTest(rho, math.tanh(z - half), math.tanh(z + half), spearman_p(rho, n), n)


def positions_from_shuffle(shuffle_N: ArrayLike) -> NDArray[np.int64]:
    """Position of each document from a list of documents in training order (its inverse permutation)."""
    return np.argsort(np.asarray(shuffle_N), kind="stable").astype(np.int64)


def order_permutation_p(
    position_N: ArrayLike, statistic_N: ArrayLike, *, permutations: int = 9999, seed: int = 0
) -> float:
    """Two-sided permutation p of the order test: exact (all n! orders) up to n = 8, else ``(1 + #) / (m + 1)``."""
    x = stats.rankdata(np.asarray(position_N, np.float64))
    y = stats.rankdata(np.asarray(statistic_N, np.float64))
    x -= x.mean()
    observed = abs(float(x @ y))
    slack = 1e-9 * max(1.0, observed)
    if x.size <= 8:
        every = np.array(list(all_orders(y)))
        return float(np.mean(np.abs(every @ x) >= observed - slack))
    rng = np.random.default_rng(seed)
    found = np.array([abs(float(x @ rng.permutation(y))) for _ in range(permutations)])
    return float((1 + np.sum(found >= observed - slack)) / (permutations + 1))


def reshuffle_test(position_N: ArrayLike, statistic_N: ArrayLike, epochs_N: ArrayLike) -> OrderTest:
    """Order test within epochs: ranks are taken inside each epoch, so that a reshuffle between epochs is no
    trend.

    Positions and statistics are centred by their epoch's mean rank before they are correlated; the degrees of
    freedom lose one per epoch.
    """
    epochs = np.unique(np.asarray(epochs_N), return_inverse=True)[1]
    x, y = np.asarray(position_N, np.float64), np.asarray(statistic_N, np.float64)
    rx, ry = np.zeros(x.size), np.zeros(x.size)
    for epoch in range(int(epochs.max()) + 1):
        here = epochs == epoch
        for ranks, values in ((rx, x), (ry, y)):
            own = stats.rankdata(values[here])
            ranks[here] = (own - own.mean()) / max(1, own.size)
    n = x.size - int(epochs.max())
    rho = float(rx @ ry / math.sqrt((rx @ rx) * (ry @ ry)))
    half = float(stats.norm.ppf(0.975)) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    z = math.atanh(min(max(rho, -1 + 1e-15), 1 - 1e-15))
    return OrderTest(rho, math.tanh(z - half), math.tanh(z + half), spearman_p(rho, n), n)
