"""Figures of capacity, order tests, reasoning and unlearning (default figures 12 to 15)."""

from __future__ import annotations

import re
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from scipy import stats

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure
from palimpsest.analysis.metrics.order import order_test
from palimpsest.data.errors import UserError

_SMALLEST_P = 1e-300


@figure(
    number=12,
    title="Knowledge capacity",
    needs=("parameters", "bits", "n"),
    optional=("run", "low", "high"),
)
def capacity(
    rows: pl.DataFrame, *, levels: tuple[float, ...] = (2.0, 3.6), width: int = 520, height: int = 340
) -> Figure:
    """Bits known by number of parameters, log-log, with lines of constant bits per parameter.

    Published levels: 2 bits per parameter after 1,000 exposures (Allen-Zhu and Li 2024), 3.6 for random data (Morris et
    al. 2025).

    Args:
        rows: one row per model; ``n`` counts the people or items; ``low`` and ``high`` are limits of the bits.
        levels: bits per parameter at which lines are drawn.
        width: pixels.
        height: pixels.
    """
    rows = pieces.as_runs(rows, "run").filter((pl.col("bits") > 0) & (pl.col("parameters") > 0))
    if rows.is_empty():
        return theme.nothing("Knowledge capacity", rows, reason="no model knows more than 0 bits")
    drawn = pieces.labelled(rows, "run") if pieces.series(rows, "run") != [""] else rows
    names = pieces.series(drawn, "run")
    least, most = (
        float(v) for v in rows.select(pl.col("parameters").min(), b=pl.col("parameters").max()).row(0)
    )
    ends = [least / 1.4, most * 1.4]
    x = alt.X(
        "parameters:Q",
        title="parameters (log scale)",
        scale=alt.Scale(type="log", domain=ends, nice=False),
        axis=pieces.log_axis(*ends),
    )
    lines = pl.DataFrame(
        {"level": f"{level:g} bits/parameter", "parameters": p, "bits": level * p}
        for level in levels
        for p in ends
    )
    known = [name for name in ("bits", "low", "high") if name in rows.columns]
    bits = [*lines["bits"], *(value for name in known for value in rows[name].drop_nulls() if value > 0)]
    bounds = [min(bits) / 1.4, max(bits) * 1.4]
    y = alt.Y(
        "bits:Q",
        title="bits known (log scale)",
        scale=alt.Scale(type="log", domain=bounds, nice=False),
        axis=pieces.log_axis(*bounds),
    )
    rule = alt.Chart(theme.values(lines)).encode(x, y, detail="level:N")
    text = alt.Chart(theme.values(lines.filter(pl.col("parameters") == ends[-1]))).mark_text(
        align="left", dx=6, color=theme.MUTED, fontSize=11
    )
    base = alt.Chart(theme.values(drawn)).encode(x, color=theme.colour(names, legend=len(names) > 1))
    layers: list[Any] = [
        rule.mark_line(color=theme.MUTED, strokeDash=[4, 4], strokeWidth=1),
        text.encode(x, y, text="level:N"),
    ]
    if {"low", "high"} <= set(rows.columns):
        layers.append(base.mark_rule(strokeWidth=1.6).encode(pieces.same(y, "low"), alt.Y2("high")))
    layers.append(base.mark_line(strokeWidth=1.4, opacity=0.6).encode(y))
    layers.append(
        base.mark_point(filled=True, size=70, opacity=1).encode(
            y, shape=theme.shape(names, legend=len(names) > 1)
        )
    )
    if len(names) == 1:
        counts = base.mark_text(align="left", dx=8, dy=8, fontSize=10, color=theme.MUTED)
        layers.append(
            counts.transform_calculate(count="'n=' + format(datum.n, ',')").encode(y, text="count:N")
        )
    return Figure(alt.layer(*layers).properties(width=width, height=height), rows)


