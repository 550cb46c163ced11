"""Whether texts are in the tokenized corpus already: exact n-gram counts, in one pass over the token file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.tokens import read_tokens

_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no token's contribution to the hash (mod 2^64) is lost."""
_BLOCK = 1 << 22  # tokens hashed at once


def _hashes(tokens: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """Polynomial hash (mod 2^64, mixed) of every n-gram: (T,) -> (T - n + 1,)."""
    count = max(len(tokens) - n + 1, 0)
    result = np.zeros(count, dtype=np.uint64)
    for k in range(n):  # n passes over the array, none over its tokens
        result *= _BASE
        result += tokens[k : k + count] + np.uint64(1)
    result ^= result >> np.uint64(29)
    result *= np.uint64(0xBF58476D1CE4E5B9)
    result ^= result >> np.uint64(32)
    return result


def ngram_counts(
    prefix: Path, spans: Sequence[npt.NDArray[np.int32]], *, n: int
) -> list[npt.NDArray[np.int64]]:
    """How often each n-gram of each span occurs in a corpus.

    The whole token file is read once, a block at a time; n-grams are compared by 64-bit hashes (a false match among
    10^12 corpus n-grams and 10^6 wanted ones has probability 0.05). N-grams may cross document ends.

    Args:
        prefix: of the token files.
        spans: token ids.
        n: length of the n-grams, tokens.

    Returns:
        For each span of T tokens, T - n + 1 counts; none for a span shorter than n.
    """
    hashed = [_hashes(np.asarray(span).astype(np.uint64), n) for span in spans]
    wanted = np.unique(np.concatenate([*hashed, np.empty(0, dtype=np.uint64)]))
    found = np.zeros(len(wanted) + 1, dtype=np.int64)
    tokens = read_tokens(prefix)
    if len(wanted):
        for start in range(0, len(tokens), _BLOCK):
            block = _hashes(tokens[start : start + _BLOCK + n - 1].astype(np.uint64), n)
            place = np.searchsorted(wanted, block)
            place[place == len(wanted)] = 0
            hit = wanted[place] == block
            found += np.bincount(place[hit], minlength=len(found))
    return [found[np.searchsorted(wanted, grams)] for grams in hashed]
