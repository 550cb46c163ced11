"""Figures over the dose: dose-response, phases, interference, wordings, shapes of models (default figures 1 to 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.statistics import PAIRED, fit_means, fit_rates, rate

_NARROW = 400
"""Panel width, pixels, up to which only short titles fit."""
_ESTIMATES = ("dose", "estimate", "low", "high", "n")


@figure(
    number=1,
    title="Dose-response",
    needs=("run", "metric", *_ESTIMATES),
    optional=("family", "step", "statistic", "mde"),
)
def dose_response(
    estimates: pl.DataFrame,
    metric: str | None = None,
    *,
    title: str | None = None,
    y_title: str | None = None,
    statistic: str = "mean",
    families: Sequence[str] = ("all",),
    reference: float | None = None,
    fit: bool = False,
    dots: pl.DataFrame | None = None,
    width: int | None = None,
    height: int | None = None,
) -> Figure:
    """Dose-response at the last step: an estimate at each dose, one line per run; several families or metrics become
    panels.

    Rows of the difference between the runs are drawn for gains, but not for levels (``mean``). Rows without a dose,
    such as those of a standard model that saw no item, are drawn as horizontal bands. If rows have ``mde``, the
    smallest detectable effect of their arm, a tick is drawn that far above the run's estimate at dose 0.

    Args:
        estimates: estimate rows.
        metric: name of the metric; all metrics in the rows if None.
        title: title of the figure.
        y_title: quantity and unit; taken from the metric if None.
        statistic: ``mean``, ``gain`` or ``auc``.
        families: families to draw as panels, in order; all families in the rows if none of these is present.
        reference: a horizontal line, such as chance.
        fit: also draw the fitted curve and mark the EC50 of runs whose intervals at the highest dose and at dose 0 do
            not overlap; fitted by maximum likelihood for rates, by least squares on means otherwise.
        dots: frame with ``dose`` and ``value`` of single items, drawn as faint dots.
        width: of one panel, pixels.
        height: of one panel, pixels.

    Returns:
        The figure; empty if no row has this metric, statistic and family.

    Raises:
        UserError: if the rows lack a column.
    """
    rows = _chosen(estimates, metric, statistic)
    shown = [family for family in families if family in rows["family"]] or pieces.series(rows, "family")
    rows = rows.filter(pl.col("family").is_in(shown))
    metrics = [metric] if metric else pieces.series(rows, "metric")
    several = len(shown) * len(metrics) > 1
    width, height = width or (250 if several else 560), height or (210 if several else 300)
    if rows.is_empty():
        why = f"no row of metric {metric}, statistic {statistic}, has a value"
        return theme.nothing(title or "Dose-response", rows, width, height, why)
    places = [frame.select("dose") for frame in (rows, dots) if frame is not None]
    axis = pieces.DoseAxis(pl.concat(places, how="vertical_relaxed"))
    if not axis.at:
        return theme.nothing(title or "Dose-response", rows, width, height, "no row has a dose")
    names = theme.runs(rows)
    drawn = []
    for name in metrics:
        own = rows.filter(pl.col("metric") == name)
        single = [] if dots is None else dots["value"].to_list()
        scale = pieces.padded(own, reference, *_ticks(own)["y"].to_list(), *single)
        for family in (family for family in shown if family in own["family"]):
            part = own.filter(pl.col("family") == family)
            unit, wide = y_title or _unit(name, statistic), not several and width > _NARROW
            panel = pieces.dose_panel(part, axis, scale, unit, reference, wide=wide, names=names, items=dots)
            extra = [*(_fits(part, axis, scale, names, name) if fit else []), *_mde(part, axis, names)]
            panel = alt.layer(panel, *extra) if extra else panel
            label = _label((name, len(metrics) > 1), (family, len(shown) > 1))
            titled: dict[str, Any] = {"title": label} if label else {}
            drawn.append(panel.properties(width=width, height=height, **titled))
    if not several:
        return Figure(drawn[0].properties(title=title) if title else drawn[0], rows)
    chart = alt.concat(*drawn, columns=3)
    chart = chart.resolve_scale(y="shared" if len(metrics) == 1 else "independent")
    return Figure(chart.properties(title=title) if title else chart, rows)


def _label(*parts: tuple[str, bool]) -> str:
    """Title of a panel, of the parts (family, metric) that differ between panels."""
    return " · ".join(text for text, many in parts if many)


def _chosen(estimates: pl.DataFrame, metric: str | None, statistic: str) -> pl.DataFrame:
    """The rows to draw, at the last step."""
    filled = estimates.with_columns(
        pl.lit(value).alias(name)
        for name, value in (("family", "all"), ("statistic", statistic), ("step", 0))
        if name not in estimates.columns
    )
    return pieces.last(filled).filter(
        (pl.col("metric") == metric if metric is not None else pl.lit(True))
        & (pl.col("statistic") == statistic)
        & (~pl.col("run").str.starts_with(PAIRED) | (pl.lit(statistic) != "mean"))
    )


def _unit(metric: str, statistic: str) -> str:
    if statistic == "auc":
        return f"AUC of {metric}"
    named = f"gain in {metric} over dose 0" if statistic == "gain" else metric
    return f"{named} ({METRICS[metric].unit})" if metric in METRICS else named


def _fits(
    rows: pl.DataFrame, axis: pieces.DoseAxis, scale: alt.Scale, names: Sequence[str], metric: str
) -> list[Any]:
    """The fitted curve of each run that rises, and its EC50."""
    curves, marks = [], []
    for name in names:
        own = rows.filter((pl.col("run") == name) & pl.col("dose").is_not_null()).sort("dose")
        fit = fitted(own, as_rate=metric in METRICS and METRICS[metric].rate)
        if fit is None:
            continue
        ec50, at = fit
        grid = np.exp2(np.linspace(np.log2(axis.positive[0]), np.log2(axis.positive[-1]), 60))
        curves += [
            {"run": name, "x": float(np.log2(d)), "estimate": float(y)}
            for d, y in zip(grid, at(grid), strict=True)
        ]
        if ec50 <= axis.positive[-1] and ec50 >= axis.positive[0] / 2:
            marks.append({"run": name, "x": float(np.log2(ec50)), "text": f"EC50 {ec50:.3g}"})
    x, colour = alt.X("x:Q"), theme.colour(list(names))
    layers: list[Any] = []
    if curves:
        line = alt.Chart(theme.data(curves)).mark_line(strokeDash=[2, 2], strokeWidth=1.4)
        layers.append(line.encode(x, alt.Y("estimate:Q", scale=scale), colour))
    if marks:
        base = alt.Chart(theme.data(marks)).encode(x, color=colour)
        layers.append(base.mark_rule(strokeDash=[1, 3], strokeWidth=1.4))
        placed = base.mark_text(align="right", dx=-4, dy=6, baseline="top", fontSize=11)
        layers.append(placed.encode(text="text:N", y=alt.value(0)))
    return layers


def fitted(rows: pl.DataFrame, *, as_rate: bool) -> tuple[float, Any] | None:
    """EC50 and fitted curve of one run, by dose; None if the estimates do not rise or the fit is not identified.

    Args:
        rows: dose (from 0), estimate, low, high, n of one run.
        as_rate: true if estimates are shares of n, so that the likelihood is binomial.
    """
    ends = rows.select("dose", "low", "high").drop_nulls()
    if ends.height < 4 or ends["dose"][0] != 0 or not ends["low"][-1] > ends["high"][0]:
        return None
    doses, y, n = (rows[name].to_numpy().astype(float) for name in ("dose", "estimate", "n"))
    if as_rate:
        got = fit_rates(doses, np.rint(y * n), n)
        return float(got.ec50), lambda d: rate(d, got.ec50, got.slope, got.floor)
    curve = fit_means(doses, y, n)
    low, rise = float(curve.low), float(curve.rise)
    return float(curve.ec50), lambda d: rate(d, curve.ec50, curve.slope, low, low + rise)


def _ticks(rows: pl.DataFrame) -> pl.DataFrame:
    """Ticks of the smallest detectable effect of each arm, above the run's estimate at dose 0."""
    if "mde" not in rows.columns:
        return rows.head(0).select("run", "dose", y="estimate")
    zero = rows.filter(pl.col("dose") == 0).select("run", "metric", "family", base="estimate")
    return (
        rows.filter((pl.col("dose") > 0) & pl.col("mde").is_not_null())
        .join(zero, on=["run", "metric", "family"])
        .select("run", "dose", y=pl.col("base") + pl.col("mde"))
    )


