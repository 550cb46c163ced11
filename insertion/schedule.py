"""When and where: exposures -> intervals of the run -> sample indices -> places inside windows.

Positions are integers: window p is consumed in step ``p // batch``. All functions are vectorised over exposures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError
from palimpsest.insertion.arms import Arm

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class WindowSlice:
    """One of ``of`` equal shares of all windows.

    Every ``of`` windows in a row hold one of each slice, in an order that a hash of their number decides. Designs that
    keep to different slices never meet in a window, so that each is placed the same whichever others there are.
    """

    number: int = 0
    of: int = 1

    def position(self, index: Integers) -> Integers:
        """Sample indices of the slice's windows: its first is number 0. Ascending."""
        if self.of == 1:
            return index
        mixed = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        turn = ((mixed ^ (mixed >> np.uint64(32))) % np.uint64(self.of)).astype(np.int64)
        found: Integers = index * self.of + (turn + self.number) % self.of
        return found

    def before(self, position: Integers) -> Integers:
        """How many of the slice's windows come before positions."""
        if self.of == 1:
            return position
        found: Integers = position // self.of + (self.position(position // self.of) < position)
        return found


def intervals(
    arm: Arm,
    items: int,
    *,
    steps: int,
    batch: int,
    tokens_a_step: int,
    rng: np.random.Generator,
    begin: int = 0,
) -> tuple[Integers, Integers]:
    """The positions that each exposure of an arm may take.

    Args:
        arm: the treatment.
        items: number of items that get it.
        steps: of the run.
        batch: windows a step.
        tokens_a_step: for phases in tokens.
        rng: random numbers.
        begin: step that the run goes on from.

    Returns:
        ``low`` and ``high`` (exclusive), each (items, dose); an item's exposures ascend in time, except where they
        are drawn from one interval.
    """
    first, end = arm.phase.steps(steps, tokens_a_step, begin)
    shape = (items, arm.dose)
    if arm.phase.at:
        chosen = np.array(arm.phase.at)[np.arange(arm.dose) * len(arm.phase.at) // max(arm.dose, 1)]
        if arm.dose <= len(arm.phase.at):
            chosen = np.array(arm.phase.at)[: arm.dose]
        at = np.broadcast_to(chosen, shape)
        return at * batch, (at + 1) * batch
    if arm.batch == "together":
        at = np.broadcast_to(rng.integers(first, end, size=(items, 1)), shape)
        return at * batch, (at + 1) * batch
    held = min(arm.last_exposure_within, end - first)
    last = rng.integers(end - held, end, size=(items, 1)) if held else None
    if arm.spacing == "uniform":
        low, high = np.full(shape, first * batch), np.full(shape, end * batch)
        if last is not None and arm.dose:
            high[:] = (last + 1) * batch
            low[:, -1:] = last * batch
        return low, high
    at = _spaced(arm, items, first, end, last, rng)
    return at * batch, (at + 1) * batch


def _spaced(
    arm: Arm, items: int, first: int, end: int, last: Integers | None, rng: np.random.Generator
) -> Integers:
    """Steps (items, dose) of evenly spaced, massed or expanding exposures."""
    span = end - first
    k = np.arange(arm.dose)
    if arm.spacing.startswith("massed:"):
        asked = min(int(arm.spacing.split(":")[1]), span)
        if last is None:
            start = rng.integers(first, end - asked + 1, size=(items, 1))
            return start + np.sort(rng.integers(0, asked, size=(items, arm.dose)), axis=1)
        within = np.minimum(asked, last - first + 1)
        back = np.floor(rng.random((items, arm.dose)) * within).astype(np.int64)
        back = np.sort(back, axis=1)[:, ::-1]
        back[:, -1:] = 0
        massed: Integers = last - back
        return massed
    # Expanding: every gap is twice the one before, as far as floating point tells them apart.
    doubling = np.minimum(k[1:] - 1, 40) if arm.spacing == "expanding" else np.zeros(max(arm.dose - 1, 0))
    relative = np.concatenate([[0.0], np.cumsum(2.0**doubling)])[: arm.dose]
    total = relative[-1] if arm.dose > 1 else 1.0
    if last is None:
        # The gaps fill the phase but for one mean gap, in which the whole pattern slides at random.
        width = np.full((items, 1), span * (arm.dose - 1) / max(arm.dose, 1))
        start = first + rng.random((items, 1)) * (span - width)
    else:
        width = (last - first).astype(np.float64)
        start = np.full((items, 1), first)
    at: Integers = np.floor(start + relative / total * width).astype(np.int64).clip(first, end - 1)
    if last is not None and arm.dose:
        at[:, -1:] = last
    return at


def place(
    low: Integers,
    high: Integers,
    *,
    slots: int,
    batch: int,
    apart: Integers,
    rng: np.random.Generator,
    windows: WindowSlice = WindowSlice(),
    kept: Integers | None = None,
) -> Integers:
    """Positions inside the intervals: uniform, at most ``slots`` exposures a window.

    Every exposure draws a place; those that find theirs taken draw again. Nothing here knows the texts, so plans
    that differ in their texts alone are placed alike. Memory is O(1) an exposure.

    Args:
        low: (N,) first position of each exposure.
        high: (N,) end position.
        slots: exposures that a window takes.
        batch: windows a step.
        apart: (N,) group whose exposures must fall into different steps; -1 for none.
        rng: random numbers.
        windows: the windows to choose from.
        kept: (N,) positions that are given, at most ``slots`` in a window; -1 for those to draw. None: all are drawn.

    Returns:
        (N,) positions.

    Raises:
        UserError: if some interval has too little room.
    """
    if windows.of > 1:
        steps = low // batch
        low, high = (
            windows.before(low),
            windows.before(high),
        )  # from here on only the slice's windows are counted
        if (high <= low).any():
            raise UserError(
                f"step {steps[high <= low][0]} has no window of insertion.slice={windows.number}/{windows.of}; raise "
                f"train.global_batch_size to {windows.of} or above, or use fewer slices"
            )
    chosen = np.empty(len(low), dtype=np.int64)
    stride = int(high.max(initial=0)) * windows.of // batch + 1
    given = np.full(len(low), -1) if kept is None else kept
    waiting, fixed = np.flatnonzero(given < 0), np.flatnonzero(given >= 0)
    chosen[fixed] = windows.before(given[fixed])
    ordered = np.sort(chosen[fixed])
    taken = ordered * slots + np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    """Sorted: position * slots + slot."""
    groups = np.sort((apart[fixed] * stride + given[fixed] // batch)[apart[fixed] >= 0])
    """Sorted: group x step, of those that must stay apart."""
    room = (int(high.max(initial=0)) - int(low.min(initial=0))) * slots
    if len(low) > room:
        raise UserError(
            f"the plan has {len(low):,} exposures but there are only {room // slots:,} windows for them, and a window "
            f"takes {slots}; lower insertion.doses, widen insertion.phase, train more steps, or raise "
            "insertion.per_window"
        )
    for _ in range(_ROUNDS):
        if not len(waiting):
            return windows.position(chosen)
        span = (high[waiting] - low[waiting]) * slots
        drawn = low[waiting] * slots + np.floor(rng.random(len(waiting)) * span).astype(np.int64)
        free = _first_of_each(drawn) & ~_member(drawn, taken)
        keyed = apart[waiting] >= 0
        key = apart[waiting] * stride + windows.position(drawn // slots) // batch
        if keyed.any():
            key = np.where(keyed, key, -1 - np.arange(len(key)))  # those without a group never meet
            free &= ~_member(key, groups)
            candidates = np.flatnonzero(free)
            free[candidates] = _first_of_each(key[candidates])
            groups = np.sort(np.concatenate([groups, key[free & keyed]]))
        chosen[waiting[free]] = drawn[free] // slots
        taken = _merge(taken, np.sort(drawn[free]))
        waiting = waiting[~free]
    return windows.position(_fill(chosen, waiting, low, high, slots, batch, apart, rng, windows))


def _member(values: Integers, ordered: Integers) -> Flags:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: Flags = ordered[place] == values
    return found


def _first_of_each(values: Integers) -> Flags:
    """Which entries are the first of their value."""
    first = np.zeros(len(values), dtype=np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _merge(one: Integers, other: Integers) -> Integers:
    """Two sorted arrays as one."""
    return np.insert(one, np.searchsorted(one, other), other) if len(one) else other


def _fill(
    chosen: Integers,
    waiting: Integers,
    low: Integers,
    high: Integers,
    slots: int,
    batch: int,
    apart: Integers,
    rng: np.random.Generator,
    windows: WindowSlice,
) -> Integers:
    """Give the few exposures that found no place by luck one of the free places of their interval, one by one."""
    counts = np.bincount(np.delete(chosen, waiting), minlength=int(high.max()))
    for row in waiting.tolist():
        group = apart[row]
        span = np.arange(low[row], high[row])
        at = windows.position(span)
        free = counts[span] < slots
        if group >= 0:
            own = chosen[np.setdiff1d(np.flatnonzero(apart == group), waiting)]
            free &= ~np.isin(at // batch, windows.position(own) // batch)
        options = span[free]
        waiting = waiting[waiting != row]
        if not len(options):
            raise UserError(
                f"there is no room for exposure {row}: windows {at[0]} to {at[-1]} (steps "
                f"{at[0] // batch} to {at[-1] // batch}) are full ({slots} a window)"
                f"{' or hold the item already' if group >= 0 else ''}; lower insertion.doses, widen insertion.phase, "
                "or raise insertion.per_window or train.global_batch_size"
            )
        chosen[row] = options[rng.integers(len(options))]
        counts[chosen[row]] += 1
    return chosen


@dataclass(frozen=True, slots=True)
class Places:
    """Where exposures sit in their windows; all arrays (N,)."""

    offset: Integers
    """Of the first item token, in the finished window."""
    lead: Flags
    """Whether an end-of-document token of the plan's own goes before it."""
    trail: Flags
    """Whether one follows."""
    cut: Integers
    """Corpus tokens removed at the window's head."""
    overwrite: Flags
    """Whether the corpus tokens in its place are replaced rather than shifted."""


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
    """Where in its window each exposure goes.

    Two numbers are drawn per exposure whatever its arm and length, and the windows are given: the choice of window
    never depends on the item. An exposure that asks for a document's, a sentence's or a word's start goes to one of
    those in its window that leave room, chosen uniformly; where there is none it goes to a uniform token.

    Args:
        arms: all arms.
        arm: (N,) each exposure's.
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
    """Index in the corpus window before which an exposure goes, and whether it needs a leading end-of-document."""
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
                f"insertion.position={kind}: items of up to {lengths.max()} tokens do not fit behind offset {high}; "
                f"lower it by {worst}, or shorten the items"
            )
        return target - framed, framed
    # Uniform over 1 .. latest, so that at least one token of the window precedes.
    point = 1 + np.floor(where * latest).astype(np.int64)
    if kind == "token":
        return point, framed
    splits, offsets = starts(kind, at)
    owner = np.repeat(np.arange(len(at)), np.diff(splits))
    fitting = np.bincount(owner[offsets <= latest[owner]], minlength=len(at))
    found = fitting > 0
    chosen = splits[:-1] + np.floor(where * fitting).astype(np.int64)
    point[found] = offsets[chosen[found]]
    return point, framed & ~found if kind == "boundary" else framed
