"""Token scores as flat arrays, the input of every metric.

Shape suffixes: R rows (a probe at a checkpoint of a run), T tokens of all rows one after the other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
    "cluster": pl.String,
    "dose": pl.Int32,
    "question": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "reason": pl.String,
}
"""Tidy metric rows. ``value`` is null if it was not computed, and ``reason`` then says why. ``question`` is the probe's
name up to `` #``, which is the same for all items of a family. ``cluster`` is the item's cluster, empty if it has
none."""

READS = {
    "entropy": "column",
    "variance": "column",
    "margin": "column",
    "zlib_bytes": "text",
    "target": "text",
    "bits": "items",
    "probe_bits": "probes",
    "reference": "run",
}
"""Input that a metric may read beyond log-probability and rank -> its source: a column of the scores, the probe's text,
the items, the probes, or the scores of the same probe at the same step in a reference run."""

IDENTITY = ["run", "step", "probe_id", "item_id", "family", "stratum", "cluster", "dose", "question"]
APART = ["kind", "name", "correct", "target", "group", "complete"]
"""Optional columns of ``Scored.rows``."""
ASKED = ["run", "step", "family", "item_id", "name"]
"""Columns with equal values in all choices of one question, or all foils of one comparison."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of all probes of some kinds at all checkpoints; tokens of all rows are concatenated."""

    rows: pl.DataFrame
    """R rows: run, step, probe_id, item_id, family, stratum, dose, question; kind, name and correct of the probe; for
    choices and foils also ``group``, the number of the question (``ASKED``), and ``complete``, true if all its probes
    were scored."""
    starts: NDArray[np.int64]
    """Index of each row's first token in the flat arrays."""
    lengths: NDArray[np.int64]
    """Number of tokens of each row; at least 1."""
    target_starts: NDArray[np.int64]
    """Index within the row of the target's first token."""
    target_bytes: NDArray[np.int64]
    """Number of UTF-8 bytes of each target."""
    logprob: NDArray[np.float64]
    """ln p(token | tokens before it), nats."""
    rank: NDArray[np.int64]
    """Number of tokens that the model finds likelier than this one; 0 = the argmax."""
    extra: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Columns that metrics declared to read: ``entropy``, ``variance``, ``margin``, ``reference`` (ln p
    under the reference run, NaN where it has no score) per token; ``zlib_bytes`` (NaN without text), ``bits`` (NaN if
    the target is not the item's whole text) and ``probe_bits`` (NaN without a claim) per row. ``target``, a text, is a
    column of ``rows`` instead."""

    @property
    def position(self) -> NDArray[np.int64]:
        """Index of each token within its row."""
        return np.arange(len(self.logprob)) - np.repeat(self.starts, self.lengths)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """True for rows whose target has only finite log-probabilities, (R,) bool.

        A NaN log-probability means that the token was not predicted, such as the first token of a text that is read
        without a beginning-of-text token (``score.bos``); its rank is meaningless.
        """
        if not len(self.lengths):
            return np.zeros(0, bool)
        prompt = self.position < np.repeat(self.target_starts, self.lengths)
        return np.logical_and.reduceat(np.isfinite(self.logprob) | prompt, self.starts)

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each target, which runs from ``target_starts`` to the row's end, (R,) int64."""
        return self.lengths - self.target_starts

    def sum_over(
        self, first_R: NDArray[np.int64], stop_R: NDArray[np.int64], values_T: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Sum of ``values_T`` over the tokens ``first <= position < stop`` of each row, in float64."""
        if not len(self.lengths):
            return np.zeros(0)
        if not first_R.any() and np.array_equal(stop_R, self.lengths):
            return np.add.reduceat(values_T.astype(np.float64, copy=False), self.starts)
        position = self.position
        inside = (position >= np.repeat(first_R, self.lengths)) & (position < np.repeat(stop_R, self.lengths))
        # Masking before reduceat keeps segments non-empty (reduceat misreads empty ones), and where() rather
        # than a product keeps a non-finite value outside the target from leaking in.
        return np.add.reduceat(np.where(inside, values_T, 0.0), self.starts)

    def sum_over_target(self, values_T: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of ``values_T`` over each row's target, in float64."""
        return self.sum_over(self.target_starts, self.lengths, values_T)


def gather(
    items: pl.DataFrame,
    probes: pl.DataFrame,
    scores: pl.DataFrame,
    kinds: Sequence[str],
    reads: Iterable[str] = (),
    reference: str = "twin",
) -> tuple[Scored, pl.DataFrame]:
    """Join scores with the items and probes that they belong to.

    Args:
        items: item_id, stratum, dose (and more).
        probes: probe_id, item_id, family, kind, tokens, target_start, target_bytes; optionally name and correct
            (default: the same name, and all correct).
        scores: run, step, probe_id, logprob, rank: lists with one entry a token.
        kinds: the kinds of probe wanted.
        reads: further inputs (:data:`READS`); inputs that the frames lack are left out, see :func:`lacking`.
        reference: name of the reference run.

    Returns:
        The scored probes; and the (run, step, probe) combinations without scores, which the caller must report.

    Raises:
        ValueError: for scores of an unknown probe, duplicate scores, a list whose length differs from the number of
            tokens, or a target that begins beyond the end.
    """
    reads = set(reads)
    columns = [name for name in READS if name in reads and READS[name] == "column" and name in scores.columns]
    joined = _joined(items, scores, _of_probes(probes, reads), kinds, columns)
    if not {"choice", "foil"}.isdisjoint(kinds):
        joined = _grouped(joined)
    missing = joined.filter(pl.col("logprob").is_null()).select(IDENTITY)
    rows = joined.filter(pl.col("logprob").is_not_null())
    _check(rows, columns)
    lengths = rows["length"].cast(pl.Int64).to_numpy()
    scored = Scored(
        rows=rows.select(*IDENTITY, *(name for name in APART if name in rows.columns)),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        target_starts=rows["target_start"].cast(pl.Int64).to_numpy(),
        target_bytes=rows["target_bytes"].cast(pl.Int64).to_numpy(),
        logprob=_flat(rows["logprob"]),
        rank=rows["rank"].explode().cast(pl.Int64).to_numpy() if rows.height else np.zeros(0, np.int64),
        extra=_extra(rows, scores, columns, reference if "reference" in reads else None)
        | (_bits(rows, items) if "bits" in reads and "bits" in items.columns else {})
        | ({"probe_bits": _of_rows(rows["probe_bits"])} if "probe_bits" in rows.columns else {}),
    )
    return scored, missing


def _of_probes(probes: pl.DataFrame, reads: set[str]) -> pl.DataFrame:
    """The probes with the columns that metrics read: item, target, question, and those of ``reads`` that exist."""
    name = pl.col("name") if "name" in probes.columns else pl.lit("").alias("name")
    wanted = [
        "probe_id",
        pl.col("item_id").cast(pl.String),
        "family",
        "kind",
        "target_start",
        "target_bytes",
        pl.col("tokens").list.len().alias("length"),
        name,
        name.str.replace(r" #.*$", "").alias("question"),
        pl.col("correct") if "correct" in probes.columns else pl.lit(True).alias("correct"),
    ]
    if "probe_bits" in reads and "bits" in probes.columns:
        wanted.append(pl.col("bits").alias("probe_bits"))
    if "target" in reads and {"text", "target_char"} <= set(probes.columns):
        wanted.append(pl.col("text").str.slice(pl.col("target_char")).alias("target"))
    if "zlib_bytes" in reads and "text" in probes.columns:
        wanted.append("text")
    return probes.select(wanted)


def _joined(
    items: pl.DataFrame,
    scores: pl.DataFrame,
    known: pl.DataFrame,
    kinds: Sequence[str],
    columns: Sequence[str],
) -> pl.DataFrame:
    """Every probe of these kinds at every checkpoint of every run, with null scores if it was not scored."""
    strangers = scores.join(known, on="probe_id", how="anti")
    if strangers.height:
        raise ValueError(f"scores of a probe that is not among the probes: {strangers['probe_id'][0]!r}")
    if scores.select("run", "step", "probe_id").is_duplicated().any():
        raise ValueError("a probe was scored twice at one checkpoint of one run")
    cluster = pl.col("cluster") if "cluster" in items.columns else pl.lit("").alias("cluster")
    wanted = (
        known.filter(pl.col("kind").is_in(list(kinds)))
        .join(items.select("item_id", "stratum", cluster, "dose"), on="item_id", how="left")
        .with_columns(
            pl.col("stratum").fill_null(pl.col("family")),
            pl.col("cluster").fill_null(""),
            pl.col("dose").cast(pl.Int32),
        )
    )
    grid = scores.select("run", "step").unique().join(wanted, how="cross")
    return grid.join(
        scores.select("run", "step", "probe_id", "logprob", "rank", *columns),
        on=["run", "step", "probe_id"],
        how="left",
    ).sort("run", "step", "probe_id")


def _grouped(joined: pl.DataFrame) -> pl.DataFrame:
    """Add ``group``, the number of the question, and ``complete``, true if all its probes were scored."""
    numbers = joined.select(ASKED).unique(maintain_order=True).with_row_index("group")
    whole = pl.col("logprob").is_not_null().all().over("group", "kind")
    return joined.join(numbers, on=ASKED, how="left", nulls_equal=True, maintain_order="left").with_columns(
        complete=whole
    )


def _bits(rows: pl.DataFrame, items: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Bits of each row's item if the target is the item's whole text, else NaN; (R,) float64."""
    of_items = items.select("item_id", "bits", "bytes")
    joined = rows.select("item_id", "target_bytes").join(
        of_items, on="item_id", how="left", maintain_order="left"
    )
    whole = pl.when(pl.col("target_bytes") == pl.col("bytes")).then("bits")
    return {"bits": _of_rows(joined.select(whole).to_series())}


def _of_rows(values: pl.Series) -> NDArray[np.float64]:
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy()


def lacking(
    items: pl.DataFrame, probes: pl.DataFrame, scores: pl.DataFrame, reads: Iterable[str], reference: str
) -> str:
    """Reason why inputs cannot be read from the frames; an empty string if they can."""
    for name in reads:
        if READS[name] == "column" and name not in scores.columns:
            return f"the scores have no column {name!r}"
        if READS[name] == "text" and "text" not in probes.columns:
            return "the probes have no texts"
        if name == "target" and "target_char" not in probes.columns:
            return "the probes do not say where their targets begin"
        if READS[name] == "items" and name not in items.columns:
            return f"the items have no column {name!r}"
        if READS[name] == "probes" and "bits" not in probes.columns:
            return "the probes have no column 'bits'"
        if READS[name] == "run" and not (scores["run"] == reference).any():
            return f"there are no scores of the reference run {reference!r}"
    return ""


def _extra(
    rows: pl.DataFrame, scores: pl.DataFrame, columns: Sequence[str], reference: str | None
) -> dict[str, NDArray[np.float64]]:
    extra = {name: _flat(rows[name]) for name in columns}
    if "text" in rows.columns:
        # The same text at every checkpoint is compressed once.
        once = rows.select("probe_id", "text").unique("probe_id")
        sizes = [None if t is None else len(zlib.compress(t.encode())) for t in once["text"].to_list()]
        lengths = once.select("probe_id", zlib_bytes=pl.Series(sizes, dtype=pl.Float64))
        joined = rows.select("probe_id").join(lengths, on="probe_id", how="left", maintain_order="left")
        extra["zlib_bytes"] = joined["zlib_bytes"].fill_null(np.nan).to_numpy()
    if reference is not None:
        other = scores.filter(pl.col("run") == reference).select("step", "probe_id", reference="logprob")
        joined = rows.select("run", "step", "probe_id", "length").join(
            other, on=["step", "probe_id"], how="left", maintain_order="left"
        )
        # A run is no reference to itself: its ratio would be 1 by construction, not by measurement.
        unusable = (pl.col("run") == reference) | (pl.col("reference").list.len() != pl.col("length"))
        blank = pl.lit(float("nan")).repeat_by("length").cast(pl.List(pl.Float32))
        joined = joined.with_columns(
            pl.when(unusable.fill_null(True)).then(blank).otherwise(pl.col("reference")).alias("reference")
        )
        extra["reference"] = _flat(joined["reference"])
    return extra


def _flat(lists: pl.Series) -> NDArray[np.float64]:
    return lists.explode().cast(pl.Float64).to_numpy() if len(lists) else np.zeros(0)


def _check(rows: pl.DataFrame, columns: Sequence[str]) -> None:
    length = pl.col("length")
    wrong_length = [pl.col(name).list.len() != length for name in ("logprob", "rank", *columns)]
    for wrong, what in (
        (length == 0, "has no tokens"),
        (pl.any_horizontal(wrong_length), "has scores for another number of tokens"),
        (pl.col("target_start") >= length, "has a target that begins beyond its last token"),
    ):
        bad = rows.filter(wrong)
        if bad.height:
            row = bad.row(0, named=True)
            raise ValueError(f"probe {row['probe_id']!r} ({row['run']}, step {row['step']}) {what}")
