"""Detection of documents that equal or nearly equal an earlier one, in memory independent of the corpus's size.

A document has *keys*: 128 bits of its words (exact), and, if asked for, 128 bits for each band of its MinHash signature
(near). It is dropped if any of its keys is a key of an earlier document, kept or not. Keys lie on disk, sorted, one
file per shard; they are brought together one range of their values at a time.

Near duplicates of held-out documents are dropped from training by default (``like_heldout``), whichever comes first.

Near duplicates: 5-word shingles, 14 bands of 8 hashes (as ``datatrove`` has it): two documents whose sets of shingles
have Jaccard similarity s share a band with probability 1 - (1 - s^8)^14: 0.92 at s = 0.8, 0.05 at s = 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

EXACT, NEAR, LIKE_HELDOUT = 1, 2, 3
_BANDS, _ROWS, _SHINGLE = 14, 8, 5
_AT_ONCE = 1 << 21  # keys compared at a time: 24 bytes each, and as much again to sort them
_PAIR = np.random.default_rng(20240229).integers(1, 1 << 61, (2, _BANDS * _ROWS), dtype=np.uint64)
"""Multipliers and addends of the hash functions; part of the result, so fixed."""


def key_of(text: str) -> tuple[bytes, int]:
    """128-bit key of a document's words, equal for texts that differ only in white space, and its number of words."""
    words = text.split()
    return blake2b(" ".join(words).encode(), digest_size=16).digest(), len(words)


def near_keys(text: str) -> npt.NDArray[np.uint64]:
    """Keys of the bands of a document's MinHash signature: (14, 2) uint64; fewer than 5 words have none, (0, 2)."""
    words = text.split()
    if len(words) < _SHINGLE:
        return np.empty((0, 2), dtype=np.uint64)
    lowered = [word.lower() for word in words]
    shingles = {" ".join(lowered[k : k + _SHINGLE]) for k in range(len(lowered) - _SHINGLE + 1)}
    hashed = np.frombuffer(
        b"".join(blake2b(text.encode(), digest_size=8).digest() for text in sorted(shingles)), dtype="<u8"
    )
    signature = np.full(_BANDS * _ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashed), 1 << 12):
        # Wraps mod 2^64 by intent; the top bits of a product by an odd number are well mixed.
        values = hashed[start : start + (1 << 12), None] * (_PAIR[0] | np.uint64(1)) + _PAIR[1]
        values ^= values >> np.uint64(32)
        signature = np.minimum(signature, (values * np.uint64(0xD6E8FEB86659FD93)).min(axis=0))
    bands = signature.reshape(_BANDS, _ROWS)
    digests = [blake2b(bytes([n]) + band.tobytes(), digest_size=16).digest() for n, band in enumerate(bands)]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(_BANDS, 2)


def write_keys(
    path: Path, keys: npt.NDArray[np.uint64], documents: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.uint8]:
    """Write a shard's keys, sorted, each once.

    Args:
        path: of the ``.npy`` to write: uint64 (3, K): high half, low half, document.
        keys: (K, 2), exact keys (one a document) before near ones.
        documents: (K,) index of each key's document in the shard.
        count: documents in the shard, C.

    Returns:
        uint8 (C,): 0, or EXACT or NEAR for a document that has a key of an earlier one of this shard.
    """
    exact = np.arange(len(keys)) < count
    order = np.lexsort((documents, keys[:, 1], keys[:, 0]))
    high, low, owner, exact = keys[order, 0], keys[order, 1], documents[order], exact[order]
    later = np.zeros(len(order), dtype=bool)
    later[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    dropped = np.zeros(count, dtype=np.uint8)
    dropped[owner[later & ~exact]] = NEAR
    dropped[owner[later & exact]] = EXACT
    np.save(path, np.stack([high, low, owner.astype(np.uint64) * 2 + exact])[:, ~later])
    return dropped


def across(shards: Sequence[Path], counts: Sequence[int], dropped: npt.NDArray[np.uint8]) -> None:
    """Mark the documents that have a key of an earlier shard's.

    Args:
        shards: files of ``write_keys``, one per shard, in the order of the corpus.
        counts: documents in each shard.
        dropped: (documents,) marks set inside the shards; may be mapped; is changed in place.
    """
    for later, documents, exact in _merged(shards, counts):
        near = documents[later & ~exact]
        dropped[near] = np.where(dropped[near] == EXACT, EXACT, NEAR)
        dropped[documents[later & exact]] = EXACT


def like_heldout(
    shards: Sequence[Path],
    counts: Sequence[int],
    heldout: npt.NDArray[np.bool_],
    dropped: npt.NDArray[np.uint8],
) -> None:
    """Mark the training documents that share a band with a held-out one, before or after it.

    Args:
        shards: files of ``write_near``, one per shard, in the order of the corpus.
        counts: documents in each shard.
        heldout: (documents,) flags; may be mapped.
        dropped: (documents,) marks; may be mapped; is changed in place.
    """
    for later, documents, _ in _merged(shards, counts):
        group = np.cumsum(~later) - 1
        held = heldout[documents]
        like = np.bincount(group, weights=held)[group] > 0
        marked = documents[like & ~held]
        dropped[marked] = np.where(dropped[marked] == 0, LIKE_HELDOUT, dropped[marked])


def write_near(path: Path, keys: npt.NDArray[np.uint64], documents: npt.NDArray[np.int64]) -> None:
    """Write the keys of near-duplicates of a shard, sorted, every occurrence of each.

    Args:
        path: of the ``.npy`` to write: uint64 (3, K), rows as of :func:`write_keys`.
        keys: (K, 2), high and low halves.
        documents: (K,) index of each key's document in the shard.
    """
    order = np.lexsort((documents, keys[:, 1], keys[:, 0]))
    np.save(path, np.stack([keys[order, 0], keys[order, 1], documents[order].astype(np.uint64) * 2]))


def _merged(
    shards: Sequence[Path], counts: Sequence[int]
) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Keys of all shards in ascending order, one range of their values at a time.

    Yields:
        For each key: true if the key before it is equal, index of its document in the corpus, and true if the key is
        exact.
    """
    first = np.concatenate([[0], np.cumsum(counts)])
    total = sum(int(np.load(path, mmap_mode="r").shape[1]) for path in shards)
    ranges = max(-(-total // _AT_ONCE), 1)
    edges = [number * (1 << 64) // ranges for number in range(1, ranges)]
    places = np.zeros(len(shards), dtype=np.int64)
    for number in range(ranges):
        pieces = []
        for shard, path in enumerate(shards):
            keys = np.load(path, mmap_mode="r")
            stop = keys.shape[1]
            if number < len(edges):
                stop = int(np.searchsorted(keys[0], np.uint64(edges[number])))
            piece = np.array(keys[:, places[shard] : stop])
            places[shard] = stop
            piece[2] += np.uint64(2 * first[shard])
            pieces.append(piece)
        high, low, owner = np.concatenate(pieces, axis=1) if pieces else np.empty((3, 0), dtype=np.uint64)
        order = np.lexsort((owner, low, high))
        high, low, owner = high[order], low[order], owner[order]
        later = np.zeros(len(order), dtype=bool)
        later[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
        yield later, (owner >> np.uint64(1)).astype(np.int64), (owner & np.uint64(1)).astype(bool)
