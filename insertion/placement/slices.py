"""Slices of the run's windows, so that independent designs never meet in one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WindowSlice:
    """One of ``of`` equal shares of all windows.

    Of every ``of`` consecutive windows, each slice has one, in an order determined by a hash. Designs in different
    slices never share a window, so that each design's placement is independent of the others.
    """

    number: int = 0
    of: int = 1

    def position(self, index: Integers) -> Integers:
        """Sample indices of the slice's windows with the given numbers (from 0), ascending."""
        if self.of == 1:
            return index
        mixed = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        turn = ((mixed ^ (mixed >> np.uint64(32))) % np.uint64(self.of)).astype(np.int64)
        positions: Integers = index * self.of + (turn + self.number) % self.of
        return positions

    def before(self, position: Integers) -> Integers:
        """Number of the slice's windows before each position."""
        if self.of == 1:
            return position
        numbers: Integers = position // self.of + (self.position(position // self.of) < position)
        return numbers
