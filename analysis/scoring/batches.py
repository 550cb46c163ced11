"""Batches of texts of like length, and texts that need not be read because a longer one begins with them.

Padding goes behind the texts. Where no token sees what comes after it, neither padding nor the rest of a longer text
changes a prediction (:class:`analysis.scoring.models.Together`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from palimpsest.analysis.scoring.models import Together


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


def pieces(predictions: int, positions: int | None) -> Iterator[tuple[int, int]]:
    """Stretches of a text's predictions, (start, stop), each of which a pass over ``text[start : stop]`` makes.

    One for a text that the model can read whole. Of a longer one the last ``positions`` predictions come first, from
    the pass that ends with the text; then those before them, from passes that begin with it and follow each other.

    Args:
        predictions: tokens of the text, but for the last one.
        positions: tokens that the model can read in a pass; None: any number.
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
    """Indices of texts sorted by length and cut so that a batch, padded to its longest, has ``tokens`` at most.

    Args:
        lengths: of the texts.
        tokens: in a batch, unless a single text is longer.
        together: texts that may be in one batch.
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
