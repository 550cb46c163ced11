"""Windows as they lie in a corpus, or in the order that an index file lists them: what a released model read next.

A corpus of rows (Pythia's preshuffled Pile: documents of L + 1 tokens, end-of-document tokens inside) has a window a
row, and rows share no token. Any other is one stream of tokens, cut every L tokens: neighbouring windows share a token,
as in megatron-core. OLMo numbers chunks of L tokens file by file and leaves out what is left at a file's end; so does a
corpus of kind ``olmo``, whose windows are those chunks and the token after each.
"""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xxhash

from palimpsest.data import tokens
from palimpsest.data.artifact import Manifest, json_digest
from palimpsest.data.errors import UserError
from palimpsest.data.shards import DOCUMENTS, TRAIN

_BLOCK = 1 << 22


def read_index(path: Path) -> npt.NDArray[np.integer]:
    """Window numbers of an index file, mapped: (N,) integers.

    ``.npy`` with a header, or raw numbers: uint32 (as OLMo's ``global_indices.npy``, in spite of its name), or uint64
    where every other half is 0.

    Raises:
        UserError: if it is no such file.
    """
    try:
        with path.open("rb") as file:
            header = file.read(6)
        if header == b"\x93NUMPY":
            numbers: npt.NDArray[np.integer] = np.load(path, mmap_mode="r", allow_pickle=False)
            if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
                raise UserError(
                    f"corpus.order={path}: holds {numbers.dtype} of shape {numbers.shape}; give a row of window numbers"
                )
        else:
            size = path.stat().st_size
            if size % 4:
                raise UserError(
                    f"corpus.order={path}: {size} bytes are no whole number of uint32 window numbers; it was truncated"
                )
            numbers = np.memmap(path, dtype="<u4", mode="r") if size else np.empty(0, dtype="<u4")
            if len(numbers) > 2 and len(numbers) % 2 == 0 and not any(map(np.any, _blocks(numbers[1::2]))):
                numbers = np.memmap(path, dtype="<u8", mode="r")
    except OSError as error:
        raise UserError(
            f"corpus.order={path} cannot be read ({error.strerror or error}); it is shuffled, stored, or the path of a "
            "file of window numbers"
        ) from None
    except ValueError as error:
        raise UserError(
            f"corpus.order={path}: is no file of window numbers ({' '.join(str(error).split())[:200]})"
        ) from None
    if not len(numbers):
        raise UserError(f"corpus.order={path}: holds no window numbers")
    return numbers


