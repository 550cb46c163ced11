"""Registry of metrics, and the function that computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.metrics.scored import READS, ROW_SCHEMA, Scored, gather, lacking
from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.items import KINDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Settings of the metrics of one computation."""

    prefix: int = 16
    """k, tokens of context in verbatim extraction. Carlini et al. 2022 use 50; short items need fewer."""
    suffix: int = 16
    """m, tokens to be reproduced after the context in verbatim extraction."""
    fraction: float = 0.2
    """k, share of the least likely tokens that Min-K and Min-K++ average."""
    queries: int = 100
    """n, number of samples in (n,p)-discoverable extraction."""
    reference: str = "twin"
    """Name of the run whose scores of the same probe at the same step are the reference."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction={self.fraction} of Min-K must be above 0 and at most 1")
        if self.queries < 1:
            raise UserError(f"queries={self.queries} of (n,p)-discoverable extraction must be at least 1")
        if self.prefix < 0 or self.suffix < 1:
            raise UserError(
                f"verbatim extraction wants prefix >= 0 and suffix >= 1, not {self.prefix} and {self.suffix}"
            )


class Values(NamedTuple):
    """Values of one metric for every scored row, in order."""

    value: NDArray[np.float64]
    valid: NDArray[np.bool_]
    """True where a value exists."""
    reason: str
    """Reason why rows that are not ``valid`` have no value; it completes the sentence *not computed because ...*."""
    asked: NDArray[np.bool_] | None = None
    """True for rows that hold a value of what the metric is defined on, such as one row per question; None: all
    rows."""


Compute = Callable[[Scored, Parameters], Values]


@dataclass(frozen=True, slots=True)
class Metric:
    """A registered metric."""

    name: str
    needs: tuple[str, ...]
    """Kinds of probe on which the metric is defined."""
    formula: str
    unit: str
    source: str
    """Paper or program that the metric is from; empty for a metric of one's own."""
    higher: str
    """Meaning of a higher value; always ``more memorised`` for probes of items."""
    rate: bool
    """True if values are 0 or 1, so that means are rates with binomial intervals."""
    bounds: tuple[float, float]
    """Lowest and highest possible value, at which intervals of means are cut."""
    compute: Compute
    reads: tuple[str, ...] = ()
    """Inputs needed beyond log-probabilities and ranks; see :data:`~analysis.metrics.scored.READS`."""
    default: bool = True
    """True if the metric is computed when no names are given, and shown in the report."""
    by_question: bool = False
    """True if values of different questions cannot be averaged, because their chance levels differ; the report then
    shows each question separately."""


class Needs(NamedTuple):
    """Inputs that a set of metrics needs from one scoring pass."""

    kinds: tuple[str, ...]
    """Kinds of probe to score."""
    columns: tuple[str, ...]
    """Columns of the score store."""
    reads: tuple[str, ...]
    """Inputs needed beyond log-probabilities and ranks, such as the text or a reference run."""


METRICS: dict[str, Metric] = {}


def metric(
    *,
    name: str,
    needs: tuple[str, ...],
    formula: str,
    unit: str,
    source: str = "",
    higher: str = "more memorised",
    rate: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    reads: tuple[str, ...] = (),
    default: bool = True,
    by_question: bool = False,
) -> Callable[[Compute], Compute]:
    """Register a metric under ``name``; see :class:`Metric` for the arguments."""

    def register(function: Compute) -> Compute:
        if name in METRICS:
            raise ValueError(f"two metrics are called {name!r}")
        for what, given, known in (("reads", reads, READS), ("needs", needs, KINDS)):
            if strangers := set(given) - set(known):
                raise UserError(f"metric {name!r} {what} {min(strangers)!r}{nearest(min(strangers), known)}")
        METRICS[name] = Metric(
            name, needs, formula, unit, source, higher, rate, bounds, function, reads, default, by_question
        )
        return function

    return register


def defaults() -> list[str]:
    """Names of the metrics that are computed by default."""
    return [name for name, entry in METRICS.items() if entry.default]


def known(names: Iterable[str]) -> list[Metric]:
    """The metrics of the given names; an unknown name raises a ``UserError``."""
    metrics = []
    for name in names:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}{nearest(name, METRICS)}")
        metrics.append(METRICS[name])
    return metrics


