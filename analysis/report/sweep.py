"""Report of a sweep in one HTML file: results by factor, aggregated over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from palimpsest.analysis.figures import theme
from palimpsest.analysis.figures.export import csv_of, write
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report import counterfactual, scaling
from palimpsest.analysis.report.answer import interval
from palimpsest.analysis.report.counterfactual import COINS
from palimpsest.analysis.report.html import inline, render
from palimpsest.analysis.report.sections import FILES
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import PAIRED, crossed_gains, difference_to_twin, mean_limits

_NAMED = 4
"""Largest number of cells whose gains are listed at the top."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A94A0")
_SHAPES = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
)

GAIN_SCHEMA = pl.Schema(
    {
        "cell": pl.String(),
        "dose": pl.Int64(),
        "estimate": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "seeds": pl.UInt32(),
        "over": pl.String(),
    }
)
"""Columns of gains, one row per cell and dose: the mean gain over the cell's runs, its 95 % limits, the number of runs,
and the scope of the limits (``OVER``)."""
OVER = {
    "one run": "items like these, in this training run",
    "draws": "items and training runs like these",
    "draws, one training seed": "items like these, in training runs of this seed",
    "shared items": "items and training runs like these; the runs share their items",
    "these items": "training runs like these, with these very items",
}
"""Scope of a cell's interval. Runs with different ``seed`` differ in items, assignment, order and weights; runs with
different ``train.seed`` or ``insertion.coin_seed`` share the items."""
_TRAINING = "train.seed"
"""Name of the seed that does not change items and assignment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRun:
    """A finished run of a sweep."""

    factors: Mapping[str, str]
    """Factor -> value in this run."""
    directory: Path
    """Directory of the run; its ``report/estimates.csv`` is read."""
    summary: Mapping[str, Any]
    """Contents of the run's ``report/summary.json``."""
    link: str
    """Path of the run's ``report.html``, relative to the sweep's report."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """Axes of ``analysis.report.scaling``: number of parameters, tokens and the like."""

    @property
    def cell(self) -> str:
        """Factors other than the seed; runs with equal values are replicates."""
        return (
            " ".join(f"{key}={value}" for key, value in self.factors.items() if not _seed(key)) or "all runs"
        )


def _seed(key: str) -> bool:
    return key.split(".")[-1] in ("seed", "coin_seed")


def gains(run: SweepRun) -> pl.DataFrame:
    """A run's gains by dose, for its primary metric over all families at its last checkpoint: ``dose``, ``estimate``,
    ``low``, ``high``. Gains are of the differences from the twin if there is one.
    """
    estimates = pl.read_csv(run.directory / "report" / "estimates.csv", infer_schema_length=None).filter(
        (pl.col("statistic") == "gain")
        & (pl.col("family") == "all")
        & (pl.col("metric") == run.summary["primary_metric"])
        & (pl.col("step") == run.summary["step"])
    )
    which = PAIRED if PAIRED in estimates["run"] else "perturbed"
    return (
        estimates.filter(pl.col("run") == which)
        .select(
            pl.col("dose").cast(pl.Int64),
            *(pl.col(name).cast(pl.Float64) for name in ("estimate", "low", "high")),
        )
        .sort("dose")
    )


def aggregate(runs: Sequence[SweepRun]) -> pl.DataFrame:
    """Mean gain of each cell at each dose, with limits whose scope depends on the cell's runs (:data:`OVER`).

    A single run: its own limits. Runs with different items: Student's t limits over the draws of items, each draw being
    the mean of its runs. Runs that share their items: limits over items and runs
    (:func:`~analysis.statistics.crossed_gains`) if the runs' metric rows exist, else Student's t limits over runs,
    which hold for these items only.

    Returns:
        A table of ``GAIN_SCHEMA``.
    """
    frames = [
        _cell([run for run in runs if run.cell == cell]).with_columns(cell=pl.lit(cell))
        for cell in dict.fromkeys(run.cell for run in runs)
    ]
    return (
        pl.concat([frame.select(list(GAIN_SCHEMA)).cast(GAIN_SCHEMA) for frame in frames])
        if frames
        else (pl.DataFrame(schema=GAIN_SCHEMA))
    )


def _cell(runs: Sequence[SweepRun]) -> pl.DataFrame:
    if len(runs) == 1:
        return gains(runs[0]).with_columns(seeds=pl.lit(1), over=pl.lit("one run"))
    draws: dict[tuple[str, ...], list[SweepRun]] = {}
    for run in runs:
        own = tuple(
            value for key, value in run.factors.items() if _seed(key) and key not in (_TRAINING, COINS)
        )
        draws.setdefault(own, []).append(run)
    if len(draws) > 1:
        means = pl.concat(
            [
                pl.concat([gains(run) for run in group]).group_by("dose").agg(pl.col("estimate").mean())
                for group in draws.values()
            ]
        )
        trained = any("seed" in run.factors or _TRAINING in run.factors for run in runs)
        return _over_runs(means, len(runs), "draws" if trained else "draws, one training seed")
    if (rows := _shared_rows(runs)) is not None:
        bounds = METRICS[runs[0].summary["primary_metric"]].bounds
        crossed = crossed_gains(rows, bounds=bounds)
        return crossed.with_columns(seeds=pl.lit(len(runs)), over=pl.lit("shared items"))
    return _over_runs(pl.concat([gains(run) for run in runs]), len(runs), "these items")


def _over_runs(estimates: pl.DataFrame, runs: int, over: str) -> pl.DataFrame:
    """Student's t limits over the estimates of each dose; null for a dose with a single estimate."""
    rows = []
    for (dose,), part in estimates.group_by("dose", maintain_order=True):
        low, high = mean_limits(part["estimate"].to_numpy()) if part.height > 1 else (None, None)
        rows.append({"dose": dose, "estimate": part["estimate"].mean(), "low": low, "high": high})
    schema = {"dose": pl.Int64, "estimate": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    return pl.DataFrame(rows, schema=schema).sort("dose").with_columns(seeds=pl.lit(runs), over=pl.lit(over))


def _shared_rows(runs: Sequence[SweepRun]) -> pl.DataFrame | None:
    """Metric rows of runs with the same items, with the run as ``replicate``; None if a run's rows are missing."""
    frames = []
    for number, run in enumerate(runs):
        path = run.directory / "report" / "metrics.parquet"
        if not path.is_file():
            return None
        rows = pl.read_parquet(path).filter(
            (pl.col("metric") == run.summary["primary_metric"])
            & (pl.col("step") == run.summary["step"])
            & pl.col("dose").is_not_null()
        )
        paired = difference_to_twin(rows) if (rows["run"] == "twin").any() else rows
        frames.append(paired.with_columns(replicate=pl.lit(number), step=pl.lit(0, pl.Int64)))
    same = frames[0].select("item_id", "dose").sort("item_id")
    if any(not frame.select("item_id", "dose").sort("item_id").equals(same) for frame in frames):
        return None
    return pl.concat(frames)


def _dose_figure(rows: pl.DataFrame, y_title: str) -> theme.Figure:
    """Figure of the gain by dose, one line per cell."""
    cells = rows["cell"].unique(maintain_order=True).to_list()
    # Doses as names, in order: dose 1 and dose 1,024 get the same room.
    doses = sorted(rows["dose"].unique().to_list())
    x = alt.X("dose:O", title="dose: times inserted", sort=doses, axis=alt.Axis(labelAngle=0))
    offset = alt.XOffset("cell:N", sort=cells)
    # Colour-blind safe, and told apart by shape as well.
    few = len(cells) <= len(_COLOURS)
    scale = (
        alt.Scale(domain=cells, range=list(_COLOURS[: len(cells)])) if few else alt.Scale(scheme="viridis")
    )
    shapes = [_SHAPES[i % len(_SHAPES)] for i in range(len(cells))]
    colour = alt.Color("cell:N", title=None, sort=cells, scale=scale)
    shape = alt.Shape("cell:N", title=None, sort=cells, scale=alt.Scale(domain=cells, range=shapes))
    base = alt.Chart(theme.values(rows)).encode(x=x, xOffset=offset, color=colour)
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.6).encode(alt.Y("low:Q", title=y_title), alt.Y2("high")),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            alt.Y("estimate:Q", title=y_title), shape=shape
        ),
    ).properties(width=620, height=300)
    return theme.Figure(theme.styled(chart), rows)


