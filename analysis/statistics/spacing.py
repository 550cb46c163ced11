"""Spacing through base-level activation (Anderson & Schooler 1991): recency and frequency in one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def base_level_activation(exposures: ArrayLike, time: float, decay: float = 0.5) -> float:
    """``B = ln sum_j (t - t_j)^-delta`` over the exposures before t; -inf without any.

    Args:
        exposures: times of the exposures (tokens or steps); those at or after ``time`` have not happened yet.
        time: t, of the measurement.
        decay: delta.
    """
    age = time - np.asarray(exposures, np.float64)
    age = age[age > 0]
    return float(np.logaddexp.reduce(-decay * np.log(age))) if age.size else float("-inf")


class Activation(NamedTuple):
    """A fit of ``y = a + b B_delta``, and whether spacing says more than B."""

    decay: float
    low: float
    high: float
    """95 % profile-likelihood interval of delta, within the grid."""
    intercept: float
    slope: float
    p_spacing: float
    """F test of the arms' means beyond B: small where spacing matters in a way that B does not hold."""


def fit_activation(
    exposures: Sequence[ArrayLike],
    time: float,
    values_N: ArrayLike,
    spacing_N: ArrayLike,
    *,
    grid: ArrayLike | None = None,
) -> Activation:
    """Fit delta by profile likelihood (normal errors), then test spacing beyond B.

    The design must hold the last exposure fixed across spacings, or recency passes for spacing.

    Args:
        exposures: times of each item's exposures, at least one each.
        time: of the measurement.
        values_N: one value an item.
        spacing_N: the arm of spacing (massed, uniform, expanding).
        grid: values of delta tried; 0.01 .. 2 by default.
    """
    from scipy import stats

    y = np.asarray(values_N, np.float64)
    deltas = np.linspace(0.01, 2.0, 200) if grid is None else np.asarray(grid, np.float64)
    levels = np.array([[base_level_activation(e, time, d) for e in exposures] for d in deltas])
    if not np.isfinite(levels).all():
        raise ValueError("an item without an exposure before the measurement has no activation")
    centred = levels - levels.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    slopes = np.divide(centred @ (y - y.mean()), spread, out=np.zeros(deltas.size), where=spread > 1e-12)
    rss = ((y - y.mean() - slopes[:, None] * centred) ** 2).sum(axis=1)
    best = int(np.argmin(rss))
    drop = y.size * np.log(rss / rss[best])
    inside = deltas[drop <= stats.chi2.ppf(0.95, 1)]
    arms = np.unique(np.asarray(spacing_N), return_inverse=True)[1]
    design = np.column_stack([np.eye(int(arms.max()) + 1)[arms], levels[best]])
    full = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    rank = int(np.linalg.matrix_rank(design))
    top, bottom = rank - 2, y.size - rank
    left = float(full @ full)
    f = (float(rss[best]) - left) / top / (left / bottom) if top > 0 and left > 0 else 0.0
    intercept = float(y.mean() - slopes[best] * levels[best].mean())
    p = float(stats.f.sf(f, top, bottom)) if top > 0 else 1.0
    return Activation(
        float(deltas[best]), float(inside.min()), float(inside.max()), intercept, float(slopes[best]), p
    )
