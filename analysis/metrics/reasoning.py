"""Memorised reasoning: LiMem (Xie et al. 2024, "On Memorization of Large Language Models in Logical Reasoning")."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class LiMem(NamedTuple):
    """Local inconsistency-based memorization."""

    score: float
    """Acc (1 - CR)."""
    accuracy: float
    consistency: float
    """CR = |solved and solved after the perturbation| / |solved|; 1 where nothing is solved."""
    puzzles: int
    without_perturbation: int
    """Puzzles whose perturbation failed to generate: counted in the accuracy, not in CR, never dropped
    unseen."""


def limem(solved: ArrayLike, solved_perturbed: ArrayLike) -> LiMem:
    """``LiMem = Acc (1 - CR)`` (Xie et al. 2024).

    Checked against first principles: a solver that reasons has CR = 1 and LiMem 0, one that recites has CR = 0
    and LiMem = Acc, one that solves nothing has 0; with all perturbations present ``Acc (1 - CR)`` is the share
    of puzzles solved but lost under the perturbation.

    Args:
        solved: 0/1 per puzzle.
        solved_perturbed: 0/1 per puzzle under a perturbation of equal difficulty and another answer; NaN where
            there is none.
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
