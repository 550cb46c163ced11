"""Latent memories (Duan et al., 2024): items that were forgotten and come back without a new exposure."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.report.answer import interval, p_value
from palimpsest.analysis.report.forgetting import last_exposures, values
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import Results
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import gain_over_control, mean_by_dose

SHARE = (0.0, 1.0)
SCHEMA = pl.Schema(
    {
        "dose": pl.Int64(),
        "n": pl.Int64(),
        "forgotten": pl.Int64(),
        "came_back": pl.Int64(),
        "estimate": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "p": pl.Float64(),
        "checkpoints": pl.Int64(),
    }
)
"""Columns of :func:`latent`, one row per dose: ``n`` items; how many of them were ``forgotten`` at one of the
``checkpoints`` after all exposures, having been remembered at an earlier one, and ``came_back`` at a later one;
``estimate``: share of the forgotten ones that came back, with 95 % limits over clusters; ``p``: one-sided, that it is
not above that of never-inserted items, null for these."""


def came_back(remembered_NT: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of items' states at ascending checkpoints, (N, T): were they forgotten after they had been remembered, (N,), and
    remembered again after that, (N,)?
    """
    known = np.logical_or.accumulate(remembered_NT, axis=1)
    lost = np.logical_or.accumulate(known & ~remembered_NT, axis=1)
    return np.asarray(lost.any(1)), np.asarray((lost & remembered_NT).any(1))


def latent(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """Share of the forgotten items that come back, by dose, and of never-inserted items by the same rule.

    An item is remembered at a checkpoint if its value is above the 95 % quantile of its family's never-inserted items
    there. Only checkpoints after the last exposure of all items count, so that nothing is exposed in between.

    Returns:
        A table of :data:`SCHEMA`; empty with fewer than three such checkpoints, or if nothing was forgotten.
    """
    items = values(results, inputs)
    end = last_exposures(inputs)["after"].max()
    after = items if end is None else items.filter(pl.col("step") >= end)
    steps = after["step"].unique().sort()
    if end is None or len(steps) < 3:
        return pl.DataFrame(schema=SCHEMA)
    never = after.filter(pl.col("dose") == 0)
    limits = never.group_by("family", "step").agg(limit=pl.col("value").quantile(0.95, "linear"))
    states = after.join(limits, on=["family", "step"]).with_columns(held=pl.col("value") > pl.col("limit"))
    wide = states.pivot("step", index="unit", values="held").drop_nulls().sort("unit")
    lost, back = came_back(wide.select(map(str, steps)).to_numpy().astype(bool))
    about = after.filter(pl.col("step") == steps[-1]).drop("value").rename({"unit": "item_id"})
    rows = (
        wide.select(item_id="unit")
        .with_columns(lost=pl.Series(lost, dtype=pl.Boolean), value=pl.Series(back, dtype=pl.Float64))
        .join(about, on="item_id")
        .with_columns(probe_id="item_id")
    )
    forgotten = rows.filter("lost")
    if forgotten.filter(pl.col("dose") > 0).is_empty():
        return pl.DataFrame(schema=SCHEMA)
    shares = mean_by_dose(forgotten, bounds=SHARE).filter(pl.col("family") == "all")
    tested = pl.DataFrame(schema={"dose": pl.Int64(), "p": pl.Float64()})
    if (forgotten["dose"] == 0).any():
        gains = gain_over_control(forgotten, bounds=SHARE, permutations=inputs.permutations, seed=inputs.seed)
        tested = gains.filter(pl.col("family") == "all").select(pl.col("dose").cast(pl.Int64), "p")
    counts = rows.group_by("dose").agg(
        n=pl.len(), forgotten=pl.col("lost").sum(), came_back=pl.col("value").sum()
    )
    return (
        counts.join(shares.select("dose", "estimate", "low", "high"), on="dose", how="left")
        .with_columns(pl.col("dose").cast(pl.Int64), checkpoints=pl.lit(len(steps)))
        .join(tested, on="dose", how="left")
        .sort("dose")
        .select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    )


def latent_table(rows: pl.DataFrame) -> Table | None:
    """Printed table of :func:`latent`; None if it is empty."""
    if rows.is_empty():
        return None
    body = [
        [
            str(row["dose"]) if row["dose"] else "0 (never inserted)",
            str(row["n"]),
            str(row["forgotten"]),
            str(row["came_back"]),
            "–" if row["estimate"] is None else interval(row),
            "–" if row["p"] is None else p_value(row["p"]),
        ]
        for row in rows.iter_rows(named=True)
    ]
    return Table(
        ["dose", "n", "forgotten", "came back", "share", "p"],
        body,
        f"Latent memories (Duan et al., 2024): items that were remembered at one of the {rows['checkpoints'][0]} "
        "checkpoints after all exposures, forgotten at a later one and remembered again after that, without an exposure "
        "in between. Remembered: above the 95 % quantile of never-inserted items, so that some of these come back by "
        "chance; share of the forgotten ones, with 95 % limits, and p by permutation that it is no larger than theirs.",
        deciding=frozenset({4}),
    )