def _factor_figure(runs: Sequence[SweepRun], y_title: str) -> theme.Figure:
    """Figure of each run's gain at the highest dose, by factor."""
    records = [
        {"factor": key, "level": value, "gain": table["estimate"][-1], "cell": run.cell}
        for run in runs
        if (table := gains(run)).height
        for key, value in run.factors.items()
    ]
    rows = pl.DataFrame(
        records,
        schema={"factor": pl.String, "level": pl.String, "gain": pl.Float64, "cell": pl.String},
    )
    panels = []
    for key in rows["factor"].unique(maintain_order=True):
        part = rows.filter(pl.col("factor") == key)
        levels = part["level"].unique(maintain_order=True).to_list()
        base = alt.Chart(theme.values(part)).encode(
            x=alt.X("level:N", title=key, sort=levels, axis=alt.Axis(labelAngle=-30))
        )
        panels.append(
            alt.layer(
                base.mark_point(filled=True, size=50, color=theme.CONTROL_COLOUR).encode(
                    alt.Y("gain:Q", title=y_title)
                ),
                base.mark_tick(thickness=3, size=26, color=theme.INK).encode(
                    alt.Y("mean(gain):Q", title=y_title)
                ),
            ).properties(width=max(140, 60 * len(levels)), height=220)
        )
    chart = alt.concat(*panels, columns=3).resolve_scale(y="shared")
    return theme.Figure(theme.styled(chart), rows)


