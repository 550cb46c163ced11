"""Reader of Parquet files: one document per row; a part is a range of row groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from palimpsest.data.artifact import file_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.data.sources import parquet_pages
from palimpsest.data.sources.base import READERS, Document, Part, Reader, SourceConfig, files
from palimpsest.data.sources.lines import checked

_ROWS = 1 << 10  # rows in memory at a time, at most
_STRETCH = 1 << 26  # compressed bytes in one part
_BUFFER = 1 << 20  # bytes of a column read at a time
_TEXTS = 1 << 28  # bytes of texts in memory at a time, but for a single one
_PAGE = 1 << 30
"""Largest size of an unpacked page, bytes; pyarrow writes 1,024 texts of any length into a page."""


def _survey(path: Path) -> list[Part]:
    digest, parts = file_digest(path), []
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: is no Parquet file, or is damaged ({_short(error)}); fetch it again"
        ) from None
    start = size = 0
    row = first = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size += group.total_byte_size
        row += group.num_rows
        if size >= _STRETCH or number == metadata.num_row_groups - 1:
            parts.append(Part(str(path), start, number + 1, first, size, digest))
            start, size, first = number + 1, 0, row
    return parts or [Part(str(path), digest=digest)]


def _split(config: SourceConfig, workers: int) -> list[Part]:
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return [part for parts in pool.map(_survey, files(config)) for part in parts]


def _read(config: SourceConfig, part: Part, counts: Counter[str]) -> Iterator[Document]:
    counts["files_read"] += part.start == 0
    number = part.row - 1
    try:
        with pq.ParquetFile(part.path, buffer_size=_BUFFER) as file:
            columns = wanted_columns(config, file.schema_arrow.names, part.path)
            groups = list(range(part.start, part.stop))
            rows = _rows_at_a_time(file.metadata, part, columns)
            for batch in file.iter_batches(batch_size=rows, row_groups=groups, columns=columns):
                for row in _rows(batch, f"{part.path} rows {number + 1} to {number + batch.num_rows}"):
                    number += 1
                    if (one := document(row, config, part.path, number, counts)) is not None:
                        yield one
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{part.path} after row {number}: is damaged ({_short(error)}); fetch it again"
        ) from None


def _rows_at_a_time(metadata: pq.FileMetaData, part: Part, columns: list[str]) -> int:
    """Number of rows whose texts fit into ``_TEXTS`` bytes, since no text is longer than a page.

    Raises:
        UserError: for a page of more than ``_PAGE`` bytes.
    """
    most = 1
    with Path(part.path).open("rb") as file:
        for number in range(part.start, part.stop):
            group = metadata.row_group(number)
            for chunk in map(group.column, range(group.num_columns)):
                if chunk.path_in_schema.split(".")[0] in columns:
                    size = parquet_pages.largest(file, chunk, _TEXTS)
                    if size > _PAGE:
                        raise UserError(
                            f"{part.path} row group {number + 1}: a page of column {chunk.path_in_schema!r} has "
                            f"{size >> 20} MiB; write the file again with pages of at most {_PAGE >> 20} MiB, "
                            "and split long texts into documents"
                        )
                    most = max(most, size)
    return max(1, min(_ROWS, _TEXTS // most))


def _rows(batch: pa.RecordBatch, where: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        raise UserError(f"{where}: invalid UTF-8; write the file again with valid strings") from None


def document(
    row: dict[str, Any], config: SourceConfig, source: str, number: int, counts: Counter[str]
) -> Document | None:
    """The document in a row of a table; None if it is bad and ``bad_rows`` says to drop it.

    Raises:
        UserError: naming source and row.
    """
    try:
        return Document(checked(row, config.text_field, f"{source} row {number}"), source, str(number), row)
    except UserError:
        if config.bad_rows == "refuse":
            raise
        counts["documents_read"] += 1
        counts["bad_dropped"] += 1
        return None


def wanted_columns(config: SourceConfig, names: list[str], source: str) -> list[str]:
    """Names of the columns that the settings use, in the order of the table.

    Raises:
        UserError: naming a column that is missing.
    """
    text = config.text_field if config.text_field in names else config.text_field.split(".")[0]
    wanted = {text: "text_field"} | {name.split(".")[0]: "keep" for name in config.keep}
    if config.languages:
        wanted[config.language_field.split(".")[0]] = "language_field"
    for name, setting in wanted.items():
        if name not in names:
            raise UserError(
                f"{source}: has no column {name!r}{nearest(name, names)}; set corpus.source.{setting}"
            )
    return [name for name in names if name in wanted]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


READERS["parquet"] = Reader(_split, _read, (".parquet",))
