"""Times of the exposures: the interval of positions that each one may take."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palimpsest.insertion.arms import Arm

Integers = npt.NDArray[np.int64]


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
    """Interval of positions for each exposure of an arm.

    Args:
        arm: the arm.
        items: number of items in the arm.
        steps: number of steps of the run.
        batch: windows per step.
        tokens_a_step: tokens per step, for phases in tokens.
        rng: random generator.
        begin: step that the run continues from.

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