@figure(
    number=13,
    title="Order test: p-value by number of documents",
    needs=("samples", "p"),
    optional=("run", "low", "high"),
)
def order_p(rows: pl.DataFrame, *, alpha: float = 0.05, width: int = 520, height: int = 280) -> Figure:
    """p-value against the number of documents tested, on logarithmic axes, of tests whether a model was trained on
    documents: by the order in which it read them (``analysis.metrics.order``), or by their watermark.

    Args:
        rows: one row per test: ``samples``, the number of documents, and ``p``; ``run`` names the tested model; ``low``
            and ``high`` are limits of p over repeated subsamples. A p of 0 is drawn at 1e-300.
        alpha: significance level, drawn as a dashed line.
        width: pixels.
        height: pixels.

    Raises:
        UserError: if a p-value is outside 0 to 1.
    """
    rows = pieces.as_runs(rows, "run").filter(pl.col("p").is_not_null() & pl.col("samples").is_not_null())
    if rows.is_empty():
        return theme.nothing("Order test", rows, reason="no row has a p-value")
    if not rows["p"].is_between(0, 1).all():
        raise UserError("figure order_p: the column p has values outside 0 to 1; give p-values")
    limits = [name for name in ("p", "low", "high") if name in rows.columns]
    drawn = (
        rows.with_columns(pl.col(name).clip(_SMALLEST_P) for name in limits)
        .rename({"p": "estimate"})
        .sort("samples")
    )
    least = float(drawn.select(pl.min_horizontal("estimate", *limits[1:]).min()).item())
    floor = min(least, alpha / 10) / 2
    x = pieces.x_axis(drawn, "documents n (log scale)", column="samples", kind="log", counts=False)
    # Ticks at powers of ten, few enough to read.
    span = -np.log10(floor)
    every = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100) if span / step <= 7)
    ticks = [10.0**-k for k in range(0, int(span) + 1, every)]
    label = "datum.value < 1e-3 ? format(datum.value, '~e') : format(datum.value, '~r')"
    scale = alt.Scale(type="log", domain=[floor, 1], nice=False)
    y = alt.Y(
        "estimate:Q", title="p-value (log scale)", scale=scale, axis=alt.Axis(values=ticks, labelExpr=label)
    )
    chart = alt.layer(theme.line(y=alpha), pieces.curves(drawn, x, y))
    return Figure(chart.properties(width=width, height=height), rows)


