"""Rows of outside data: local files, directories of ``datasets``, data sets of the hub."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import xxhash

from palimpsest.data.errors import UserError


def rows(path: str, what: str) -> list[dict[str, Any]]:
    """Rows of a ``.jsonl``, ``.jsonl.gz``, ``.json`` (a list), ``.csv`` (all texts) or ``.parquet`` file.

    Args:
        path: of the file.
        what: the setting that names it, for errors.

    Raises:
        UserError: for a file that is missing, of another kind, or not what it claims to be.
    """
    file = Path(path)
    ending = "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix
    try:
        if ending == ".csv":
            return pl.read_csv(file, infer_schema=False).to_dicts()
        if ending == ".parquet":
            return pl.read_parquet(file).to_dicts()
        if ending in (".jsonl", ".jsonl.gz"):
            content = gzip.decompress(file.read_bytes()) if ending.endswith(".gz") else file.read_bytes()
            found = [orjson.loads(line) for line in content.splitlines() if line.strip()]
        elif ending == ".json":
            found = orjson.loads(file.read_bytes())
        else:
            raise UserError(f"{what}={path} must end in .jsonl, .jsonl.gz, .json, .csv or .parquet")
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}={path} cannot be read: {reason}") from None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{what}={path} must hold one object a row")
    return found


def hub_rows(
    name: str, subset: str, split: str, revision: str, limit: int, what: str
) -> list[dict[str, Any]]:
    """The first ``limit`` rows of a data set of Hugging Face ``datasets`` (a name, or a directory), streamed.

    A data set of the hub is read as it is at ``revision``, a commit; if that is empty, as it happens to be now.

    Raises:
        UserError: if ``datasets`` is not installed, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"{what}={name} needs the package datasets; pip install -e '.[datasets]'") from None
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)[split]
        elif (Path(name) / "state.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(
                name, subset or None, split=split, revision=revision or None, streaming=True
            )
        return [dict(row) for _, row in zip(range(limit), found, strict=False)]
    except Exception as error:  # datasets, the hub and the network share no narrower class
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what}={name} could not be loaded ({reason}); check name, subset, split, revision and the network"
        ) from error


def draw(ids: Iterable[str], seed: int) -> list[int]:
    """An order of rows by a hash of seed and id: it does not depend on the order of the file, and rows that come or
    go leave the others in their order."""
    keys = [xxhash.xxh3_64_intdigest(name.encode(), seed=seed) for name in ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def text_id(*texts: str) -> str:
    """16 hex digits that stand for a text: a row without an id gets this one."""
    return xxhash.xxh3_64_hexdigest("\0".join(texts).encode())


def listed(path: str, what: str) -> set[str]:
    """The lines of a text file, without the empty ones.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}={path} cannot be read: {error}") from None
    return {line.strip() for line in lines if line.strip()}


def need(found: Sequence[object], count: int, what: str, fix: str) -> None:
    """Refuse to make fewer items than are wanted.

    Raises:
        UserError: saying how many there are.
    """
    if len(found) < count:
        raise UserError(f"{what}: {count} items are needed, but there are {len(found)}; {fix}")
