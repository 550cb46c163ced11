"""Spacing of exposures by base-level activation (Anderson & Schooler 1991), which combines recency and frequency."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def base_level_activation(exposures: ArrayLike, time: float, decay: float = 0.5) -> float:
    """Base-level activation ``B = ln sum_j (t - t_j)^-delta`` over the exposures before t; -inf without any.

    Args:
        exposures: times of the exposures (tokens or steps); those at or after ``time`` are ignored.
        time: t, the time of the measurement.
        decay: delta.
    """
    age = time - np.asarray(exposures, np.float64)
    age = age[age > 0]
    return float(np.logaddexp.reduce(-decay * np.log(age))) if age.size else float("-inf")


class Activation(NamedTuple):
    """Fit of ``y = a + b B_delta``, with a test for effects of spacing beyond B."""

    decay: float
    low: float
    high: float
    """95 % profile-likelihood interval of delta, within the grid."""
    intercept: float
    slope: float
    p_spacing: float
    """p of the F test of the arms' means beyond B; small if spacing has an effect that B does not describe."""
