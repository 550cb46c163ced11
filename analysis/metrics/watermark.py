"""Exact tests of inserted random draws: one draw was inserted, other draws of the same distribution were not."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.analysis.checks import numbers


class RankTest(NamedTuple):
    """Result of a test of an inserted draw against fresh draws of the same distribution."""

    p: float
    """One-sided p, ``(1 + #{fresh at least as likely}) / (m + 1)``."""
    z: float
    """``(mean nll of the fresh draws - nll of the inserted draw) / sd``; higher = more memorised."""
    fresh: int
    """m."""


def rank_test(nll_inserted: float, nll_fresh: ArrayLike) -> RankTest:
    """Data watermark (Wei, Wang & Jia 2024): ``p = (1 + #{NLL(x_j) <= NLL(x*)}) / (m + 1)``.

    The p is exact, because x* is exchangeable with the x_j if it was not trained on. ``z`` is minus the paper's ``(NLL*
    - mean) / sd`` (sd with m - 1), so that higher means more memorised. If the x_j are fresh passphrases of the same
    word list, this is the perplexity test of ghost sentences.
    """
    fresh = numbers(nll_fresh, "losses of fresh draws")
    nll_inserted = float(numbers(nll_inserted, "loss of the inserted draw")[0])
    p = (1 + int(np.sum(fresh <= nll_inserted))) / (fresh.size + 1)
    known = fresh.size > 1 and np.isfinite(fresh).all()
    spread = float(fresh.std(ddof=1)) if known else math.nan
    z = (float(fresh.mean()) - nll_inserted) / spread if spread > 0 else math.nan
    return RankTest(p, z, fresh.size)


def combined_p(p_values: ArrayLike) -> float:
    """Fisher's combination of independent p-values: ``P[chi2_{2n} >= -2 sum ln p]``."""
    p = numbers(p_values, "p-values")
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p-values must lie between 0 and 1")
    with np.errstate(divide="ignore"):  # one p of 0 makes the whole 0
        return float(stats.chi2.sf(-2 * np.log(p).sum(), 2 * p.size))
