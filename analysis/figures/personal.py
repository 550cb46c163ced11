"""Figures of biographies: leakage by field and attack, and transfer between formats (default figures 6 and 7)."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure


@figure(
    number=6,
    title="Personal data by field and attack",
    needs=("field", "format", "dose", "estimate", "low", "high", "n"),
    optional=("run",),
)
def personal(rows: pl.DataFrame, *, y_title: str = "accuracy") -> Figure:
    """Heat map by field and attack at the highest dose, with the dose curve of every cell below.

    Args:
        rows: estimates by field, format and dose; ``run``, if given, names the lines of the curves; the heat map shows
            the first run.
        y_title: quantity.
    """
    rows = pieces.as_runs(rows, "run").filter(pl.col("dose").is_not_null())
    fields, formats, names = (pieces.series(rows, column) for column in ("field", "format", "run"))
    top = rows.filter((pl.col("dose") == pl.col("dose").max()) & (pl.col("run") == names[0]))
    drawn = top.with_columns(
        label=pl.concat_list(pieces.decimals("estimate"), pl.format("n={}", pl.col("n").cast(pl.Int64)))
    )
    room = 112
    shown = f"{names[0]}, dose {int(top['dose'][0])}" if names[0] else f"Dose {int(top['dose'][0])}"
    heat = pieces.matrix(
        drawn,
        alt.X("field:N", title=None, sort=fields, axis=alt.Axis(labelAngle=0, ticks=False, domain=False)),
        alt.Y("format:N", title=None, sort=formats, axis=_names(formats)),
        domain=_domain(rows),
        title=y_title,
    ).properties(width=room * len(fields), height=38 * len(formats), title=shown)
    small = _curves(rows, fields, formats, names, y_title)
    chart = alt.vconcat(heat, small, spacing=24).resolve_scale(color="independent")
    return Figure(chart, rows)


def _names(names: list[str]) -> alt.Axis:
    return alt.Axis(
        labelLimit=150,
        ticks=False,
        domain=False,
        labelExpr="split(datum.label, ', ')",
        minExtent=80,
        labelOffset=-6,
    )


def _domain(rows: pl.DataFrame) -> list[float]:
    """Scale from 0 to 1 if all values are in this range, else a scale that fits them."""
    low, high = rows.select(pl.col("estimate").min().alias("a"), pl.col("estimate").max().alias("b")).row(0)
    return [0.0, 1.0] if low >= 0 and high <= 1 else [low, high]


def _curves(rows: pl.DataFrame, fields: list[str], formats: list[str], names: list[str], y_title: str) -> Any:
    """Dose curve of every cell, one column per field and one row per attack."""
    doses = [str(int(dose)) for dose in rows["dose"].unique().sort()]
    by_dose = (
        rows.filter(pl.col("n").is_not_null()).group_by("dose").agg(pl.col("n").unique().sort()).sort("dose")
    )
    counts = [pieces.counted(ns)[2:] for ns in by_dose["n"].to_list()]
    drawn = rows.with_columns(at=pl.col("dose").cast(pl.Int64).cast(pl.String)).sort("dose")
    axis = alt.Axis(labelAngle=0, labelFontSize=9, labelOverlap="greedy", ticks=False)
    base = alt.Chart().encode(
        alt.X("at:N", sort=doses, title=None, scale=alt.Scale(domain=doses), axis=axis),
        color=theme.colour(names, legend=len(names) > 1),
    )
    y = alt.Y(
        "estimate:Q",
        title=None,
        scale=alt.Scale(domain=_domain(rows)),
        axis=alt.Axis(tickCount=3, labelFontSize=9),
    )
    small = alt.Header(labelFontSize=11, labelFontWeight="normal", labelLimit=160, title=None)
    split = alt.Header(
        labelExpr="split(datum.label, ', ')", labelAngle=0, labelAlign="right", **small.to_dict()
    )
    return (
        alt.layer(
            base.mark_rule(strokeWidth=1.2).encode(pieces.same(y, "low"), alt.Y2("high")),
            base.mark_line(strokeWidth=1.5).encode(y),
            base.mark_point(filled=True, size=22, opacity=1).encode(y),
            data=theme.values(drawn),
        )
        .properties(width=104, height=62)
        .facet(
            column=alt.Column("field:N", sort=fields, header=small),
            row=alt.Row("format:N", sort=formats, header=split),
            spacing=8,
        )
        .properties(
            title=f"{y_title} by dose; bars: 95 % intervals; n, from dose {doses[0]} up: {', '.join(counts)}"
        )
    )


@figure(
    number=7,
    title="Transfer between formats",
    needs=("trained", "tested", "estimate", "low", "high", "n"),
)
def format_transfer(rows: pl.DataFrame, *, value: str = "accuracy") -> Figure:
    """Matrix of the format in which items were inserted by the format of the probe; the diagonal is the same format.

    Args:
        rows: estimates by inserted and asked format.
        value: name of the estimated quantity.
    """
    trained, tested = pieces.series(rows, "trained"), pieces.series(rows, "tested")
    limits = pl.format("{} to {}", pieces.decimals("low"), pieces.decimals("high")).fill_null("")
    drawn = rows.with_columns(
        label=pl.concat_list(
            pieces.decimals("estimate"), limits, pl.format("n={}", pl.col("n").cast(pl.Int64))
        )
    )
    x = alt.X(
        "tested:N", title="asked in", sort=tested, axis=alt.Axis(labelAngle=0, ticks=False, labelLimit=200)
    )
    y = alt.Y("trained:N", title="inserted in", sort=trained, axis=alt.Axis(ticks=False, labelLimit=200))
    cells = pieces.matrix(drawn, x, y, domain=_domain(rows), title=value)
    same = drawn.filter(pl.col("trained") == pl.col("tested"))
    if same.height:
        frame = alt.Chart(theme.values(same)).mark_rect(filled=False, stroke=theme.PALETTE[1], strokeWidth=3)
        cells = alt.layer(cells, frame.encode(x, y))
    return Figure(cells.properties(width=110 * len(tested), height=64 * len(trained)), rows)
