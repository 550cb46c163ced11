"""Retention: the share of a gain that is left when an item is not seen any more."""

from __future__ import annotations

import numpy as np
import polars as pl

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report.answer import number, sizes
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import Results
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import difference_to_twin, fieller, net_of_controls, per_item

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
"""One row a span of time. ``since_low`` and ``since_high``: smallest and largest number of steps from an item's first
checkpoint after its last exposure to the later ones; ``n`` items in ``clusters``, and their controls; ``first`` and
``later``: mean gain over dose 0 at either, of the n items with both; ``retained``: later / first, with Fieller's 95 %
limits, null where the set is unbounded."""


def retained(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """:func:`retention` of the primary metric, of the differences from the twin or, without one, of the run."""
    rows = results.rows.filter((pl.col("metric") == inputs.primary) & pl.col("dose").is_not_null())
    rows = (
        difference_to_twin(rows)
        if "twin" in results.last_steps
        else rows.filter(pl.col("run") == "perturbed")
    )
    # A checkpoint at step s has finished the steps 0 ... s - 1.
    last = inputs.exposures.group_by(unit="item_id").agg(after=pl.col("step").max() + 1)
    return retention(per_item(rows), last)


def retention(items: pl.DataFrame, last: pl.DataFrame) -> pl.DataFrame:
    """Gain later, as a share of the gain at the first checkpoint after the last exposure.

    An item's gain at a checkpoint is its value less the mean of the never-inserted items of its family there; that
    mean's error is in the limits, which are over clusters of either. Numerator and denominator are of the same items;
    times double from row to row, and an item with several checkpoints in a row counts once, with its mean.

    Args:
        items: as :func:`~analysis.statistics.rows.per_item` gives them, of one metric and run.
        last: ``unit`` and ``after``, the first checkpoint that has finished the item's last exposure.

    Returns:
        A table of ``RETAINED_SCHEMA``, empty where no item has a checkpoint after the first.
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
    found = []
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
        found.append(
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
    return pl.DataFrame(found, schema=RETAINED_SCHEMA).sort("since_low")


def forgetting_table(inputs: ReportInputs, rows: pl.DataFrame) -> Table:
    """The rows of :func:`retained` for people."""
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


def forgetting_text(rows: pl.DataFrame) -> str:
    """Reason why there is nothing on forgetting; empty where there is."""
    if rows.height:
        return ""
    return (
        "Not computed: no two items have two checkpoints after their last exposure. Exposures that end earlier "
        "(insertion.phase) or checkpoints after the last ones (train.checkpoint_after_last) would show what is "
        "forgotten."
    )
