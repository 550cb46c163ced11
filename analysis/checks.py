"""Input checks shared by all formulas; NaN and empty inputs raise an error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def numbers(values: ArrayLike, what: str, least: int = 1) -> NDArray[np.float64]:
    """``values`` as a float64 array of their own shape.

    NaN is refused because every comparison with it is false: a rate would count it as an error, and a permutation test
    as less extreme. Infinities are allowed.

    Args:
        values: numbers, of any shape.
        what: name of the values in error messages.
        least: smallest allowed length of the first axis.

    Raises:
        ValueError: if there are fewer than ``least`` values, or one is NaN.
    """
    array = np.atleast_1d(np.asarray(values, np.float64))
    if len(array) < least:
        raise ValueError(f"{what}: {least} or more are needed, not {len(array)}")
    if np.isnan(array).any():
        raise ValueError(f"{what}: {int(np.isnan(array).sum())} of {array.size} are NaN")
    return array