def plan(names: Iterable[str]) -> Needs:
    """Union of the inputs that the named metrics need, so that one pass over the tokens serves them all."""
    chosen = known(names)
    reads = {read for metric in chosen for read in metric.reads}
    columns = {"logprob", "rank"} | {read for read in reads if READS[read] == "column"}
    kinds = {kind for metric in chosen for kind in metric.needs}
    others = {read for read in reads if READS[read] != "column"}
    return Needs(tuple(sorted(kinds)), tuple(sorted(columns)), tuple(sorted(others)))


def compute(
    items: pl.DataFrame,
    probes: pl.DataFrame,
    scores: pl.DataFrame,
    names: Iterable[str] | None = None,
    parameters: Parameters | None = None,
) -> pl.DataFrame:
    """Compute metrics for every probe on which they are defined, at every checkpoint of every run.

    Args:
        items: one row per item: item_id, stratum, dose.
        probes: one row per probe: probe_id, item_id, family, kind, tokens, target_start, target_bytes; name and correct
            for choices and foils.
        scores: one row per probe and checkpoint: run, step, probe_id, logprob, rank (lists over tokens).
        names: names of the metrics; the default ones if None.
        parameters: settings of the metrics.

    Returns:
        Tidy rows (:data:`~analysis.metrics.scored.ROW_SCHEMA`). A value that cannot be computed is null, with the
        reason in its row.
    """
    settings = parameters or Parameters()
    frames = [pl.DataFrame(schema=ROW_SCHEMA)]
    chosen = known(defaults() if names is None else names)
    reads: dict[tuple[str, ...], set[str]] = {}
    for wanted in chosen:
        reads.setdefault(wanted.needs, set()).update(wanted.reads)
    gathered: dict[tuple[str, ...], tuple[Scored, pl.DataFrame]] = {}
    for wanted in chosen:
        if wanted.needs not in gathered:
            gathered[wanted.needs] = gather(
                items, probes, scores, wanted.needs, reads[wanted.needs], settings.reference
            )
        scored, missing = gathered[wanted.needs]
        absent = lacking(items, probes, scores, wanted.reads, settings.reference)
        if absent:
            frames.append(_absent(scored.rows, wanted.name, absent))
        else:
            frames.append(_rows(wanted.name, scored, _computed(wanted, scored, settings)))
        frames.append(_missing(missing, wanted.name))
    return pl.concat(frames)


def _computed(wanted: Metric, scored: Scored, settings: Parameters) -> Values:
    """Values of a metric, which may be a user's own, in the form that the report needs.

    Raises:
        UserError: if the function returns something else, or not one value for each text.
    """
    values: object = wanted.compute(scored, settings)
    place = f"metric {wanted.name!r} ({wanted.compute.__module__})"
    if not isinstance(values, Values):
        raise UserError(
            f"{place} returns {type(values).__name__}; it must return Values(value, valid, reason)"
        )
    for part, entries in (("value", values.value), ("valid", values.valid), ("asked", values.asked)):
        if entries is not None and np.shape(entries) != (len(scored.rows),):
            raise UserError(
                f"{place} returns {part} of shape {np.shape(entries)}; it must be ({len(scored.rows)},), one for each "
                "scored text"
            )
    return values


def _rows(name: str, scored: Scored, values: Values) -> pl.DataFrame:
    valid, finite = pl.Series(values.valid), pl.Series(np.isfinite(values.value) & scored.finite)
    tidy = _tidy(
        scored.rows,
        name,
        pl.when(valid & finite).then(pl.Series(values.value, dtype=pl.Float64)),
        pl.when(~valid)
        .then(pl.lit(values.reason))
        .when(~finite)
        .then(pl.lit("a score of it is not a finite number")),
    )
    return tidy if values.asked is None else tidy.filter(pl.Series(values.asked))


def _missing(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    return _tidy(rows, name, pl.lit(None, pl.Float64), pl.lit("the probe was not scored at this checkpoint"))


def _absent(rows: pl.DataFrame, name: str, reason: str) -> pl.DataFrame:
    return _tidy(rows, name, pl.lit(None, pl.Float64), pl.lit(reason))


def _tidy(rows: pl.DataFrame, name: str, value: pl.Expr, reason: pl.Expr) -> pl.DataFrame:
    frame = rows.with_columns(metric=pl.lit(name), value=value, reason=reason)
    return frame.select([pl.col(column).cast(dtype) for column, dtype in ROW_SCHEMA.items()])
