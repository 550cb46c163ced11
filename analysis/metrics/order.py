"""Palimpsestic order tests (Kuditipudi et al. 2025), which detect that later training data is better remembered. Shape
suffix: N documents.
"""

from __future__ import annotations

import math
from itertools import permutations as all_orders
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.analysis.checks import numbers


class OrderTest(NamedTuple):
    """Result of the palimpsestic test: correlation of training position with the statistic."""

    rho: float
    """Spearman correlation of training position with the statistic."""
    low: float
    high: float
    """95 % interval: Fisher z with Bonett & Wright's error sqrt((1 + rho^2/2) / (n - 3))."""
    p: float
    """Two-sided p of a t distribution with n - 2 degrees of freedom."""
    n: int


def spearman_p(rho: float, n: int) -> float:
    """Two-sided p of a Spearman correlation: ``t = rho sqrt((n-2) / (1-rho^2))``; computed from the tail, so that small
    values do not underflow to 0.
    """
    if n < 3:
        raise ValueError("a correlation with a p-value needs three points")
    if abs(rho) >= 1:
        return 0.0
    return float(2 * stats.t.sf(abs(rho) * math.sqrt((n - 2) / (1 - rho * rho)), n - 2))


def order_test(position_N: ArrayLike, statistic_N: ArrayLike, level: float = 0.95) -> OrderTest:
    """Palimpsestic test (Kuditipudi et al. 2025): ``rho = Spearman(position, statistic)``.

    ``statistic = nll_reference - nll`` (higher = more memorised) is positively correlated if later data is better
    remembered; the paper's statistic has the other sign. The reference model must not have been trained on the data in
    the same order.

    Args:
        position_N: training position of each document; not the list of documents in training order, which is its
            inverse permutation.
        statistic_N: one value per document.
        level: confidence level of the interval.
    """
    x, y = numbers(position_N, "positions", 4), numbers(statistic_N, "statistics", 4)
    if x.shape != y.shape or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("the order test needs one position per document, and values that are not all equal")
    rho = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    return _order_test(rho, x.size, level)


def _order_test(rho: float, n: int, level: float) -> OrderTest:
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    z = math.atanh(min(max(rho, -1 + 1e-15), 1 - 1e-15))
    return OrderTest(rho, math.tanh(z - half), math.tanh(z + half), spearman_p(rho, n), n)


def order_permutation_p(
    position_N: ArrayLike, statistic_N: ArrayLike, *, permutations: int = 9999, seed: int = 0
) -> float:
    """Two-sided permutation p of the order test: exact (all n! orders) up to n = 8, else ``(1 + #) / (m + 1)``."""
    x = stats.rankdata(numbers(position_N, "positions"))
    y = stats.rankdata(numbers(statistic_N, "statistics"))
    x -= x.mean()
    observed = abs(float(x @ y))
    slack = 1e-9 * max(1.0, observed)
    if x.size <= 8:
        every = np.array(list(all_orders(y)))
        return float(np.mean(np.abs(every @ x) >= observed - slack))
    rng = np.random.default_rng(seed)
    permuted = np.array([abs(float(x @ rng.permutation(y))) for _ in range(permutations)])
    return float((1 + np.sum(permuted >= observed - slack)) / (permutations + 1))


def order_test_within_epochs(
    position_N: ArrayLike, statistic_N: ArrayLike, epochs_N: ArrayLike, level: float = 0.95
) -> OrderTest:
    """Order test within epochs: ranks are computed within each epoch, so that reshuffling between epochs causes no
    trend.

    Ranks are centred by their epoch's mean before they are correlated; each epoch costs one degree of freedom.
    """
    epochs = np.unique(np.asarray(epochs_N), return_inverse=True)[1]
    x, y = numbers(position_N, "positions"), numbers(statistic_N, "statistics")
    rx, ry = np.zeros(x.size), np.zeros(x.size)
    for epoch in range(int(epochs.max()) + 1):
        here = epochs == epoch
        for ranks, values in ((rx, x), (ry, y)):
            own = stats.rankdata(values[here])
            ranks[here] = (own - own.mean()) / max(1, own.size)
    n = x.size - int(epochs.max())
    if n < 4 or not rx.any() or not ry.any():
        raise ValueError(
            "the order test needs at least four documents more than epochs, and values that are not all equal"
        )
    return _order_test(float(rx @ ry / math.sqrt((rx @ rx) * (ry @ ry))), n, level)


class ReshuffleTest(NamedTuple):
    """Result of the reshuffle test, which compares a text's likelihood under the model of the true order with that
    under models of reshuffled data.
    """

    p: float
    """Exact one-sided p, ``(1 + #{reshuffled at least as likely}) / (m + 1)``."""
    z: float
    """``(LL - mean over the reshuffled) / sd``; higher = the text fits the true order."""
    p_t: float
    """One-sided p of ``z / sqrt(1 + 1/m)`` under a t distribution with m - 1 degrees of freedom; it can be below 1/(m +
    1)."""
    models: int
    """m."""


def reshuffle_test(loglik: float, loglik_reshuffled_M: ArrayLike) -> ReshuffleTest:
    """Palimpsestic test from text alone (Kuditipudi et al. 2025, observational setting).

    The last phase of training is repeated m times on reshuffled data. A text that does not come from the model is as
    likely under the model of the true order as under the models of the reshuffled data: its log-likelihoods are
    exchangeable, so the rank is uniform; and if they are normal, ``(LL - mean) / (sd sqrt(1 + 1/m))`` has a t
    distribution (a prediction interval).

    Args:
        loglik: log-likelihood of the text under the model of the true order.
        loglik_reshuffled_M: its log-likelihoods under the m models of the reshuffled data; m is at least 2.
    """
    others = numbers(loglik_reshuffled_M, "log-likelihoods under reshuffled models", 2)
    own = float(numbers(loglik, "log-likelihood of the text")[0])
    m, spread = others.size, float(others.std(ddof=1))
    away = own - float(others.mean())
    z = away / spread if spread > 0 else math.copysign(math.inf, away) if away else 0.0
    p_t = float(stats.t.sf(z / math.sqrt(1 + 1 / m), m - 1))
    return ReshuffleTest((1 + int(np.sum(others >= own))) / (m + 1), z, p_t, m)
