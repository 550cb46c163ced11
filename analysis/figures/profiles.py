"""Memorisation profiles: treatment step by checkpoint, event study, agreement between models (default figure 10)."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import polars as pl

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure


@figure(
    number=10,
    title="Memorisation profile",
    needs=("cohort", "step", "estimate", "low", "high", "n"),
    optional=("learning_rate",),
)
def memorisation_profile(rows: pl.DataFrame, *, value: str = "ATT, nats", width: int = 560) -> Figure:
    """Average effect on the treated (ATT) by treatment step and checkpoint; a cell is coloured only if its interval
    excludes 0 (Lesci et al. 2024).

    Args:
        rows: estimates by cohort (treatment step) and checkpoint; ``learning_rate`` of the checkpoint is drawn below.
        value: name and unit of the estimated quantity.
        width: pixels.
    """
    rows = rows.sort("cohort", "step")
    order = [f"{int(step):,}" for step in rows["step"].unique().sort()]
    n_of = {
        c: pieces.counted(ns)
        for c, ns in rows.group_by("cohort").agg(pl.col("n").drop_nulls().unique().sort()).iter_rows()
    }
    names = [f"{int(c):,} ({n_of[c]})" for c in rows["cohort"].unique().sort(descending=True)]
    drawn = rows.with_columns(
        at=pl.col("step").map_elements(lambda s: f"{int(s):,}", return_dtype=pl.String),
        row=pl.col("cohort").map_elements(lambda c: f"{int(c):,} ({n_of[c]})", return_dtype=pl.String),
        shown=(pl.col("low") > 0) | (pl.col("high") < 0),
        label=pieces.decimals("estimate"),
    )
    most = float(np.nanmax(np.abs(rows["estimate"].to_numpy().astype(float)))) or 1.0
    every = max(1, -(-len(order) // 12))
    ticks = alt.Axis(labelAngle=0, ticks=False, values=order[::every], labelOverlap="greedy")
    silent = alt.Axis(labels=False, ticks=False)
    under = "learning_rate" in rows.columns
    named = alt.X("at:N", title="checkpoint (step)", sort=order, scale=alt.Scale(domain=order), axis=ticks)
    x = alt.X("at:N", title=None, sort=order, scale=alt.Scale(domain=order), axis=silent) if under else named
    y = alt.Y(
        "row:N", title="treatment step", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(ticks=False)
    )
    coloured = drawn.filter(pl.col("shown").fill_null(False))
    blank = alt.Chart(theme.values(drawn)).mark_rect(fill="#f1f3f5", stroke="white").encode(x, y)
    heat = alt.layer(
        blank,
        pieces.matrix(
            coloured,
            x,
            y,
            domain=np.linspace(-most, most, len(pieces.DIVERGING)).tolist(),
            range_=pieces.DIVERGING,
            title=value,
            text=len(order) <= 12,
            dark=f"abs(datum.estimate) > {0.75 * most}",
        ),
    ).properties(
        width=width, height=max(120, 30 * len(names)), title=_note("grey: the 95 % interval includes 0")
    )
    if not under:
        return Figure(heat, drawn.drop("at", "row", "label"))
    rate = drawn.select("step", "at", "learning_rate").drop_nulls().unique().sort("step")
    line = alt.Chart(theme.values(rate)).mark_area(
        color=theme.MUTED, opacity=0.35, line={"color": theme.INK, "strokeWidth": 1.4}
    )
    amount = alt.Y("learning_rate:Q", title="learning rate", axis=alt.Axis(format="~g", tickCount=2))
    beneath = line.encode(named, amount).properties(width=width, height=56)
    return Figure(alt.vconcat(heat, beneath, spacing=10), drawn.drop("at", "row", "label"))


@figure(number=10, title="Event study", needs=("since", "estimate", "low", "high", "n"), optional=("run",))
def event_study(
    rows: pl.DataFrame, *, y_title: str = "ATT, nats", width: int = 560, height: int = 260
) -> Figure:
    """Event study: effect by steps since treatment, pooled over cohorts. Before treatment (shaded) the effect should be
    0.

    Args:
        rows: estimates by ``since`` (checkpoint less treatment step, negative before); ``run`` names the lines.
        y_title: quantity and unit.
        width: pixels.
        height: pixels.
    """
    rows = pieces.as_runs(rows, "run").sort("since")
    x = pieces.x_axis(rows, "steps since treatment", column="since", kind="linear")
    y = pieces.y_axis(rows, y_title, 0.0)
    layers: list[Any] = [theme.line(y=0.0), pieces.curves(rows, x, y)]
    earliest = float(rows["since"].min())  # type: ignore[arg-type]
    if earliest < 0:
        span = pl.DataFrame({"since": [earliest], "end": [0.0]})
        shade = alt.Chart(theme.values(span)).mark_rect(color=theme.MUTED, opacity=0.1)
        layers.insert(0, shade.encode(x, alt.X2("end:Q")))
    return Figure(alt.layer(*layers).properties(width=width, height=height), rows)


@figure(
    number=10,
    title="Agreement of memorisation profiles between models",
    needs=("run", "cohort", "step", "estimate"),
)
def profile_correlation(rows: pl.DataFrame) -> Figure:
    """Pearson correlation of the profiles of each pair of models, over their common cells.

    Args:
        rows: estimates by model (``run``), cohort and checkpoint.

    Returns:
        The figure; its rows are the pairs: ``first``, ``second``, ``estimate`` (null below three cells), ``n`` cells.
    """
    names = pieces.series(rows, "run")
    cells = {
        name: {
            (c, s): v
            for c, s, v in rows.filter(pl.col("run") == name).select("cohort", "step", "estimate").iter_rows()
        }
        for name in names
    }
    pairs = []
    for first in names:
        for second in names:
            both = sorted(cells[first].keys() & cells[second].keys())
            pairs.append(
                {
                    "first": first,
                    "second": second,
                    "estimate": _pearson(*([cells[n][cell] for cell in both] for n in (first, second))),
                    "n": len(both),
                }
            )
    correlations = pl.DataFrame(
        pairs, schema={"first": pl.String, "second": pl.String, "estimate": pl.Float64, "n": pl.Int64}
    )
    drawn = correlations.with_columns(
        label=pl.concat_list(pieces.decimals("estimate").fill_null("–"), pl.format("{} cells", pl.col("n")))
    )
    chart = pieces.matrix(
        drawn,
        alt.X("second:N", title=None, sort=names, axis=alt.Axis(labelAngle=0, ticks=False)),
        alt.Y("first:N", title=None, sort=names, axis=alt.Axis(ticks=False)),
        domain=np.linspace(-1, 1, len(pieces.DIVERGING)).tolist(),
        range_=pieces.DIVERGING,
        title="Pearson r",
        dark="abs(datum.estimate) > 0.75",
    )
    return Figure(chart.properties(width=80 * len(names), height=52 * len(names)), correlations)


def _note(text: str) -> alt.TitleParams:
    return alt.TitleParams(text, fontSize=11, fontWeight="normal", color=theme.MUTED, offset=4)


def _pearson(one: list[float], other: list[float]) -> float | None:
    if len(one) < 3 or not np.std(one) or not np.std(other):
        return None
    return float(np.corrcoef(one, other)[0, 1])
