"""Text in lines: JSONL and plain text; plain, or packed by gzip, zstd, bzip2 or xz.

Plain files are divided into ranges of bytes; compressed files are read whole, because they can only be unpacked from
the start.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import zstandard

from palimpsest.data.errors import UserError, nearest
from palimpsest.data.sources.base import READERS, Document, Part, Reader, SourceConfig, files

_BLOCK = 1 << 20  # bytes read at a time
_STRETCH = 1 << 24  # bytes of a plain file in one part
_DENSE = 1 << 8  # bytes of zstd unpacked at a time: each can stand for 40,000
PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_LONGEST = 1 << 27
"""Largest size of a line, and of a document of several lines, bytes. A small archive can contain gigabytes in one
line."""


def _survey(path: Path) -> list[Part]:
    """The parts of a file: one if it is compressed, else one for each ``_STRETCH`` bytes."""
    packed = path.suffix in PACKED
    digest = hashlib.blake2b(digest_size=16)
    starts = [(0, 1)]  # byte, number of the first line that begins at or after it
    position, newlines = 0, 0
    try:
        with path.open("rb") as file:
            while block := file.read(min(_BLOCK, _STRETCH)):
                digest.update(block)
                if not packed:
                    position += len(block)
                    newlines += block.count(b"\n")
                    if position - starts[-1][0] >= _STRETCH:
                        # A line that began before belongs to the stretch before, whole.
                        starts.append((position, newlines + (1 if block.endswith(b"\n") else 2)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    size = path.stat().st_size
    stops = [start for start, _ in starts[1:]] + [size]
    return [
        Part(str(path), start, stop, row, (stop - start) * (4 if packed else 1), digest.hexdigest())
        for (start, row), stop in zip(starts, stops, strict=True)
        if stop > start or start == 0
    ]


def _split_lines(config: SourceConfig, workers: int) -> list[Part]:
    with ThreadPoolExecutor(max(workers, 1)) as pool:  # hashing lets go of the interpreter
        return [part for parts in pool.map(_survey, files(config)) for part in parts]


def _split_whole(config: SourceConfig, workers: int) -> list[Part]:
    parts = _split_lines(config, workers)
    if config.documents == "line":
        return parts
    last = {part.path: part for part in parts}  # documents of many lines: a file is one part
    return [Part(path, 0, part.stop, 1, part.stop, part.digest) for path, part in last.items()]


def _numbered(part: Part) -> Iterator[tuple[int, bytes]]:
    """Pairs of 1-based number and line, without newline, for the lines that begin inside a part.

    Raises:
        UserError: for a line of more than ``_LONGEST`` bytes.
    """
    path = Path(part.path)
    content = blocks(path) if path.suffix in PACKED else _stretch(path, part.start, part.stop)
    number = part.row
    try:
        for number, line in enumerate(_lines(content), start=part.row):
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except _TooLongError:
        raise _too_long(f"{path} after row {number}: a line") from None


def _too_long(what: str) -> UserError:
    return UserError(f"{what} has more than {_LONGEST >> 20} MiB; split its text into documents")


def _stretch(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The lines that begin at ``start`` or later and before ``stop``, whole."""
    block = b"\n"
    try:
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                while (piece := file.readline(_BLOCK)) and not piece.endswith(b"\n"):
                    pass  # the rest of a line of the part before
            while (position := file.tell()) < stop:
                if not (block := file.read(min(_BLOCK, stop - position))):
                    raise UserError(f"{path}: became shorter while it was read; run again")
                yield block
            while not block.endswith(b"\n") and (block := file.readline(_BLOCK)):
                yield block
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_jsonl(config: SourceConfig, part: Part, counts: Counter[str]) -> Iterator[Document]:
    """Reader of JSONL: one JSON object per line; blank lines are skipped."""
    counts["files_read"] += part.start == 0
    for number, line in _numbered(part):
        if line.strip():
            try:
                text, row = text_of(line, config.text_field, f"{part.path} row {number}")
            except UserError:
                if config.bad_rows == "refuse":
                    raise
                counts["documents_read"] += 1
                counts["bad_dropped"] += 1
                continue
            yield Document(text, part.path, str(number), row)


