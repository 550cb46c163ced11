"""Number of items of a family at each dose."""

from __future__ import annotations

import re
from collections.abc import Sequence

from palimpsest.data.errors import UserError

Counts = int | str | tuple[int, ...]
"""Items per dose: one number for all doses, one number for each, or ``hubble:N``."""

_HUBBLE = (10, 10, 5, 2, 1)


def items_of_doses(counts: Counts, doses: Sequence[int]) -> dict[int, int]:
    """Dose -> items of a family in each of its arms, ascending by dose.

    ``hubble:N`` is the grid of Hubble (Wei et al., 2025): N items, of which half (rounded down) are never inserted, and
    the others are shared among the five other doses, ascending, as 10:10:5:2:1 (largest remainders).

    Raises:
        UserError: for counts that do not fit the doses.
    """
    setting = f"insertion.items_per_dose={list(counts) if isinstance(counts, tuple) else counts}"
    if isinstance(counts, str):
        match = re.fullmatch(r"hubble:(\d+)", counts)
        if match is None:
            raise UserError(f"{setting}: give a number, a list with one for each dose, or hubble:N")
        if len(doses) != 1 + len(_HUBBLE):
            raise UserError(f"{setting} is a grid of {1 + len(_HUBBLE)} doses; insertion.doses={list(doses)}")
        total = int(match[1])
        shares = (total // 2, *_shared(total - total // 2, _HUBBLE))
        return dict(zip(sorted(doses), shares, strict=True))
    if isinstance(counts, tuple) and len(counts) != len(doses):
        raise UserError(f"{setting} must be one number, or one for each of insertion.doses={list(doses)}")
    each = (counts,) * len(doses) if isinstance(counts, int) else counts
    return dict(sorted(zip(doses, each, strict=True)))


def _shared(total: int, ratio: tuple[int, ...]) -> list[int]:
    """Split a total into integers in the given ratio, by largest remainders (ties: the first)."""
    parts = [divmod(total * weight, sum(ratio)) for weight in ratio]
    shares = [whole for whole, _ in parts]
    for k in sorted(range(len(ratio)), key=lambda k: -parts[k][1])[: total - sum(shares)]:
        shares[k] += 1
    return shares
