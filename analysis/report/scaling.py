"""Scaling of memorization over the runs of a sweep: how the EC50 and the gain move with model, corpus and optimiser.

With x an axis such as the number of parameters, ``EC50 ~ x^exponent``, and the gain at a dose changes by a slope per
doubling of x. An exponent of 1 along the tokens means that only the density of insertions matters.

Shape suffixes: R runs, K axes and an intercept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import polars as pl
from scipy import stats

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.report.answer import interval
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import PAIRED
from palimpsest.analysis.statistics.ec50 import Ec50, dilution_exponent

SCHEMA = pl.Schema(
    {
        "quantity": pl.String(),
        "axis": pl.String(),
        "estimate": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "runs": pl.Int64(),
        "method": pl.String(),
    }
)
"""Columns of :func:`slopes`, one row per quantity and axis; the limits are null where too few runs give none."""


class Point(NamedTuple):
    """A run, as a point of the fits."""

    scale: Mapping[str, float]
    """Axis -> value above 0: ``parameters``, ``tokens``, ``learning rate``, ``windows a step``, ``experts``."""
    ec50: Ec50 | None
    """None if it was not reached or not computed."""
    gain: float
    """Gain at the highest dose; NaN without one."""


def point(scale: Mapping[str, float], summary: Mapping[str, Any]) -> Point:
    """Point of a run: its scale, with the EC50 and the gain of its ``summary.json``.

    Both are those of the difference from the twin if there is one, else those of the perturbed run alone.
    """
    gains = summary["gain_at_highest_dose"]
    which = PAIRED if PAIRED in gains else "perturbed"
    found = next(
        (
            one
            for one in summary["ec50"]
            if one["run"] == which and one["metric"] == summary["primary_metric"] and one["ec50"]
        ),
        None,
    )
    ec50 = None
    if found is not None and math.isfinite(found["ec50"]):
        high = math.inf if found["high"] is None else found["high"]
        ec50 = Ec50(found["ec50"], found["low"] or 0.0, high, found["slope"], 0.0, math.inf, found["method"])
    return Point(scale, ec50, gains[which]["estimate"] if gains else math.nan)


def axes(points: Sequence[Point]) -> list[str]:
    """Names of the scales (:attr:`Point.scale`) in which the runs differ."""
    names = points[0].scale if points else ()
    return [name for name in names if len({one.scale[name] for one in points}) > 1]


def slopes(points: Sequence[Point], dose: int) -> pl.DataFrame:
    """Exponents of the EC50 and slopes of the gain, along every axis on which the runs differ.

    Least squares over the runs, on all axes at once, with Student's t limits; for two runs, the exponent's limits
    combine those of the two EC50s. Axes that move together, such as tokens and batch, give no rows.

    Args:
        points: one a run.
        dose: the highest one, which the gains are of.

    Returns:
        A table of ``SCHEMA``; empty if the runs differ on no axis.
    """
    names = axes(points)
    reached = [one for one in points if one.ec50 is not None]
    gained = [one for one in points if math.isfinite(one.gain)]
    rows = []
    for quantity, used, values in (
        ("exponent of the EC50", reached, [math.log2(one.ec50.estimate) for one in reached if one.ec50]),
        (f"gain at dose {dose}, a doubling", gained, [one.gain for one in gained]),
    ):
        rows += _fit(quantity, names, used, values)
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _fit(
    quantity: str, names: Sequence[str], used: Sequence[Point], values: Sequence[float]
) -> list[tuple[Any, ...]]:
    x_RK = np.array([[1.0, *(math.log2(one.scale[name]) for name in names)] for one in used])
    if not names or len(used) < 2 or np.linalg.matrix_rank(x_RK) < len(names) + 1:
        return []
    y_R = np.array(values, np.float64)
    estimates, *_ = np.linalg.lstsq(x_RK, y_R, rcond=None)
    freedom = len(used) - len(names) - 1
    if freedom < 1:
        low: list[float | None] = [None] * len(names)
        high: list[float | None] = [None] * len(names)
        method = "as many runs as axes: no limits"
        if len(used) == 2 and quantity.startswith("exponent"):
            small, large = sorted(used, key=lambda one: one.scale[names[0]])
            assert small.ec50 is not None
            assert large.ec50 is not None
            ratio = large.scale[names[0]] / small.scale[names[0]]
            found = dilution_exponent(small.ec50, large.ec50, ratio)
            low, high = [_finite(found.low)], [_finite(found.high)]
            method = "limits of the two runs' EC50s"
    else:
        residual_R = y_R - x_RK @ estimates
        error_K = np.sqrt(np.diag(np.linalg.inv(x_RK.T @ x_RK)) * float(residual_R @ residual_R) / freedom)
        half_K = stats.t.ppf(0.975, freedom) * error_K
        low, high = (estimates - half_K)[1:].tolist(), (estimates + half_K)[1:].tolist()
        method = "least squares over runs, Student's t"
    return [
        (quantity, name, float(estimates[number + 1]), low[number], high[number], len(used), method)
        for number, name in enumerate(names)
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(rows: pl.DataFrame) -> Table:
    """The exponents and slopes."""
    return Table(
        ["", "along", "estimate", "runs", "interval"],
        [
            [row["quantity"], row["axis"], interval(row, signed=True), str(row["runs"]), row["method"]]
            for row in rows.iter_rows(named=True)
        ],
        "Exponents and slopes, with 95 % intervals",
        frozenset({0, 1, 4}),
    )


def figure(points: Sequence[Point], axis: str, dose: int) -> theme.Figure:
    """EC50 of every run against an axis, on logarithmic axes, with the runs' own limits.

    An EC50 above ``dose``, the highest one, is extrapolated, and its mark is hollow. A limit that does not exist is
    null in the rows, and its bar goes to the edge of the figure, as does one that is more than a thousandfold away.
    Runs at the same place stand side by side.
    """
    rows = pl.DataFrame(
        [
            {
                axis: one.scale[axis],
                "ec50": one.ec50.estimate,
                "low": one.ec50.low or None,
                "high": _finite(one.ec50.high),
                "extrapolated": one.ec50.estimate > dose,
            }
            for one in points
            if one.ec50 is not None
        ],
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )
    near = [
        limit
        for row in rows.iter_rows(named=True)
        for limit in (row["ec50"], row["low"], row["high"])
        if limit is not None and row["ec50"] / 1e3 <= limit <= row["ec50"] * 1e3
    ]
    ends = [float(rows[axis].min()) / 1.3, float(rows[axis].max()) * 1.3]  # type: ignore[arg-type]
    bounds = [min(near) / 1.5, max(near) * 1.5]
    x = alt.X(
        "place:Q",
        title=f"{axis} (log scale)",
        scale=alt.Scale(type="log", domain=ends, nice=False),
        axis=pieces.log_axis(*ends),
    )
    y = alt.Y(
        "ec50:Q",
        title="EC50: times inserted (log scale)",
        scale=alt.Scale(type="log", domain=bounds, nice=False),
        axis=pieces.log_axis(*bounds),
    )
    turn = pl.int_range(pl.len()) - (pl.len() - 1) / 2
    placed = rows.with_columns(place=pl.col(axis) * (pl.lit(1.02) ** turn).over(axis))
    base = alt.Chart(theme.values(placed)).encode(x)
    bars = placed.with_columns(
        pl.col("low").fill_null(bounds[0]).clip(*bounds), pl.col("high").fill_null(bounds[1]).clip(*bounds)
    )
    chart = alt.layer(
        alt.Chart(theme.values(bars))
        .mark_rule(strokeWidth=1.6, color=theme.PALETTE[0])
        .encode(x, pieces.same(y, "low"), alt.Y2("high")),
        base.mark_point(size=60, opacity=1, stroke=theme.PALETTE[0], strokeWidth=1.6).encode(
            y, fill=alt.condition("datum.extrapolated", alt.value("white"), alt.value(theme.PALETTE[0]))
        ),
    ).properties(width=620, height=280)
    return theme.Figure(theme.styled(chart), rows)
