"""Input checks of all formulas: NaN must not pass for a low score, nor an empty set for a result."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def numbers(values: ArrayLike, what: str, least: int = 1) -> NDArray[np.float64]:
    """``values`` as float64, of any shape.

    A comparison with NaN is false: unchecked, one would count as an error in a rate, and as *never as extreme* in a
    permutation test. Infinities are numbers: they compare as they should.

    Args:
        values: numbers.
        what: their name in messages.
        least: how many there must be along the first axis.

    Raises:
        ValueError: if there are too few, or one is NaN.
    """
    found = np.atleast_1d(np.asarray(values, np.float64))
    if len(found) < least:
        raise ValueError(f"{what}: {least} or more are needed, not {len(found)}")
    if np.isnan(found).any():
        raise ValueError(f"{what}: {int(np.isnan(found).sum())} of {found.size} are NaN")
    return found
