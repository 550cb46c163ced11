"""Counterfactual memorization and influence, from models trained with and without a text.

Shape suffixes: N models, T texts whose scores are looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


class Effect(NamedTuple):
    """Effects on texts, (T,) each, with standard errors, intervals and one-sided p (Welch)."""

    estimate: Floats
    error: Floats
    low: Floats
    high: Floats
    p: Floats


def _welch(treated_NT: Floats, control_NT: Floats, level: float) -> Effect:
    if min(len(treated_NT), len(control_NT)) < 2:
        raise ValueError("an effect with an error needs two models with the text and two without it")
    parts = [(x.var(axis=0, ddof=1) / len(x), len(x) - 1) for x in (treated_NT, control_NT)]
    variance = parts[0][0] + parts[1][0]
    spread = sum(v**2 / df for v, df in parts)
    df = np.divide(variance**2, spread, out=np.full(variance.shape, np.inf), where=spread > 0)
    estimate = treated_NT.mean(axis=0) - control_NT.mean(axis=0)
    error = np.sqrt(variance)
    half = np.where(error > 0, stats.t.ppf((1 + level) / 2, df), 0.0) * error
    z = np.divide(estimate, error, out=np.sign(estimate) * np.inf, where=error > 0)
    return Effect(estimate, error, estimate - half, estimate + half, stats.t.sf(z, df))


class Counterfactual(NamedTuple):
    """Counterfactual memorization of one text."""

    estimate: float
    error: float
    low: float
    high: float
    p: float
    models_with: int
    models_without: int


def counterfactual_memorization(
    score_with: ArrayLike, score_without: ArrayLike, level: float = 0.95
) -> Counterfactual:
    """``mem(x) = E_{S with x} M(A(S), x) - E_{S without x} M(A(S), x)`` (Zhang et al. 2021), over seeds.

    If every seed includes the text independently at random, the difference of means is unbiased. The interval is
    Welch's.

    Args:
        score_with: M of x under each model trained with x.
        score_without: M of x under each model trained without x.
        level: confidence level of the interval.
    """
    with_x = np.asarray(score_with, np.float64)[:, None]
    without = np.asarray(score_without, np.float64)[:, None]
    effect = _welch(with_x, without, level)
    estimate, error, low, high, p = (float(part[0]) for part in effect)
    return Counterfactual(estimate, error, low, high, p, len(with_x), len(without))


def influence(score_NT: ArrayLike, included_N: ArrayLike, level: float = 0.95) -> Effect:
    """``infl(x => x') = E_{S with x} M(A(S), x') - E_{S without x} M(A(S), x')`` (Zhang et al. 2021), for texts x'.

    Args:
        score_NT: M of every x' under each model.
        included_N: True for models trained with x.
        level: confidence level of the intervals.
    """
    score, inside = np.asarray(score_NT, np.float64), np.asarray(included_N, np.bool_)
    return _welch(score[inside], score[~inside], level)
