"""Rows for a model to read: texts of like length together, texts with a common beginning as one tree.

A probe's tokens are predicted from the end-of-document token and the tokens before them. Choices of one question, or
clozes that go further and further into one text, have most of that in common; what they share is read once. Attention
then goes along the branches: a token attends to what precedes it in its own text.

Shapes: R tokens read in one row (nodes of the tree), P pairs of a node and the token predicted from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_SHARED = 4
"""Tokens that neighbours must share, and half of the shorter one's, to be read as one tree."""
LONGEST_TREE = 1024
"""Tokens of a tree at most: attention over it costs their square."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What is read at once, and what is predicted from it."""

    ids: NDArray[np.int64]
    """(R,)"""
    nodes: NDArray[np.int64]
    """(P,) where in ``ids`` each prediction is made."""
    targets: NDArray[np.int64]
    """(P,) token predicted."""
    places: NDArray[np.int64]
    """(P,) where, among the tokens of all texts laid end to end, the prediction belongs."""
    positions: NDArray[np.int64] | None
    """(R,) depth in the tree; None for a single text."""
    seen: NDArray[np.bool_] | None
    """(R, R) true where a node attends to another; None for a single text, which is plainly causal."""


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """Predictions that one text shares with another."""

    source: int
    target: int
    """Where the two texts begin among the tokens of all."""
    count: int
    """Tokens, from the beginning."""


def rows(
    texts: Sequence[NDArray[np.integer]], eod: int, *, trees: bool = True
) -> tuple[list[Row], list[Copy]]:
    """What to read so that every token of every text is predicted once.

    Args:
        texts: token ids of each, at least one.
        eod: end-of-document token, read before each text.
        trees: read shared beginnings once; otherwise each text by itself.

    Returns:
        The rows; and what to copy afterwards, in this order.
    """
    ids = [np.asarray(text, np.int64) for text in texts]
    lengths = np.array([len(text) for text in ids], np.int64)
    places = np.cumsum(lengths) - lengths
    if not trees:
        return [_single(ids[k], int(places[k]), eod) for k in range(len(ids))], []
    # Big-endian bytes sort as the ids do, and text after text, so that neighbours share the most.
    order = sorted(range(len(ids)), key=lambda k: ids[k].astype(">u4").tobytes())
    made: list[Row] = []
    copies: list[Copy] = []
    family: list[int] = []
    shared: list[int] = []
    size = 0
    for k in order:
        common = _common(ids[family[-1]], ids[k]) if family else 0
        shorter = min(len(ids[family[-1]]), len(ids[k])) if family else 0
        together = common >= LEAST_SHARED and 2 * common >= shorter
        if family and not (together and size + len(ids[k]) - common <= LONGEST_TREE):
            made.append(_tree(ids, places, family, shared, eod))
            family, shared, size = [], [], 0
        if family:
            copies.append(Copy(int(places[family[-1]]), int(places[k]), common))
        shared.append(common if family else 0)
        size += len(ids[k]) - shared[-1]
        family.append(k)
    if family:
        made.append(_tree(ids, places, family, shared, eod))
    return made, copies


def batches(made: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows of one kind, sorted by length and cut so that a batch, padded to its longest, has ``tokens`` at most."""
    for trees in (False, True):
        chosen = [row for row in made if (row.seen is not None) == trees]
        chosen.sort(key=lambda row: len(row.ids))
        start = 0
        for stop in range(1, len(chosen) + 1):
            if stop == len(chosen) or (stop + 1 - start) * len(chosen[stop].ids) > tokens:
                yield chosen[start:stop]
                start = stop


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Tokens at the beginning that two texts share."""
    size = min(len(one), len(other))
    if not size or one[0] != other[0]:
        return 0
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size


def _single(text: NDArray[np.int64], place: int, eod: int) -> Row:
    count = len(text)
    line = np.arange(count)
    return Row(np.concatenate([[eod], text[:-1]]), line, text, place + line, None, None)


def _tree(
    texts: Sequence[NDArray[np.int64]],
    places: NDArray[np.int64],
    family: Sequence[int],
    shared: Sequence[int],
    eod: int,
) -> Row:
    """One row of texts in lexicographic order, each sharing ``shared`` tokens with the one before it."""
    if len(family) == 1:
        return _single(texts[family[0]], int(places[family[0]]), eod)
    path = np.zeros(max(len(texts[k]) for k in family), np.int64)
    ids, positions, nodes, targets, place, branches = [], [], [], [], [], []
    size = previous = 0
    for k, common in zip(family, shared, strict=True):
        text = texts[k]
        count = len(text)
        # Read are the end-of-document token and all tokens but the last; those that the text before has read are not
        # read again.
        known = min(common + 1, previous, count) if previous else 0
        fresh = np.arange(size, size + count - known)
        path[known:count] = fresh
        ids.append(np.concatenate([[eod], text[:-1]])[known:])
        positions.append(np.arange(known, count))
        branches.append((fresh, path[:count].copy(), known))
        nodes.append(path[common:count].copy())
        targets.append(text[common:])
        place.append(places[k] + np.arange(common, count))
        size += len(fresh)
        previous = count
    seen = np.zeros((size, size), np.bool_)
    for fresh, line, known in branches:
        seen[fresh[:, None], line[:known]] = True
        seen[fresh[:, None], line[known:]] = np.tri(len(fresh), dtype=np.bool_)
    return Row(
        np.concatenate(ids),
        np.concatenate(nodes),
        np.concatenate(targets),
        np.concatenate(place),
        np.concatenate(positions),
        seen,
    )
