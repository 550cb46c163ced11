"""Figures of acquisition and retention of facts and study sentences (default figures 9 and 17)."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import polars as pl

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure


@figure(
    number=9,
    title="Acquisition of facts: probes over training",
    needs=("depth", "step", "estimate", "low", "high", "n"),
    optional=("injected",),
)
def acquisition(
    rows: pl.DataFrame,
    *,
    y_title: str = "mean change of log-likelihood (nats/byte)",
    width: int = 600,
    height: int = 280,
) -> Figure:
    """Mean change of the probes' log-likelihood since before the first exposure, one line per depth of acquisition
    (Chang et al. 2024).

    Args:
        rows: estimates by depth and step; dotted lines mark steps with exposures (``injected`` is true).
        y_title: quantity and unit.
        width: pixels.
        height: pixels.
    """
    drawn = pieces.labelled(rows.with_columns(run=pl.col("depth")), "run")
    x = pieces.x_axis(rows, "training step", column="step", kind="linear", counts=False)
    y = pieces.y_axis(rows, y_title, 0.0)
    many = rows["step"].n_unique() > 25
    layers: list[Any] = [theme.line(y=0.0)]
    if "injected" in rows.columns:
        at = rows.filter(pl.col("injected")).select("step").unique().sort("step")
        lines = alt.Chart(theme.values(at)).mark_rule(strokeDash=[1, 3], color=theme.INK)
        layers.append(lines.encode(x))
    layers.append(pieces.curves(drawn, x, y, points=not many))
    return Figure(alt.layer(*layers).properties(width=width, height=height), rows)


@figure(
    number=9,
    title="Retainability over the logarithm of time",
    needs=("depth", "since", "estimate", "low", "high", "n"),
)
def retainability(
    rows: pl.DataFrame, *, y_title: str = "retainability R", width: int = 520, height: int = 280
) -> Figure:
    """Retained share R of a local acquisition maximum t steps later, with the line ``R = c - a log10 t`` (Chang et al.
    2024).

    ``a``, the decay constant per decade of steps, is fitted by unweighted least squares to the drawn points;
    :func:`analysis.statistics.forgetting_slope` gives its interval over facts. ``t = 0`` is left out.

    Args:
        rows: R by depth and steps since the local maximum.
        y_title: quantity.
        width: pixels.
        height: pixels.
    """
    rows = rows.filter(pl.col("since") > 0)
    if rows.is_empty():
        return theme.nothing("Retainability", rows, reason="no row has steps since the maximum above 0")
    lines: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for depth in pieces.series(rows, "depth"):
        own = rows.filter(pl.col("depth") == depth).sort("since")
        if own["since"].n_unique() < 2:
            names[depth] = depth
            continue
        t = np.log10(own["since"].to_numpy().astype(float))
        slope, base = np.polyfit(t, own["estimate"].to_numpy().astype(float), 1)
        names[depth] = f"{depth}, a = " + f"{-slope:.3g}".replace("-", "−")
        ends = own["since"].to_numpy()[[0, -1]].astype(float)
        lines += [
            {"run": names[depth], "since": float(e), "estimate": float(base + slope * np.log10(e))}
            for e in ends
        ]
    drawn = pieces.labelled(rows.with_columns(run=pl.col("depth").replace(names)), "run")
    renamed = dict(zip(names.values(), pieces.series(drawn, "run"), strict=True))
    lines = [{**line, "run": renamed[line["run"]]} for line in lines]
    shown = list(renamed.values())
    x = pieces.x_axis(
        rows, "steps since the local maximum (log scale)", column="since", kind="log", counts=False
    )
    y = pieces.y_axis(rows, y_title, 0.0)
    base_ = alt.Chart(theme.values(drawn)).encode(x, color=theme.colour(shown))
    layers = [
        theme.line(y=0.0),
        base_.mark_rule(strokeWidth=1.4, opacity=0.7).encode(pieces.same(y, "low"), alt.Y2("high")),
        base_.mark_point(filled=True, size=50, opacity=1).encode(y, shape=theme.shape(shown)),
    ]
    if lines:
        fit = alt.Chart(theme.data(lines)).mark_line(strokeWidth=1.8)
        layers.append(fit.encode(x, y, color=theme.colour(shown)))
    return Figure(alt.layer(*layers).properties(width=width, height=height), rows)


_OVER = {"exposures": "exposures", "steps since": "steps since the last exposure"}


@figure(
    number=17,
    title="Recognition and recall",
    needs=("measure", "against", "x", "estimate", "low", "high", "n"),
)
def recognition_recall(
    rows: pl.DataFrame, *, y_title: str = "share of items", width: int = 300, height: int = 250
) -> Figure:
    """Recognition and recall by number of exposures, and by steps since the last exposure (Orhan 2023).

    Args:
        rows: estimates by measure, ``against`` (``exposures`` or ``steps since``) and ``x``. A dashed line marks 0.5,
            the chance level of recognition.
        y_title: quantity.
        width: of one panel, pixels.
        height: of one panel, pixels.
    """
    rows = rows.with_columns(run=pl.col("measure"))
    names = pieces.series(rows, "run")
    y = pieces.y_axis(rows, y_title, 0.0, 1.0)

    def draw(against: str, part: pl.DataFrame) -> Any:
        title = _OVER.get(against, against)
        x = pieces.x_axis(part, title)
        layers = [pieces.curves(part, x, y, names=names)]
        if "recognition" in names:
            layers.insert(0, theme.line(y=0.5))
        return alt.layer(*layers).properties(width=width, height=height, title=f"over {title}")

    return Figure(pieces.panels(rows, "against", draw, columns=2), rows.drop("run"))