def _cells(rows: pl.DataFrame) -> Table:
    doses = sorted(rows["dose"].unique().to_list())
    body = []
    for cell in rows["cell"].unique(maintain_order=True):
        own = {row["dose"]: row for row in rows.filter(pl.col("cell") == cell).iter_rows(named=True)}
        first = next(iter(own.values()))
        cells = [interval(own[dose], signed=True) if dose in own else "–" for dose in doses]
        body.append([cell, str(first["seeds"]), *cells, OVER[first["over"]]])
    return Table(
        ["", "runs", *(f"dose {dose}" for dose in doses), "the interval speaks of"],
        body,
        "Mean gain and 95 % interval, by dose",
    )


def headline(runs: Sequence[SweepRun]) -> str:
    """Sentence with the result of the runs whose audit passed."""
    if not runs:
        return "No run has an audit that passed: there is no answer yet."
    doses = sorted(
        run.summary["minimum_effective_dose"]
        for run in runs
        if run.summary["minimum_effective_dose"] is not None
    )
    if not doses:
        return f"Not shown: inserted text did not become more likely in any of {len(runs)} runs."
    first = str(doses[0]) if doses[0] == doses[-1] else f"{doses[0]} to {doses[-1]}, depending on the run,"
    return f"Inserted text became more likely in {len(doses)} of {len(runs)} runs, from dose {first} on."


def _detail(rows: pl.DataFrame, unit: str) -> str:
    """Text with the gain of every cell at the highest dose; for many cells, only the smallest and the largest."""
    if rows.is_empty():
        return ""
    highest = rows.filter(pl.col("dose") == pl.col("dose").max()).sort("estimate")
    shown = highest if highest.height <= _NAMED else highest[[0, -1]]
    cells = [f"{row['cell']} {interval(row, signed=True)}" for row in shown.iter_rows(named=True)]
    between = "; " if highest.height <= _NAMED else " to "
    return f"Gain over dose 0 at dose {highest['dose'][0]}, {unit}: {between.join(cells)}."


