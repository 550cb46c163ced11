"""What greedy continuations probably go on as: what has followed the same last tokens before, as far as that pays.

One hash table for contexts of several lengths. An entry holds the token that came, a fingerprint of its context, and
whether that token was right the last few times. How often guesses of each kind (length of the context, those outcomes,
whether the next shorter context agrees) turn out right is counted, and a row guesses on while the product of these
shares is above what reading a token costs. What it says is a guess: it changes how fast one decodes, not what.

Shapes: B rows, W places of a history, G = ``MOST`` + 1 tokens (one more than are read: how would it have done?).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from palimpsest.analysis.vectors import Floats, Ints, compiled

ORDERS = (1, 2, 4, 8, 16)
"""Tokens of a context, each half of the next."""
CONTEXT = ORDERS[-1]
"""So many tokens must be in a history before the first that counts."""
MOST = 15
"""Tokens that a row guesses at once at most."""
PLACES = 18
"""Bits of a place in the table."""
STATE = 5
"""Bits of an entry's state: a leading one and the last four outcomes; 0 where a hint alone has said the token."""
PRIOR, WORTH = 0.6, 2.0
"""Share of right guesses of a kind that is not known yet, and how many guesses that is worth."""
STEP = 2.0
"""What a step of a row costs besides reading tokens, in tokens read: its attention reads all that it holds."""
BEFORE = 100.0
"""Tokens and steps that are taken to have been read before the first, one token each, two thirds of them kept."""

_STATES = 1 << STATE
Marks = NDArray[np.int32]


class Guesses:
    """What has been learnt, and what is guessed from it."""

    def __init__(self) -> None:
        self.said: Marks = np.full(1 << PLACES, -1, np.int32)
        """Token of each entry."""
        self.mark: Marks = np.full(1 << PLACES, -1, np.int32)
        """Fingerprint and state of each entry; -1 where there is none."""
        self.kinds = np.full((2 * len(ORDERS) * _STATES, 2), WORTH)
        """Right guesses of each kind, and all."""
        self.kinds[:, 0] *= PRIOR
        self.kept, self.cost = 0.7 * BEFORE, BEFORE

    def guess(self, history_BW: Ints, size_B: Ints, room_B: Ints) -> tuple[Ints, Ints, Ints]:
        """What rows may go on as.

        Args:
            history_BW: tokens of each row.
            size_B: how many there are.
            room_B: most tokens to guess.

        Returns:
            Guesses (B, G), what kind each is of (-1: none), and how many of each row to read, (B,).
        """
        guess_BG = np.zeros((len(size_B), MOST + 1), np.int64)
        kind_BG, count_B = np.full_like(guess_BG, -1), np.zeros_like(size_B)
        bar = 1.05 * self.kept / self.cost
        _guess(history_BW, size_B, room_B, bar, self.said, self.mark, self.kinds, guess_BG, kind_BG, count_B)
        return guess_BG, kind_BG, count_B

    def learn(
        self, history_BW: Ints, size_B: Ints, new_B: Ints, guess_BG: Ints, kind_BG: Ints, count_B: Ints
    ) -> None:
        """The ``new_B`` tokens of each row from place ``size_B`` on are what the model says after those before."""
        _learn(history_BW, size_B, new_B, guess_BG, kind_BG, self.said, self.mark, self.kinds)
        self.kept += int(new_B.sum())
        self.cost += int(count_B.sum()) + (1 + STEP) * len(count_B)

    def hint(self, text: Ints) -> None:
        """Each token of a text, after ``CONTEXT``, may be what the model says; what it has said counts more."""
        _hint(text, self.said, self.mark)


@compiled
def _find(line: Ints, end: int, places: Ints, prints: Ints) -> None:
    """Places and fingerprints of the contexts that end before ``end``, shortest first."""
    key, back = np.uint64(0), 0
    for order in range(len(ORDERS)):
        while back < ORDERS[order]:
            back += 1
            key = (key + np.uint64(line[end - back]) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        places[order] = key >> np.uint64(64 - PLACES)
        prints[order] = (key >> np.uint64(16)) & np.uint64((1 << 31 - STATE) - 1)


@compiled
def _guess(
    history_BW: Ints,
    size_B: Ints,
    room_B: Ints,
    bar: float,
    said: Marks,
    mark: Marks,
    kinds: Floats,
    guess_BG: Ints,
    kind_BG: Ints,
    count_B: Ints,
) -> None:
    places, prints = np.empty(len(ORDERS), np.int64), np.empty(len(ORDERS), np.int64)
    line = np.empty(CONTEXT + MOST + 1, np.int64)
    for row in range(len(size_B)):
        line[:CONTEXT] = history_BW[row, size_B[row] - CONTEXT : size_B[row]]
        chance = 1.0
        for ahead in range(MOST + 1):
            _find(line, CONTEXT + ahead, places, prints)
            order = len(ORDERS) - 1
            while order >= 0 and mark[places[order]] >> STATE != prints[order]:
                order -= 1
            if order < 0:
                break
            at, below = places[order], places[max(order - 1, 0)]
            agree = order > 0 and mark[below] >> STATE == prints[order - 1] and said[below] == said[at]
            kind = (order * _STATES + (mark[at] & (_STATES - 1))) * 2 + int(agree)
            line[CONTEXT + ahead] = guess_BG[row, ahead] = said[at]
            kind_BG[row, ahead] = kind
            chance *= kinds[kind, 0] / kinds[kind, 1]
            if chance < bar or ahead >= min(MOST, room_B[row]):
                break
            count_B[row] += 1


@compiled
def _learn(
    history_BW: Ints,
    size_B: Ints,
    new_B: Ints,
    guess_BG: Ints,
    kind_BG: Ints,
    said: Marks,
    mark: Marks,
    kinds: Floats,
) -> None:
    places, prints = np.empty(len(ORDERS), np.int64), np.empty(len(ORDERS), np.int64)
    for row in range(len(size_B)):
        for ahead in range(new_B[row]):
            token = history_BW[row, size_B[row] + ahead]
            if kind_BG[row, ahead] >= 0:
                kinds[kind_BG[row, ahead], 0] += guess_BG[row, ahead] == token
                kinds[kind_BG[row, ahead], 1] += 1
            _find(history_BW[row], size_B[row] + ahead, places, prints)
            for order in range(len(ORDERS)):
                at = places[order]
                if mark[at] >> STATE != prints[order]:
                    said[at], state = token, 1
                else:
                    old, hit = mark[at] & (_STATES - 1), said[at] == token
                    state = old * 2 + int(hit) if old or hit else 1
                    if state >= _STATES:  # the oldest outcome is forgotten
                        state = state & (_STATES // 2 - 1) | _STATES // 2
                    if not hit and not old & 1:  # wrong twice
                        said[at] = token
                mark[at] = prints[order] << STATE | state


@compiled
def _hint(text: Ints, said: Marks, mark: Marks) -> None:
    places, prints = np.empty(len(ORDERS), np.int64), np.empty(len(ORDERS), np.int64)
    for end in range(CONTEXT, len(text)):
        _find(text, end, places, prints)
        for order in range(len(ORDERS)):
            at = places[order]
            if mark[at] >> STATE != prints[order] or not mark[at] & (_STATES - 1):
                said[at], mark[at] = text[end], prints[order] << STATE