def _mde(rows: pl.DataFrame, axis: pieces.DoseAxis, names: Sequence[str]) -> list[Any]:
    ticks = _ticks(rows)
    if ticks.is_empty():
        return []
    chart = alt.Chart(theme.values(axis.place(ticks, names)))
    return [
        chart.mark_tick(thickness=2.5, width=16, opacity=0.9).encode(
            alt.X("x:Q"), alt.Y("y:Q"), theme.colour(names)
        )
    ]


@figure(number=2, title="Injection phase", needs=("phase", "start", "end", "step", *_ESTIMATES))
def phases(rows: pl.DataFrame, *, y_title: str = "estimate", width: int = 330, height: int = 260) -> Figure:
    """Effect of the training phase of the exposures: estimates by dose at the last checkpoint, and of the highest dose
    over training with the phases shaded.

    Args:
        rows: estimates by phase, dose and checkpoint, with the phase's first and last step ``start`` and ``end``.
        y_title: quantity and unit.
        width: of one panel, pixels.
        height: of one panel, pixels.
    """
    rows = rows.with_columns(run=pl.col("phase"))
    final = rows.filter(pl.col("step") == pl.col("step").max().over("run"))
    top = rows.filter((pl.col("dose") == pl.col("dose").max().over("run")) & pl.col("dose").is_not_null())
    names = pieces.series(rows.sort("start"), "run")
    axis, scale = pieces.DoseAxis(rows), pieces.padded(rows)
    left = pieces.dose_panel(final, axis, scale, y_title, wide=False, names=names)
    y = alt.Y("estimate:Q", title=None, scale=scale)
    highest = int(top["dose"].max())  # type: ignore[arg-type]
    x = pieces.x_axis(top.with_columns(x="step"), "step", kind="linear", counts=False)
    spans = top.select("run", x="start", x_end="end").unique(maintain_order=True)
    shade = (
        alt.Chart(theme.values(spans))
        .mark_rect(opacity=0.12)
        .encode(alt.X("x:Q"), alt.X2("x_end:Q"), color=theme.colour(names))
    )
    right = alt.layer(shade, pieces.curves(top.with_columns(x="step"), x, y, names=names))
    counts = pieces.counted(top["n"].drop_nulls().unique().sort().to_list())
    chart = alt.hconcat(
        left.properties(width=width, height=height, title="Last checkpoint"),
        right.properties(
            width=width, height=height, title=f"Dose {highest} over training ({counts} a phase)"
        ),
    )
    return Figure(chart, rows.drop("run"))


