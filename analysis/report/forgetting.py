"""Retention: the share of an item's gain that is left some time after its last exposure."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.metrics.factual import decay
from palimpsest.analysis.report.answer import number, sizes
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import Results
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import (
    FAMILIES,
    compare_families,
    difference_to_twin,
    fieller,
    forgetting_slope,
    learning_rate_time,
    net_of_controls,
    per_item,
    time_to_forget,
)

Floats = NDArray[np.float64]
LEARNED = 1.645
"""Number of standard errors that the first gain must exceed; forgetting is only defined for an item that was
learned."""

RETAINED_SCHEMA = pl.Schema(
    {
        "since_low": pl.Int64(),
        "since_high": pl.Int64(),
        "n": pl.Int64(),
        "n_control": pl.Int64(),
        "clusters": pl.Int64(),
        "clusters_control": pl.Int64(),
        "first": pl.Float64(),
        "later": pl.Float64(),
        "retained": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
    }
)
"""Columns of the retention table, one row per range of delays. A delay is the number of steps from the first checkpoint
after an item's last exposure to a later one. ``since_low`` and ``since_high``: range of the delays; ``n`` items in
``clusters``, and their controls; ``first`` and ``later``: mean gains over dose 0 at both checkpoints, of the n items
that have both; ``retained``: later / first, with Fieller's 95 % limits, null if the confidence set is unbounded."""


