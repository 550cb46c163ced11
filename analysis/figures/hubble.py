"""Hubble's overview plot: its published tables next to a run trained here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from palimpsest.analysis.figures import pieces
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure
from palimpsest.analysis.statistics import PAIRED, clopper_pearson
from palimpsest.data.errors import UserError

_RATES = ("acc", "acc_norm", "acc_mutual_info", "prefix_match", "exact_match_tokens_s100")
"""Metrics that are rates of items, whose binomial interval follows from rate and n."""
_TITLES = {
    "byte_perplexity": "log-likelihood (nats/byte)",
    "perplexity": "log-likelihood of the target (nats/byte)",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "acc_mutual_info": "accuracy, by PMI",
    "squad_recall": "word recall",
    "rougeL_f1_s100": "ROUGE-L, 100 tokens",
    "exact_match_tokens_s100": "exact match, 100 tokens",
    "prefix_match": "prefix match",
}
_UNIT = {"byte_perplexity": "nats/byte", "perplexity": "nats/byte"}


def hubble_tables(path: Path | str) -> pl.DataFrame:
    """The tables printed by ``notebooks/bigplot.ipynb`` of Hubble (2025), from a JSON file, as tidy rows.

    Args:
        path: JSON with ``tables``, a list of ``task``, ``metric`` and ``values`` (model -> dose -> number), and,
            optionally, ``n_per_level_inferred_from_fractions`` (data set -> dose -> items).

    Returns:
        ``table`` (place in the file), ``task``, ``metric``, ``run`` (model), ``dose``, ``estimate``, ``low``, ``high``,
        ``n``. Rates of n items have Clopper-Pearson 95 % limits. Averages over the seven fields of a biography,
        likelihoods and similarities have null limits, because their spread was not published.

    Raises:
        UserError: if the file is missing or has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no Hubble tables at {path}; give the JSON file that holds them")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        sizes = known.get("n_per_level_inferred_from_fractions", {})
        rows = [
            {
                "table": i,
                "task": str(table["task"]),
                "metric": str(table["metric"]),
                "run": str(model),
                "dose": int(dose),
                "estimate": float(value),
                "n": _size(sizes, str(table["task"]), str(dose)),
            }
            for i, table in enumerate(known["tables"])
            for model, values in table["values"].items()
            for dose, value in values.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no Hubble tables ({type(error).__name__}: {error})") from None
    schema = {"table": pl.Int64, "task": pl.String, "metric": pl.String, "run": pl.String, "dose": pl.Int64}
    frame = pl.DataFrame(rows, schema={**schema, "estimate": pl.Float64, "n": pl.Int64})
    return _with_limits(frame)


def _size(sizes: Mapping[str, Mapping[str, int]], task: str, dose: str) -> int | None:
    """Number of items of a task at a dose; the task's name starts with the name of its data set."""
    data_set = max((name for name in sizes if task.startswith(name)), key=len, default=None)
    value = sizes[data_set].get(dose) if data_set is not None else None
    return None if value is None else int(value)


def _with_limits(frame: pl.DataFrame) -> pl.DataFrame:
    # A biography task without a field's name averages seven fields a person: not n independent trials.
    pooled = pl.col("task").str.starts_with("yago") & ~pl.col("task").str.contains(" ")
    counts = pl.col("metric").is_in(_RATES) & pl.col("n").is_not_null() & ~pooled
    frame = frame.with_row_index("row")
    usable = frame.filter(counts)
    n = usable["n"].to_numpy()
    low, high = clopper_pearson(np.rint(usable["estimate"].to_numpy() * n), n)
    limits = usable.select("row").with_columns(low=pl.Series(low), high=pl.Series(high))
    order = ["table", "task", "metric", "run", "dose", "estimate", "low", "high", "n"]
    return frame.join(limits, on="row", how="left", maintain_order="left").select(order)


@figure(
    number=1,
    title="Hubble's big plot",
    needs=("task", "metric", "run", "dose", "estimate", "low", "high", "n"),
    optional=("table",),
)
def hubble(
    rows: pl.DataFrame,
    ours: pl.DataFrame | None = None,
    *,
    columns: int = 4,
    width: int = 230,
    height: int = 190,
) -> Figure:
    """Dose-response of Hubble's models, one panel per task and metric, with panels of a run trained here.

    Args:
        rows: all or some rows of :func:`hubble_tables`.
        ours: estimate rows of a run (``run``, ``metric``, ``dose``, ``estimate``, ``low``, ``high``, ``n``; ``family``
            names panels), drawn in separate panels; they share Hubble's scale if both are in nats per byte or both are
            between 0 and 1.
        columns: number of panels in a row.
        width: of one panel, pixels.
        height: of one panel, pixels.

    Returns:
        The figure; its rows are those of Hubble and of the run, distinguished by ``source``.
    """
    rows = (
        rows
        if "table" in rows.columns
        else rows.with_columns(table=pl.struct("task", "metric").rank("dense"))
    )
    names = pieces.series(rows, "run")
    everything = rows.with_columns(source=pl.lit("Hubble"))
    axis_rows = rows.select("dose")
    mine = _ours(ours) if ours is not None else None
    if mine is not None:
        everything = pl.concat([everything, mine], how="diagonal_relaxed")
        axis_rows = pl.concat([axis_rows.cast(pl.Int64), mine.select("dose")])
    axis = pieces.DoseAxis(axis_rows)
    runs = pieces.series(mine, "run") if mine is not None else []
    known = list(dict.fromkeys([*names, *runs]))
    drawn: list[Any] = []
    alike: dict[str, list[pl.DataFrame]] = {}

    def add(part: pl.DataFrame, own: list[str], metric: str, scale: alt.Scale, title: str) -> None:
        there = [name for name in own if name in part["run"]]
        label = _TITLES.get(metric, metric)
        panel = pieces.dose_panel(part, axis, scale, label, wide=False, names=there, known=known)
        drawn.append(panel.properties(width=width, height=height, title=_broken(title)))

    for (_, task, metric), part in rows.group_by("table", "task", "metric", maintain_order=True):
        unit = _unit_of(str(metric), part)
        alike.setdefault(unit, []).append(part)
        add(part, names, str(metric), _scale(unit, part), str(task))
    for (metric, family), part in (
        mine.group_by("metric", "family", maintain_order=True) if mine is not None else ()
    ):
        unit = _unit_of(str(metric), part)
        same = [frame.select("estimate", "low", "high") for frame in (part, *alike.get(unit, []))]
        shared = pl.concat(same, how="vertical_relaxed")
        add(part, runs, str(metric), _scale(unit, shared), f"our run: {family}")
    chart = (
        drawn[0] if len(drawn) == 1 else alt.concat(*drawn, columns=columns).resolve_scale(y="independent")
    )
    return Figure(chart, everything)


def _ours(ours: pl.DataFrame) -> pl.DataFrame:
    needed = {"run", "metric", "dose", "estimate", "low", "high", "n"}
    if missing := sorted(needed - set(ours.columns)):
        raise UserError(
            f"figure hubble: our rows lack the column {missing[0]!r}; give estimate rows of a run"
        )
    if "family" not in ours.columns:
        ours = ours.with_columns(family=pl.lit("all"))
    usable = ours.filter(
        pl.col("estimate").is_not_null() & pl.col("dose").is_not_null() & (pl.col("run") != PAIRED)
    )
    if "statistic" in ours.columns and "step" in ours.columns:
        usable = pieces.last(usable.filter(pl.col("statistic") == "mean"))
    if usable.is_empty():
        raise UserError("figure hubble: our rows have no estimate at any dose; give the means of a run")
    return usable.with_columns(pl.col("dose").cast(pl.Int64), source=pl.lit("ours"))


def _unit_of(metric: str, rows: pl.DataFrame) -> str:
    from palimpsest.analysis.metrics import METRICS

    if metric in METRICS:
        unit = METRICS[metric].unit
        if unit.startswith("nats"):
            return unit
    if metric in _UNIT:
        return _UNIT[metric]
    inside = rows["estimate"].is_between(0, 1).all()
    return "share" if inside else metric


def _scale(unit: str, rows: pl.DataFrame) -> alt.Scale:
    return alt.Scale(domain=[-0.03, 1.03], nice=False, zero=False) if unit == "share" else pieces.padded(rows)


def _broken(title: str, limit: int = 30) -> list[str] | str:
    """Name of a task, broken into lines that fit above a panel."""
    lines = [""]
    for word in title.replace("_", "_ ").split(" "):
        if len(lines[-1]) + len(word) > limit and lines[-1]:
            lines.append("")
        lines[-1] += word if not lines[-1] or lines[-1].endswith("_") else f" {word}"
    return lines if len(lines) > 1 else lines[0]
