"""Figures: pure functions from estimate rows to a chart and the rows it draws; :func:`save` writes all forms.

One look for all of them (:func:`styled`): white ground, colours of Okabe & Ito (2008) that colour-blind
readers can tell apart, shapes that differ as well as colours, n beside every point, 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from analysis import look
from analysis.look import Figure, save
from analysis.statistics import PAIRED

__all__ = ["Figure", "controls", "dose_response", "over_training", "save", "training_curves"]


def dose_response(
    estimates: pl.DataFrame,
    metric: str,
    *,
    title: str,
    y_title: str,
    statistic: str = "mean",
    families: Sequence[str] = ("all",),
    reference: float | None = None,
    width: int = 560,
    height: int = 300,
) -> Figure:
    """An estimate at each dose, last step, one line a run; several families become panels.

    Args:
        estimates: estimate rows.
        metric: which to draw.
        title: what it shows.
        y_title: quantity and unit.
        statistic: ``mean``, ``gain`` or ``auc``.
        families: panels, in order.
        reference: a horizontal line, such as chance.
        width: of one panel, pixels.
        height: of one panel, pixels.
    """
    rows = _last(estimates).filter(
        (pl.col("metric") == metric)
        & (pl.col("statistic") == statistic)
        & (pl.col("run") != PAIRED)
        & pl.col("family").is_in(list(families))
        & pl.col("estimate").is_not_null()
        & pl.col("dose").is_not_null()
    )
    if rows.is_empty():
        return look.nothing(title, rows, width, height)
    axis = _DoseAxis(rows)
    scale = _padded(rows, reference)
    panels = [
        _dose_panel(
            rows.filter(pl.col("family") == family), axis, scale, y_title, reference, wide=len(families) == 1
        ).properties(width=width, height=height, title=title if len(families) == 1 else family)
        for family in families
        if family in rows["family"]
    ]
    chart = panels[0] if len(families) == 1 else alt.concat(*panels, columns=3).resolve_scale(y="shared")
    if len(families) > 1:
        chart = chart.properties(title=title)
    return Figure(look.styled(chart), rows)


class _DoseAxis:
    """Doses on a log2 scale, with 0, which has no logarithm, drawn apart on the left."""

    def __init__(self, rows: pl.DataFrame) -> None:
        doses = [int(dose) for dose in rows["dose"].unique().sort()]
        positive = [dose for dose in doses if dose > 0]
        first = float(np.log2(min(positive, default=1)))
        last = float(np.log2(max(positive, default=1)))
        gap = max(1.0, 0.18 * (last - first))
        self.at = {dose: float(np.log2(dose)) if dose else first - gap for dose in doses}
        self.separator = first - gap / 2 if 0 in doses and positive else None
        self.dodge = 0.008 * max(last - first + gap, 1.0)
        margin = 4 * self.dodge + 0.1
        self.domain = [min(self.at.values()) - margin, max(self.at.values()) + margin]

    def encoding(self, rows: pl.DataFrame, *, wide: bool) -> alt.X:
        """The axis, with the number of items under each dose."""
        counts = rows.group_by("dose").agg(pl.col("n").unique().sort().cast(pl.String).str.join("/"))
        named = dict(counts.iter_rows())
        pick = "".join(
            f"abs(datum.value-({x}))<1e-6?['{dose}','n={named[dose]}']:"
            for dose, x in self.at.items()
            if dose in named
        )
        return alt.X(
            "x:Q",
            title="dose: times inserted (log2 scale; 0 = never-inserted control)" if wide else "dose",
            scale=alt.Scale(domain=self.domain, nice=False, zero=False),
            axis=alt.Axis(
                values=list(self.at.values()), labelExpr=f"{pick}''", labelLineHeight=14, grid=False
            ),
        )


def _dose_panel(
    rows: pl.DataFrame,
    axis: _DoseAxis,
    scale: alt.Scale,
    y_title: str,
    reference: float | None,
    *,
    wide: bool,
) -> Any:
    runs = look.runs(rows)
    middle = (len(runs) - 1) / 2
    drawn = rows.with_columns(
        x=pl.col("dose").replace_strict(axis.at, return_dtype=pl.Float64)
        + (
            pl.col("run").replace_strict(
                {run: i - middle for i, run in enumerate(runs)}, return_dtype=pl.Float64
            )
        )
        * 2
        * axis.dodge
    )
    x, y = axis.encoding(rows, wide=wide), alt.Y("estimate:Q", title=y_title, scale=scale)
    low = alt.Y("low:Q", title=y_title, scale=scale)
    base = alt.Chart(look.values(drawn)).encode(x=x, color=look.colour(runs))
    inserted = base.transform_filter("datum.dose > 0")
    layers = [
        inserted.mark_area(opacity=0.13).encode(low, alt.Y2("high")),
        inserted.mark_line(strokeWidth=2).encode(y),
        base.mark_rule(strokeWidth=1.6).encode(low, alt.Y2("high")),
        base.mark_point(filled=True, size=70, opacity=1).encode(y, shape=look.shape(runs)),
    ]
    if axis.separator is not None:
        layers.insert(0, look.line(x=axis.separator))
    if reference is not None:
        layers.insert(0, look.line(y=reference))
    return alt.layer(*layers)


def _padded(rows: pl.DataFrame, *others: float | None) -> alt.Scale:
    """A scale that holds every estimate, every interval and the other values, with a little room."""
    ends = rows.select(
        pl.min_horizontal("low", "estimate").min(), pl.max_horizontal("high", "estimate").max()
    )
    known = [value for value in (*ends.row(0), *others) if value is not None]
    low, high = min(known), max(known)
    room = 0.04 * (high - low) or 0.5
    return alt.Scale(zero=False, nice=False, domain=[low - room, high + room])


def over_training(
    estimates: pl.DataFrame,
    metric: str,
    exposures: pl.DataFrame,
    *,
    title: str,
    y_title: str,
    statistic: str = "mean",
    width: int | None = None,
    height: int = 270,
) -> Figure:
    """An estimate at every checkpoint, one line a dose, one panel a run; beneath, when exposures happened.

    Gains have a panel for the difference between the runs too, where there is a twin. Only the lowest and the highest
    dose have a band: more of them hide each other.
    """
    rows = estimates.filter(
        (pl.col("metric") == metric)
        & (pl.col("statistic") == statistic)
        & (pl.col("family") == "all")
        & ((pl.col("run") != PAIRED) | (statistic != "mean"))
        & pl.col("estimate").is_not_null()
    )
    if rows.is_empty():
        return look.nothing(title, rows, 660, height)
    width = width or (330 if rows["run"].n_unique() < 3 else 245)
    steps = sorted(rows["step"].unique().to_list())
    counts = {
        int(d): int(n) for d, n in rows.group_by("dose").agg(pl.col("n").max()).sort("dose").iter_rows()
    }
    labels = {dose: f"{dose} (n={n})" for dose, n in counts.items()}
    drawn = rows.with_columns(label=pl.col("dose").replace_strict(labels, return_dtype=pl.String))
    top = int(exposures["step"].max()) if exposures.height else 0  # type: ignore[arg-type]
    banded = [min(counts), max(counts)]
    # All panels on one scale: what is compared is the runs. Only what is drawn needs room.
    scale = _padded(
        rows.with_columns(
            pl.when(pl.col("dose").is_in(banded)).then(pl.col(limit)).alias(limit)
            for limit in ("low", "high")
        )
    )
    y = alt.Y("estimate:Q", title=y_title, scale=scale)
    colour = alt.Color(
        "label:N",
        title="dose",
        sort=list(labels.values()),
        scale=alt.Scale(domain=list(labels.values()), range=look.dose_colours(list(labels))),
    )
    columns = []
    for run in look.runs(rows):
        base = alt.Chart(look.values(drawn.filter(pl.col("run") == run))).encode(
            x=look.step_axis(steps, last=top, labels=False), color=colour
        )
        lines = alt.layer(
            base.transform_filter(alt.FieldOneOfPredicate(field="dose", oneOf=banded))
            .mark_area(opacity=0.14)
            .encode(alt.Y("low:Q", title=y_title, scale=scale), alt.Y2("high")),
            base.mark_line(strokeWidth=2).encode(y),
            base.mark_point(filled=True, size=26, opacity=1).encode(y),
        ).properties(width=width, height=height, title=run.replace(" - ", " − "))
        if statistic != "mean":
            lines = alt.layer(look.line(y=0.0), lines).properties(title=run.replace(" - ", " − "))
        strip = _strip(exposures, look.step_axis(steps, last=top), width, run)
        columns.append(alt.vconcat(lines, strip, spacing=2))
    chart = alt.hconcat(*columns).resolve_scale(color="shared").properties(title=title)
    return Figure(look.styled(chart), rows)


def _strip(exposures: pl.DataFrame, x: alt.X, width: int, run: str) -> Any:
    """One tick a step with exposures, darker where there are more; the twin's is empty."""
    steps = (
        exposures.group_by("step").len("exposures").sort("step")
        if run != "twin"
        else exposures.select("step").head(0)
    )
    per_bin = max(1, -(-steps.height // look.MAX_POINTS))
    if steps.height:
        steps = (
            steps.group_by(pl.col("step") // per_bin * per_bin).agg(pl.col("exposures").sum()).sort("step")
        )
    label = f"{exposures.height:,} exposures" if run != "twin" else "no exposures"
    return (
        alt.Chart(look.values(steps if steps.height else pl.DataFrame({"step": [], "exposures": []})))
        .mark_tick(thickness=1.2, height=14, color=look.INK)
        .encode(x=x, opacity=alt.Opacity("exposures:Q", scale=alt.Scale(range=[0.25, 0.9]), legend=None))
        .properties(
            width=width,
            height=16,
            title=alt.TitleParams(label, fontSize=11, fontWeight="normal", color=look.MUTED, offset=2),
        )
    )


def training_curves(
    training: pl.DataFrame, estimates: pl.DataFrame, *, width: int = 330, height: int = 230
) -> Figure:
    """Training loss against tokens, and the log-likelihood of held-out text against steps, for both runs."""
    thin = _thinned(training)
    held = estimates.filter(
        (pl.col("metric") == "heldout_loglik_per_byte")
        & (pl.col("statistic") == "mean")
        & (pl.col("family") == "all")
    )
    held = held.filter((pl.col("run") != PAIRED) & pl.col("estimate").is_not_null())
    panels = []
    if thin.height:
        runs = look.runs(thin)
        panels.append(
            alt.Chart(look.values(thin))
            .mark_line(strokeWidth=1.6, opacity=0.85)
            .encode(
                alt.X(
                    "tokens:Q",
                    title="tokens",
                    axis=look.thousands(),
                ),
                alt.Y("loss:Q", title="training loss (nats/token)", scale=alt.Scale(zero=False)),
                color=look.colour(runs),
                strokeDash=look.dash(runs),
            )
            .properties(width=width, height=height, title="Training loss")
        )
    if held.height:
        panels.append(_heldout(held).properties(width=width, height=height, title="Held-out text"))
    rows = pl.concat(
        [
            thin.select(
                "run",
                "step",
                "tokens",
                pl.lit("training loss, nats/token").alias("series"),
                pl.col("loss").alias("value"),
            ),
            held.select(
                "run",
                "step",
                pl.lit("held-out log-likelihood, nats/byte").alias("series"),
                pl.col("estimate").alias("value"),
                "low",
                "high",
                "n",
            ),
        ],
        how="diagonal",
    )
    if not panels:
        return look.nothing("Training", rows, width, height)
    return Figure(look.styled(alt.hconcat(*panels).resolve_scale(color="shared", shape="shared")), rows)


def _thinned(training: pl.DataFrame) -> pl.DataFrame:
    """Mean loss over runs of steps, few enough to draw; each at its last step and token."""
    loss = (
        training.select("run", "step", "tokens", "loss")
        .filter(pl.col("loss").is_finite())
        .sort("run", "step")
    )
    longest = loss.group_by("run").len()["len"].max() or 0
    every = max(1, -(-int(longest) // look.MAX_POINTS))  # type: ignore[arg-type]
    thin = loss.group_by("run", pl.col("step") // every).agg(
        pl.col("tokens").max(), pl.col("loss").mean(), last=pl.col("step").max()
    )
    return thin.with_columns(step=pl.col("last")).drop("last").sort("run", "step")


def _heldout(held: pl.DataFrame) -> Any:
    runs, steps = look.runs(held), sorted(held["step"].unique().to_list())
    title = f"log-likelihood (nats/byte, n={held.select(pl.col('n').max()).item()})"
    base = alt.Chart(look.values(held)).encode(x=look.step_axis(steps), color=look.colour(runs))
    y = alt.Y("estimate:Q", title=title, scale=alt.Scale(zero=False))
    return alt.layer(
        base.mark_rule(opacity=0.5).encode(alt.Y("low:Q", title=title), alt.Y2("high")),
        base.mark_line(strokeWidth=1.6).encode(y, strokeDash=look.dash(runs)),
        base.mark_point(filled=False, size=60, strokeWidth=1.6, opacity=1).encode(y, shape=look.shape(runs)),
    )


def controls(estimates: pl.DataFrame, metric: str, *, unit: str, width: int = 430) -> Figure:
    """The negative control (dose 0 split in halves) and the positive one (highest dose), in both runs."""
    rows = _last(estimates).filter(
        (pl.col("metric") == metric) & (pl.col("family") == "all") & pl.col("estimate").is_not_null()
    )
    gains = rows.filter(pl.col("statistic") == "gain")
    highest = gains.filter(pl.col("dose") == pl.col("dose").max())
    rows = pl.concat([rows.filter(pl.col("statistic") == "split"), highest])
    if rows.is_empty():
        return look.nothing("Controls", rows, width, 120)
    split = pl.col("statistic") == "split"
    rows = rows.with_columns(
        control=pl.when(split)
        .then(pl.lit("negative control: dose 0, half against half"))
        .otherwise(pl.format("positive control: dose {} against dose 0", "dose")),
        label=pl.format("{} (n={} vs {})", pl.col("run").str.replace(" - ", " − "), "n", "n_control"),
    )
    order = {run: i if run != PAIRED else -1 for i, run in enumerate(look.runs(rows))}  # what decides first
    rows = rows.sort(split, pl.col("run").replace_strict(order), descending=[True, False])
    panels = []
    for part in rows.partition_by("control", maintain_order=True):
        runs = look.runs(part)
        base = alt.Chart(look.values(part)).encode(
            y=alt.Y(
                "label:N",
                title=None,
                sort=part["label"].to_list(),
                axis=alt.Axis(labelLimit=260, ticks=False, domain=False, minExtent=175),
            ),
            color=look.colour(runs, legend=False),
        )
        x = alt.X("estimate:Q", title=f"difference ({unit})", scale=alt.Scale(padding=12))
        panels.append(
            alt.layer(
                look.line(x=0.0),
                base.mark_rule(strokeWidth=2).encode(
                    alt.X("low:Q", title=f"difference ({unit})"), alt.X2("high")
                ),
                base.mark_point(filled=True, size=90, opacity=1).encode(
                    x, shape=look.shape(runs, legend=False)
                ),
            ).properties(width=width, height=30 * part.height + 10, title=part["control"][0])
        )
    return Figure(
        look.styled(alt.vconcat(*panels).resolve_scale(x="shared", color="independent", shape="independent")),
        rows,
    )


def _last(estimates: pl.DataFrame) -> pl.DataFrame:
    return estimates.filter(pl.col("step") == pl.col("step").max().over("run", "metric", "statistic"))