@figure(number=13, title="Order test: residual by place in training", needs=("index", "residual"))
def order_residuals(rows: pl.DataFrame, *, bins: int = 20, width: int = 520, height: int = 260) -> Figure:
    """Mean residual of documents in bins of training position, with rho and p of the Spearman order test in the title.

    Args:
        rows: one row per document.
        bins: number of bins, with equal numbers of documents.
        width: pixels.
        height: pixels.

    Returns:
        The figure; its rows are the bins: mean ``index``, ``estimate``, Student's t limits, ``n``.
    """
    rows = rows.filter(pl.col("residual").cast(pl.Float64).is_finite() & pl.col("index").is_not_null())
    if rows.height < 4:
        return theme.nothing(
            "Order test", rows, reason=f"a correlation takes four documents, not {rows.height}"
        )
    test = order_test(rows["index"].to_numpy(), rows["residual"].to_numpy())
    bins = max(1, min(bins, rows.height // 2))
    ranked = rows.with_columns(bin=((pl.col("index").rank("ordinal") - 1) * bins // rows.height))
    bins_of_rows = (
        ranked.group_by("bin")
        .agg(
            pl.col("index").mean(),
            estimate=pl.col("residual").mean(),
            error=pl.col("residual").std() / pl.len().sqrt(),
            n=pl.len().cast(pl.Int64),
        )
        .sort("bin")
    )
    half = bins_of_rows["error"] * pl.Series(
        stats.t.ppf(0.975, np.maximum(bins_of_rows["n"].to_numpy() - 1, 1))
    )
    bins_of_rows = bins_of_rows.with_columns(
        low=pl.col("estimate") - half, high=pl.col("estimate") + half
    ).drop("bin", "error")
    x = pieces.x_axis(bins_of_rows, "place in the training order", column="index", kind="linear")
    y = pieces.y_axis(bins_of_rows, "residual (nats/token)", _above(bins_of_rows))
    base = alt.Chart(theme.values(bins_of_rows)).encode(x)
    said = f"Spearman rho = {test.rho:.3f} [{test.low:.3f}, {test.high:.3f}], p = {test.p:.2g}, n={test.n:,}"
    said = re.sub(r"-(?=\d\.)", "−", said)
    note = alt.Chart(theme.data([{"text": said}])).mark_text(align="left", baseline="top", fontSize=12)
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.6, color=theme.PALETTE[0]).encode(pieces.same(y, "low"), alt.Y2("high")),
        base.mark_point(filled=True, size=60, opacity=1, color=theme.PALETTE[0]).encode(y),
        note.encode(x=alt.value(8), y=alt.value(4), text="text:N"),
    ).properties(width=width, height=height)
    return Figure(chart, bins_of_rows)


def _above(rows: pl.DataFrame) -> float:
    """Scale with room for a line of text above the points."""
    low, high = float(rows["low"].min()), float(rows["high"].max())  # type: ignore[arg-type]
    return high + 0.12 * (high - low)


@figure(
    number=14,
    title="Reasoning by memory: LiMem",
    needs=("run", "split", "estimate", "low", "high", "n"),
)
def limem(
    rows: pl.DataFrame, *, y_title: str = "LiMem = accuracy × (1 − consistency)", height: int = 260
) -> Figure:
    """Memorisation of training puzzles and of held-out puzzles, a pair of bars per model (Xie et al. 2024).

    Args:
        rows: estimates by model (``run``) and split.
        y_title: quantity.
        height: pixels.
    """
    names, splits = pieces.series(rows, "run"), pieces.series(rows, "split")
    drawn = rows.with_columns(count=pl.format("n={}", pl.col("n").cast(pl.Int64)))
    top = max(1.0, float(rows.select(pl.max_horizontal("estimate", "high").max()).item()))
    base = alt.Chart(theme.values(drawn)).encode(
        alt.X("run:N", title=None, sort=names, axis=alt.Axis(labelAngle=0, ticks=False, labelLimit=160)),
        xOffset=alt.XOffset("split:N", sort=splits),
    )
    y = alt.Y("estimate:Q", title=y_title, scale=alt.Scale(domain=[0, top]))
    chart = alt.layer(
        base.mark_bar(stroke="white").encode(y, color=theme.colour(splits, "split")),
        base.mark_rule(strokeWidth=1.6, color=theme.INK).encode(
            alt.Y("low:Q", title=y_title), alt.Y2("high")
        ),
        base.mark_text(dy=-5, baseline="bottom", fontSize=10, color=theme.INK)
        .encode(alt.Y("upper:Q", title=y_title), text="count:N")
        .transform_calculate(upper="isValid(datum.high) ? max(datum.high, datum.estimate) : datum.estimate"),
    )
    return Figure(chart.properties(width=max(240, 130 * len(names)), height=height), rows)


@figure(
    number=15,
    title="Unlearning: forgetting against utility",
    needs=("method", "forget", "utility", "n"),
    optional=("forget_low", "forget_high", "utility_low", "utility_high"),
)
def unlearning(
    rows: pl.DataFrame,
    *,
    forget_title: str = "forgetting (higher = closer to never having seen it)",
    utility_title: str = "utility (higher = better)",
    width: int = 460,
    height: int = 340,
) -> Figure:
    """Forgetting and utility of each unlearning method; the retain model is drawn as a star.

    Args:
        rows: one row per method, with limits if known; the method ``retain`` is the model that never saw the texts,
            such as the twin.
        forget_title: name of the quantity ``forget``.
        utility_title: name of the quantity ``utility``.
        width: pixels.
        height: pixels.
    """
    rows = rows.filter(pl.col("forget").is_not_null() & pl.col("utility").is_not_null())
    if rows.is_empty():
        return theme.nothing("Unlearning", rows, reason="no method has both values")
    drawn = rows.with_columns(
        label=pl.when(pl.col("n").is_null())
        .then(pl.col("method"))
        .otherwise(pl.format("{} (n={})", "method", pl.col("n").cast(pl.Int64))),
        star=pl.col("method") == "retain",
    )
    names = drawn["label"].to_list()
    x = alt.X("forget:Q", title=forget_title, scale=_room(rows, "forget"))
    y = alt.Y("utility:Q", title=utility_title, scale=_room(rows, "utility"))
    base = alt.Chart(theme.values(drawn)).encode(color=theme.colour(names, "label", legend=False))
    layers: list[Any] = []
    if {"forget_low", "forget_high"} <= set(rows.columns):
        layers.append(
            base.mark_rule(opacity=0.7).encode(pieces.same(x, "forget_low"), alt.X2("forget_high"), y)
        )
    if {"utility_low", "utility_high"} <= set(rows.columns):
        layers.append(
            base.mark_rule(opacity=0.7).encode(x, pieces.same(y, "utility_low"), alt.Y2("utility_high"))
        )
    star = "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.22,-0.31Z"
    layers += [
        base.transform_filter("!datum.star").mark_point(filled=True, size=90, opacity=1).encode(x, y),
        base.transform_filter("datum.star")
        .mark_point(filled=True, size=260, opacity=1, shape=star)
        .encode(x, y),
        base.mark_text(align="left", dx=9, dy=-8, fontSize=11).encode(x, y, text="label:N"),
    ]
    return Figure(alt.layer(*layers).properties(width=width, height=height), rows)


def _room(rows: pl.DataFrame, column: str) -> alt.Scale:
    """Scale that covers all values and intervals, with room for names on the right."""
    there = [name for name in (column, f"{column}_low", f"{column}_high") if name in rows.columns]
    low, high = (
        float(value)
        for value in rows.select(
            pl.min_horizontal(there).min().alias("low"), pl.max_horizontal(there).max().alias("high")
        ).row(0)
    )
    room = (high - low) or 1.0
    return alt.Scale(
        zero=False, nice=False, domain=[low - 0.06 * room, high + (0.3 if column == "forget" else 0.1) * room]
    )
