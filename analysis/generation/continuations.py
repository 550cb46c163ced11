"""Prompts that checkpoints continue, settings of decoding, and the stored continuations.

A run's continuations are directories ``generated/<run>/step_<number>`` (``step_<number>-<part>`` from the second part
on), each with ``generated.parquet`` (:data:`SCHEMA`) and a manifest that has the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.scoring.parts import read_parts
from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import check_seed

KIND = "generated"
VERSION = 2
FILE = "generated.parquet"

SCHEMA = pl.Schema(
    {
        "probe_id": pl.String(),
        "prefix": pl.Int32(),
        "sample": pl.Int32(),
        "tokens": pl.List(pl.Int32),
        "reference": pl.List(pl.Int32),
        "text": pl.String(),
        "reference_text": pl.String(),
        "reference_loglik": pl.Float64(),
        "similarity": pl.Float64(),
    }
)
"""Columns of continuations, one row per continuation. ``prefix``: number of the probe's tokens in the prompt.
``sample``: 0 for greedy decoding, 1, 2, ... for samples. ``tokens``: the generated tokens up to the end of the text, at
most as many as ``reference``, the probe's own continuation. ``reference_loglik``: sum of ln g over the reference's
tokens, nats, where g is the distribution that is sampled from. ``similarity``: of the two texts in meaning, the cosine
of their sentence embeddings; null without ``embeddings``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """Continuations to make of each prompt: the section ``generate`` of a config."""

    prefix_tokens: tuple[int, ...] = (8,)
    """Numbers of an item's first tokens that are used as a prompt; each number gives separate continuations."""
    questions: bool = True
    """Continue the prompts of cloze probes, too."""
    max_tokens: int = 64
    """Largest length of a continuation; a continuation is never longer than the probe's own."""
    samples: int = 0
    """Number of samples for each prompt, in addition to the greedy continuation."""
    temperature: float = 1.0
    """Temperature of sampling."""
    top_k: int | None = None
    """Sample from this number of most likely tokens only; None: from all."""
    top_p: float | None = None
    """Sample from the most likely tokens that together have this probability only; None: from all."""
    embeddings: str | None = None
    """Model of ``sentence-transformers``, by name or directory, that says how like a continuation is to its reference
    in meaning; None: none."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        check_seed("generate.seed", self.seed)
        for k in self.prefix_tokens:
            if k < 1:
                raise UserError(f"generate.prefix_tokens: {k} must be above 0")
        if not self.prefix_tokens and not self.questions:
            raise UserError(
                "generate.prefix_tokens=[] with generate.questions=false leaves nothing to continue"
            )
        if len(set(self.prefix_tokens)) < len(self.prefix_tokens):
            raise UserError(f"generate.prefix_tokens={list(self.prefix_tokens)} names a number twice")
        for name, least in (("max_tokens", 1), ("samples", 0)):
            if getattr(self, name) < least:
                raise UserError(f"generate.{name}={getattr(self, name)} must be {least} or above")
        if not self.temperature > 0:
            raise UserError(
                f"generate.temperature={self.temperature} must be above 0; generate.samples=0 is greedy decoding alone"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"generate.top_k={self.top_k} must be above 0, or null")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"generate.top_p={self.top_p} must be above 0 and at most 1, or null")


def prompts(probes: pl.DataFrame, config: GenerateConfig) -> pl.DataFrame:
    """Contexts to continue: ``probe_id``, ``prefix``, ``context`` and ``reference`` (token ids).

    Of items' whole texts the first ``prefix_tokens``, where the text goes on after them; of cloze probes the prompt.

    Args:
        probes: of the plan (``insertion.items.PROBE_SCHEMA``).
        config: the settings.
    """
    whole = probes.filter((pl.col("kind") == "verbatim") & pl.col("item_id").is_not_null())
    frames = [whole.with_columns(prefix=pl.lit(k, pl.Int32)) for k in config.prefix_tokens]
    if config.questions:
        asked = probes.filter((pl.col("kind") == "cloze") & pl.col("item_id").is_not_null())
        frames.append(asked.with_columns(prefix=pl.col("target_start").cast(pl.Int32)))
    return (
        pl.concat(frames)
        .filter((pl.col("prefix") > 0) & (pl.col("tokens").list.len() > pl.col("prefix")))
        .select(
            "probe_id",
            "prefix",
            context=pl.col("tokens").list.head(pl.col("prefix")),
            reference=pl.col("tokens").list.slice(pl.col("prefix"), config.max_tokens),
        )
    )


def read(directory: Path, runs: tuple[str, ...], *, plan: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Continuations of a pair at every checkpoint that has all parts (``analysis.scoring.parts.read_parts``)."""
    return read_parts(
        directory, runs, plan=plan, kind=KIND, version=VERSION, file=FILE, schema=SCHEMA, program="generate"
    )
