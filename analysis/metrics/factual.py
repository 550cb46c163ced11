"""Factual acquisition (Chang et al. 2024): rise and decay of a fact's log-probability after an insertion.

Shape suffixes: T checkpoints (or steps), F facts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Acquisition(NamedTuple):
    """Effect of one insertion of one fact."""

    t_lam: int
    """t_LAM, step of the local acquisition maximum: argmax of l in (t_i, t_i + w]; the first of equals."""
    effectivity: float
    """Effectivity ``E = l(t_LAM) - l(t_i)``, nats. As a maximum over noisy values it is positive even if nothing was
    learned."""


def acquisition(loglik_T: ArrayLike, inserted: int, window: int = 50) -> Acquisition:
    """``t_LAM = argmax_{t_i < t <= t_i + w} l_t``, ``E = l(t_LAM) - l(t_i)`` (Chang et al. 2024, eq. 1-2).

    Args:
        loglik_T: mean ln p of the probe's target at each step, nats/token.
        inserted: t_i, the last step before the insertion's update.
        window: w, number of steps searched for the maximum.
    """
    loglik = np.asarray(loglik_T, np.float64)
    if not 0 <= inserted < loglik.size - 1 or window < 1:
        raise ValueError(f"no step follows {inserted} among {loglik.size}")
    after = loglik[inserted + 1 : inserted + 1 + window]
    peak = inserted + 1 + int(np.argmax(after))
    return Acquisition(peak, float(loglik[peak] - loglik[inserted]))


def retainability(loglik_T: ArrayLike, before: float, t_lam: int) -> NDArray[np.float64]:
    """Retained share ``R(t) = [l(t_LAM + t) - l_pre] / [l(t_LAM) - l_pre]`` for t = 0, 1, ..., (T - t_LAM,); 1 =
    nothing lost, 0 = all lost.

    Args:
        loglik_T: log-probabilities, one entry per step.
        before: l_pre, the log-probability before the first insertion.
        t_lam: index of the local acquisition maximum after the last insertion.
    """
    loglik = np.asarray(loglik_T, np.float64)
    gain = float(loglik[t_lam]) - before
    if gain == 0:
        raise ValueError("retainability divides by the gain, which is 0: nothing was learned")
    return np.asarray((loglik[t_lam:] - before) / gain, np.float64)


class Decay(NamedTuple):
    """Semi-log fit ``R(t) = intercept - a log10 t`` of the share R retained after a time t (not a power law)."""

    per_decade: float
    """Decay constant ``a = -dR / d log10 t``, per decade."""
    per_e_fold: float
    """``-dR / d ln t = a / ln 10``."""
    intercept: float
    """Fitted R at t = 1."""
    horizon: float
    """Time t at which the line reaches R = 0 (learnability threshold): a fact inserted at longer intervals does not
    accumulate. Infinite if R does not fall."""


def decay(times: ArrayLike, retained: ArrayLike) -> Decay:
    """Decay constant by ordinary least squares on log10 t; entries with t <= 0 are refused. No standard error is given,
    because neighbouring checkpoints are correlated; :func:`analysis.statistics.forgetting_slope` gives intervals over
    facts.
    """
    t, r = np.asarray(times, np.float64), np.asarray(retained, np.float64)
    if t.size < 2 or t.shape != r.shape or np.any(t <= 0):
        raise ValueError("decay needs two times or more, all after the maximum (t > 0)")
    slope, intercept = np.polyfit(np.log10(t), r, 1)
    with np.errstate(over="ignore"):  # beyond the largest float a horizon is infinite
        horizon = 10 ** (-intercept / slope) if slope < 0 else math.inf
    return Decay(-float(slope), -float(slope) / math.log(10), float(intercept), float(horizon))
