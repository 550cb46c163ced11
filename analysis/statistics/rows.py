"""Schema of estimate rows, and functions on metric rows that all statistics share."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

ESTIMATE_SCHEMA = {
    "run": pl.String,
    "step": pl.Int64,
    "metric": pl.String,
    "statistic": pl.String,
    "family": pl.String,
    "dose": pl.Int32,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "n_control": pl.Int64,
    "clusters": pl.Int64,
    "clusters_control": pl.Int64,
    "p": pl.Float64,
    "method": pl.String,
}
"""Estimate rows. ``family`` is ``all`` for pooled ones; ``n`` counts items (passages for held-out text) and
``clusters`` the independent units that they form; ``low`` and ``high`` are 95 % limits, null if there are none, and
``method`` names their method or the reason for their absence."""

PAIRED = "perturbed - twin"
"""Value of ``run`` in rows of per-item differences between the two runs."""

BY = ["run", "step", "metric"]


def estimates(frame: pl.DataFrame) -> pl.DataFrame:
    """Bring a frame to :data:`ESTIMATE_SCHEMA` (missing columns become null), in a stable order."""
    return (
        frame.with_columns(
            [
                pl.lit(None, dtype).alias(name)
                for name, dtype in ESTIMATE_SCHEMA.items()
                if name not in frame.columns
            ]
        )
        .select([pl.col(name).cast(dtype) for name, dtype in ESTIMATE_SCHEMA.items()])
        .sort("run", "metric", "statistic", "family", "step", "dose")
    )


def cluster_of(rows: pl.DataFrame) -> pl.Expr:
    """Cluster of each metric row's item, of one family; the item itself if it has none, the probe of no item."""
    own = pl.lit(None, pl.String)
    if "cluster" in rows.columns:
        own = pl.when(pl.col("cluster") != "").then(pl.concat_str("family", "cluster", separator="\0"))
    return pl.coalesce(own, "item_id", "probe_id")


def per_item(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per item with the mean value over its probes.

    ``cluster`` is the item's cluster, or the item itself if it has none; errors and tests are over clusters, because
    clusters were randomised. Rows without a value are left out. A held-out passage, which belongs to no item, counts as
    an item.
    """
    unit = pl.coalesce("item_id", "probe_id")
    return (
        rows.filter(pl.col("value").is_not_null())
        .with_columns(unit=unit, cluster=cluster_of(rows))
        .group_by([*BY, "unit", "cluster", "family", "stratum", "dose"])
        .agg(pl.col("value").cast(pl.Float64).mean())
        .sort([*BY, "unit"])
    )


def difference_to_twin(rows: pl.DataFrame, perturbed: str = "perturbed", twin: str = "twin") -> pl.DataFrame:
    """Metric rows of the difference: value in the perturbed run minus that in the twin, of the same probe and step.

    Probes without a value in both are left out. The rows have the columns of a run's, so that every function of
    ``analysis.statistics`` accepts them.

    Args:
        rows: metric rows of both runs.
        perturbed: name of the one run in the column ``run``.
        twin: name of the other.
    """
    on = ["step", "metric", "probe_id"]
    other = rows.filter((pl.col("run") == twin) & pl.col("value").is_not_null()).select(
        *on, twin_value="value"
    )
    return (
        rows.filter((pl.col("run") == perturbed) & pl.col("value").is_not_null())
        .join(other, on=on)
        .with_columns(run=pl.lit(PAIRED), value=pl.col("value") - pl.col("twin_value"))
        .drop("twin_value")
    )


def by_group(items: pl.DataFrame) -> pl.DataFrame:
    """Every row twice, with ``group`` equal to its family and to ``all``."""
    return pl.concat([items.with_columns(group=pl.lit("all")), items.with_columns(group=pl.col("family"))])


def comparable_cells(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Add the column ``cell``, within which arms are compared: the row's stratum if possible.

    Strata of a family that lack one of the arms are merged. If the merged stratum still lacks an arm, or if cells are
    too small to estimate a variance, the whole family is one cell. A family that lacks an arm gets null, for the caller
    to count.

    Args:
        rows: family, stratum, cluster, arm (true: treated) and the columns ``by``.
        by: columns that tell one comparison from another.
    """
    by = [*by, "family"]
    arms = pl.col("arm").n_unique()
    lacks = rows.with_columns(cell=pl.col("stratum")).with_columns(
        cell=pl.when(arms.over([*by, "cell"]) < 2).then(pl.lit("*")).otherwise("cell")
    )
    freedom = pl.col("cluster").n_unique().over([*by, "arm"]) - pl.col("cell").n_unique().over([*by, "arm"])
    return (
        lacks.with_columns(whole=(arms.over([*by, "cell"]) < 2) | (freedom < 1))
        .with_columns(whole=pl.col("whole").any().over(by), impossible=arms.over(by) < 2)
        .with_columns(
            cell=pl.when("impossible").then(None).when("whole").then(pl.lit("**")).otherwise(pl.col("cell"))
        )
        .drop("whole", "impossible")
    )
