"""Contrasts between arms: between the levels of a factor, or between named arms."""

from __future__ import annotations

import polars as pl

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report.answer import interval, p_value, shown, sizes
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import ESTIMATE_SCHEMA, difference_to_twin, gain_over_control, holm
from palimpsest.insertion.contrasts import chosen, parts

SCHEMA = {"contrast": pl.String, **ESTIMATE_SCHEMA, "p_holm": pl.Float64}
"""Estimate rows, one per contrast: ``n`` counts the items of its first side, ``n_control`` those of its second; ``p``
is two-sided; ``p_holm`` is Holm's correction of it for all contrasts of the table."""


def arm_contrasts(rows: pl.DataFrame, inputs: ReportInputs) -> pl.DataFrame:
    """Contrasts: mean of the first side's items minus that of the second side's, among items that are equal in all
    other factors.

    Items are compared within a family, stratum and the levels (of dose and of other factors) that both sides share;
    clusters are the unit. The p is two-sided, by permutation of the sides within those cells.

    Args:
        rows: metric rows at the last checkpoint.
        inputs: inputs of the report.

    Returns:
        Rows of ``SCHEMA`` for the primary metric: of the differences from the twin or, without a twin, of the perturbed
        run. Empty if arms differ only in the dose and no contrast is declared.
    """
    names = inputs.items.filter(pl.col("dose") > 0)["arm"].unique().sort().to_list()
    contrasts = chosen(inputs.contrasts, names)
    rows = rows.filter((pl.col("metric") == inputs.primary) & (pl.col("dose") > 0))
    if (rows["run"] == "twin").any():
        rows = difference_to_twin(rows)
    rows = rows.filter(pl.col("run") != "twin").join(inputs.items.select("item_id", "arm"), on="item_id")
    frames = []
    for contrast in contrasts:
        sides = [
            {arm: ", ".join(sorted(parts(arm) - side)) for arm in names if side <= parts(arm)}
            for side in contrast
        ]
        compared = [
            rows.filter(pl.col("arm").is_in(list(side))).with_columns(
                family=pl.format("{}\0{}", "family", pl.col("arm").replace_strict(side)),
                dose=pl.lit(number, pl.Int32),
            )
            for number, side in zip((1, 0), sides, strict=True)
        ]
        gains = gain_over_control(
            pl.concat(compared).drop("arm"),
            bounds=METRICS[inputs.primary].bounds,
            permutations=inputs.permutations,
            seed=inputs.seed,
            alternative="two-sided",
        ).filter(pl.col("family") == "all")
        frames.append(
            gains.with_columns(contrast=pl.lit(str(contrast)), statistic=pl.lit("contrast"), dose=None)
        )
    if not frames:
        return pl.DataFrame(schema=SCHEMA)
    estimates = pl.concat(frames)
    corrected = holm([float("nan") if p is None else p for p in estimates["p"]])
    return estimates.with_columns(p_holm=pl.Series(corrected).fill_nan(None)).select(
        pl.col(name).cast(kind) for name, kind in SCHEMA.items()
    )


def contrasts_table(inputs: ReportInputs, rows: pl.DataFrame) -> Table:
    """Tables of contrasts with intervals and both p-values; empty without contrasts."""
    least = 1 / (inputs.permutations + 1)
    body = [
        [
            row["contrast"],
            *sizes(row),
            interval(row, signed=True) if row["estimate"] is not None else "–",
            *("–" if row[p] is None else p_value(row[p], least) for p in ("p", "p_holm")),
        ]
        for row in rows.iter_rows(named=True)
    ]
    run = shown(rows["run"][0]) if rows.height else ""
    source = "declared" if inputs.contrasts else "every pair of levels of each factor"
    return Table(
        ["contrast", "n first", "n second", run, "p", "p (Holm)"],
        body,
        f"Arm against arm: first minus second ({METRICS[inputs.primary].unit}), {run}, among items of the same family, "
        f"stratum, dose and other levels; 95 % intervals; two-sided permutation p, and p corrected by Holm for the "
        f"{len(body)} contrasts ({source}).",
    )
