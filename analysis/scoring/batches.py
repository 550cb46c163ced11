"""Batches of texts of like length, and texts that need not be read because a longer one begins with them.

Padding goes behind the texts. With causal attention no token sees what comes after it, so neither padding nor the rest
of a longer text changes a prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def containing(texts: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    """For each text, the index of the text that is read in its place: the longest that begins with it, or itself.

    Args:
        texts: token ids of each.
    """
    # Big-endian bytes sort as the ids do: all texts that begin with a text follow it, the next one first.
    keys = [np.asarray(text).astype(">u4").tobytes() for text in texts]
    order = sorted(range(len(texts)), key=keys.__getitem__)
    source = np.arange(len(texts))
    for text, following in zip(order[-2::-1], order[:0:-1], strict=True):
        if keys[following].startswith(keys[text]):
            source[text] = source[following]
    return source


def batches(lengths: NDArray[np.int64], tokens: int, *, padding: bool = True) -> Iterator[NDArray[np.int64]]:
    """Indices of texts sorted by length and cut so that a batch, padded to its longest, has ``tokens`` at most.

    Args:
        lengths: of the texts.
        tokens: in a batch, unless a single text is longer.
        padding: False to read only texts of equal length together.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        if (
            stop == len(order)
            or (stop + 1 - start) * lengths[order[stop]] > tokens
            or not (padding or lengths[order[stop]] == lengths[order[start]])
        ):
            yield order[start:stop]
            start = stop
