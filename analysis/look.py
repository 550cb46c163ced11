"""How figures look: colours, scales, the one style, and the files they are saved to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import polars as pl
import vl_convert

from analysis.statistics import PAIRED

INK, MUTED, GRID = "#1f2933", "#5f6b7a", "#e4e7eb"
RUN_COLOURS = {"perturbed": "#D55E00", "twin": "#0072B2", PAIRED: "#CC79A7"}
RUN_SHAPES = {"perturbed": "circle", "twin": "square", PAIRED: "diamond"}
_SPARE = ("#009E73", "#E69F00", "#56B4E9", "#000000")
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
_RAMP = ("#fdae32", "#ec7853", "#cc4778", "#7e03a8", "#0d0887")
CONTROL_COLOUR = "#8a94a0"
MAX_POINTS = 400


class Figure(NamedTuple):
    """A chart and exactly the rows it draws."""

    chart: alt.TopLevelMixin
    rows: pl.DataFrame


def styled(chart: Any) -> Any:
    """The one look of all figures."""
    return (
        chart.configure(font=FONT, background="white", aria=False, padding=8)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=INK,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=8,
            gridColor=GRID,
            domainColor=MUTED,
            tickColor=MUTED,
        )
        .configure_axisX(grid=False)
        .configure_header(labelFontSize=12, labelFontWeight="bold", titleColor=INK, labelColor=INK)
        .configure_legend(
            orient="top",
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelColor=INK,
            symbolSize=70,
            labelLimit=320,
            symbolOpacity=1,
        )
        .configure_title(
            fontSize=13, anchor="start", color=INK, subtitleColor=MUTED, subtitleFontSize=12, offset=10
        )
    )


def save(chart: alt.TopLevelMixin, directory: Path, name: str, rows: pl.DataFrame) -> str:
    """Write ``name.png`` (twice the size), ``name.svg`` and ``name.csv`` (the rows drawn), without a browser.

    Returns:
        The SVG as text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    specification = chart.to_dict()
    svg: str = vl_convert.vegalite_to_svg(specification)
    (directory / f"{name}.svg").write_text(svg, encoding="utf-8")
    (directory / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
    rows.write_csv(directory / f"{name}.csv")
    return svg


def values(rows: pl.DataFrame) -> alt.Data:
    """Rows as inline values: no row limit, no guessing of types. NaN, which is not JSON, becomes null."""
    return data(rows.fill_nan(None).to_dicts())


def data(records: list[dict[str, Any]]) -> alt.Data:
    """Inline values."""
    return alt.Data(values=records)  # type: ignore[no-untyped-call]


def runs(rows: pl.DataFrame) -> list[str]:
    """The runs in a frame, in the order of the palette."""
    order = list(RUN_COLOURS)
    return sorted(
        rows["run"].unique().to_list(),
        key=lambda run: (order.index(run) if run in order else len(order), run),
    )


def _by_run(runs: Sequence[str], known: dict[str, str], spare: Sequence[str]) -> list[str]:
    return [known.get(run, spare[i % len(spare)]) for i, run in enumerate(runs)]


def step_axis(steps: Sequence[int], *, last: int | None = None, labels: bool = True) -> alt.X:
    """Training steps, symmetric-log: linear up to 1, logarithmic beyond, so that step 0 has a place."""
    shown: dict[str, Any] = {} if labels else {"labels": False}
    return alt.X(
        "step:Q",
        title="step" if labels else None,
        scale=alt.Scale(type="symlog", constant=1, domain=[0, max(last or 0, *steps, 1)], nice=False),
        axis=alt.Axis(values=ticks(steps), labelOverlap="greedy", **shown),
    )


def thousands() -> alt.Axis:
    """An axis of large counts: 0, 200k, 1M."""
    return alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5)


def colour(runs: Sequence[str], *, legend: bool = True) -> alt.Color:
    """The colour of each run."""
    shown: dict[str, Any] = {} if legend else {"legend": None}
    return alt.Color(
        "run:N",
        title=None,
        sort=list(runs),
        scale=alt.Scale(domain=list(runs), range=_by_run(runs, RUN_COLOURS, _SPARE)),
        **shown,
    )


def shape(runs: Sequence[str], *, legend: bool = True) -> alt.Shape:
    """The shape of each run's points."""
    shown: dict[str, Any] = {} if legend else {"legend": None}
    shapes = _by_run(runs, RUN_SHAPES, ("triangle-up", "cross"))
    return alt.Shape(
        "run:N", title=None, sort=list(runs), scale=alt.Scale(domain=list(runs), range=shapes), **shown
    )


def dash(runs: Sequence[str]) -> alt.StrokeDash:
    """The dashes of each run's line: lines that coincide stay visible."""
    patterns = [[1, 0], [5, 3], [2, 2], [8, 2]]
    scale = alt.Scale(domain=list(runs), range=[patterns[i % len(patterns)] for i in range(len(runs))])
    return alt.StrokeDash("run:N", title=None, sort=list(runs), scale=scale)


def dose_colours(doses: Sequence[int]) -> list[str]:
    """Grey for the control, then light to dark along a colour-blind-safe ramp (plasma without its yellow end)."""
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
    """0, the powers of two or ten that fit, and the last step."""
    last = steps[-1]
    powers = [2**k for k in range(0, 40, 2) if 2**k < 0.7 * last]
    return [0, *powers, last] if last else [0]


def line(*, x: float | None = None, y: float | None = None) -> Any:
    """A dashed line across the panel."""
    rule = alt.Chart(data([{"at": x if x is not None else y}])).mark_rule(
        color=MUTED, strokeDash=[4, 4], strokeWidth=1
    )
    return rule.encode(x="at:Q") if x is not None else rule.encode(y="at:Q")


def nothing(title: str, rows: pl.DataFrame, width: int, height: int) -> Figure:
    """A panel that says that it is empty."""
    chart = (
        alt.Chart(data([{"text": "nothing to draw"}]))
        .mark_text(color=MUTED, fontSize=14)
        .encode(text="text:N")
    )
    return Figure(styled(chart.properties(width=width, height=height, title=title)), rows)
