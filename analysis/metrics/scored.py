"""Token scores as flat arrays: the one view that every metric reads.

Shape suffixes: R rows (a probe at a checkpoint of a run), T tokens of all rows one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

ROW_SCHEMA = {
    "run": pl.String,
    "step": pl.Int64,
    "probe_id": pl.String,
    "item_id": pl.String,
    "family": pl.String,
    "stratum": pl.String,
    "dose": pl.Int32,
    "metric": pl.String,
    "value": pl.Float64,
    "reason": pl.String,
}
"""Tidy metric rows. ``value`` is null exactly where ``reason`` says why it was not computed."""

IDENTITY = ["run", "step", "probe_id", "item_id", "family", "stratum", "dose"]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of all probes of some kinds at all checkpoints, tokens laid end to end."""

    rows: pl.DataFrame
    """R rows: run, step, probe_id, item_id, family, stratum, dose."""
    starts: NDArray[np.int64]
    """Index of each row's first token in the flat arrays."""
    lengths: NDArray[np.int64]
    """Tokens per row; at least 1."""
    target_starts: NDArray[np.int64]
    """Token index, within the row, at which the scored target begins."""
    target_bytes: NDArray[np.int64]
    """UTF-8 bytes of the target."""
    logprob: NDArray[np.float64]
    """ln p(token | tokens before it), nats."""
    rank: NDArray[np.int64]
    """Tokens that the model prefers to this one; 0 = the argmax."""

    @property
    def position(self) -> NDArray[np.int64]:
        """Index of each token within its row."""
        return np.arange(len(self.logprob)) - np.repeat(self.starts, self.lengths)

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Tokens of the target: from ``target_starts`` to the end."""
        return self.lengths - self.target_starts

    def sum_over(
        self, first_R: NDArray[np.int64], stop_R: NDArray[np.int64], values_T: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Sum of ``values_T`` over the tokens ``first <= position < stop`` of each row, in float64."""
        if not len(self.lengths):
            return np.zeros(0)
        position = self.position
        inside = (position >= np.repeat(first_R, self.lengths)) & (position < np.repeat(stop_R, self.lengths))
        # Masking before reduceat keeps segments non-empty (reduceat misreads empty ones), and where() rather
        # than a product keeps a non-finite value outside the target from leaking in.
        return np.add.reduceat(np.where(inside, values_T, 0.0), self.starts)

    def sum_over_target(self, values_T: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of ``values_T`` over each row's target, in float64."""
        return self.sum_over(self.target_starts, self.lengths, values_T)


def gather(
    items: pl.DataFrame, probes: pl.DataFrame, scores: pl.DataFrame, kinds: Sequence[str]
) -> tuple[Scored, pl.DataFrame]:
    """Join scores with what they are scores of.

    Args:
        items: item_id, stratum, dose (and more).
        probes: probe_id, item_id, family, kind, tokens, target_start, target_bytes.
        scores: run, step, probe_id, logprob, rank: lists with one entry a token.
        kinds: the kinds of probe wanted.

    Returns:
        The scored probes; and the (run, step, probe) combinations that have no scores, which are never
        dropped in silence.

    Raises:
        ValueError: scores of an unknown probe, twice the same score, a list shorter or longer than its
        tokens, or
            a target that begins beyond the end.
    """
    known = probes.select(
        "probe_id",
        pl.col("item_id").cast(pl.String),
        "family",
        "kind",
        "target_start",
        "target_bytes",
        pl.col("tokens").list.len().alias("length"),
    )
    strangers = scores.join(known, on="probe_id", how="anti")
    if strangers.height:
        raise ValueError(f"scores of a probe that is not among the probes: {strangers['probe_id'][0]!r}")
    if scores.select("run", "step", "probe_id").is_duplicated().any():
        raise ValueError("a probe was scored twice at one checkpoint of one run")
    wanted = (
        known.filter(pl.col("kind").is_in(list(kinds)))
        .join(items.select("item_id", "stratum", "dose"), on="item_id", how="left")
        .with_columns(pl.col("stratum").fill_null(pl.col("family")), pl.col("dose").cast(pl.Int32))
    )
    grid = scores.select("run", "step").unique().join(wanted, how="cross")
    joined = grid.join(
        scores.select("run", "step", "probe_id", "logprob", "rank"),
        on=["run", "step", "probe_id"],
        how="left",
    ).sort("run", "step", "probe_id")
    missing = joined.filter(pl.col("logprob").is_null()).select(IDENTITY)
    found = joined.filter(pl.col("logprob").is_not_null())
    _check(found)
    lengths = found["length"].cast(pl.Int64).to_numpy()
    scored = Scored(
        rows=found.select(IDENTITY),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        target_starts=found["target_start"].cast(pl.Int64).to_numpy(),
        target_bytes=found["target_bytes"].cast(pl.Int64).to_numpy(),
        logprob=found["logprob"].explode().cast(pl.Float64).to_numpy() if found.height else np.zeros(0),
        rank=found["rank"].explode().cast(pl.Int64).to_numpy() if found.height else np.zeros(0, np.int64),
    )
    return scored, missing


def _check(found: pl.DataFrame) -> None:
    length = pl.col("length")
    for wrong, what in (
        (length == 0, "has no tokens"),
        (
            (pl.col("logprob").list.len() != length) | (pl.col("rank").list.len() != length),
            "has scores for another number of tokens",
        ),
        (pl.col("target_start") >= length, "has a target that begins beyond its last token"),
    ):
        bad = found.filter(wrong)
        if bad.height:
            row = bad.row(0, named=True)
            raise ValueError(f"probe {row['probe_id']!r} ({row['run']}, step {row['step']}) {what}")
