"""The registry of metrics, and the one function that computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.metrics.scored import ROW_SCHEMA, Scored, gather
from data.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """What metrics may be asked with; one set a computation."""

    prefix: int = 16
    """Verbatim extraction: tokens of context, k. Carlini et al. 2022 take 50; short items need fewer."""
    suffix: int = 16
    """Verbatim extraction: tokens to be reproduced after the context, m."""

    def __post_init__(self) -> None:
        if self.prefix < 0 or self.suffix < 1:
            raise UserError(
                f"verbatim extraction wants prefix >= 0 and suffix >= 1, not {self.prefix} and {self.suffix}"
            )


class Values(NamedTuple):
    """One metric's answer for every scored row, in order."""

    value: NDArray[np.float64]
    valid: NDArray[np.bool_]
    """Where a value exists."""
    reason: str
    """Why it does not, elsewhere: completes *not computed because ...*."""


Compute = Callable[[Scored, Parameters], Values]


@dataclass(frozen=True, slots=True)
class Metric:
    """A registered metric."""

    name: str
    needs: tuple[str, ...]
    """Kinds of probe it is defined on."""
    formula: str
    unit: str
    higher: str
    """What a higher value means; always ``more memorised`` for probes of items."""
    rate: bool
    """Values are 0 or 1, so that means are rates with binomial intervals."""
    bounds: tuple[float, float]
    """What no mean can exceed; intervals of means are cut there."""
    compute: Compute


METRICS: dict[str, Metric] = {}


def metric(
    *,
    name: str,
    needs: tuple[str, ...],
    formula: str,
    unit: str,
    higher: str = "more memorised",
    rate: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Callable[[Compute], Compute]:
    """Register a metric under ``name``; see :class:`Metric` for the arguments."""

    def register(function: Compute) -> Compute:
        if name in METRICS:
            raise ValueError(f"two metrics are called {name!r}")
        METRICS[name] = Metric(name, needs, formula, unit, higher, rate, bounds, function)
        return function

    return register


def compute(
    items: pl.DataFrame,
    probes: pl.DataFrame,
    scores: pl.DataFrame,
    names: Iterable[str] | None = None,
    parameters: Parameters | None = None,
) -> pl.DataFrame:
    """Every named metric for every probe it is defined on, at every checkpoint of every run.

    Args:
        items: one row an item: item_id, stratum, dose.
        probes: one row a probe: probe_id, item_id, family, kind, tokens, target_start, target_bytes.
        scores: one row a probe and checkpoint: run, step, probe_id, logprob, rank (lists over tokens).
        names: metrics wanted; all registered ones by default.
        parameters: settings of the metrics.

    Returns:
        Tidy rows (:data:`~analysis.metrics.scored.ROW_SCHEMA`). What could not be computed is a row as well,
        with a null value and the reason.
    """
    settings = parameters or Parameters()
    frames = [pl.DataFrame(schema=ROW_SCHEMA)]
    gathered: dict[tuple[str, ...], tuple[Scored, pl.DataFrame]] = {}
    for name in METRICS if names is None else names:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}{nearest(name, METRICS)}")
        chosen = METRICS[name]
        if chosen.needs not in gathered:
            gathered[chosen.needs] = gather(items, probes, scores, chosen.needs)
        scored, missing = gathered[chosen.needs]
        frames.append(_rows(name, scored, chosen.compute(scored, settings)))
        frames.append(_missing(missing, name))
    return pl.concat(frames)


def _rows(name: str, scored: Scored, values: Values) -> pl.DataFrame:
    valid, finite = pl.Series(values.valid), pl.Series(np.isfinite(values.value))
    return _tidy(
        scored.rows,
        name,
        pl.when(valid & finite).then(pl.Series(values.value, dtype=pl.Float64)),
        pl.when(~valid)
        .then(pl.lit(values.reason))
        .when(~finite)
        .then(pl.lit("a score of it is not a finite number")),
    )


def _missing(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    return _tidy(rows, name, pl.lit(None, pl.Float64), pl.lit("the probe was not scored at this checkpoint"))


def _tidy(rows: pl.DataFrame, name: str, value: pl.Expr, reason: pl.Expr) -> pl.DataFrame:
    frame = rows.with_columns(metric=pl.lit(name), value=value, reason=reason)
    return frame.select([pl.col(column).cast(dtype) for column, dtype in ROW_SCHEMA.items()])
