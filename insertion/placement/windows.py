"""Draw of random windows inside the exposures' intervals, with a limit of exposures per window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError
from palimpsest.insertion.placement.slices import WindowSlice

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_ROUNDS = 200
ALL = WindowSlice()


def place(
    low: Integers,
    high: Integers,
    *,
    slots: int,
    batch: int,
    apart: Integers,
    rng: np.random.Generator,
    windows: WindowSlice = ALL,
    preset: Integers | None = None,
) -> Integers:
    """Positions inside the intervals: uniform, at most ``slots`` exposures a window.

    Every exposure draws a place, and draws again if the place is taken. Plans that differ only in their texts have the
    same placement. Memory is O(1) per exposure.

    Args:
        low: (N,) first position of each exposure.
        high: (N,) end position.
        slots: largest number of exposures in a window.
        batch: windows per step.
        apart: (N,) group whose exposures must fall into different steps; -1 for none.
        rng: random numbers.
        windows: the windows to choose from.
        preset: (N,) positions that are given, at most ``slots`` in a window; -1 for those to draw. None: all are drawn.

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
    given = np.full(len(low), -1) if preset is None else preset
    waiting, fixed = np.flatnonzero(given < 0), np.flatnonzero(given >= 0)
    chosen[fixed] = windows.before(given[fixed])
    ordered = np.sort(chosen[fixed])
    taken = ordered * slots + np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    """Taken places as ``position * slots + slot``, sorted."""
    groups = np.sort((apart[fixed] * stride + given[fixed] // batch)[apart[fixed] >= 0])
    """Pairs of group and step, as one number, of exposures that must stay apart, sorted."""
    room = (int(high.max(initial=0)) - int(low.min(initial=0))) * slots
    if len(low) > room:
        raise UserError(no_room(len(low), room // slots, slots))
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


def no_room(exposures: int, windows: int, slots: int) -> str:
    """Error line for more exposures than windows with ``slots`` places each can take."""
    return (
        f"the plan has {exposures:,} exposures but there are only {windows:,} windows for them, and a window takes "
        f"{slots}; lower insertion.doses, widen insertion.phase, train more steps, or raise insertion.per_window"
    )


def _member(values: Integers, ordered: Integers) -> Flags:
    """True for values that are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    member: Flags = ordered[place] == values
    return member


def _first_of_each(values: Integers) -> Flags:
    """True for entries that are the first of their value."""
    first = np.zeros(len(values), dtype=np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _merge(one: Integers, other: Integers) -> Integers:
    """Two sorted arrays merged into one."""
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
    """Assign each remaining exposure, one by one, a random free place of its interval."""
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
