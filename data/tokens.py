"""Megatron's token files: ``.bin`` (concatenated tokens) and ``.idx`` (offsets and lengths of documents).

The bytes equal those of megatron-core's ``IndexedDatasetBuilder`` on the same documents. ``.idx``,
little-endian, for D documents of one sequence each::

    9 bytes  magic            8  version = 1        1  dtype code (4 int32, 8 uint16)
    8        D                8  D + 1
    4 * D    lengths in tokens, int32, the end-of-document token included
    8 * D    byte offsets into .bin, int64
    8 * (D + 1)  index of each document's first sequence, and D, int64
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_Dtype = np.dtype[np.int32] | np.dtype[np.uint16]
_CODES: dict[int, _Dtype] = {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}
_FOREIGN: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    5: np.dtype("<i8"),
}
"""Other integer dtypes of Megatron and gpt-neox, which are read as sources but never written."""
_NO_IDS = {6: "float64", 7: "float32"}
_UINT16_VOCABULARY = 65_500  # megatron-core's DType.optimal_dtype draws the line here, not at 65,536
_BLOCK = 1 << 22  # documents; bounds the memory for offsets of a large .idx


def dtype_for(vocab_size: int) -> _Dtype:
    """The dtype in which megatron-core stores ids below ``vocab_size``: uint16 under 65,500, else int32."""
    return _CODES[8] if vocab_size < _UINT16_VOCABULARY else _CODES[4]


def bin_path(prefix: Path) -> Path:
    """Path ``<prefix>.bin``; ``with_suffix`` would remove a part of a name with a dot."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """Path ``<prefix>.idx``."""
    return prefix.with_name(prefix.name + ".idx")


class TokenWriter:
    """Writer of ``<prefix>.bin``, and of ``<prefix>.idx`` at the end of the ``with`` block.

    If the block raises, both files are removed.

    Args:
        prefix: path of the two files without their suffixes.
        vocab_size: number of ids; every id lies in ``[0, vocab_size)``.
        eod: id appended to each document.

    Raises:
        UserError: if ``eod`` is outside the vocabulary.
    """

    def __init__(self, prefix: Path, vocab_size: int, eod: int) -> None:
        if not 0 <= eod < vocab_size:
            raise UserError(
                f"eod={eod} is outside the vocabulary of {vocab_size} ids; choose an id of the tokenizer"
            )
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.eod = eod
        self.dtype = dtype_for(vocab_size)
        self.documents = 0
        self.tokens = 0
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._bin: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._bin = bin_path(self.prefix).open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._bin is not None
        try:
            self._bin.close()
            if kind is None:
                self._write_index()
                return
        except BaseException:
            self._remove()
            raise
        self._remove()

    def add(self, documents: Sequence[npt.NDArray[np.integer]]) -> None:
        """Append documents, each followed by the end-of-document id.

        Args:
            documents: ids of each document, 1-D integer arrays of at least one token.

        Raises:
            UserError: if a document is empty (the caller drops and counts those) or holds an id outside the
                vocabulary. Nothing of this call is written then.
        """
        if documents:
            lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
            self.add_flat(np.concatenate(documents), lengths)

    def add_flat(self, ids: npt.NDArray[np.integer], lengths: npt.NDArray[np.int64]) -> None:
        """Append concatenated documents, each followed by the end-of-document id.

        Args:
            ids: ids of all documents, (T,) integers.
            lengths: tokens of each document, (D,), summing to T.

        Raises:
            UserError: as ``add``.
        """
        if self._bin is None:
            raise RuntimeError("TokenWriter.add is called inside its with block")
        if not len(lengths):
            return
        self._check(ids, lengths)
        ends = np.cumsum(lengths + 1) - 1
        tokens = np.empty(int(ends[-1]) + 1, dtype=self.dtype)
        is_text = np.ones(len(tokens), dtype=bool)
        is_text[ends] = False
        tokens[is_text] = ids
        tokens[ends] = self.eod
        self._bin.write(tokens.data)
        self._lengths.append((lengths + 1).astype(np.int32))
        self.documents += len(lengths)
        self.tokens += len(tokens)

    def _check(self, ids: npt.NDArray[np.integer], lengths: npt.NDArray[np.int64]) -> None:
        empty = np.flatnonzero(lengths == 0)
        if len(empty):
            raise UserError(f"document {self.documents + int(empty[0])} has no tokens; drop it")
        if lengths.max() >= np.iinfo(np.int32).max:
            worst = self.documents + int(lengths.argmax())
            raise UserError(
                f"document {worst} has {lengths.max()} tokens; the format ends at 2**31 - 2: split it"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            place = int(np.flatnonzero((ids < 0) | (ids >= self.vocab_size))[0])
            number = self.documents + int(np.searchsorted(np.cumsum(lengths), place, side="right"))
            raise UserError(
                f"document {number} holds id {ids[place]}, outside the vocabulary of "
                f"{self.vocab_size} ids; tokenize it with the tokenizer of this corpus"
            )

    def _write_index(self) -> None:
        write_index(self.prefix, self._lengths, self.dtype)

    def _remove(self) -> None:
        bin_path(self.prefix).unlink(missing_ok=True)
        idx_path(self.prefix).unlink(missing_ok=True)


def write_index(prefix: Path, lengths: Sequence[npt.NDArray[np.int32]], dtype: _Dtype) -> None:
    """Write ``<prefix>.idx``, in a memory that does not grow with the number of documents.

    Args:
        prefix: path without suffix.
        lengths: tokens of each document, the end-of-document token included: int32 arrays, one after the other;
            they may be mapped.
        dtype: of the tokens in ``.bin``: uint16 or int32.
    """
    code = next(code for code, known in _CODES.items() if known == dtype)
    count = sum(map(len, lengths))
    with idx_path(prefix).open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, count, count + 1))
        for piece in lengths:
            for start in range(0, len(piece), _BLOCK):
                file.write(np.ascontiguousarray(piece[start : start + _BLOCK], dtype="<i4").data)
        offset = 0
        for piece in lengths:
            for start in range(0, len(piece), _BLOCK):
                sizes = piece[start : start + _BLOCK].astype("<i8") * dtype.itemsize
                stops = np.cumsum(sizes, out=np.empty_like(sizes))
                total = int(stops[-1])
                file.write((stops - sizes + offset).data)  # where each document begins
                offset += total
        for start in range(0, count + 1, _BLOCK):
            file.write(np.arange(start, min(start + _BLOCK, count + 1), dtype="<i8").data)


@dataclass(frozen=True, slots=True)
class _Index:
    """An ``.idx`` as mapped: lengths int32 (N,), offsets int64 (N,), document starts int64 (D + 1,)."""

    dtype: np.dtype[Any]
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def _map_index(prefix: Path, *, foreign: bool = False) -> _Index:
    path = idx_path(prefix)
    again = "write it with megatron-core's IndexedDatasetBuilder" if foreign else "prepare the corpus again"
    if not path.is_file():
        if foreign and bin_path(prefix).is_file():
            raise UserError(f"{bin_path(prefix)} has no index; put {path.name} beside it")
        raise UserError(f"{path} does not exist; {'give its path' if foreign else again}")
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if head.startswith(b"TNTIDX"):
        raise UserError(f"{path} is an index of fairseq's old format (TNTIDX); {again}")
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise UserError(f"{path} is not a Megatron index (it does not start with MMIDIDX); {again}")
    _, version, code, sequences, documents = _HEADER.unpack(head)
    if version != _VERSION:
        raise UserError(f"{path} is an index of version {version}, not {_VERSION}; {again}")
    known: dict[int, np.dtype[Any]] = {**_CODES, **(_FOREIGN if foreign else {})}
    if code not in known:
        name = _NO_IDS.get(code, "unknown")
        raise UserError(
            f"{path} declares dtype code {code} ({name}), not {', '.join(f'{c} ({d})' for c, d in known.items())}; "
            f"{again}"
        )
    size, expected = path.stat().st_size, _HEADER.size + 12 * sequences + 8 * documents
    if foreign and sequences and size == expected + sequences:
        raise UserError(f"{path} has modes of sequences (a multimodal index), which are not read; {again}")
    if size != expected:
        raise UserError(
            f"{path} has {size} bytes where its header announces {expected}: it was truncated or edited; {again}"
        )
    raw = np.memmap(path, dtype=np.uint8, mode="r", offset=0)
    cuts = np.cumsum([_HEADER.size, 4 * sequences, 8 * sequences, 8 * documents])
    lengths, offsets, starts = (raw[a:b] for a, b in pairwise(cuts))
    return _Index(known[code], lengths.view("<i4"), offsets.view("<i8"), starts.view("<i8"))


def read_lengths(prefix: Path) -> npt.NDArray[np.int32]:
    """Tokens of each document, int32 (D,), the end-of-document token included.

    Raises:
        UserError: if ``<prefix>.idx`` is missing, damaged or of another version.
    """
    index = _map_index(prefix)
    # megatron-core allows several sequences a document; nothing here writes them, and lengths would mislead.
    if len(index.starts) != len(index.lengths) + 1:
        raise UserError(
            f"{idx_path(prefix)} has documents of several sequences; write one sequence a document"
        )
    return np.array(index.lengths, dtype=np.int32)


def map_lengths(prefix: Path) -> npt.NDArray[np.int32]:
    """As ``read_lengths``, but mapped: (D,) int32, not aligned."""
    return _map_index(prefix).lengths


def map_offsets(prefix: Path) -> npt.NDArray[np.int64]:
    """First byte of each document in ``.bin``, mapped: (D,) int64, not aligned."""
    return _map_index(prefix).offsets


def read_tokens(prefix: Path) -> npt.NDArray[Any]:
    """All tokens of the corpus, concatenated and memory-mapped read-only: (T,) uint16 or int32, or another dtype of
    foreign files.
    """
    dtype = _map_index(prefix, foreign=True).dtype
    if not bin_path(prefix).stat().st_size:  # nothing cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(bin_path(prefix), dtype=dtype, mode="r")


def document_offsets(prefix: Path) -> npt.NDArray[np.int64]:
    """First token of each document of any Megatron or gpt-neox token file, and the end: int64 (D + 1,).

    Documents of several sequences are taken as one.

    Raises:
        UserError: if a file is missing, truncated, or contradicts the other.
    """
    index = _map_index(prefix, foreign=True)
    ends = np.concatenate([[0], np.cumsum(index.lengths, dtype=np.int64)])
    starts = np.array(index.starts)
    consistent = (
        len(starts) > 0
        and starts[0] == 0
        and starts[-1] == len(index.lengths)
        and bool((np.diff(starts) >= 0).all())
        and bool((index.lengths >= 0).all())
        and np.array_equal(index.offsets, ends[:-1] * index.dtype.itemsize)
    )
    if not consistent:
        raise UserError(
            f"{idx_path(prefix)} is inconsistent: it was edited or has another format; write the token files again"
        )
    path = bin_path(prefix)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; put it beside {idx_path(prefix).name}, which describes its tokens"
        )
    if (size := path.stat().st_size) != (expected := int(ends[-1]) * index.dtype.itemsize):
        raise UserError(
            f"{path} has {size} bytes where {idx_path(prefix).name} announces {expected}: it was truncated or edited"
        )
    return ends[starts]


def scan(prefix: Path, vocab_size: int) -> None:
    """Read every token and check that it is an id of the vocabulary.

    Args:
        prefix: path without suffixes.
        vocab_size: number of ids.

    Raises:
        UserError: naming the file, the document and the id.
    """
    ids = read_tokens(prefix)
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        if int(block.max()) >= vocab_size or int(block.min()) < 0:
            place = start + int(np.flatnonzero((block >= vocab_size) | (block < 0))[0])
            document = int(np.searchsorted(document_offsets(prefix), place, side="right")) - 1
            raise UserError(
                f"{bin_path(prefix)} document {document} holds id {ids[place]}, outside the vocabulary of "
                f"{vocab_size} ids: it was edited, or made with another tokenizer; prepare the corpus again"
            )


def check(prefix: Path, vocab_size: int) -> None:
    """Check the two files against each other without reading the tokens.

    Args:
        prefix: path without suffixes.
        vocab_size: number of ids of the tokenizer; the dtype must hold them.

    Raises:
        UserError: naming the file that is missing, truncated, edited, of another version or of another dtype.
    """
    lengths = read_lengths(prefix)
    index = _map_index(prefix)
    if vocab_size - 1 > np.iinfo(index.dtype.str).max:
        raise UserError(
            f"{idx_path(prefix)} has {index.dtype} tokens, which cannot hold the {vocab_size} ids of the tokenizer: "
            "the corpus was tokenized by another one; set corpus.tokenizer to that"
        )
    stops = np.cumsum(lengths, dtype=np.int64) * index.dtype.itemsize
    consistent = (
        bool((lengths > 0).all())
        and np.array_equal(index.offsets[1:], stops[:-1])
        and not index.offsets[:1].any()
        and np.array_equal(index.starts, np.arange(len(lengths) + 1))
    )
    if not consistent:
        raise UserError(f"{idx_path(prefix)} is inconsistent: it was edited; prepare the corpus again")
    path = bin_path(prefix)
    if not path.is_file():
        raise UserError(f"{path} does not exist; prepare the corpus again")
    size, expected = path.stat().st_size, int(stops[-1]) if len(stops) else 0
    if size != expected:
        raise UserError(
            f"{path} has {size} bytes where {idx_path(prefix).name} announces {expected}: it was truncated "
            "or edited; prepare the corpus again"
        )
