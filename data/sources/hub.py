"""Hugging Face ``datasets``: a directory made by ``save_to_disk``, a data set of the hub (cached), or streamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palimpsest.data.artifact import file_digest, json_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.data.sources.base import READERS, Document, Part, Reader, SourceConfig
from palimpsest.data.sources.parquet import document, wanted_columns

_ROWS = 1 << 16  # rows in one part
_BATCH = 1 << 10  # rows in memory at a time


def _load(config: SourceConfig, path: str) -> Any:
    """The data set behind a path or name: a ``Dataset``, or an ``IterableDataset`` if streamed.

    Raises:
        UserError: if ``datasets`` is not installed, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            "corpus.source.kind=datasets needs the package datasets; pip install -e '.[datasets]'"
        ) from None
    try:
        if Path(path).is_dir() and (
            (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file()
        ):
            dataset = datasets.load_from_disk(path)
            if isinstance(dataset, datasets.DatasetDict):
                if config.dataset_split not in dataset:
                    raise UserError(
                        f"{path}: has no split {config.dataset_split!r}{nearest(config.dataset_split, dataset)}; "
                        "set corpus.source.dataset_split"
                    )
                dataset = dataset[config.dataset_split]
            return dataset
        return datasets.load_dataset(
            path,
            config.dataset_name,
            split=config.dataset_split,
            revision=config.revision,
            streaming=config.streaming,
        )
    except UserError:
        raise
    except Exception as error:  # datasets, the hub and the network share no narrower class
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"corpus.source.paths: the data set {path!r} could not be loaded ({reason}); check its name, "
            "corpus.source.dataset_name, corpus.source.dataset_split and the network"
        ) from error


def _split(config: SourceConfig, workers: int) -> list[Part]:
    del workers
    parts: list[Part] = []
    for path in config.paths:
        dataset = _load(config, path)
        if config.streaming and not hasattr(dataset, "__len__"):
            digest = json_digest([path, config.dataset_name, config.dataset_split, config.revision])
            shards = max(getattr(dataset, "num_shards", 1), 1)
            first = range(shards)[: config.max_files]
            parts += [Part(path, k, shards, size=1 << 26, digest=digest) for k in first]
            continue
        wanted_columns(config, dataset.column_names, path)
        local = sorted(Path(path).rglob("*.arrow")) if Path(path).is_dir() else []
        # The fingerprint of a data set from disk is stored beside it: an edited file would keep it.
        digest = json_digest([file_digest(f) for f in local]) if local else str(dataset._fingerprint)
        size = int(dataset.data.nbytes / max(len(dataset), 1))
        parts += [
            Part(
                path,
                start,
                min(start + _ROWS, len(dataset)),
                start + 1,
                size * min(_ROWS, len(dataset) - start),
                digest,
            )
            for start in range(0, max(len(dataset), 1), _ROWS)
        ]
    return parts


def _read(config: SourceConfig, part: Part, counts: Counter[str]) -> Iterator[Document]:
    dataset = _load(config, part.path)
    counts["files_read"] += part.start == 0
    if config.streaming and not hasattr(dataset, "__len__"):
        label = f"{part.path} shard {part.start} of {part.stop}"
        for number, row in enumerate(dataset.shard(part.stop, part.start), start=1):
            if (one := document(row, config, label, number, counts)) is not None:
                yield one
        return
    chosen = dataset.select_columns(wanted_columns(config, dataset.column_names, part.path))
    for start in range(part.start, part.stop, _BATCH):
        rows = chosen.select(range(start, min(start + _BATCH, part.stop)))
        for number, row in enumerate(rows, start=start + 1):
            if (one := document(row, config, part.path, number, counts)) is not None:
                yield one


READERS["datasets"] = Reader(_split, _read)
