"""Batches of texts of similar length; a text that is the prefix of a longer one is read as part of it.

Padding is on the right. In a causal model neither padding nor the rest of a longer text changes a prediction;
:class:`analysis.scoring.models.Together` says for which models this holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from palimpsest.analysis.scoring.models import Together


def containing(texts: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    """For each text, the index of the longest text of which it is a prefix (of itself if there is no longer one),
    int64, one entry per text.

    Args:
        texts: token ids of each text.
    """
    # Big-endian bytes sort as the ids do: all texts that begin with a text follow it, the next one first.
    keys = [np.asarray(text).astype(">u4").tobytes() for text in texts]
    order = sorted(range(len(texts)), key=keys.__getitem__)
    source = np.arange(len(texts))
    for text, following in zip(order[-2::-1], order[:0:-1], strict=True):
        if keys[following].startswith(keys[text]):
            source[text] = source[following]
    return source


def pieces(predictions: int, positions: int | None) -> Iterator[tuple[int, int]]:
    """Ranges ``(start, stop)`` of tokens into which a text is cut for passes of at most ``positions`` tokens.

    Every prediction is in exactly one range. The first range ends at the text's end and is full, so that the last
    predictions have the most context; the ranges before it start at the beginning of the text.

    Args:
        predictions: number of the text's predictions, one fewer than its tokens.
        positions: largest number of tokens in a pass; None: unlimited.
    """
    if positions is None or predictions <= positions:
        if predictions > 0:
            yield 0, predictions
        return
    last = predictions - positions
    yield last, predictions
    for start in range(0, last, positions):
        yield start, min(start + positions, last)


def batches(
    lengths: NDArray[np.int64], tokens: int, *, together: Together = Together.ANY
) -> Iterator[NDArray[np.int64]]:
    """Batches of text indices, sorted by length; a batch padded to its longest text has at most ``tokens`` tokens.

    Args:
        lengths: numbers of tokens of the texts.
        tokens: largest number in a batch, which only a batch of a single text may exceed.
        together: texts that may share a batch.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        if (
            stop == len(order)
            or (stop + 1 - start) * lengths[order[stop]] > tokens
            or together is Together.NONE
            or (together is Together.SAME_LENGTH and lengths[order[stop]] != lengths[order[start]])
        ):
            yield order[start:stop]
            start = stop
