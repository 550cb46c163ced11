"""Memorised reasoning: LiMem (Xie et al. 2024, "On Memorization of Large Language Models in Logical Reasoning")."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class LiMem(NamedTuple):
    """Result of LiMem, local inconsistency-based memorization."""

    score: float
    """LiMem score, ``Acc (1 - CR)``."""
    accuracy: float
    consistency: float
    """Consistency ``CR = |solved and solved after the perturbation| / |solved|``; 1 if nothing is solved."""
    puzzles: int
    without_perturbation: int
    """Number of puzzles without a perturbation; they count in the accuracy, not in CR."""


def limem(solved: ArrayLike, solved_perturbed: ArrayLike) -> LiMem:
    """``LiMem = Acc (1 - CR)`` (Xie et al. 2024).

    A model that reasons has CR = 1 and LiMem 0; a model that recites has CR = 0 and LiMem = Acc; a model that solves
    nothing has LiMem 0. If every puzzle has a perturbation, LiMem is the share of puzzles that are solved but not after
    the perturbation.

    Args:
        solved: 0/1 per puzzle.
        solved_perturbed: 0/1 per puzzle, after a perturbation of equal difficulty that changes the answer; NaN without
            a perturbation.
    """
    right = np.asarray(solved, np.float64)
    after = np.asarray(solved_perturbed, np.float64)
    if right.shape != after.shape or not right.size or not np.isin(right, (0, 1)).all():
        raise ValueError("LiMem needs 0 or 1 for every puzzle, in pairs")
    known = ~np.isnan(after)
    base = right * known
    accuracy = float(right.mean())
    consistency = float((base * np.nan_to_num(after)).sum() / base.sum()) if base.any() else 1.0
    return LiMem(accuracy * (1 - consistency), accuracy, consistency, right.size, int((~known).sum()))
