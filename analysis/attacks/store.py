"""Values of attacks on checkpoints, made once and kept in parts, like scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.attacks import passes, values
from palimpsest.analysis.attacks.values import FILE, KIND, VERSION, AttackConfig
from palimpsest.analysis.scoring import reader
from palimpsest.analysis.scoring.store import Checkpoint, make_parts

TOKENS_A_PART = 200_000
"""Tokens of the texts in a part, at most (or one text's)."""


def parts(every: pl.DataFrame) -> list[pl.DataFrame]:
    """The texts (``values.texts``) in stretches that depend on them alone."""
    number = (every["tokens"].list.len().cast(pl.Int64).cum_sum() - 1) // TOKENS_A_PART
    return every.with_columns(part=number).partition_by("part", maintain_order=True, include_key=False)


def attack_all(
    place: Path,
    every: pl.DataFrame,
    checkpoints: Sequence[Checkpoint],
    config: AttackConfig,
    *,
    items_digest: str,
    beginning: int,
    vocab_size: int,
    frequencies: Callable[[], NDArray[np.float64]],
    share: tuple[int, int] = (0, 1),
) -> int:
    """Attack the texts at every checkpoint; parts that are there already are left alone.

    Args:
        place: directory that gets the parts.
        every: the texts.
        checkpoints: whose ``load`` gives models of ``transformers``.
        config: settings.
        items_digest: of what the texts and the tokenizer come from.
        beginning: id of the token that begins a text.
        vocab_size: of the tokenizer.
        frequencies: function that gives the relative frequency of each token id in the corpus.
        share: (k, n): do every n-th part of all, from part k on.

    Returns:
        How many parts were made now.
    """

    def make(model: Any, chosen: pl.DataFrame, directory: Path) -> int:
        found = passes.attacked(
            reader.Reader(model, beginning, vocab_size), chosen, every, config, frequencies
        )
        found.write_parquet(directory / FILE, compression="zstd")
        return len(chosen)

    return make_parts(
        place,
        parts(every),
        checkpoints,
        make,
        kind=KIND,
        schema_version=VERSION,
        config={**asdict(config), "names": list(config.names), "code": _code()},
        items_digest=items_digest,
        share=share,
    )


def _code() -> str:
    """Digest of the code of the attacks."""
    digest = hashlib.sha256()
    for module in (values, passes, reader):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]