def _compared(rows: pl.DataFrame, column: str, y_title: str, reference: float | None) -> Figure:
    """Dose panels by family, one line for each value of a column."""
    rows = pieces.as_runs(rows, column)
    rows = rows if "family" in rows.columns else rows.with_columns(family=pl.lit("all"))
    names, axis = pieces.series(rows, "run"), pieces.DoseAxis(rows)
    families = pieces.series(rows, "family")
    wide = len(families) == 1

    def draw(family: str, part: pl.DataFrame) -> Any:
        scale = pieces.padded(part, reference)
        panel = pieces.dose_panel(part, axis, scale, y_title, reference, wide=wide, names=names)
        if wide:
            return panel.properties(width=560, height=300)
        return panel.properties(width=250, height=220, title=family)

    return Figure(pieces.panels(rows, "family", draw), rows.drop("run") if column != "run" else rows)


@figure(number=3, title="Interference between families", needs=("family", "training", *_ESTIMATES))
def interference(rows: pl.DataFrame, *, y_title: str = "estimate", reference: float | None = None) -> Figure:
    """Interference between families: each family inserted together with all others, against inserted alone.

    Args:
        rows: estimates by family, training and dose.
        y_title: quantity and unit.
        reference: a horizontal line, such as chance.
    """
    return _compared(rows, "training", y_title, reference)


@figure(
    number=4, title="Verbatim and paraphrased insertion", needs=("wording", *_ESTIMATES), optional=("family",)
)
def wordings(rows: pl.DataFrame, *, y_title: str = "estimate", reference: float | None = None) -> Figure:
    """Insertion of the verbatim text against insertion of paraphrases, measured by the same probes.

    Args:
        rows: estimates by wording and dose; each ``family``, if given, is a panel.
        y_title: quantity and unit.
        reference: a horizontal line, such as chance.
    """
    return _compared(rows, "wording", y_title, reference)


@figure(number=5, title="Depth and width of the model", needs=("shape", *_ESTIMATES), optional=("family",))
def shapes(rows: pl.DataFrame, *, y_title: str = "estimate", reference: float | None = None) -> Figure:
    """Dose-response of models that differ in depth and width.

    Args:
        rows: estimates by model shape and dose; each ``family``, if given, is a panel.
        y_title: quantity and unit.
        reference: a horizontal line, such as chance.
    """
    return _compared(rows, "shape", y_title, reference)