def _read_text(config: SourceConfig, part: Part, counts: Counter[str]) -> Iterator[Document]:
    """Reader of plain text: a document is a file, a line, a paragraph, or the lines from one that matches a pattern to
    the next.
    """
    counts["files_read"] += part.start == 0
    first = re.compile(config.pattern) if config.pattern is not None else None
    held: list[str] = []
    row, size = part.row, 0
    for number, raw in _numbered(part):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if config.bad_rows == "drop":
                counts["bad_dropped"] += 1
                continue
            raise UserError(
                f"{part.path} row {number}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8, or "
                "leave such lines out with corpus.source.bad_rows=drop"
            ) from None
        line = line.removesuffix("\r")
        blank = not line.strip()
        ends = config.documents == "line" or (config.documents == "paragraph" and blank)
        if held and (ends or (first is not None and first.search(line))):
            yield Document("\n".join(held), part.path, str(row))
            held = []
        if not held:
            row, size = number, 0
        if not (blank and (ends or not held)):
            held.append(line)
            size += len(raw)
            if size > _LONGEST:
                raise _too_long(f"{part.path} row {row}: a document")
    if held:
        yield Document("\n".join(held), part.path, str(row))


def text_of(line: bytes, field: str, where: str) -> tuple[str, dict[str, Any]]:
    """The text in one row, and the row.

    Raises:
        UserError: starting with ``where``.
    """
    try:
        row = orjson.loads(line)
    except (
        orjson.JSONDecodeError
    ):  # the slower one takes more (NaN, long numbers, lone surrogates) and says where
        row = _slowly(line, where)
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds a {type(row).__name__}, not an object; write one JSON object a line")
    return checked(row, field, where), row


def _slowly(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except (ValueError, RecursionError) as error:
        plain = ", or read plain text with corpus=text" if ".txt row" in where or ".md row" in where else ""
        raise UserError(f"{where}: not valid JSON ({error}); write one JSON object a line{plain}") from None


def checked(row: dict[str, Any], field: str, where: str) -> str:
    """The text field of a row; ``content.text`` is a nested field unless the row has a field of that full name.

    Raises:
        UserError: starting with ``where``, if it is missing, no string, too long, or holds a lone surrogate.
    """
    text: Any = row
    for key in [field] if field in row else field.split("."):
        if not isinstance(text, Mapping) or key not in text:
            known = nearest(key, text) if isinstance(text, Mapping) else ""
            raise UserError(f"{where}: has no field {field!r}{known}; set corpus.source.text_field")
        text = text[key]
    if not isinstance(text, str):
        raise UserError(
            f"{where}: field {field!r} holds a {type(text).__name__}, not a string; correct the row"
        )
    if len(text) > _LONGEST:
        raise _too_long(f"{where}: a document")
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds a lone surrogate at character {error.start}, which no "
            "tokenizer can take; remove it"
        ) from None
    return text


class _TooLongError(Exception):
    """Error: a line is longer than ``_LONGEST``."""


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Split blocks of bytes at newlines, in time linear in the length.

    Raises:
        _TooLongError: for one beyond ``_LONGEST``, before more of it is read.
    """
    head: list[bytes] = []
    size = 0
    for block in blocks:
        first, *rest = block.split(b"\n")
        head.append(first)
        size = (0 if rest else size) + len(rest[-1] if rest else first)
        if size > _LONGEST:
            raise _TooLongError
        if rest:
            yield b"".join(head)
            yield from rest[:-1]
            head = [rest[-1]]
    if last := b"".join(head):
        yield last


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked if its suffix is one of ``PACKED``.

    Raises:
        UserError: if it cannot be read, or its archive is corrupt or cut off.
    """
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    try:
        if path.suffix in (".zst", ".zstd"):
            yield from _zstd_blocks(path)
            return
        with openers.get(path.suffix, partial(open, mode="rb"))(path) as file:
            while block := file.read(_BLOCK):
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: corrupt archive ({error}); fetch or compress it again") from None
    except OSError as error:
        if error.errno is None:  # of bz2: "Invalid data stream"
            raise UserError(f"{path}: corrupt archive ({error}); fetch or compress it again") from None
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    # Not stream_reader: it takes a cut-off frame for the end of the file, and documents would go missing.
    with path.open("rb") as file:
        frame = None
        while block := file.read(min(_BLOCK, _DENSE)):
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame is not None:
            raise EOFError("it ends inside a frame")


def _endings(*plain: str) -> tuple[str, ...]:
    return tuple(ending + packed for ending in plain for packed in ("", *PACKED))


READERS["jsonl"] = Reader(_split_lines, _read_jsonl, _endings(".jsonl", ".json", ".ndjson"))
READERS["text"] = Reader(_split_whole, _read_text, _endings(".txt", ".md"))
