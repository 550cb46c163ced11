"""The overlay: the plan applied to one window, after it was read and before it is split. Needs numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """One exposure as it sits in a window."""

    exposure: int
    """Row of the exposures table."""
    item: int
    """Row of the items table."""
    offset: int
    """Of the first item token in the window."""
    length: int
    """Item tokens."""


class Overlay:
    """All exposures of a plan, by position.

    Args:
        position: (E,) sample indices, strictly ascending.
        item: (E,) rows of the items table.
        offset: (E,) of the first item token.
        boundary: (E,) whether the corpus has a document's end just before it.
        tokens: token ids of all items, one after the other.
        starts: (I + 1,) where each item's tokens start in ``tokens``.
        eod: id of the end-of-document token.
    """

    def __init__(
        self,
        *,
        position: Integers,
        item: npt.NDArray[np.int32],
        offset: npt.NDArray[np.int32],
        boundary: npt.NDArray[np.bool_],
        tokens: npt.NDArray[np.int32],
        starts: Integers,
        eod: int,
    ) -> None:
        if len(position) > 1 and not (np.diff(position) > 0).all():
            raise ValueError("exposures must have distinct, ascending positions")
        self.position, self.item, self.offset, self.boundary = position, item, offset, boundary
        self.tokens, self.starts, self.eod = tokens, starts, eod

    @classmethod
    def empty(cls) -> Overlay:
        """The twin's: nothing is inserted."""
        none = np.empty(0, dtype=np.int64)
        return cls(
            position=none,
            item=none.astype(np.int32),
            offset=none.astype(np.int32),
            boundary=none.astype(np.bool_),
            tokens=none.astype(np.int32),
            starts=np.zeros(1, dtype=np.int64),
            eod=0,
        )

    def spans(self, position: int) -> list[Span]:
        """The exposures planned for a window."""
        first, last = np.searchsorted(self.position, [position, position + 1])
        return [self._span(row) for row in range(first, last)]

    def apply(self, position: int, window: Integers) -> Integers:
        """The window as the plan wants it.

        Args:
            position: sample index of the window.
            window: (L + 1,) tokens; not changed.

        Returns:
            ``window`` itself where nothing is planned, otherwise a new array of the same length: the item
            spliced in with its end-of-document tokens, what follows shifted, the tail displaced.
        """
        for span in self.spans(position):
            window = self._insert(window, span)
        return window

    def item_tokens(self, item: int) -> npt.NDArray[np.int32]:
        """Token ids of an item."""
        return self.tokens[self.starts[item] : self.starts[item + 1]]

    def _span(self, row: int) -> Span:
        item = int(self.item[row])
        length = int(self.starts[item + 1] - self.starts[item])
        return Span(row, item, int(self.offset[row]), length)

    def _insert(self, window: Integers, span: Span) -> Integers:
        at = span.offset if self.boundary[span.exposure] else span.offset - 1
        lead = [] if self.boundary[span.exposure] else [self.eod]
        pieces = (window[:at], lead, self.item_tokens(span.item), [self.eod], window[at:])
        return np.concatenate(pieces).astype(window.dtype)[: len(window)]