def _list(runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    return [
        {
            "factors": list(run.factors.values()),
            "audit": run.summary["audit"],
            "verdict": run.summary["verdict"],
            "dose": run.summary["minimum_effective_dose"],
            "gain": interval(table.row(-1, named=True), signed=True) if (table := gains(run)).height else "–",
            "link": run.link,
        }
        for run in runs
    ]


def _coins(runs: Sequence[SweepRun]) -> counterfactual.Coins | None:
    """Scores of runs that differ in their coins alone; None for other sweeps."""
    factors = {key for run in runs for key in run.factors}
    if {key for key in factors if len({run.factors.get(key) for run in runs}) > 1} != {COINS}:
        return None
    return counterfactual.read([(run.directory, run.summary) for run in runs])


def build(title: str, runs: Sequence[SweepRun], planned: int, directory: Path) -> None:
    """Write ``report.html``, the figures, ``cells.csv`` and ``runs.csv``.

    Args:
        title: title of the sweep.
        runs: the finished runs, at least one.
        planned: number of runs of the sweep.
        directory: directory of the report.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metrics = {(run.summary["primary_metric"], run.summary["unit"]) for run in runs}
    _, unit = sorted(metrics)[0]
    y_title = f"gain, {unit}"
    audited = [run for run in runs if run.summary["audit"] == "PASS"]
    rows = aggregate(audited)
    write(directory / "cells.csv", csv_of(rows).encode())
    table = pl.DataFrame(
        [
            {
                **run.factors,
                "directory": str(run.directory),
                **{key: run.summary[key] for key in ("audit", "verdict", "minimum_effective_dose", "step")},
            }
            for run in runs
        ],
        infer_schema_length=None,
    )
    write(directory / "runs.csv", csv_of(table).encode())
    figures = {}
    captions = {
        "doses": "Mean gain by dose, of each cell",
        "factors": "Gain at the highest dose against each factor",
    }
    if audited:
        figures["doses"] = _dose_figure(rows, y_title)
        if any(run.factors for run in audited):
            figures["factors"] = _factor_figure(audited, y_title)
    coins = _coins(audited)
    if coins is not None:
        memorised = counterfactual.memorization(coins)
        write(directory / "counterfactual.csv", csv_of(memorised).encode())
        figures["tail"] = counterfactual.figure(memorised, unit)
        captions["tail"] = "Counterfactual memorization of every item"
    points = [scaling.point(run.scale, run.summary) for run in audited if run.scale]
    highest = int(rows["dose"].max() or 0) if audited else 0  # type: ignore[arg-type]
    slopes = scaling.slopes(points, highest) if audited else None
    if slopes is not None and slopes.height:
        write(directory / "exponents.csv", csv_of(slopes).encode())
        if any(one.ec50 is not None for one in points):
            axis = scaling.axes(points)[0]
            figures["scaling"] = scaling.figure(points, axis, highest)
            captions["scaling"] = f"EC50 against {axis}"
    page = render(
        "sweep.html",
        title=title,
        headline=headline(audited),
        detail=_detail(rows, unit),
        planned=planned,
        finished=len(runs),
        left_out=len(runs) - len(audited),
        mixed=len(metrics) > 1,
        metric=", ".join(sorted(name for name, _ in metrics)),
        factors=list(dict.fromkeys(key for run in runs for key in run.factors)),
        runs=_list(runs),
        cells=_cells(rows) if audited else None,
        scaling=scaling.table(slopes) if slopes is not None and slopes.height else None,
        coins=None
        if coins is None
        else {
            "sentence": counterfactual.sentence(coins, memorised, unit),
            "table": counterfactual.table(memorised),
        },
        figures={
            key: inline(
                theme.save(figure.chart, directory, key, figure.rows, formats=FILES), key, captions[key]
            )
            for key, figure in figures.items()
        },
    )
    (directory / "report.html").write_text(page, encoding="utf-8")
