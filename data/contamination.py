"""Overlap of texts with the tokenized corpus: exact n-gram counts, in one pass over the token file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError
from palimpsest.data.tokens import read_tokens

_BASE = 0x9E3779B97F4A7C15
"""Base of the hash; odd, so that it has an inverse mod 2^64 and no token's contribution is lost."""
_BLOCK = 1 << 20  # tokens hashed at once
_COMPARED = 1 << 14  # places compared at once
_SIEVE = 1 << 22  # flags by which most n-grams of the corpus are passed over


@cache
def _powers(size: int, base: int) -> npt.NDArray[np.uint64]:
    """Powers of the base, ``1, base, base^2, ...`` (mod 2^64), uint64."""
    powers = np.full(size, base, dtype=np.uint64)
    powers[:1] = 1
    result: npt.NDArray[np.uint64] = np.multiply.accumulate(powers)
    return result


def _hashes(tokens: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """Polynomial hash (mod 2^64, mixed) of every n-gram: (T,) -> (T - n + 1,).

    Computed from differences of cumulated sums of ``token_k base^k``, divided by ``base^k`` of the n-gram's start, so
    that the time does not depend on n.
    """
    count = max(len(tokens) - n + 1, 0)
    size = 1 << max(len(tokens) - 1, 1).bit_length()  # few sizes, so that the powers are made once
    sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
    np.cumsum((tokens + np.uint64(1)) * _powers(size, _BASE)[: len(tokens)], out=sums[1:])
    result = sums[n : n + count] - sums[:count]
    result *= _powers(size, pow(_BASE, -1, 1 << 64))[:count]
    result ^= result >> np.uint64(29)
    result *= np.uint64(0xBF58476D1CE4E5B9)
    result ^= result >> np.uint64(32)
    return result


def ngram_counts(
    prefix: Path, spans: Sequence[npt.NDArray[np.int32]], *, n: int
) -> list[npt.NDArray[np.int64]]:
    """Count the occurrences of each n-gram of each span in a corpus.

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
    totals = np.zeros(len(wanted) + 1, dtype=np.int64)
    tokens = read_tokens(prefix)
    sieve = np.zeros(_SIEVE, dtype=np.bool_)
    sieve[wanted & np.uint64(_SIEVE - 1)] = True
    if len(wanted):
        for start in range(0, len(tokens), _BLOCK):
            block = _hashes(tokens[start : start + _BLOCK + n - 1].astype(np.uint64), n)
            block = block[sieve[block & np.uint64(_SIEVE - 1)]]
            place = np.searchsorted(wanted, block)
            place[place == len(wanted)] = 0
            hit = wanted[place] == block
            totals += np.bincount(place[hit], minlength=len(totals))
    return [totals[np.searchsorted(wanted, grams)] for grams in hashed]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminateConfig:
    """Settings of decontamination: documents that contain given texts are dropped. Defaults are Hubble's rule; lengths
    are in tokens.
    """

    paths: tuple[str, ...] = ()
    """JSONL files, globs or directories of the texts, such as test sets or the items of a plan; none: nothing is
    dropped."""
    text_field: str = "text"
    """Name of the field with the text."""
    skip_below: int = 10
    """Shorter texts are skipped and counted."""
    exact_up_to: int = 40
    """Texts up to this length are searched for whole; of a longer text of n tokens, its (n/2)-grams at stride n/4."""

    def __post_init__(self) -> None:
        if isinstance(self.paths, str):  # type: ignore[unreachable]
            raise UserError(
                f"corpus.decontaminate.paths={self.paths!r} is one string; give a list: [{self.paths}]"
            )
        object.__setattr__(self, "paths", tuple(map(str, self.paths)))
        if self.skip_below < 2 or self.exact_up_to < 2 * self.skip_below:
            raise UserError(
                f"corpus.decontaminate.skip_below={self.skip_below} and exact_up_to={self.exact_up_to} "
                f"are inconsistent; skip_below must be at least 2, and exact_up_to at least twice skip_below"
            )


class Finder:
    """Exact search for texts in token streams: the beginning of an n-gram is looked up by hash, then the whole n-gram
    is compared.

    Args:
        spans: token ids of each text.
        rule: settings of the search.
    """

    def __init__(self, spans: Sequence[npt.NDArray[np.int32]], rule: DecontaminateConfig) -> None:
        self._short = rule.skip_below
        grams: list[npt.NDArray[np.int64]] = []
        owner: list[int] = []
        self.skipped = np.array([len(span) < rule.skip_below for span in spans], dtype=bool)
        """Flags of the texts that are too short for the search, (S,) bool."""
        for number, span in enumerate(spans):
            size, stride = len(span), 1
            if size > rule.exact_up_to:
                size, stride = size // 2, size // 4
            if not self.skipped[number]:
                starts = range(0, len(span) - size + 1, stride)
                grams += [np.asarray(span[start : start + size], dtype=np.int64) for start in starts]
                owner += [number] * len(starts)
        self._grams, self._owner = grams, np.array(owner, dtype=np.int64)
        heads = [_hashes(gram[: self._short].astype(np.uint64), self._short) for gram in grams]
        head = np.concatenate([*heads, np.empty(0, dtype=np.uint64)])
        self._order = np.argsort(head, kind="stable")
        self._heads, self._first = np.unique(head[self._order], return_index=True)

    def find(
        self, ids: npt.NDArray[np.integer], ends: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Find the places of the texts inside documents.

        Args:
            ids: concatenated documents, (T,).
            ends: end of each document, (D,); the last is T.

        Returns:
            Index of the text and index of the document of each occurrence, two (F,) arrays.
        """
        texts, documents = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        if not len(self._heads):
            return texts[0], documents[0]
        for start in range(0, len(ids), _BLOCK):
            block = _hashes(ids[start : start + _BLOCK + self._short - 1].astype(np.uint64), self._short)
            place = np.searchsorted(self._heads, block)
            place[place == len(self._heads)] = 0
            hits = np.flatnonzero(self._heads[place] == block)
            for head in np.unique(place[hits]).tolist():
                at = start + hits[place[hits] == head]
                last = self._first[head + 1] if head + 1 < len(self._first) else len(self._order)
                for gram in self._order[self._first[head] : last].tolist():
                    for some in np.array_split(at, -(-len(at) // _COMPARED)):
                        documents.append(_holding(ids, ends, some, self._grams[gram]))
                        texts.append(np.full(len(documents[-1]), self._owner[gram]))
        return np.concatenate(texts), np.concatenate(documents)


def _holding(
    ids: npt.NDArray[np.integer],
    ends: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    gram: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Indices of the documents that contain an n-gram at the given places, one entry per place."""
    document = np.searchsorted(ends, at, side="right")
    fits = at + len(gram) <= ends[document]
    windows = ids[at[fits][:, None] + np.arange(len(gram))]
    documents: npt.NDArray[np.int64] = document[fits][(windows == gram).all(axis=1)]
    return documents


def ngram_places(prefix: Path, spans: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.int64]]:
    """Find every exact occurrence of each span in the token file.

    Args:
        prefix: of the token files.
        spans: token ids, none of them empty.

    Returns:
        For each span, the ascending places of its first token.
    """
    tokens = read_tokens(prefix)
    places_of: list[list[npt.NDArray[np.int64]]] = [[] for _ in spans]
    for n in sorted({len(span) for span in spans}):
        rows = [row for row, span in enumerate(spans) if len(span) == n]
        wanted = np.concatenate([_hashes(np.asarray(spans[row]).astype(np.uint64), n) for row in rows])
        for start in range(0, len(tokens), _BLOCK):
            block = np.asarray(tokens[start : start + _BLOCK + n - 1])
            hashed = _hashes(block.astype(np.uint64), n)
            at = np.flatnonzero(np.isin(hashed, wanted))
            for row, value in zip(rows, wanted, strict=True):
                some = at[hashed[at] == value]
                same = (block[some[:, None] + np.arange(n)] == spans[row]).all(axis=1)
                places_of[row].append(some[same].astype(np.int64) + start)
    return [np.concatenate([*places, np.empty(0, dtype=np.int64)]) for places in places_of]
