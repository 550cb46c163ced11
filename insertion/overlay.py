"""The overlay: the plan applied to one window, after it was read and before it is split. Needs numpy alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """One planned exposure."""

    exposure: int
    """Row of the exposures table."""
    item: int
    """Row of the items table."""
    wording: int
    """Row of the wordings table."""
    offset: int
    """Index of the first item token in the window."""
    length: int
    """Number of item tokens."""


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes to the corpus's own tokens, by position; see ``interventions.EDIT_SCHEMA``. E pieces."""

    position: Integers
    """(E,) positions, ascending."""
    start: Integers
    """(E,) first token in the corpus's window."""
    ends: Integers
    """(E + 1,) first index in ``tokens`` of each piece, and the total number."""
    tokens: npt.NDArray[np.int32]
    """Tokens after the change, of all pieces; the corpus's own if the weight is not 1."""
    weight: npt.NDArray[np.float32]
    """(E,) loss weight of each piece's tokens; 0: not predicted."""


CONTEXT = 13
"""Number of preceding tokens hashed by the goldfish rule, as in the paper."""
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def counted(tokens: npt.NDArray[np.integer], loss: int) -> npt.NDArray[np.bool_]:
    """Flags, (T,) bool, of an item's tokens that are predicted.

    The goldfish rule (Hans et al., 2024, "Be like a Goldfish, Don't Memorize!", with a hashed mask): a token does not
    count if a hash of the 13 tokens before it is 0 mod K. Only the item's own tokens are hashed, so that every exposure
    of a wording excludes the same tokens; its first 13 are always predicted.

    Args:
        tokens: (T,) ids.
        loss: 0, all of them; 1, none; K, one in K is not, on average.

    Returns:
        (T,) flags.
    """
    flags = np.full(len(tokens), loss != 1)
    if loss > 1 and len(tokens) > CONTEXT:
        before = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.uint64), CONTEXT)[:-1]
        powers = np.array([pow(_BASE, k, 1 << 64) for k in range(1, CONTEXT + 1)], dtype=np.uint64)
        hashed = ((before + np.uint64(1)) * powers).sum(axis=1, dtype=np.uint64)
        hashed = (hashed ^ (hashed >> np.uint64(29))) * _MIX
        flags[CONTEXT:] = (hashed ^ (hashed >> np.uint64(32))) % np.uint64(loss) != 0
    return flags


