"""Unpacked sizes of the pages of a Parquet file, read before they are unpacked.

A page, or the dictionary of a column, can hold a text of gigabytes in a few hundred kilobytes. Page headers contain the
size, which pyarrow does not expose. A header is a structure of Thrift's compact protocol, of which a part is read here:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow.parquet as pq

_BOOLEANS, _I8, _NUMBERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
_UNPACKED_SIZE, _STORED_SIZE = 2, 3
"""Field numbers in a page's header of its unpacked size and its stored size."""
_DEEPEST = 16  # structures inside structures


class _DamagedError(ValueError):
    """Error: the bytes are not a page header."""


def largest(file: BinaryIO, chunk: pq.ColumnChunkMetaData, small: int) -> int:
    """Size of the largest unpacked page, dictionary included, of a column in one row group, bytes.

    Args:
        file: the Parquet file.
        chunk: the column's metadata.
        small: total size, bytes, below which only the column's dictionary is counted (0 without one), because rows can
            repeat its entries.

    Returns:
        The size; the size of the whole column if headers are malformed.
    """
    first: int = chunk.data_page_offset
    whole: int = chunk.total_uncompressed_size
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < first:
        first = chunk.dictionary_page_offset
    elif whole <= small:
        return 0
    try:
        sizes = _pages(file, first, first + chunk.total_compressed_size)
        return next(sizes, 0) if whole <= small else max(sizes, default=0)
    except _DamagedError:
        return whole


def _pages(file: BinaryIO, position: int, stop: int) -> Iterator[int]:
    """Unpacked size of each page, bytes."""
    while position < stop:
        file.seek(position)
        fields = _struct(file, 0)
        stored, unpacked = fields.get(_STORED_SIZE), fields.get(_UNPACKED_SIZE)
        if stored is None or unpacked is None or min(stored, unpacked) < 0:
            raise _DamagedError("a page's header has no size")
        yield unpacked
        position = file.tell() + stored


def _struct(file: BinaryIO, depth: int) -> dict[int, int | None]:
    """Fields of a structure by field number; the value is None unless it is a number."""
    if depth > _DEEPEST:
        raise _DamagedError("structures inside structures")
    fields: dict[int, int | None] = {}
    number = 0
    while head := _byte(file):
        number = number + (head >> 4) if head >> 4 else _signed(_unsigned(file))
        kind = head & 15
        fields[number] = None if kind in _BOOLEANS else _value(file, kind, depth)
    return fields


def _value(file: BinaryIO, kind: int, depth: int) -> int | None:
    if kind in _NUMBERS:
        return _signed(_unsigned(file))
    if kind in (*_BOOLEANS, _I8):  # in lists, a boolean is a byte
        _byte(file)
    elif kind == _DOUBLE:
        file.seek(8, 1)
    elif kind == _BINARY:
        file.seek(_unsigned(file), 1)
    elif kind == _STRUCT:
        _struct(file, depth + 1)
    elif kind in _LISTS:
        head = _byte(file)
        for _ in range(_unsigned(file) if head >> 4 == 15 else head >> 4):
            _value(file, head & 15, depth + 1)
    else:
        raise _DamagedError(f"a field of type {kind}")  # there are no maps in it
    return None


def _byte(file: BinaryIO) -> int:
    if not (byte := file.read(1)):
        raise _DamagedError("the file ends in a page's header")
    return byte[0]


def _unsigned(file: BinaryIO) -> int:
    """Integer encoded in groups of 7 bits, lowest first."""
    number = shift = 0
    while (byte := _byte(file)) & 128:
        number |= (byte & 127) << shift
        if (shift := shift + 7) > 63:
            raise _DamagedError("a number of more than 64 bits")
    return number | byte << shift


def _signed(zigzag: int) -> int:
    return (zigzag >> 1) ^ -(zigzag & 1)
