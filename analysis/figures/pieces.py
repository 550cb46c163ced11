"""Parts of figures: the dose axis, curves with bands and n, matrices, panels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from palimpsest.analysis.figures import theme

Kind = Literal["auto", "linear", "log", "symlog"]
SHORT = "abs(datum.value) >= 1e4 ? replace(format(datum.value, '~s'), 'G', 'B') : format(datum.value, '~r')"
"""Labels of axes: 0.25, 400, 20k, 1.4B."""
_FEW = 8
"""Largest number of places on an axis at which n is printed under each place; with more places, n is part of the
series' names."""
HEAT = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
"""Colour ramp of one hue, light to dark, readable without colour."""
DIVERGING = ("#8c510a", "#dfc27d", "#f5f5f5", "#80cdc1", "#01665e")
"""Diverging colour ramp, brown below 0 and green-blue above, colour-blind-safe (ColorBrewer BrBG)."""


class DoseAxis:
    """Dose axis on a log2 scale, with dose 0 separately on the left."""

    def __init__(self, rows: pl.DataFrame) -> None:
        doses = [int(dose) for dose in rows["dose"].drop_nulls().unique().sort()]
        positive = [dose for dose in doses if dose > 0]
        first = float(np.log2(min(positive, default=1)))
        last = float(np.log2(max(positive, default=1)))
        gap = max(1.0, 0.18 * (last - first))
        self.positive = positive
        self.at = {dose: float(np.log2(dose)) if dose else first - gap for dose in doses}
        self.separator = first - gap / 2 if 0 in doses and positive else None
        self.dodge = 0.008 * max(last - first + gap, 1.0)
        margin = 4 * self.dodge + 0.1
        self.domain = [min(self.at.values()) - margin, max(self.at.values()) + margin]

    def encoding(self, rows: pl.DataFrame, *, wide: bool) -> alt.X:
        """Dose axis with the number of items under each dose."""
        known = rows.filter(pl.col("dose").is_not_null() & pl.col("n").is_not_null())
        # Of more than two counts only the range has room.
        counts = list(known.group_by("dose").agg(pl.col("n").unique().sort()).iter_rows())
        if (
            0 not in dict(known.select("dose", "n").iter_rows()) and "n_control" in rows.columns
        ):  # gains over dose 0
            controls = rows["n_control"].drop_nulls().unique().sort().to_list()
            counts = [(0, controls), *counts] if controls else counts
        # Narrow panels have room for the number alone.
        named = {dose: counted(ns) if wide else counted(ns)[2:].replace(",", "") for dose, ns in counts}
        pick = "".join(
            f"abs(datum.value-({x}))<1e-6?['{dose}','{named.get(dose, '')}']:" for dose, x in self.at.items()
        )
        crowded: dict[str, Any] = {"labelLineHeight": 14}
        if not wide:
            crowded = {"labelFontSize": 10, "labelOverlap": False, "labelLineHeight": 12}
        return alt.X(
            "x:Q",
            title=f"dose: times inserted (log2 scale{'; 0 = never-inserted control' if 0 in self.at else ''})"
            if wide
            else "dose; beneath: n",
            scale=alt.Scale(domain=self.domain, nice=False, zero=False),
            axis=alt.Axis(
                values=list(self.at.values()),
                labelExpr=f"{pick}''",
                grid=False,
                # n is not to be hidden for want of room.
                **crowded,
            ),
        )

    def place(self, rows: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        """Add a column ``x``: the place on the dose axis at which each row is drawn, with runs side by side.

        Args:
            rows: rows with ``dose`` and ``run``.
            names: the runs, from left to right.
        """
        middle = (len(names) - 1) / 2
        aside = {name: (i - middle) * 2 * self.dodge for i, name in enumerate(names)}
        return rows.with_columns(
            x=pl.col("dose").cast(pl.Int64).replace_strict(self.at, return_dtype=pl.Float64)
            + pl.col("run").replace_strict(aside, return_dtype=pl.Float64)
        )


def counted(numbers: Sequence[float]) -> str:
    """Text of sample sizes: ``n=30``, ``n=30/34`` of two, or ``n=30–41`` of more than two."""
    texts = [f"{int(n):,}" for n in numbers]
    return "n=" + ("/".join(texts) if len(texts) < 3 else f"{texts[0]}–{texts[-1]}") if texts else ""


def dose_panel(
    rows: pl.DataFrame,
    axis: DoseAxis,
    scale: alt.Scale,
    y_title: str | None,
    reference: float | None = None,
    *,
    wide: bool,
    names: Sequence[str] | None = None,
    known: Sequence[str] | None = None,
    items: pl.DataFrame | None = None,
) -> Any:
    """Estimates of each ``run`` by dose: bands, lines, intervals and points; rows without a dose are horizontal bands.

    The series ``names`` are drawn side by side; ``known`` are all series with a colour if panels share a legend.
    ``items`` (``dose``, ``value``) are drawn as dots in the background.
    """
    names = list(names or theme.runs(rows))
    known = list(known or names)
    drawn = axis.place(rows.filter(pl.col("dose").is_not_null()), names)
    x, y = axis.encoding(rows, wide=wide), alt.Y("estimate:Q", title=y_title, scale=scale)
    low = alt.Y("low:Q", title=y_title, scale=scale)
    base = alt.Chart(theme.values(drawn)).encode(x=x, color=theme.colour(known))
    inserted = base.transform_filter("datum.dose > 0")
    layers = [
        inserted.mark_area(opacity=0.13).encode(low, alt.Y2("high")),
        inserted.mark_line(strokeWidth=2).encode(y),
        base.mark_rule(strokeWidth=1.6).encode(low, alt.Y2("high")),
        base.mark_point(filled=True, size=70, opacity=1).encode(y, shape=theme.shape(known)),
    ]
    flat = rows.filter(pl.col("dose").is_null())
    if flat.height:
        ends = flat.with_columns(x=pl.lit(axis.domain[0]), x_end=pl.lit(axis.domain[1]))
        across = alt.Chart(theme.values(ends)).encode(x=x, x2="x_end", color=theme.colour(known))
        layers.insert(0, across.mark_rule(strokeDash=[6, 3], strokeWidth=1.6).encode(y))
        layers.insert(0, across.mark_rect(opacity=0.12).encode(low, alt.Y2("high")))
    if axis.separator is not None:
        # On the panel's own axis: another one would bring back the hiding of labels.
        apart = alt.Chart(theme.data([{"x": axis.separator}])).mark_rule(color=theme.MUTED, strokeDash=[4, 4])
        layers.insert(0, apart.encode(x))
    if items is not None and items.height:
        layers.insert(0, _dots(items, axis, x, y_title, scale))
    if reference is not None:
        layers.insert(0, theme.line(y=reference))
    return alt.layer(*layers)


def _dots(items: pl.DataFrame, axis: DoseAxis, x: alt.X, y_title: str | None, scale: alt.Scale) -> Any:
    """Dots of single items at their dose, spread horizontally so that they do not hide each other."""
    width = 9 * axis.dodge
    rank = (pl.int_range(pl.len()) * 0.618034) % 1.0  # even, and the same each time
    placed = items.select("dose", "value").with_columns(
        x=pl.col("dose").cast(pl.Int64).replace_strict(axis.at, return_dtype=pl.Float64)
        + width * (rank.over("dose") - 0.5)
    )
    points = alt.Chart(theme.values(placed)).mark_point(filled=True, size=16, opacity=0.35, color=theme.MUTED)
    return points.encode(x, alt.Y("value:Q", title=y_title, scale=scale))


def padded(rows: pl.DataFrame, *others: float | None) -> alt.Scale:
    """Scale that covers every estimate, every interval and the other values, with a margin."""
    known = [value for value in (*_ends(rows), *others) if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.5
    return alt.Scale(zero=False, nice=False, domain=[low - room, high + room])


def _ends(rows: pl.DataFrame) -> tuple[float | None, ...]:
    limits = [name for name in ("low", "high") if name in rows.columns]
    whole = rows.select(pl.col(name).cast(pl.Float64).fill_nan(None) for name in ("estimate", *limits))
    return whole.select(
        pl.min_horizontal(pl.all()).min().alias("low"), pl.max_horizontal(pl.all()).max().alias("high")
    ).row(0)


def series(rows: pl.DataFrame, column: str) -> list[str]:
    """Distinct values of a column, in the order of the rows."""
    return [str(value) for value in rows[column].drop_nulls().unique(maintain_order=True)]


def as_runs(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """The rows with the column copied to ``run``, which sets colours and shapes; without the column, one unnamed
    series.
    """
    if column == "run" and "run" in rows.columns:
        return rows
    values = pl.col(column) if column in rows.columns else pl.lit("")
    return rows.with_columns(run=values)


def with_n(name: str, ns: Sequence[float]) -> str:
    """Name of a series with its n: ``verbatim (n=40)``, or ``n=40`` for a series without a name.

    Args:
        name: of the series.
        ns: the different n of its points, in order; of several the label has the range, as in ``counted``.
    """
    text = counted(ns)
    return f"{name} ({text})" if name and text else name or text


def labelled(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """The rows with n appended to each name in the column: ``verbatim (n=40)``, or the range of n over the series'
    points.
    """
    labels = {
        name: with_n(name, ns)
        for name, ns in rows.filter(pl.col("n").is_not_null())
        .group_by(column, maintain_order=True)
        .agg(pl.col("n").unique().sort())
        .iter_rows()
    }
    return rows.with_columns(pl.col(column).replace(labels))


def x_axis(
    rows: pl.DataFrame, title: str, *, kind: Kind = "auto", column: str = "x", counts: bool = True
) -> alt.X:
    """Quantitative axis that shows n: once if all points have the same n, else under each place if these are few, else
    as a range.

    Args:
        rows: drawn rows.
        title: quantity and unit.
        kind: kind of scale; ``auto`` selects the one on which the two nearest places are farthest apart.
        column: column of the axis's values.
        counts: False if n is shown elsewhere.
    """
    places = sorted(float(value) for value in rows[column].drop_nulls().unique())
    kind = _clearest(places) if kind == "auto" else kind
    options: dict[str, dict[str, Any]] = {"log": {"type": "log"}, "symlog": {"type": "symlog", "constant": 1}}
    scale = alt.Scale(nice=False, zero=False, padding=14, **options.get(kind, {}))
    ns = rows["n"].drop_nulls().unique().sort().to_list() if counts and "n" in rows.columns else []
    beneath: dict[float, str] = {}
    if len(ns) == 1:
        title = f"{title} ({counted(ns)} each)"
    elif ns and len(places) <= _FEW:
        beneath = {x: counted(numbers)[2:] for x, numbers in _counts_at(rows, column)}
        title = f"{title}; beneath: n"
    elif ns:
        title = f"{title} ({counted(ns)})"
    if len(places) <= _FEW:
        near = {x: abs(x) * 1e-9 + 1e-12 for x in places}
        label = {x: f"['{short(x)}','{beneath[x]}']" if x in beneath else f"'{short(x)}'" for x in places}
        pick = "".join(f"abs(datum.value-({x!r}))<={near[x]!r}?{label[x]}:" for x in places)
        axis = alt.Axis(values=places, labelExpr=f"{pick}''", labelLineHeight=14, labelOverlap="greedy")
    elif kind == "linear":
        axis = alt.Axis(tickCount=6, labelExpr=SHORT, labelOverlap="greedy")
    else:
        axis = log_axis(places[0], places[-1])
    return alt.X(f"{column}:Q", title=title, scale=scale, axis=axis)


def _counts_at(rows: pl.DataFrame, column: str) -> Iterator[tuple[Any, ...]]:
    known = rows.filter(pl.col("n").is_not_null())
    return known.group_by(column).agg(pl.col("n").unique().sort()).iter_rows()


def _clearest(places: Sequence[float]) -> Kind:
    """Scale on which the two nearest places are farthest apart; linear if all scales are equal in this."""
    if len(places) < 3 or places[0] < 0:
        return "linear"
    at = np.array(places)
    other: Kind = "log" if at[0] > 0 else "symlog"
    spread = {"linear": at, other: np.log(at) if at[0] > 0 else np.log1p(at)}
    apart = {kind: float(np.diff(where).min() / np.ptp(where)) for kind, where in spread.items()}
    return other if apart[other] > apart["linear"] + 1e-9 else "linear"


def log_axis(low: float, high: float, **settings: Any) -> alt.Axis:
    """Ticks at powers of ten, also at 2 and 5 times these if there are few, and at 0 if that is the lower end."""
    least = low if low > 0 else min(1.0, high)
    powers = range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 2, 5)):
        ticks = [f * 10.0**k for k in powers for f in factors if 0.999 * least <= f * 10.0**k <= 1.001 * high]
        if len(ticks) > 3:
            break
    values = [0.0, *ticks] if low <= 0 else ticks
    return alt.Axis(values=values, labelExpr=SHORT, labelOverlap="greedy", **settings)


def short(value: float) -> str:
    """Number as text with at most three digits and a suffix: 160M, 2.5k, 0.05."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def curves(
    rows: pl.DataFrame,
    x: alt.X,
    y: alt.Y,
    *,
    names: Sequence[str] | None = None,
    legend: bool = True,
    points: bool = True,
) -> Any:
    """Estimates of each ``run`` on any axis: band, line, intervals, points."""
    names = list(names or series(rows, "run"))
    several = legend and len(names) > 1
    base = alt.Chart(theme.values(rows)).encode(x=x, color=theme.colour(names, legend=several))
    low = same(y, "low")
    layers = []
    if {"low", "high"} <= set(rows.columns):
        layers.append(base.mark_area(opacity=0.13).encode(low, alt.Y2("high")))
        if points:
            layers.append(base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(low, alt.Y2("high")))
    layers.append(base.mark_line(strokeWidth=1.8).encode(y))
    if points:
        dots = base.mark_point(filled=True, size=50, opacity=1)
        layers.append(dots.encode(y, shape=theme.shape(names, legend=several)))
    return alt.layer(*layers)


def same(axis: Any, column: str) -> Any:
    """Copy of the axis for another column."""
    return type(axis)(f"{column}:Q", title=axis["title"], scale=axis["scale"])


def y_axis(rows: pl.DataFrame, title: str, *others: float | None, log: bool = False) -> alt.Y:
    """Axis of the estimates, which covers all intervals."""
    scale = alt.Scale(type="log", nice=True) if log else padded(rows, *others)
    return alt.Y("estimate:Q", title=title, scale=scale)


def panels(
    rows: pl.DataFrame, column: str, draw: Callable[[str, pl.DataFrame], Any], *, columns: int = 3
) -> Any:
    """One panel for each value of a column, in the order of the rows."""
    drawn = [draw(name, rows.filter(pl.col(column) == name)) for name in series(rows, column)]
    return drawn[0] if len(drawn) == 1 else alt.concat(*drawn, columns=columns)


def decimals(column: str) -> pl.Expr:
    """Numbers as text with two decimals and a real minus sign; null stays null."""
    return pl.col(column).map_elements(lambda value: f"{value:.2f}".replace("-", "−"), return_dtype=pl.String)


def matrix(
    rows: pl.DataFrame,
    x: alt.X,
    y: alt.Y,
    *,
    domain: Sequence[float],
    range_: Sequence[str] = HEAT,
    title: str,
    text: bool = True,
    dark: str | None = None,
) -> Any:
    """Matrix of coloured cells; if ``text`` is set, the column ``label`` (list of lines) is printed in each cell."""
    base = alt.Chart(theme.values(rows)).encode(x=x, y=y)
    fill = alt.Color(
        "estimate:Q",
        title=title,
        scale=alt.Scale(domain=list(domain), range=list(range_), clamp=True),
        legend=alt.Legend(orient="right", gradientLength=110, titleOrient="top"),
    )
    layers = [base.mark_rect(stroke="white", strokeWidth=1).encode(color=fill)]
    if text:
        middle = domain[0] + 0.62 * (domain[-1] - domain[0])
        lines = int(rows["label"].list.len().max() or 1) if isinstance(rows.schema["label"], pl.List) else 1  # type: ignore[arg-type]
        ink = alt.condition(dark or f"datum.estimate > {middle}", alt.value("white"), alt.value(theme.INK))
        layers.append(
            base.mark_text(fontSize=11, lineHeight=13, baseline="middle", dy=-6.5 * (lines - 1)).encode(
                text="label:N", color=ink
            )
        )
    return alt.layer(*layers)


def last(estimates: pl.DataFrame) -> pl.DataFrame:
    """Estimates at the last checkpoint of each run, metric and statistic."""
    return estimates.filter(pl.col("step") == pl.col("step").max().over("run", "metric", "statistic"))
