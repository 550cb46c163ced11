"""Factual acquisition (Chang et al. 2024): how a fact's log-probability rises after an insertion, and falls.

Shape suffixes: T checkpoints (or steps), F facts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Acquisition(NamedTuple):
    """One insertion of one fact."""

    t_lam: int
    """Local acquisition maximum: argmax of l in (t_i, t_i + w]; the first of equals."""
    effectivity: float
    """E = l(t_LAM) - l(t_i), nats. A maximum over noise: positive even where nothing was learned."""


def acquisition(loglik_T: ArrayLike, inserted: int, window: int = 50) -> Acquisition:
    """``t_LAM = argmax_{t_i < t <= t_i + w} l_t``, ``E = l(t_LAM) - l(t_i)`` (Chang et al. 2024, eq. 1-2).

    Args:
        loglik_T: l(q; theta_t), mean ln p of the probe's target, one entry a step.
        inserted: t_i, the last step before the insertion acts.
        window: w.
    """
    loglik = np.asarray(loglik_T, np.float64)
    if not 0 <= inserted < loglik.size - 1 or window < 1:
        raise ValueError(f"no step follows {inserted} among {loglik.size}")
    after = loglik[inserted + 1 : inserted + 1 + window]
    found = inserted + 1 + int(np.argmax(after))
    return Acquisition(found, float(loglik[found] - loglik[inserted]))


def retainability(loglik_T: ArrayLike, before: float, t_lam: int) -> NDArray[np.float64]:
    """``R(t) = [l(t_LAM + t) - l_pre] / [l(t_LAM) - l_pre]`` for t = 0, 1, ...; 1 = all kept, 0 = all lost.

    Args:
        loglik_T: log-probabilities, one entry a step.
        before: l_pre, before the first insertion.
        t_lam: index of the local acquisition maximum after the last insertion.
    """
    loglik = np.asarray(loglik_T, np.float64)
    gain = float(loglik[t_lam]) - before
    if gain == 0:
        raise ValueError("retainability divides by the gain, which is 0: nothing was learned")
    return np.asarray((loglik[t_lam:] - before) / gain, np.float64)


class Decay(NamedTuple):
    """Semi-log fit ``R(t) = intercept - a log10 t`` (not a power law)."""

    per_decade: float
    """a = -dR / d log10 t."""
    per_e_fold: float
    """-dR / d ln t = a / ln 10."""
    intercept: float
    """R at t = 1."""
    horizon: float
    """Crossing of the line with R = 0: the extrapolated horizon, and the interval between insertions beyond which a
    fact does not accumulate (learnability threshold); infinite if R does not fall."""


def decay(times: ArrayLike, retained: ArrayLike) -> Decay:
    """Decay constant by ordinary least squares on log10 t; entries with t <= 0 have no logarithm and are refused.

    The slope's printed OLS error is no error: neighbouring checkpoints are correlated. Intervals come from
    :func:`analysis.statistics.forgetting_slope` over facts.
    """
    t, r = np.asarray(times, np.float64), np.asarray(retained, np.float64)
    if t.size < 2 or t.shape != r.shape or np.any(t <= 0):
        raise ValueError("decay needs two times or more, all after the maximum (t > 0)")
    slope, intercept = np.polyfit(np.log10(t), r, 1)
    with np.errstate(over="ignore"):  # beyond the largest float a horizon is infinite
        horizon = 10 ** (-intercept / slope) if slope < 0 else math.inf
    return Decay(-float(slope), -float(slope) / math.log(10), float(intercept), float(horizon))