def retained(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """:func:`retention` of the primary metric, for the differences from the twin or, without a twin, the run's
    values.
    """
    return retention(values(results, inputs), last_exposures(inputs))


def values(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """Values of the primary metric by item and step: differences from the twin or, without a twin, those of the
    perturbed run.
    """
    rows = results.rows.filter((pl.col("metric") == inputs.primary) & pl.col("dose").is_not_null())
    paired = "twin" in results.last_steps
    return per_item(difference_to_twin(rows) if paired else rows.filter(pl.col("run") == "perturbed"))


def last_exposures(inputs: ReportInputs) -> pl.DataFrame:
    """``unit`` and ``after``, the smallest number of finished steps that includes the item's last exposure."""
    return inputs.exposures.group_by(unit="item_id").agg(after=pl.col("step").max() + 1)


def retention(items: pl.DataFrame, last: pl.DataFrame) -> pl.DataFrame:
    """Retained share: later gain divided by the gain at the first checkpoint after the last exposure.

    An item's gain is its value minus the mean of its family's never-inserted items at the same checkpoint. 95 % limits
    include that mean's error, and are over clusters of items. Both gains are of the same items. The range of delays
    (steps) doubles from row to row; an item with several checkpoints in a row's range enters with their mean.

    Args:
        items: rows of :func:`~analysis.statistics.rows.per_item`, of one metric and run.
        last: frame with ``unit`` (item id) and ``after``, the smallest number of finished steps that includes the
            item's last exposure.

    Returns:
        A table of ``RETAINED_SCHEMA``, empty if no item has a later checkpoint.
    """
    controls = items.filter(pl.col("dose") == 0)
    after = (
        items.filter(pl.col("dose") > 0)
        .join(controls.select("family", "step").unique(), on=["family", "step"])
        .join(last, on="unit")
        .filter(pl.col("step") >= pl.col("after"))
        .sort("unit", "step")
        .with_columns(since=pl.col("step") - pl.col("step").first().over("unit"))
        .with_columns(span=pl.col("since").cast(pl.Float64).log(2).floor())
    )
    table = []
    later = after.filter(pl.col("since") > 0)
    for part in later.partition_by("span"):
        first = after.filter(pl.col("since") == 0).join(part.select("unit").unique(), on="unit")
        both = pl.concat(
            [
                part.with_columns(a0=1 / pl.len().over("unit"), a1=pl.lit(0.0)),
                first.with_columns(a0=pl.lit(0.0), a1=pl.lit(1.0)),
            ]
        )
        net = net_of_controls(both, controls, 2)
        if net is None or net.clusters < 2:
            continue
        top, bottom = (float(v) for v in net.estimate)
        covariance = net.covariance
        ratio = fieller(
            top,
            bottom,
            float(covariance[0, 0]),
            float(covariance[1, 1]),
            float(covariance[0, 1]),
            net.freedom((1.0, -top / bottom if bottom else 0.0)),
        )
        table.append(
            {
                "since_low": part["since"].min(),
                "since_high": part["since"].max(),
                "n": net.n,
                "n_control": net.n_control,
                "clusters": net.clusters,
                "clusters_control": net.clusters_control,
                "first": bottom,
                "later": top,
                "retained": ratio.estimate if np.isfinite(ratio.estimate) else None,
                "low": ratio.low if ratio.bounded else None,
                "high": ratio.high if ratio.bounded else None,
            }
        )
    return pl.DataFrame(table, schema=RETAINED_SCHEMA).sort("since_low")


CURVE_SCHEMA = pl.Schema(
    {
        "arm": pl.String(),
        "n": pl.Int64(),
        "clusters": pl.Int64(),
        "checkpoints": pl.Int64(),
        "since_first": pl.Float64(),
        "since_last": pl.Float64(),
        "family": pl.String(),
        "formula": pl.String(),
        "parameters": pl.String(),
        "share": pl.Float64(),
        "identified": pl.Boolean(),
        "slope": pl.Float64(),
        "slope_low": pl.Float64(),
        "slope_high": pl.Float64(),
        "rate_slope": pl.Float64(),
        "rate_slope_low": pl.Float64(),
        "rate_slope_high": pl.Float64(),
        "horizon": pl.Float64(),
        "median": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "never_learned": pl.Int64(),
        "still_held": pl.Int64(),
    }
)
"""Columns of the table of forgetting curves, one row per arm. ``since_first`` and ``since_last``: steps from the mean
last exposure of the arm's items to the first and the last of the ``checkpoints``; ``family``: family of curves with the
lowest AICc; ``share``: share of bootstrap samples that select it; ``identified``: true with enough checkpoints over
enough decades to distinguish the families; ``slope``: change of the gain per decade of steps, with 95 % limits over
clusters; ``rate_slope``: that per decade of the learning rate summed over the steps, on which phases with different
rates compare, null without a log of it; ``horizon``: steps after which a line through the retained share on log steps
reaches 0, null if it does not fall (the learnability threshold of Chang et al. 2024); ``median``: steps until half of
the items are forgotten, with 95 % limits."""


def curves(results: Results, inputs: ReportInputs, replicates: int = 500) -> pl.DataFrame:
    """Forgetting curve of each arm: mean gain of the same items at every checkpoint after the arm's last exposure.

    A gain is an item's value minus the mean of its family's never-inserted items at the same checkpoint. An item counts
    as forgotten from the first checkpoint at which its gain is at most the 95 % quantile of the controls' gains.
    Families of curves are ranked by AICc over bootstrap samples of the clusters of items and controls.

    Args:
        results: numbers of the report.
        inputs: inputs of the report.
        replicates: number of bootstrap samples.

    Returns:
        A table of ``CURVE_SCHEMA``. An arm has no row if it has fewer than four checkpoints after the last exposure of
        all its items, fewer than four clusters, or a first gain that is not significantly positive (one-sided z test at
        5 %).
    """
    here = ["family", "step"]
    items = values(results, inputs)
    never = items.filter(pl.col("dose") == 0)
    level = never.group_by(here).agg(
        mean=pl.col("value").mean(), limit=pl.col("value").quantile(0.95, "linear")
    )
    gains = items.join(level, on=here).with_columns(gain=pl.col("value") - pl.col("mean"))
    own = (
        gains.filter(pl.col("dose") > 0)
        .join(last_exposures(inputs), on="unit")
        .join(inputs.items.select(unit="item_id", arm="arm"), on="unit")
    )
    rates = _learning_rates(inputs)
    table = []
    for part in own.sort("arm", "unit").partition_by("arm", maintain_order=True):
        after = part.filter(pl.col("step") >= part["after"].max())
        steps = after["step"].unique().sort()
        if len(steps) < 4 or after["cluster"].n_unique() < 4:
            continue
        controls = gains.filter((pl.col("dose") == 0) & pl.col("step").is_in(steps.implode()))
        last = float(after["after"].to_numpy().mean()) - 1
        summed = None if rates is None else learning_rate_time(steps.to_numpy(), rates, math.floor(last))
        row = _curve(after, controls, steps.to_numpy() - last, summed, replicates, inputs.seed)
        if row is not None:
            table.append({"arm": part["arm"][0], "checkpoints": len(steps)} | row)
    return pl.DataFrame(table, schema=CURVE_SCHEMA)


def _learning_rates(inputs: ReportInputs) -> Floats | None:
    """Learning rate of every step of the perturbed run, (steps,); None unless its log has all of them."""
    if "learning_rate" not in inputs.training.columns:
        return None
    rows = inputs.training.filter((pl.col("run") == "perturbed") & (pl.col("step") > 0))
    rows = rows.unique("step", keep="last").sort("step")
    every = np.arange(1, rows.height + 1)
    if not np.array_equal(rows["step"].to_numpy(), every) or rows["learning_rate"].null_count():
        return None
    return rows["learning_rate"].to_numpy().astype(np.float64)


def _curve(
    after: pl.DataFrame,
    controls: pl.DataFrame,
    since: Floats,
    summed: Floats | None,
    replicates: int,
    seed: int,
) -> dict[str, object] | None:
    own = _by_step(after, "cluster", pl.col("gain"))
    others = _by_step(controls, "cluster", pl.col("gain"))
    error = math.sqrt(sum(side[:, 0].var(ddof=1) / len(side) for side in (own, others)))
    if not own[:, 0].mean() > LEARNED * error:
        return None
    held = _by_step(after, "unit", pl.col("value") - pl.col("limit"))
    ranked = compare_families(since, own, others, replicates=replicates, seed=seed)
    best = ranked.curves[0]
    both = np.concatenate([own, others])
    slope = forgetting_slope(both, since, np.arange(len(both)) < len(own))
    by_rate = None
    if summed is not None and (summed > 0).all():
        by_rate = forgetting_slope(both, summed, np.arange(len(both)) < len(own))
    horizon = decay(since, own.mean(0) / own[:, 0].mean()).horizon
    row: dict[str, object] = {
        "n": len(held),
        "clusters": len(own),
        "since_first": since[0],
        "since_last": since[-1],
        "family": best.family,
        "formula": FAMILIES[best.family].formula,
        "parameters": ", ".join(f"{name} = {number(value, 3)}" for name, value in best.parameters.items()),
        "share": ranked.weights[best.family],
        "identified": ranked.identified,
        "slope": float(slope.estimate),
        "slope_low": float(slope.low),
        "slope_high": float(slope.high),
        "rate_slope": None if by_rate is None else float(by_rate.estimate),
        "rate_slope_low": None if by_rate is None else float(by_rate.low),
        "rate_slope_high": None if by_rate is None else float(by_rate.high),
        "horizon": horizon if math.isfinite(horizon) else None,
    }
    try:
        time = time_to_forget(since, held, 0.0)
    except ValueError:
        return row
    return row | {
        "median": time.median,
        "low": time.low,
        "high": time.high,
        "never_learned": time.never_learned,
        "still_held": time.still_held,
    }


def _by_step(rows: pl.DataFrame, unit: str, value: pl.Expr) -> Floats:
    """Mean value of each unit at each step, (N, T) float64 by ascending step; only units with a value at every step."""
    keys = ["family", unit] if unit == "cluster" else [unit]
    wide = (
        rows.group_by(*keys, "step")
        .agg(value=value.mean())
        .sort("step")
        .pivot("step", index=keys, values="value")
    )
    return wide.drop_nulls().sort(keys).drop(keys).to_numpy()


def curves_table(inputs: ReportInputs, rows: pl.DataFrame) -> Table:
    """Printed table of :func:`curves`."""
    body = [
        [
            row["arm"],
            str(row["n"]) if row["clusters"] == row["n"] else f"{row['n']} in {row['clusters']} clusters",
            str(row["checkpoints"]),
            f"{number(row['since_first'], 0)}–{number(row['since_last'], 0)}",
            f"{row['formula']}: {row['parameters']}",
            f"{100 * row['share']:.0f} %" + ("" if row["identified"] else " *"),
            f"{number(row['slope'], 3, signed=True)} [{number(row['slope_low'], 3, signed=True)}, "
            f"{number(row['slope_high'], 3, signed=True)}]",
            "–" if row["horizon"] is None else f"{row['horizon']:.3g}",
            "–"
            if row["median"] is None
            else f"{number(row['median'], 0)} [{number(row['low'], 0)}, {number(row['high'], 0)}]",
        ]
        for row in rows.iter_rows(named=True)
    ]
    return Table(
        [
            *("arm", "n", "checkpoints", "steps since", "curve", "chosen"),
            *("per decade", "horizon", "median steps to forget"),
        ],
        body,
        f"Forgetting curves: gain over dose 0 ({METRICS[inputs.primary].unit}) of the same items at all checkpoints "
        "after the arm's last exposure. Chosen: share of bootstrap samples (of items and controls) in which this of "
        "six curves has the lowest AICc. Per decade: change of the gain when the steps since are ten times as many. "
        "Horizon: steps after which the share that is left would be 0, by a line on their logarithm. An item is "
        "forgotten once its gain is not above the 95 % quantile of its controls; 95 % limits of a Weibull fit to the "
        "intervals between checkpoints. forgetting_curves.csv has the change per decade of summed learning rate, too.",
        frozenset({0, 4}),
        note=""
        if rows["identified"].all()
        else "* fewer than 8 checkpoints over 3 decades: the shape is hardly told.",
    )


def forgetting_table(inputs: ReportInputs, rows: pl.DataFrame) -> Table:
    """Printed table of :func:`retained`."""
    body = []
    for row in rows.iter_rows(named=True):
        low, high = row["since_low"], row["since_high"]
        limits = (
            f" [{number(100 * row['low'], 0)}, {number(100 * row['high'], 0)}]"
            if row["low"] is not None
            else " [unbounded]"
        )
        share = "–" if row["retained"] is None else number(100 * row["retained"], 0) + limits
        body.append(
            [
                str(low) if low == high else f"{low}–{high}",
                *sizes(row),
                number(row["first"], 3, signed=True),
                number(row["later"], 3, signed=True),
                share,
            ]
        )
    return Table(
        ["steps later", "n", "controls", "gain at first", "gain later", "retained, %"],
        body,
        f"Gain over dose 0 ({METRICS[inputs.primary].unit}) at the first checkpoint after an item's last exposure, and "
        "of the same items later. Retained: ratio of the two means, 95 % interval by Fieller; unbounded where the "
        "first gain cannot be told from 0. Limits hold the error of the controls' mean too.",
        frozenset(),
    )


def forgetting_text(inputs: ReportInputs, rows: pl.DataFrame) -> str:
    """Reason why the report has nothing on forgetting; an empty string if it has."""
    if rows.height:
        return ""
    if inputs.released is not None:
        return "Not computed: at which steps a released model read the items is not known."
    return (
        "Not computed: no two items have two checkpoints after their last exposure. Exposures that end earlier "
        "(insertion.phase) or checkpoints after the last ones (train.checkpoint_after_last) would show what is "
        "forgotten."
    )
