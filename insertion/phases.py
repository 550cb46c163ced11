"""Phases: the part of training in which exposures fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.data.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """The part of training in which exposures fall: a range, or a list of steps."""

    unit: Literal["fraction", "step", "token"] = "fraction"
    """Unit of ``start`` and ``end``."""
    start: float = 0.0
    """Start of the range."""
    end: float = 1.0
    """End of the range, exclusive."""
    at: tuple[int, ...] = ()
    """Explicit steps instead of a range, from 0; exposure k of an item falls into the k-th of them. The checkpoint of a
    step has not seen the exposures of that step: it has finished the steps below it."""

    def __post_init__(self) -> None:
        if self.at:
            if list(self.at) != sorted(set(self.at)) or min(self.at) < 0:
                raise UserError(f"insertion.phase: at={list(self.at)} must be different steps, ascending")
            return
        if not 0 <= self.start < self.end or (self.unit == "fraction" and self.end > 1):
            raise UserError(
                f"insertion.phase: start={self.start}, end={self.end} ({self.unit}) must have 0 <= start < end"
                + (" <= 1" if self.unit == "fraction" else "")
            )

    def steps(self, steps: int, tokens_a_step: int, begin: int = 0) -> tuple[int, int]:
        """First and end step of the range in a run.

        Args:
            steps: number of steps of the run, including those before ``begin``.
            tokens_a_step: tokens per step, for a phase in tokens.
            begin: step that the run continues from; fractions are of the steps after it, steps and tokens are counted
                from step 0.

        Raises:
            UserError: if the phase begins before the run, ends after it, or contains no step.
        """
        if self.at:
            first, end = self.at[0], self.at[-1] + 1
        elif self.unit == "fraction":
            first, end = (begin + round(share * (steps - begin)) for share in (self.start, self.end))
        else:
            size = 1 if self.unit == "step" else tokens_a_step
            first, end = int(self.start // size), int(-(-self.end // size))
        if first < begin:
            raise UserError(
                f"insertion.phase {self} begins at step {first}, but the run goes on from step {begin} "
                "(train.start_from); steps are counted from the very first"
            )
        if end > steps:
            raise UserError(f"insertion.phase {self} ends at step {end}, but the run has train.steps={steps}")
        if first >= end:
            raise UserError(f"insertion.phase {self} holds no step of a run of train.steps={steps}")
        return first, end

    def __str__(self) -> str:
        if self.at:
            shown = ", ".join(map(str, self.at[:3])) + (", ..." if len(self.at) > 3 else "")
            return f"steps {shown}"
        return (
            f"{self.start:g}-{self.end:g}" + {"fraction": "", "step": " steps", "token": " tokens"}[self.unit]
        )