def _blocks(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [array[start : start + _BLOCK] for start in range(0, len(array), _BLOCK)]


class StoredOrder:
    """The windows of a corpus without a shuffle. It does all that an ``Order`` does.

    Args:
        corpus: directory of a prepared corpus.
        manifest: its manifest.
        sequence_length: L; a window holds L + 1 tokens.
        index: file of window numbers; None: windows as they lie.
        first_window: number of windows (or entries of ``index``) before the one at position 0.

    Raises:
        UserError: if rows are of another length, or numbers are outside the corpus.
    """

    claim = ("the windows are read in the stored order", "their numbers digested again")
    """Name of the audit's check of the order, and its evidence."""

    def __init__(
        self,
        corpus: Path,
        *,
        manifest: Manifest,
        sequence_length: int,
        index: Path | None = None,
        first_window: int = 0,
    ) -> None:
        self.sequence_length = sequence_length
        self.eod: int = manifest.facts["eod"]
        self.corpus_digest = manifest.digest
        self.prefix = corpus / TRAIN
        self.first_window = first_window
        tokens.check(self.prefix, manifest.facts["vocab_size"])
        self._tokens = tokens.read_tokens(self.prefix)
        self._offsets = tokens.map_offsets(self.prefix)
        kind = manifest.config["source"]["kind"]
        self.rows = kind == "megatron" and self._has_rows()
        self._starts, counts = self._stretches(corpus, kind)
        self._before = np.concatenate([[0], np.cumsum(counts)])
        self.windows = int(self._before[-1])
        """Windows in the corpus."""
        self.path = index
        self.index = None if index is None else read_index(index)
        if self.index is not None:
            low = min(int(block.min()) for block in _blocks(self.index))
            high = max(int(block.max()) for block in _blocks(self.index))
            if low < 0 or high >= self.windows:
                raise UserError(
                    f"corpus.order={index}: lists windows {low} to {high}, but the corpus has {self.windows:,} of "
                    f"train.sequence_length={sequence_length}, numbered from 0; give all of its files, in their order, "
                    "or the sequence length that it was made for"
                )
        self._arrays = self._digest()

    def _has_rows(self) -> bool:
        """True if each document is a row of L + 1 tokens; an end-of-document token was put after it if it lacked one.

        Raises:
            UserError: if all are of another length, or most but not all of this one.
        """
        lengths = tokens.map_lengths(self.prefix)
        size = self.sequence_length + 1
        blocks = _blocks(lengths)
        fit = sum(int(np.count_nonzero((block == size) | (block == size + 1))) for block in blocks)
        if fit == len(lengths):
            return True
        low, high = min(int(b.min()) for b in blocks), max(int(b.max()) for b in blocks)
        if len(lengths) > 1 and high - low <= 1:
            raise UserError(
                f"corpus.order=stored: the corpus has rows of {high - 1} tokens, which do not fit "
                f"train.sequence_length={self.sequence_length}; set train.sequence_length={high - 2}"
            )
        if fit > len(lengths) / 2:
            odd = next(k for k, length in enumerate(lengths) if length not in (size, size + 1))
            raise UserError(
                f"corpus.order=stored: document {odd} of the corpus has {lengths[odd] - 1} tokens, and most others are "
                f"rows of {size}; all must be rows of train.sequence_length + 1"
            )
        return False

    def _stretches(self, corpus: Path, kind: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First token, and number of windows, of each stretch of the token file that is cut every L tokens."""
        if self.rows:
            return np.zeros(1, dtype=np.int64), np.array([len(self._offsets)])
        size, total = self.sequence_length, len(self._tokens)
        firsts = _files(corpus / DOCUMENTS) if kind == "olmo" else [0]
        starts = np.array([self._first_token(document) for document in firsts], dtype=np.int64)
        ends = np.append(starts[1:], total)
        counts = (ends - starts) // size
        counts[-1] = (total - starts[-1] - 1) // size  # the token after the last window is not there
        if not counts.sum():
            raise UserError(
                f"corpus {corpus} is too small for one window of train.sequence_length={size}; give more text or a "
                "shorter sequence length"
            )
        return starts, counts

    def _first_token(self, document: int) -> int:
        return int(self._offsets[document]) // self._tokens.dtype.itemsize

    def _digest(self) -> str:
        """XXH3-128 of the listed window numbers; empty without an index file."""
        if self.index is None:
            return ""
        digest = xxhash.xxh3_128()
        for block in _blocks(self.index):
            digest.update(np.ascontiguousarray(block, dtype="<u8").data)
        return digest.hexdigest()

    def __len__(self) -> int:
        """Windows from ``first_window`` on."""
        return max((self.windows if self.index is None else len(self.index)) - self.first_window, 0)

    @property
    def identity(self) -> str:
        """Digest of everything that the order depends on."""
        parts = [self.corpus_digest, self.sequence_length, "stored", self.rows, self._arrays]
        return json_digest([*parts, self.first_window])

    @property
    def prefixes(self) -> list[Path]:
        """The token files, without their endings."""
        return [self.prefix]

    def locate(self, position: int) -> tuple[int, StoredOrder, int]:
        """0, the order itself, and the position."""
        return 0, self, position

    def verify(self) -> list[str]:
        """Lines on what has changed since the order was opened; none if all is well."""
        return [] if self._digest() == self._arrays else [f"{self.path} was changed"]

    def require(self, windows: int) -> None:
        """Check that the corpus, or the index file, has that many windows from ``first_window`` on.

        Raises:
            UserError: if it has not.
        """
        if windows > len(self):
            have = self.windows if self.index is None else len(self.index)
            raise UserError(
                f"the run needs {windows:,} windows but {self.path or 'the corpus'} has {have:,}, of which "
                f"corpus.first_window={self.first_window} leaves {len(self):,}; lower train.steps, "
                "train.global_batch_size or corpus.first_window, or prepare more rows"
            )

    def start(self, position: int) -> int:
        """Place of a window's first token in the token file.

        Raises:
            IndexError: for a position that the order does not have.
        """
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = self.first_window + position
        number = number if self.index is None else int(self.index[number])
        if self.rows:
            return self._first_token(number)
        stretch = int(np.searchsorted(self._before, number, side="right")) - 1
        return int(self._starts[stretch]) + (number - int(self._before[stretch])) * self.sequence_length

    def window(self, position: int) -> npt.NDArray[np.int64]:
        """The corpus window at a position, before any overlay: (L + 1,) int64."""
        start = self.start(position)
        return self._tokens[start : start + self.sequence_length + 1].astype(np.int64)

    def documents(self, position: int) -> list[tuple[int, int, int]]:
        """Documents of a window, in order: (number of the document in the corpus, start, end). It has the window's
        tokens start to end - 1.

        Each row of the stored data set is one document.
        """
        start, width = self.start(position), self._tokens.dtype.itemsize
        stop = start + self.sequence_length + 1
        number = bisect.bisect_right(self._offsets, start * width) - 1
        documents = []
        while number < len(self._offsets) and (first := self._first_token(number)) < stop:
            after = self._first_token(number + 1) if number + 1 < len(self._offsets) else len(self._tokens)
            documents.append((number, max(first, start) - start, min(after, stop) - start))
            number += 1
        return documents

    def boundaries(
        self, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Document starts inside windows, from their end-of-document tokens; see ``Order.boundaries``."""
        starts = [np.flatnonzero(self.window(at)[:-1] == self.eod) + 1 for at in positions.tolist()]
        splits = np.concatenate([[0], np.cumsum([len(own) for own in starts], dtype=np.int64)])
        return splits, np.concatenate([*starts, np.empty(0, dtype=np.int64)]).astype(np.int64)


def _files(path: Path) -> list[int]:
    """First document of each source file, from the table of documents."""
    firsts, last, row = [], None, 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["source"]):
            names = batch["source"].to_numpy(zero_copy_only=False)
            new = np.flatnonzero(names[1:] != names[:-1]) + 1
            firsts += [row] * (names[0] != last) + (row + new).tolist()
            last, row = names[-1], row + len(names)
    return firsts
