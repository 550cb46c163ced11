"""Tidy rows in, estimate rows out: the shapes that all statistics share."""

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
``clusters`` the independent units that they form (as many as items where each is its own); ``low``/``high`` bound a
95 % interval, null where there is none, and ``method`` says how or why not."""

PAIRED = "perturbed - twin"
"""The ``run`` of rows that are per-item differences between the two runs."""

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


def per_item(rows: pl.DataFrame) -> pl.DataFrame:
    """One value an item: the mean over its probes.

    Clusters of items are what was randomised, so clusters, not items or probes, are what errors and tests are over.
    ``cluster`` names the item's, or the item itself where it has none (or ``rows`` have no such column). Rows without a
    value are left out here; they stay in the metric rows, where they are counted. Held-out passages have no item and
    count as themselves.
    """
    unit = pl.coalesce("item_id", "probe_id")
    own = pl.lit(None, pl.String)
    if "cluster" in rows.columns:
        own = pl.when(pl.col("cluster") != "").then(pl.concat_str("family", "cluster", separator="\0"))
    return (
        rows.filter(pl.col("value").is_not_null())
        .with_columns(unit=unit, cluster=pl.coalesce(own, unit))
        .group_by([*BY, "unit", "cluster", "family", "stratum", "dose"])
        .agg(pl.col("value").cast(pl.Float64).mean())
        .sort([*BY, "unit"])
    )


def difference_to_twin(rows: pl.DataFrame, perturbed: str = "perturbed", twin: str = "twin") -> pl.DataFrame:
    """Paired metric rows: value in the perturbed run minus value in the twin, probe by probe, same step.

    Probes that lack either value have no difference. All statistics take these rows as they take those of a
    run.
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
    """Each row twice: in its family's ``group`` and in the group ``all``."""
    return pl.concat([items.with_columns(group=pl.lit("all")), items.with_columns(group=pl.col("family"))])


def comparable_cells(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Give each row the ``cell`` within which arms are compared: its stratum wherever that is possible.

    Within a family, strata that lack one of the arms are merged with each other; where that does not help, or
    where cells are so small that no variance could be estimated, the whole family is one cell. Families that
    lack an arm cannot be compared: their rows come back with a null cell, for the caller to count.

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
        lacks.with_columns(
            whole=((arms.over([*by, "cell"]) < 2) | (freedom < 1)).any().over(by),
            impossible=arms.over(by) < 2,
        )
        .with_columns(
            cell=pl.when("impossible").then(None).when("whole").then(pl.lit("**")).otherwise(pl.col("cell"))
        )
        .drop("whole", "impossible")
    )
