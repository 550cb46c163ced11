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
``checkpoints`` after all exposures, though not at the last one, having been remembered at an earlier one, and
``came_back`` at a later one; ``estimate``: mean over these of the share of later checkpoints at which the item is
remembered, with 95 % limits over clusters; ``p``: one-sided, that it is not above that of never-inserted items, null
for these."""


def shares_back(remembered_NT: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of the checkpoints after an item was first forgotten at which it is remembered, (N,).

    It is forgotten at the first checkpoint that does not remember it after one that did. NaN if there is none, or if
    it is the last checkpoint, which leaves none after it.

    Args:
        remembered_NT: of N items at T ascending checkpoints.
    """
    known = np.logical_or.accumulate(remembered_NT, axis=1)
    lost = np.logical_or.accumulate(known & ~remembered_NT, axis=1)
    later = np.zeros_like(lost)
    later[:, 1:] = lost[:, :-1]
    count = later.sum(1)
    back = (later & remembered_NT).sum(1)
    shares: NDArray[np.float64] = np.divide(back, count, out=np.full(len(count), np.nan), where=count > 0)
    return shares


def latent(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """Shares of what was forgotten that come back, by dose, and of never-inserted items by the same rule.

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
    shares = shares_back(wide.select(map(str, steps)).to_numpy().astype(bool))
    about = after.filter(pl.col("step") == steps[-1]).drop("value").rename({"unit": "item_id"})
    rows = (
        wide.select(item_id="unit")
        .with_columns(value=pl.Series(shares, dtype=pl.Float64).fill_nan(None))
        .join(about, on="item_id")
        .with_columns(probe_id="item_id")
    )
    forgotten = rows.drop_nulls("value")
    if forgotten.filter(pl.col("dose") > 0).is_empty():
        return pl.DataFrame(schema=SCHEMA)
    means = mean_by_dose(forgotten, bounds=SHARE).filter(pl.col("family") == "all")
    tested = pl.DataFrame(schema={"dose": pl.Int64(), "p": pl.Float64()})
    if (forgotten["dose"] == 0).any():
        gains = gain_over_control(forgotten, bounds=SHARE, permutations=inputs.permutations, seed=inputs.seed)
        tested = gains.filter(pl.col("family") == "all").select(pl.col("dose").cast(pl.Int64), "p")
    counts = rows.group_by("dose").agg(
        n=pl.len(), forgotten=pl.col("value").count(), came_back=(pl.col("value") > 0).sum()
    )
    return (
        counts.join(means.select("dose", "estimate", "low", "high"), on="dose", how="left")
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
        ["dose", "n", "forgotten", "came back", "share of checkpoints", "p"],
        body,
        f"Latent memories (Duan et al., 2024): items that were remembered at one of the {rows['checkpoints'][0]} "
        "checkpoints after all exposures, forgotten at a later one, and remembered again after that, without an "
        "exposure in between. Remembered: above the 95 % quantile of never-inserted items, of which some come back by "
        "chance. Share: of the checkpoints after it was forgotten, those at which an item is remembered, with 95 % "
        "limits; p by permutation that it is no larger than that of never-inserted items.",
        deciding=frozenset({4}),
    )
