"""Theme of the figures: colours, scales, and the Altair theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from palimpsest.analysis.figures.export import Figure as Figure
from palimpsest.analysis.figures.export import save as save
from palimpsest.analysis.statistics import PAIRED

INK, MUTED, GRID = "#1f2933", "#5f6b7a", "#e4e7eb"
RUN_COLOURS = {"perturbed": "#D55E00", "twin": "#0072B2", PAIRED: "#CC79A7"}
RUN_SHAPES = {"perturbed": "circle", "twin": "square", PAIRED: "diamond"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe & Ito (2008), without yellow, which is hard to see on white."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
DASHES = ([1, 0], [6, 3], [2, 2], [9, 2, 2, 2], [12, 3], [4, 1], [1, 3])
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
_RAMP = ("#fdae32", "#ec7853", "#cc4778", "#7e03a8", "#0d0887")
CONTROL_COLOUR = "#8a94a0"
MAX_POINTS = 400


def styled(chart: Any) -> Any:
    """The chart with the style of all figures."""
    plain: dict[str, Any] = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    # In one go: every call copies the chart.
    return chart.configure(
        font=FONT,
        background="white",
        aria=False,
        padding=8,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            **plain,
            titleFontWeight="normal",
            titlePadding=8,
            gridColor=GRID,
            domainColor=MUTED,
            tickColor=MUTED,
        ),
        axisX=alt.AxisConfig(grid=False),
        header=alt.HeaderConfig(labelFontSize=12, labelFontWeight="bold", titleColor=INK, labelColor=INK),
        legend=alt.LegendConfig(
            **plain,
            orient="top",
            titleFontWeight="normal",
            symbolSize=70,
            labelLimit=320,
            symbolOpacity=1,
        ),
        title=alt.TitleConfig(
            fontSize=13, anchor="start", color=INK, subtitleColor=MUTED, subtitleFontSize=12, offset=10
        ),
    )


def values(rows: pl.DataFrame) -> alt.Data:
    """Rows as inline chart data, without a row limit or type inference. NaN, which JSON lacks, becomes null."""
    return data(rows.fill_nan(None).to_dicts())


class _Inline(alt.Data):
    """Inline values that are shared by copies of a chart, because Altair deep-copies charts at every step."""

    def __deepcopy__(self, _: object) -> _Inline:
        return self


def data(records: list[dict[str, Any]]) -> alt.Data:
    """Inline values, one record per row."""
    return _Inline(values=records)  # type: ignore[no-untyped-call]


def runs(rows: pl.DataFrame) -> list[str]:
    """The runs in a frame, in the order of the palette."""
    order = list(RUN_COLOURS)
    return sorted(
        rows["run"].unique().to_list(),
        key=lambda run: (order.index(run) if run in order else len(order), run),
    )


def _by_run(runs: Sequence[str], known: dict[str, str], pool: Sequence[str]) -> list[str]:
    """Marks (colours or shapes) of the known runs; other series get the remaining ones of the pool."""
    taken = {known[run] for run in runs if run in known}
    spare = [value for value in pool if value not in taken] or list(pool)
    others = [run for run in runs if run not in known]
    return [known.get(run) or spare[others.index(run) % len(spare)] for run in runs]


def step_axis(steps: Sequence[int], *, first: int = 0, last: int | None = None, labels: bool = True) -> alt.X:
    """Axis of training steps on a symmetric-log scale: linear up to 1, logarithmic above, so that step 0 can be
    drawn.
    """
    shown: dict[str, Any] = {} if labels else {"labels": False}
    return alt.X(
        "step:Q",
        title="step" if labels else None,
        scale=alt.Scale(
            type="symlog", constant=1, domain=[first, max(last or 0, *steps, first + 1)], nice=False
        ),
        axis=alt.Axis(values=list(steps) if first else ticks(steps), labelOverlap="greedy", **shown),
    )


def thousands() -> alt.Axis:
    """Axis of large counts, with labels such as 200k and 1M."""
    return alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5)


def colours(names: Sequence[str]) -> list[str]:
    """Colour scale of runs or other series."""
    return _by_run(names, RUN_COLOURS, PALETTE)


def shapes(names: Sequence[str]) -> list[str]:
    """Shape scale of runs or other series; series of the same colour have different shapes."""
    known = [name for name in names if name in RUN_COLOURS]
    others = [name for name in names if name not in RUN_COLOURS]
    turn = len(set(PALETTE) - {RUN_COLOURS[name] for name in known})
    free = [shape for shape in SHAPES if shape not in {RUN_SHAPES[name] for name in known}]
    picked = {name: free[(k + k // turn) % len(free)] for k, name in enumerate(others)}
    return [RUN_SHAPES.get(name) or picked[name] for name in names]


def colour(
    names: Sequence[str], column: str = "run", *, title: str | None = None, legend: bool = True
) -> alt.Color:
    """Colour encoding of series; ``names`` are all values of ``column``, in order."""
    shown: dict[str, Any] = {} if legend else {"legend": None}
    scale = alt.Scale(domain=list(names), range=colours(names))
    return alt.Color(f"{column}:N", title=title, sort=list(names), scale=scale, **shown)


def shape(
    names: Sequence[str], column: str = "run", *, title: str | None = None, legend: bool = True
) -> alt.Shape:
    """Encoding of series by the shape of their points."""
    shown: dict[str, Any] = {} if legend else {"legend": None}
    scale = alt.Scale(domain=list(names), range=shapes(names))
    return alt.Shape(f"{column}:N", title=title, sort=list(names), scale=scale, **shown)


def dash(
    names: Sequence[str], column: str = "run", *, title: str | None = None, legend: bool = True
) -> alt.StrokeDash:
    """Encoding of series by line dashes, so that coinciding lines stay visible."""
    patterns = [DASHES[i % len(DASHES)] for i in range(len(names))]
    scale = alt.Scale(domain=list(names), range=patterns)
    shown: dict[str, Any] = {} if legend else {"legend": None}
    return alt.StrokeDash(f"{column}:N", title=title, sort=list(names), scale=scale, **shown)


def dose_colours(doses: Sequence[int]) -> list[str]:
    """Colours of doses: grey for dose 0, then light to dark on a colour-blind-safe ramp (plasma without its yellow
    end).
    """
    positive = [dose for dose in doses if dose > 0]
    at = np.linspace(0, len(_RAMP) - 1, len(positive)) if len(positive) > 1 else [len(_RAMP) - 1]
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _RAMP])
    picked = [
        "#"
        + "".join(f"{round(float(np.interp(x, range(len(_RAMP)), channel))):02x}" for channel in channels.T)
        for x in at[: len(positive)]
    ]
    return [CONTROL_COLOUR] * (len(doses) - len(positive)) + picked


def ticks(steps: Sequence[int]) -> list[int]:
    """Ticks of steps: 0, powers of two or ten, and the last step."""
    last = steps[-1]
    powers = [2**k for k in range(0, 40, 2) if 2**k < 0.4 * last]
    return [0, *powers, last] if last else [0]


def line(*, x: float | None = None, y: float | None = None) -> Any:
    """A dashed line across the panel."""
    rule = alt.Chart(data([{"at": x if x is not None else y}])).mark_rule(
        color=MUTED, strokeDash=[4, 4], strokeWidth=1
    )
    return rule.encode(x="at:Q") if x is not None else rule.encode(y="at:Q")


def nothing(title: str, rows: pl.DataFrame, width: int = 560, height: int = 200, reason: str = "") -> Figure:
    """Empty panel with the reason as its text."""
    lines = ["nothing to draw", *([f"not computed because {reason}"] if reason else [])]
    chart = (
        alt.Chart(data([{"text": lines}]))
        .mark_text(color=MUTED, fontSize=14, lineHeight=20, align="center")
        .encode(text="text:N")
    )
    return Figure(styled(chart.properties(width=width, height=height, title=title)), rows)
