"""Spacing through base-level activation (Anderson & Schooler 1991): recency and frequency in one number."""

from __future__ import annotations

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