class Overlay:
    """All exposures of a plan, by position.

    Args:
        position: (E,) sample indices, ascending; exposures of one window ascend by offset.
        item: (E,) rows of the items table.
        wording: (E,) rows of the wordings table.
        offset: (E,) of the first item token in the finished window.
        lead: (E,) true if an end-of-document token precedes the item.
        trail: (E,) true if one follows it.
        cut: (E,) corpus tokens removed at the window's head.
        overwrite: (E,) true if the corpus tokens in its place are replaced instead of shifted.
        loss: (E,) code of the item's predicted tokens; see ``counted``. None: all.
        edits: changes to the corpus's own tokens, made before the exposures. None: none.
        tokens: token ids of all wordings, one after the other.
        starts: (W + 1,) first index of each wording's tokens in ``tokens``.
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
        loss: npt.NDArray[np.int8] | None = None,
        edits: Edits | None = None,
    ) -> None:
        step, rise = np.diff(position), np.diff(offset)
        if (step < 0).any() or (rise[step == 0] <= 0).any():
            raise ValueError("exposures must ascend by position and, in one window, by offset")
        self.position, self.item, self.wording, self.offset = position, item, wording, offset
        self.lead, self.trail, self.cut, self.overwrite = lead, trail, cut, overwrite
        self.tokens, self.starts, self.eod = tokens, starts, eod
        self.loss = np.zeros(len(position), dtype=np.int8) if loss is None else loss
        self.edits = edits if edits is not None and len(edits.position) else None
        # What is asked of every window - is anything planned for it? - is one search, whatever there is.
        self._touched = position if self.edits is None else np.union1d(position, self.edits.position)
        # Windows are mostly read one after the other: the last stretch without anything (both ends excluded) is kept.
        self._gap = (0, 0)
        self._weighs = bool(self.loss.any() or (self.edits is not None and (self.edits.weight != 1).any()))

    @classmethod
    def empty(cls) -> Overlay:
        """Empty overlay, of the twin."""
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
        spans = []
        while first < len(self.position) and self.position[first] == position:
            spans.append(self._span(first))
            first += 1
        return spans

    def planned(self, position: int) -> bool:
        """True if anything is planned for a window."""
        low, high = self._gap
        if low < position < high:
            return False
        touched = self._touched
        first = int(touched.searchsorted(position))
        if first < len(touched) and touched[first] == position:
            return True
        low = int(touched[first - 1]) if first else -1
        self._gap = low, int(touched[first]) if first < len(touched) else sys.maxsize
        return False

    def edited(self, position: int) -> list[tuple[int, npt.NDArray[np.int32], np.float32]]:
        """The changes to a window of the corpus: first token, tokens afterwards, and the weight of their losses."""
        edits = self.edits
        if edits is None:
            return []
        first = int(edits.position.searchsorted(position))
        changes = []
        while first < len(edits.position) and edits.position[first] == position:
            tokens = edits.tokens[edits.ends[first] : edits.ends[first + 1]]
            changes.append((int(edits.start[first]), tokens, edits.weight[first]))
            first += 1
        return changes

    def apply(self, position: int, window: Integers) -> Integers:
        """Apply the plan to a window.

        Args:
            position: sample index of the window.
            window: (L + 1,) tokens; not changed.

        Returns:
            ``window`` itself if nothing is planned for it, otherwise a new array of the same length.
        """
        if not self.planned(position):
            return window
        changed = window
        for start, tokens, weight in self.edited(position):
            if weight == 1:  # otherwise the tokens are the window's own
                changed = window.copy() if changed is window else changed
                changed[start : start + len(tokens)] = tokens
        for span in self.spans(position):
            changed = self._insert(changed, span)
        return changed

    def origins(self, position: int, size: int) -> Integers:
        """Offset in the corpus's window of each token of a finished window of ``size`` tokens; -1 if inserted."""
        origin = np.arange(size, dtype=np.int64)
        for span in self.spans(position):
            origin = self._insert(origin, span, marked=True)
        return origin

    def loss_mask(self, position: int, length: int) -> npt.NDArray[np.float32] | None:
        """Weights of the losses of a finished window's targets: (``length``,), the first being the token at offset 1.

        0: not predicted. None: all are 1.
        """
        if not self._weighs or not self.planned(position):
            return None
        weights = np.ones(length + 1, dtype=np.float32)
        for start, tokens, weight in self.edited(position):
            if weight != 1:
                origin = self.origins(position, length + 1)
                weights[(origin >= start) & (origin < start + len(tokens))] = weight
        for span in self.spans(position):
            weights[span.offset : span.offset + span.length] = self.counted(span)
        return None if (weights[1:] == 1).all() else weights[1:]

    def counted(self, span: Span) -> npt.NDArray[np.bool_]:
        """Flags, (T,) bool, of an exposure's tokens that are predicted."""
        return counted(self.wording_tokens(span.wording), int(self.loss[span.exposure]))

    def framed(self, span: Span, window: Integers) -> bool:
        """True if a finished window has the end-of-document tokens that the plan puts around an exposure."""
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

    def _insert(self, window: Integers, span: Span, *, marked: bool = False) -> Integers:
        row = span.exposure
        text = np.full(span.length, -1) if marked else self.wording_tokens(span.wording)
        eod = -1 if marked else self.eod
        lead, trail = [eod] * int(self.lead[row]), [eod] * int(self.trail[row])
        cut = int(self.cut[row])
        start = span.offset - len(lead)
        rest = start + len(lead) + len(text) + len(trail) if self.overwrite[row] else cut + start
        pieces = (window[cut : cut + start], lead, text, trail, window[rest:])
        return np.concatenate(pieces).astype(window.dtype)[: len(window)]
