"""Contrasts of arms: which two sets of arms a report compares."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.arms import FACTORS

_BETWEEN = re.compile(rf", (?=(?:{'|'.join(FACTORS)}) )")


class Contrast(NamedTuple):
    """Contrast of two sides. Each side is a set of levels that an arm's name must contain, such as ``dose 4`` or
    ``phase 0-0.5``, or an arm's full name.
    """

    first: frozenset[str]
    second: frozenset[str]

    def __str__(self) -> str:
        return " vs ".join(", ".join(sorted(side)) for side in self)


def parts(arm: str) -> frozenset[str]:
    """Levels in an arm's name: ``dose 4, phase 0-0.5`` -> ``dose 4`` and ``phase 0-0.5``."""
    return frozenset(_BETWEEN.split(arm))


def chosen(declared: Sequence[str], arms: Sequence[str]) -> list[Contrast]:
    """The contrasts of a report.

    Args:
        declared: ``report.contrasts``, each ``FIRST vs SECOND``; a side is a level (``phase 0-0.5``), several levels
            with a comma between them, or the name of an arm.
        arms: names of all arms.

    Returns:
        The declared contrasts; if none is declared, every pair of levels of each varying factor except the dose.

    Raises:
        UserError: for a contrast without two sides, a side that no arm matches, and an arm on both sides.
    """
    if declared:
        return [_declared(text, arms) for text in declared]
    contrasts = []
    for factor in FACTORS:
        levels = sorted({part for arm in arms for part in parts(arm) if part.startswith(f"{factor} ")})
        contrasts += [Contrast(frozenset({b}), frozenset({a})) for a, b in itertools.combinations(levels, 2)]
    return contrasts


def _declared(text: str, arms: Sequence[str]) -> Contrast:
    sides = [side.strip() for side in text.split(" vs ")]
    if len(sides) != 2 or not all(sides):
        raise UserError(
            f"report.contrasts: {text!r} must be FIRST vs SECOND, such as 'phase 0.5-1 vs phase 0-0.5'"
        )
    known = sorted({*arms, *(part for arm in arms for part in parts(arm))})
    for side in sides:
        if not any(parts(side) <= parts(arm) for arm in arms):
            raise UserError(f"report.contrasts: no arm has {side!r}{nearest(side, known)}")
    contrast = Contrast(parts(sides[0]), parts(sides[1]))
    if both := [arm for arm in arms if contrast.first | contrast.second <= parts(arm)]:
        raise UserError(f"report.contrasts: the arm {min(both)!r} is on both sides of '{contrast}'")
    return contrast
