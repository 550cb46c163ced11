"""Named arms, for designs that are not a product of factors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.arms import Arm
from palimpsest.insertion.phases import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedArm:
    """A named arm. Factors not given here take their value from ``insertion``."""

    dose: int
    """Number of insertions of each of its items."""
    items: int | tuple[str, ...]
    """Items of each family: the number of randomly drawn items, or a list of items: ``0-39`` (by number, both ends
    included), ``7``, or an id."""
    phase: Phase | None = None
    spacing: str | None = None
    position: str | None = None
    displace: str | None = None
    frame: str | None = None
    wording: str | None = None
    batch: str | None = None
    loss: str | None = None

    def __post_init__(self) -> None:
        listed = isinstance(self.items, tuple)
        if (listed and not self.items) or (isinstance(self.items, int) and self.items < 1):
            raise UserError(f"insertion.named_arms: items={self.items} holds no item")

    def arm(self, factors: Mapping[str, tuple[Any, ...]], name: str) -> Arm:
        """The arm.

        Args:
            factors: levels of each factor; there must be a single level unless this arm gives its own.
            name: name of the arm, for messages.
        """
        if not self.dose:
            return Arm(dose=0)
        chosen = {}
        for factor, levels in factors.items():
            own = getattr(self, factor)
            if own is None and len(levels) != 1:
                raise UserError(
                    f"insertion.named_arms.{name} says no {factor}, and insertion.{factor} has {len(levels)} levels; "
                    "named arms are not crossed with factors: give one level"
                )
            chosen[factor] = levels[0] if own is None else own
        return Arm(dose=self.dose, **chosen)

    def chosen(self, ids: Sequence[str]) -> list[int] | None:
        """Indices in ``ids``, the family's items, of the listed items; None if the items are drawn at random.

        Raises:
            UserError: for an item that does not exist.
        """
        if isinstance(self.items, int):
            return None
        numbers: list[int] = []
        for entry in self.items:
            if span := self._span(entry):
                numbers += span
            elif entry in ids:
                numbers.append(ids.index(entry))
            else:
                raise UserError(f"insertion.named_arms: there is no item '{entry}'{nearest(entry, ids)}")
        if max(numbers) >= len(ids):
            raise UserError(
                f"insertion.named_arms: there is no item number {max(numbers)}; the last is {len(ids) - 1}"
            )
        return numbers

    @property
    def drawn(self) -> int:
        """Items of each family that are randomly assigned."""
        return self.items if isinstance(self.items, int) else 0

    @property
    def size(self) -> int:
        """Items of each family, randomly assigned or listed."""
        return (
            self.items
            if isinstance(self.items, int)
            else sum(len(self._span(entry)) or 1 for entry in self.items)
        )

    @property
    def reach(self) -> int:
        """Number of items a family needs for all listed numbers to exist: the largest number + 1; 0 without one."""
        listed = () if isinstance(self.items, int) else self.items
        return max((self._span(entry).stop for entry in listed), default=0)

    @staticmethod
    def _span(entry: str) -> range:
        """Item numbers of an entry such as ``0-39``; empty for an id."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", entry)
        return range(0) if match is None else range(int(match[1]), int(match[2] or match[1]) + 1)
