"""Continuations of checkpoints, made once and kept in parts, like scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.generation import continuations, decode, embeddings
from palimpsest.analysis.generation.continuations import FILE, KIND, VERSION, GenerateConfig
from palimpsest.analysis.scoring.store import Checkpoint, make_parts
from palimpsest.data.errors import UserError

TOKENS_A_PART = 500_000
"""Tokens that are written in a part, at most (or one prompt's)."""


def parts(probes: pl.DataFrame, config: GenerateConfig, *, begun: bool) -> list[pl.DataFrame]:
    """The prompts in stretches that depend on the probes and the settings alone.

    Args:
        probes: of the plan.
        config: settings.
        begun: cloze prompts follow the token that begins a text, as whole texts always do.

    Raises:
        UserError: if nothing can be continued.
    """
    whole = set(probes.filter(pl.col("kind") == "verbatim")["probe_id"])
    prompts = continuations.prompts(probes, config).with_columns(
        begun=pl.lit(begun) | pl.col("probe_id").is_in(whole)
    )
    if prompts.is_empty():
        raise UserError(
            f"nothing can be continued: no item is longer than generate.prefix_tokens={list(config.prefix_tokens)} "
            "tokens, and no item has a question; set one of generate.prefix_tokens below the items' lengths"
        )
    written = prompts["reference"].list.len().cast(pl.Int64) * (1 + config.samples)
    number = (written.cum_sum() - 1) // TOKENS_A_PART
    return prompts.with_columns(part=number).partition_by("part", maintain_order=True, include_key=False)


def generate_all(
    place: Path,
    probes: pl.DataFrame,
    checkpoints: Sequence[Checkpoint],
    config: GenerateConfig,
    *,
    begun: bool,
    items_digest: str,
    beginning: int,
    ends: Sequence[int],
    vocab_size: int,
    decode_text: Callable[[Sequence[int]], str],
    share: tuple[int, int] = (0, 1),
) -> int:
    """Continue the prompts at every checkpoint; parts that are there already are left alone.

    Args:
        place: directory that gets the parts.
        probes: of the plan.
        checkpoints: whose ``load`` gives models of ``transformers``.
        config: settings.
        begun: as for :func:`parts`.
        items_digest: of what the probes and the tokenizer come from.
        beginning: id of the token that begins a text.
        ends: ids of the tokens that end one.
        vocab_size: of the tokenizer.
        decode_text: text of token ids.
        share: (k, n): do every n-th part of all, from part k on.

    Returns:
        How many parts were made now.

    Raises:
        UserError: as :func:`parts` and :func:`~analysis.generation.embeddings.load` do, before anything is written.
    """
    cut = parts(probes, config, begun=begun)
    sentences = None if config.embeddings is None else embeddings.load(config.embeddings)

    def make(model: Any, chosen: pl.DataFrame, directory: Path) -> int:
        continued = decode.continued(
            model,
            chosen,
            config,
            beginning=beginning,
            ends=ends,
            vocab_size=vocab_size,
            decode=decode_text,
        )
        if sentences is not None:
            alike = embeddings.similarity(
                sentences.to(model.device), continued["text"].to_list(), continued["reference_text"].to_list()
            )
            continued = continued.with_columns(similarity=alike)
        continued.write_parquet(directory / FILE, compression="zstd")
        return len(chosen)

    return make_parts(
        place,
        cut,
        checkpoints,
        make,
        kind=KIND,
        schema_version=VERSION,
        config={
            **asdict(config),
            "prefix_tokens": list(config.prefix_tokens),
            "begun": begun,
            "code": _code(),
        },
        items_digest=items_digest,
        share=share,
    )


def _code() -> str:
    """Digest of the code that decodes."""
    digest = hashlib.sha256()
    for module in (continuations, decode, embeddings):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]
