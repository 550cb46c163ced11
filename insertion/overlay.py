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
    wording: int
    """Row of the wordings table."""
    offset: int
    """Of the first item token in the window."""
    length: int
    """Item tokens."""


class Overlay:
    """All exposures of a plan, by position.

    Args:
        position: (E,) sample indices, ascending; exposures of one window ascend by offset.
        item: (E,) rows of the items table.
        wording: (E,) rows of the wordings table.
        offset: (E,) of the first item token in the finished window.
        lead: (E,) whether an end-of-document token goes before the item.
        trail: (E,) whether one goes after it.
        cut: (E,) corpus tokens removed at the window's head.
        overwrite: (E,) whether the corpus tokens in its place are replaced rather than shifted.
        tokens: token ids of all wordings, one after the other.
        starts: (W + 1,) where each wording's tokens start in ``tokens``.
        eod: id of the end-of-document token.
    """

    def __init__(
        self,
        *,
        position: Integers,
        item: npt.NDArray[np.int32],
        wording: npt.NDArray[np.int32],
        offset: npt.NDArray[np.int32],
        lead: npt.NDArray[np.bool_],
        trail: npt.NDArray[np.bool_],
        cut: npt.NDArray[np.int32],
        overwrite: npt.NDArray[np.bool_],
        tokens: npt.NDArray[np.int32],
        starts: Integers,
        eod: int,
    ) -> None:
        step, rise = np.diff(position), np.diff(offset)
        if (step < 0).any() or (rise[step == 0] <= 0).any():
            raise ValueError("exposures must ascend by position and, in one window, by offset")
        self.position, self.item, self.wording, self.offset = position, item, wording, offset
        self.lead, self.trail, self.cut, self.overwrite = lead, trail, cut, overwrite
        self.tokens, self.starts, self.eod = tokens, starts, eod

    @classmethod
    def empty(cls) -> Overlay:
        """The twin's: nothing is inserted."""
        none, flags = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.bool_)
        return cls(
            position=none.astype(np.int64),
            item=none,
            wording=none,
            offset=none,
            lead=flags,
            trail=flags,
            cut=none,
            overwrite=flags,
            tokens=none,
            starts=np.zeros(1, dtype=np.int64),
            eod=0,
        )

    def spans(self, position: int) -> list[Span]:
        """The exposures planned for a window, by offset."""
        # Two scalar searches: numpy converts a scalar key faster than it makes an array of two.
        first = int(self.position.searchsorted(position))
        found = []
        while first < len(self.position) and self.position[first] == position:
            found.append(self._span(first))
            first += 1
        return found

    def planned(self, position: int) -> bool:
        """Whether anything is planned for a window."""
        first = int(self.position.searchsorted(position))
        return first < len(self.position) and bool(self.position[first] == position)

    def apply(self, position: int, window: Integers) -> Integers:
        """The window as the plan wants it.

        Args:
            position: sample index of the window.
            window: (L + 1,) tokens; not changed.

        Returns:
            ``window`` itself where nothing is planned, otherwise a new array of the same length.
        """
        for span in self.spans(position):
            window = self._insert(window, span)
        return window

    def framed(self, span: Span, window: Integers) -> bool:
        """Whether a finished window has the end-of-document tokens that the plan puts around an exposure."""
        row, end = span.exposure, span.offset + span.length
        before = not self.lead[row] or window[span.offset - 1] == self.eod
        return bool(before and (not self.trail[row] or window[end] == self.eod))

    def wording_tokens(self, wording: int) -> npt.NDArray[np.int32]:
        """Token ids of a wording."""
        return self.tokens[self.starts[wording] : self.starts[wording + 1]]

    def _span(self, row: int) -> Span:
        wording = int(self.wording[row])
        length = int(self.starts[wording + 1] - self.starts[wording])
        return Span(row, int(self.item[row]), wording, int(self.offset[row]), length)

    def _insert(self, window: Integers, span: Span) -> Integers:
        row = span.exposure
        text = self.wording_tokens(span.wording)
        lead, trail = [self.eod] * int(self.lead[row]), [self.eod] * int(self.trail[row])
        cut = int(self.cut[row])
        start = span.offset - len(lead)
        rest = start + len(lead) + len(text) + len(trail) if self.overwrite[row] else cut + start
        pieces = (window[cut : cut + start], lead, text, trail, window[rest:])
        return np.concatenate(pieces).astype(window.dtype)[: len(window)]
