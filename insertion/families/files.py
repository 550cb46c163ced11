"""Rows of outside data: local files, directories of ``datasets``, data sets of the hub."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import polars as pl
import xxhash

from palimpsest.data.errors import UserError
from palimpsest.data.sources import lines

_LARGEST = 1 << 30
"""Largest size of a file of items after decompression, bytes."""
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Endings of files of items; each may be followed by one of ``lines.PACKED``."""


def rows(path: str, what: str) -> list[dict[str, Any]]:
    """Rows of a file, without their numbers; see ``numbered``."""
    return [row for _, row in numbered(path, what)]


def has_rows(path: str) -> bool:
    """True if a path ends as a file of items does."""
    return _ending(Path(path)) in KINDS


def _ending(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in lines.PACKED else "".join(suffixes[-1:])


def numbered(path: str, what: str) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a ``.jsonl``, ``.json`` (a list), ``.csv`` (all texts) or ``.parquet`` file, plain or packed (``.gz``,
    ``.zst``, ``.bz2``, ``.xz``).

    A byte order mark is left out. Rows are numbered from 1: by line in JSONL, else by row without the header.

    Args:
        path: of the file.
        what: the setting that names it, for errors.

    Raises:
        UserError: for a file that is missing, too large, of another kind, or not what it claims to be; naming the row
            if a row is at fault.
    """
    file, where = Path(path), f"{what}={path}"
    ending = _ending(file)
    if ending not in KINDS:
        packed = ", ".join(lines.PACKED)
        raise UserError(f"{where} must end in {', '.join(KINDS)}, plain or packed ({packed})")
    try:
        content = _content(file, where)
        if ending in (".csv", ".jsonl") and b"\n" not in content:  # line ends of old spreadsheets
            content = content.replace(b"\r", b"\n")
        if ending == ".parquet":
            return _objects(pl.read_parquet(io.BytesIO(content)).to_dicts(), where)
        if ending == ".csv":
            text = _decoded(content, where)
            return _objects(pl.read_csv(io.BytesIO(text.encode()), infer_schema=False).to_dicts(), where)
        if ending == ".json":
            return _objects(_json(_decoded(content, where), where), where)
        return _json_lines(content, where)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be read: {reason}") from None


def _content(file: Path, where: str) -> bytes:
    """Bytes of a file, unpacked, without a byte order mark; at most ``_LARGEST``."""
    parts, size = [], 0
    try:
        for block in lines.blocks(file):
            parts.append(block)
            size += len(block)
            if size > _LARGEST:
                break
    except UserError as error:  # it names the file, not the setting
        reason = str(error).removeprefix(f"{file}: ").removeprefix("cannot be read ")
        raise UserError(f"{where} cannot be read: {reason}") from None
    if size > _LARGEST:
        raise UserError(f"{where} holds more than {_LARGEST >> 30} GiB; split it")
    return b"".join(parts).removeprefix(b"\xef\xbb\xbf")


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where} line {row}: invalid UTF-8; convert the file to UTF-8") from None


def _json(text: str, where: str) -> Any:
    """JSON value of a text; every string in it can be encoded as UTF-8.

    Raises:
        UserError: if the text is not JSON, or a string in it has a lone surrogate.
    """
    value: Any = None
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        named = f" (id {value['id']!a})" if isinstance(value, dict) and "id" in value else ""
        raise UserError(
            f"{where}{named}: a text holds a lone surrogate, which has no UTF-8; remove it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    return value


def _json_lines(content: bytes, where: str) -> list[tuple[int, dict[str, Any]]]:
    table = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{where} row {number}"
        try:
            row = _json(line.decode(), place)
        except UnicodeDecodeError:
            raise UserError(f"{place}: invalid UTF-8; convert the file to UTF-8") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{place}: holds a {type(row).__name__}, not an object; write one JSON object a line"
            )
        table.append((number, row))
    return table


def _objects(values: Any, where: str) -> list[tuple[int, dict[str, Any]]]:
    if not isinstance(values, list):
        raise UserError(f"{where} holds a {type(values).__name__}, not a list of objects")
    for number, row in enumerate(values, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{where} row {number}: holds a {type(row).__name__}, not an object")
    return list(enumerate(values, start=1))


def hub_rows(
    name: str, subset: str, split: str, revision: str, limit: int, what: str, *, file: str = ""
) -> list[dict[str, Any]]:
    """The first ``limit`` rows of a data set of Hugging Face ``datasets`` (a name, or a directory), streamed; of one
    ``file`` of it alone, if that is given.

    A data set of the hub is read at ``revision``, a commit; if that is empty, at its current version. Without a
    ``split`` all splits are read in order.

    Raises:
        UserError: if ``datasets`` is not installed, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"{what}={name} needs the package datasets; pip install -e '.[datasets]'") from None
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            dataset = datasets.load_from_disk(name)
            dataset = dataset[split] if split else dataset
        elif (Path(name) / "state.json").is_file():
            dataset = datasets.load_from_disk(name)
        else:
            dataset = datasets.load_dataset(
                name,
                subset or None,
                split=split or None,
                revision=revision or None,
                streaming=True,
                data_files={split or "train": file} if file else None,
            )
        rows = chain.from_iterable(dataset.values()) if isinstance(dataset, dict) else dataset
        return [dict(row) for row in islice(rows, limit)]
    except Exception as error:  # datasets, the hub and the network share no narrower class
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what}={name} could not be loaded ({reason}); check name, subset, split, revision and the network"
        ) from error


def draw(ids: Iterable[str], seed: int) -> list[int]:
    """Order rows by a hash of seed and id. The order does not depend on the file's order, and added or removed rows do
    not change the order of the others.
    """
    keys = [xxhash.xxh3_64_intdigest(name.encode(), seed=seed) for name in ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def text_id(*texts: str) -> str:
    """Id of a row without one: 16 hex digits of a hash of its text."""
    return xxhash.xxh3_64_hexdigest("\0".join(texts).encode())


def listed(path: str, what: str) -> set[str]:
    """The lines of a text file, without the empty ones.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}={path} cannot be read: {error}") from None
    return {line.strip() for line in text.splitlines() if line.strip()}


class TooFewItems(UserError):
    """Error for a source with fewer items than the design wants."""

    def __init__(self, message: str, available: int) -> None:
        super().__init__(message)
        self.available = available
        """Number of items that there are."""


def need(available: Sequence[object], count: int, what: str, fix: str) -> None:
    """Check that there are as many items as wanted.

    Raises:
        TooFewItems: if there are fewer, with their number.
    """
    if len(available) < count:
        message = f"{what}: {count} items are needed, but there are {len(available)}; {fix}"
        raise TooFewItems(message, len(available))
