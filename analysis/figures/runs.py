"""Figures of one pair of runs for the report, from estimates, exposures and training logs."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.theme import Figure
from palimpsest.analysis.statistics import PAIRED


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
    """Estimates over training, one line per dose and one panel per run, with the steps of the exposures below.

    Gains also have a panel for the difference between the runs if there is a twin. Only the lowest and the highest dose
    have a band, because more bands would hide each other.
    """
    rows = estimates.filter(
        (pl.col("metric") == metric)
        & (pl.col("statistic") == statistic)
        & (pl.col("family") == "all")
        & ((pl.col("run") != PAIRED) | (statistic != "mean"))
        & pl.col("estimate").is_not_null()
    )
    if rows.is_empty():
        return theme.nothing(title, rows, 660, height)
    width = width or (330 if rows["run"].n_unique() < 3 else 245)
    steps = sorted(rows["step"].unique().to_list())
    counts = {
        int(d): int(n) for d, n in rows.group_by("dose").agg(pl.col("n").max()).sort("dose").iter_rows()
    }
    labels = {dose: f"{dose} (n={n})" for dose, n in counts.items()}
    drawn = rows.with_columns(label=pl.col("dose").replace_strict(labels, return_dtype=pl.String))
    top = int(exposures["step"].max()) if exposures.height else 0  # type: ignore[arg-type]
    first = 0 if exposures.height else steps[0]  # without exposures nothing is drawn of the time before
    banded = [min(counts), max(counts)]
    # All panels on one scale: what is compared is the runs. Only what is drawn needs room.
    scale = pieces.padded(
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
        scale=alt.Scale(domain=list(labels.values()), range=theme.dose_colours(list(labels))),
    )
    columns = []
    for run in theme.runs(rows):
        base = alt.Chart(theme.values(drawn.filter(pl.col("run") == run))).encode(
            x=theme.step_axis(steps, first=first, last=top, labels=exposures.is_empty()), color=colour
        )
        lines = alt.layer(
            base.transform_filter(alt.FieldOneOfPredicate(field="dose", oneOf=banded))
            .mark_area(opacity=0.14)
            .encode(alt.Y("low:Q", title=y_title, scale=scale), alt.Y2("high")),
            base.mark_line(strokeWidth=2).encode(y),
            base.mark_point(filled=True, size=26, opacity=1).encode(y),
        ).properties(width=width, height=height, title=run.replace(" - ", " − "))
        if statistic != "mean":
            lines = alt.layer(theme.line(y=0.0), lines).properties(title=run.replace(" - ", " − "))
        # Exposures whose steps are not known, of a released model, are not drawn.
        strip = [_strip(exposures, theme.step_axis(steps, last=top), width, run)] if exposures.height else []
        columns.append(alt.vconcat(lines, *strip, spacing=2))
    chart = alt.hconcat(*columns).resolve_scale(color="shared").properties(title=title)
    return Figure(theme.styled(chart), rows)


def _strip(exposures: pl.DataFrame, x: alt.X, width: int, run: str) -> Any:
    """Ticks at steps with exposures, darker for more exposures; the twin has none."""
    steps = (
        exposures.group_by("step").len("exposures").sort("step")
        if run != "twin"
        else exposures.select("step").head(0)
    )
    per_bin = max(1, -(-steps.height // theme.MAX_POINTS))
    if steps.height:
        steps = (
            steps.group_by(pl.col("step") // per_bin * per_bin).agg(pl.col("exposures").sum()).sort("step")
        )
    label = f"{exposures.height:,} exposures" if run != "twin" else "no exposures"
    return (
        alt.Chart(theme.values(steps if steps.height else pl.DataFrame({"step": [], "exposures": []})))
        .mark_tick(thickness=1.2, height=14, color=theme.INK)
        .encode(x=x, opacity=alt.Opacity("exposures:Q", scale=alt.Scale(range=[0.25, 0.9]), legend=None))
        .properties(
            width=width,
            height=16,
            title=alt.TitleParams(label, fontSize=11, fontWeight="normal", color=theme.MUTED, offset=2),
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
        runs = theme.runs(thin)
        panels.append(
            alt.Chart(theme.values(thin))
            .mark_line(strokeWidth=1.6, opacity=0.85)
            .encode(
                alt.X(
                    "tokens:Q",
                    title="tokens",
                    axis=theme.thousands(),
                ),
                alt.Y("loss:Q", title="training loss (nats/token)", scale=alt.Scale(zero=False)),
                color=theme.colour(runs),
                strokeDash=theme.dash(runs),
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
        return theme.nothing("Training", rows, width, height)
    return Figure(theme.styled(alt.hconcat(*panels).resolve_scale(color="shared", shape="shared")), rows)


def _thinned(training: pl.DataFrame) -> pl.DataFrame:
    """Mean loss over intervals of steps, few enough to draw; each interval is placed at its last step and token."""
    loss = (
        training.select("run", "step", "tokens", "loss")
        .filter(pl.col("loss").is_finite())
        .sort("run", "step")
    )
    longest = loss.group_by("run").len()["len"].max() or 0
    every = max(1, -(-int(longest) // theme.MAX_POINTS))  # type: ignore[arg-type]
    thin = loss.group_by("run", pl.col("step") // every).agg(
        pl.col("tokens").max(), pl.col("loss").mean(), last=pl.col("step").max()
    )
    return thin.with_columns(step=pl.col("last")).drop("last").sort("run", "step")


def _heldout(held: pl.DataFrame) -> Any:
    runs, steps = theme.runs(held), sorted(held["step"].unique().to_list())
    title = f"log-likelihood (nats/byte, n={held.select(pl.col('n').max()).item()})"
    base = alt.Chart(theme.values(held)).encode(x=theme.step_axis(steps), color=theme.colour(runs))
    y = alt.Y("estimate:Q", title=title, scale=alt.Scale(zero=False))
    return alt.layer(
        base.mark_rule(opacity=0.5).encode(alt.Y("low:Q", title=title), alt.Y2("high")),
        base.mark_line(strokeWidth=1.6).encode(y, strokeDash=theme.dash(runs)),
        base.mark_point(filled=False, size=60, strokeWidth=1.6, opacity=1).encode(y, shape=theme.shape(runs)),
    )


def controls(estimates: pl.DataFrame, metric: str, *, unit: str, width: int = 430) -> Figure:
    """Negative control (dose 0 split in halves) and positive control (highest dose) in both runs."""
    rows = pieces.last(estimates).filter(
        (pl.col("metric") == metric) & (pl.col("family") == "all") & pl.col("estimate").is_not_null()
    )
    gains = rows.filter(pl.col("statistic") == "gain")
    highest = gains.filter(pl.col("dose") == pl.col("dose").max())
    rows = pl.concat([rows.filter(pl.col("statistic") == "split"), highest])
    if rows.is_empty():
        return theme.nothing("Controls", rows, width, 120)
    split = pl.col("statistic") == "split"
    rows = rows.with_columns(
        control=pl.when(split)
        .then(pl.lit("negative control: dose 0, half against half"))
        .otherwise(pl.format("positive control: dose {} against dose 0", "dose")),
        label=pl.format("{} (n={} vs {})", pl.col("run").str.replace(" - ", " − "), "n", "n_control"),
    )
    order = {run: i if run != PAIRED else -1 for i, run in enumerate(theme.runs(rows))}  # what decides first
    rows = rows.sort(split, pl.col("run").replace_strict(order), descending=[True, False])
    panels = []
    for part in rows.partition_by("control", maintain_order=True):
        runs = theme.runs(part)
        base = alt.Chart(theme.values(part)).encode(
            y=alt.Y(
                "label:N",
                title=None,
                sort=part["label"].to_list(),
                axis=alt.Axis(labelLimit=260, ticks=False, domain=False, minExtent=175),
            ),
            color=theme.colour(runs, legend=False),
        )
        x = alt.X("estimate:Q", title=f"difference ({unit})", scale=alt.Scale(padding=12))
        panels.append(
            alt.layer(
                theme.line(x=0.0),
                base.mark_rule(strokeWidth=2).encode(
                    alt.X("low:Q", title=f"difference ({unit})"), alt.X2("high")
                ),
                base.mark_point(filled=True, size=90, opacity=1).encode(
                    x, shape=theme.shape(runs, legend=False)
                ),
            ).properties(width=width, height=30 * part.height + 10, title=part["control"][0])
        )
    return Figure(
        theme.styled(
            alt.vconcat(*panels).resolve_scale(x="shared", color="independent", shape="independent")
        ),
        rows,
    )
