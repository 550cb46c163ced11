"""Sources of tokenized text: Megatron's and gpt-neox's ``.bin``/``.idx``, and OLMo's ``.npy``.

Token ids are unchanged; the text is decoded for filters, duplicates and the held-out split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from palimpsest.data import tokens
from palimpsest.data.artifact import file_digest, json_digest
from palimpsest.data.errors import UserError
from palimpsest.data.sources.base import READERS, Document, Part, Reader, SourceConfig, files

_STRETCH = 1 << 24  # tokens in one part
_BLOCK = 1 << 20  # tokens searched for an end of document at a time


def _split_megatron(config: SourceConfig, workers: int) -> list[Part]:
    del workers
    parts = []
    for path in files(config):
        prefix = path.with_name(path.name.removesuffix(".bin").removesuffix(".idx"))
        starts = tokens.document_offsets(prefix)
        digest = json_digest([file_digest(tokens.bin_path(prefix)), file_digest(tokens.idx_path(prefix))])
        cuts = np.unique(np.searchsorted(starts, np.arange(0, int(starts[-1]), _STRETCH)))
        bounds = [*cuts.tolist(), len(starts) - 1]
        parts += [
            Part(str(prefix), first, last, first + 1, int(starts[last] - starts[first]) * 4, digest)
            for first, last in pairwise(bounds)
            if last > first
        ]
    return parts


def _read_megatron(config: SourceConfig, part: Part, counts: Counter[str]) -> Iterator[Document]:
    del config
    counts["files_read"] += part.start == 0
    starts = tokens.document_offsets(Path(part.path))
    ids = tokens.read_tokens(Path(part.path))
    for number in range(part.start, part.stop):
        yield _document(ids[starts[number] : starts[number + 1]], part.path, str(number + 1))


def _open_olmo(path: Path, config: SourceConfig) -> npt.NDArray[np.integer]:
    with path.open("rb") as file:
        header = file.read(6)
    try:
        if header == b"\x93NUMPY":
            tokens: npt.NDArray[np.integer] = np.load(path, mmap_mode="r", allow_pickle=False)
            if tokens.ndim == 1 and tokens.dtype.kind in "iu":
                return tokens
            raise UserError(f"{path}: holds {tokens.dtype} of shape {tokens.shape}; give a row of token ids")
        if (size := path.stat().st_size) % (width := np.dtype(config.token_dtype).itemsize):
            raise UserError(
                f"{path}: {size} bytes are no whole number of {config.token_dtype} tokens ({width} bytes); it was "
                "truncated, or set corpus.source.token_dtype"
            )
        return (
            np.memmap(path, dtype=config.token_dtype, mode="r") if size else np.empty(0, config.token_dtype)
        )
    except (ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is no token file ({' '.join(str(error).split())[:200]})") from None


def _split_olmo(config: SourceConfig, workers: int) -> list[Part]:
    del workers
    parts = []
    for path in files(config):
        count, digest = len(_open_olmo(path, config)), file_digest(path)
        parts += [
            Part(
                str(path),
                start,
                min(start + _STRETCH, count),
                size=4 * min(_STRETCH, count - start),
                digest=digest,
            )
            for start in range(0, max(count, 1), _STRETCH)
        ]
    return parts


def olmo_documents(
    ids: npt.NDArray[np.integer], start: int, stop: int, eod: int
) -> Iterator[tuple[int, int]]:
    """Ranges ``[first, last)`` of tokens of the documents that begin in ``[start, stop)``, without end-of-document
    tokens.
    """

    def end_after(place: int) -> int:
        while place < len(ids):
            ends = np.flatnonzero(ids[place : place + _BLOCK] == eod)
            if len(ends):
                return place + int(ends[0])
            place += _BLOCK
        return len(ids)

    first = 0 if start == 0 else end_after(start - 1) + 1
    while first < min(stop, len(ids)):
        block = np.flatnonzero(ids[first : first + _BLOCK] == eod) + first
        ends = block if len(block) else [end_after(first)]
        for last in ends:
            if first >= stop:
                return
            yield first, int(last)
            first = int(last) + 1


def _read_olmo(config: SourceConfig, part: Part, counts: Counter[str]) -> Iterator[Document]:
    assert config.eod_id is not None
    counts["files_read"] += part.start == 0
    ids = _open_olmo(Path(part.path), config)
    for first, last in olmo_documents(ids, part.start, part.stop, config.eod_id):
        yield _document(ids[first:last], part.path, f"token {first}", ended=last < len(ids))


def _document(ids: npt.NDArray[np.integer], source: str, row: str, *, ended: bool = True) -> Document:
    return Document("", source, row, {"ended": ended}, ids=np.asarray(ids, dtype=np.int64))


READERS["megatron"] = Reader(_split_megatron, _read_megatron, (".idx",))
READERS["olmo"] = Reader(_split_olmo, _read_olmo, (".npy", ".bin"))
