"""Offsets of the exposures inside their windows, and the corpus tokens that are removed for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError
from palimpsest.insertion.arms import Arm

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Places:
    """Offsets of exposures in their windows; all arrays (N,)."""

    offset: Integers
    """Index of the first item token in the finished window."""
    lead: Flags
    """True if the plan puts an end-of-document token before it."""
    trail: Flags
    """True if the plan puts an end-of-document token after it."""
    cut: Integers
    """Corpus tokens removed at the window's head."""
    overwrite: Flags
    """True if the item replaces the corpus tokens in its place instead of shifting them."""


def locate(
    arms: list[Arm],
    arm: Integers,
    at: Integers,
    lengths: Integers,
    *,
    sequence_length: int,
    starts: Callable[[str, Integers], tuple[Integers, Integers]],
    rng: np.random.Generator,
) -> Places:
    """Choose the offset of each exposure in its window.

    Every exposure uses two random numbers, independent of its arm and length; the windows are given, so that they do
    not depend on the item. An exposure at a document's, sentence's or word's start is put at a uniformly drawn one in
    its window that leaves enough room; without such a start, at a uniformly drawn token.

    Args:
        arms: all arms.
        arm: (N,) index of each exposure's arm.
        at: (N,) positions, ascending.
        lengths: (N,) tokens of the wording.
        sequence_length: L; a window holds L + 1 tokens.
        starts: (``boundary``, ``sentence`` or ``word``; positions) -> splits and ascending offsets, as
            ``Order.boundaries`` gives them.
        rng: random numbers.

    Returns:
        The places.
    """
    count, size = len(at), sequence_length + 1
    where, share = rng.random(count), rng.random(count)
    framed = np.array([arms[a].frame == "document" for a in range(len(arms))], dtype=np.bool_)[arm]
    overwrite = np.array([a.displace == "overwrite" for a in arms], dtype=np.bool_)[arm]
    around = np.array([a.displace == "around" for a in arms], dtype=np.bool_)[arm]
    # Everything that the window's exposures put in must fit after the latest of their places.
    window = np.unique(at, return_inverse=True)[1]
    most = lengths + 2 * framed
    room = np.bincount(window, weights=most).astype(np.int64)[window]
    latest = np.where(around, sequence_length, size - room)
    point = np.empty(count, dtype=np.int64)
    lead = framed.copy()
    for kind in sorted({a.position for a in arms}):
        rows = np.flatnonzero(np.array([a.position == kind for a in arms])[arm])
        if len(rows):
            point[rows], lead[rows] = _points(
                kind, at[rows], lengths[rows], latest[rows], where[rows], framed[rows], starts
            )
    inserted = lengths + lead + framed
    # Trim c tokens at the head and the others at the tail, so that the item stays whole and one token precedes it.
    least = np.maximum(0, point + inserted - size)
    cut = np.where(around, least + np.floor(share * (np.minimum(inserted, point - 1).clip(0) - least + 1)), 0)
    cut = cut.astype(np.int64).clip(0)
    # Exposures of one window follow each other; each is shifted by those before it.
    order = np.lexsort((np.arange(count), point, at))
    before = np.cumsum(inserted[order]) - inserted[order]
    first = np.searchsorted(at, at)  # ``at`` ascends: index of the window's first exposure
    shift = np.empty(count, dtype=np.int64)
    shift[order] = before - before[first]
    return Places(point - cut + lead + shift, lead, framed, cut, overwrite)


def _points(
    kind: str,
    at: Integers,
    lengths: Integers,
    latest: Integers,
    where: npt.NDArray[np.float64],
    framed: Flags,
    starts: Callable[[str, Integers], tuple[Integers, Integers]],
) -> tuple[Integers, Flags]:
    """Index in the corpus window before which an exposure is inserted, and true if it needs a leading end-of-document
    token.
    """
    if kind == "start":
        return np.zeros(len(at), dtype=np.int64), framed
    if kind.startswith("offset:"):
        bounds = [int(number) for number in kind.split(":")[1].split("-")]
        low, high = bounds[0], bounds[-1]
        if low < (2 if framed.any() else 1):
            raise UserError(
                f"insertion.position={kind}: the item's first token needs a token before it, and frame=document one "
                f"more; begin at {2 if framed.any() else 1} or above (or use insertion.position=start)"
            )
        target = low + np.floor(where * (high - low + 1)).astype(np.int64)
        if (target - framed > latest).any():
            worst = int((target - framed - latest).max())
            raise UserError(
                f"insertion.position={kind}: items of up to {lengths.max()} tokens do not fit after offset {high}; "
                f"lower that offset by {worst}, or shorten the items"
            )
        return target - framed, framed
    # Uniform over 1 .. latest, so that at least one token of the window precedes.
    point = 1 + np.floor(where * latest).astype(np.int64)
    if kind == "token":
        return point, framed
    splits, offsets = starts(kind, at)
    owner = np.repeat(np.arange(len(at)), np.diff(splits))
    fitting = np.bincount(owner[offsets <= latest[owner]], minlength=len(at))
    fits = fitting > 0
    chosen = splits[:-1] + np.floor(where * fitting).astype(np.int64)
    point[fits] = offsets[chosen[fits]]
    return point, framed & ~fits if kind == "boundary" else framed
