"""Summary tables of a run's items: gains over the twin, verbatim reproduction, and the exposures of one item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from palimpsest.analysis.run.files import RunFiles


def gains(run: RunFiles, metric: str, step: int | None = None) -> pl.DataFrame:
    """Gain of every item over the twin, highest first.

    Args:
        run: files of the run.
        metric: name of the metric.
        step: checkpoint; the last one if None.

    Returns:
        item_id, family, dose, perturbed, twin (null without a twin), difference (perturbed - twin), gain (difference
        less its mean over the family's items of dose 0; without a twin, perturbed less that mean), text.
    """
    from palimpsest.analysis.report.results import values_of

    step = run.last_step if step is None else step
    rows = run.metrics(metric, steps=[step])
    return (
        values_of(rows.filter(pl.col("item_id").is_not_null()))
        .join(run.plan.items.select("item_id", "text"), on="item_id", how="left")
        .select(
            *("item_id", "family", "dose", "perturbed", "twin"),
            (pl.col("perturbed") - pl.col("twin")).alias("difference"),
            *("gain", "text"),
        )
        .sort("gain", "item_id", descending=[True, False], nulls_last=True)
    )


def reproduced(run: RunFiles, step: int | None = None) -> pl.DataFrame:
    """Verbatim reproduction of every item by greedy decoding after the report's prompt, at a checkpoint.

    Args:
        run: files of the run.
        step: checkpoint; the last one if None.

    Returns:
        item_id, family, arm, dose, tokens, then for each run ``RUN_extracted`` (true if the whole continuation that the
        report tests is reproduced; null for an item too short for it) and ``RUN_longest`` (number of tokens
        reproduced); then text. Sorted by ``perturbed_longest``, descending.
    """
    step = run.last_step if step is None else step
    rows = run.metrics("extracted", "longest_extracted", steps=[step]).filter(pl.col("item_id").is_not_null())
    table = run.plan.items.select("item_id", "family", "arm", "dose", tokens="length")
    for which in rows["run"].unique().sort():
        for metric, kind in (("extracted", pl.Boolean), ("longest_extracted", pl.Int64)):
            own = rows.filter((pl.col("run") == which) & (pl.col("metric") == metric))
            name = f"{which}_{metric.removesuffix('_extracted')}"
            column = own.select("item_id", pl.col("value").cast(kind).alias(name))
            table = table.join(column, on="item_id", how="left", maintain_order="left")
    text = run.plan.items.select("item_id", "text")
    table = table.join(text, on="item_id", how="left", maintain_order="left")
    return table.sort(
        "perturbed_longest", "item_id", descending=[True, False], nulls_last=True, maintain_order=True
    )


def exposures_of(run: RunFiles, item_id: str) -> pl.DataFrame:
    """The exposures of an item, in training order.

    Args:
        run: files of the run.
        item_id: of the item.

    Returns:
        step (from 0), checkpoint (number of finished steps of the first checkpoint on disk after the exposure; null if
        there is none), position (of the window in training order, from 0), offset (in the window, from 0, of its first
        token), tokens (length), and consumed (true if the ledger of the perturbed run records the exposure; null
        without a ledger).

    Raises:
        UserError: if the plan has no such item.
    """
    item_id = run.plan.item_named(item_id)
    lengths = run.plan.wordings.select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias("wording"), pl.col("tokens").list.len().alias("tokens")
    )
    exposures = (
        run.exposures.filter(pl.col("item_id") == item_id)
        .join(lengths, on="wording", how="left", maintain_order="left")
        .select("step", "position", "offset", "tokens", "item_id")
    )
    saved = run.checkpoints()
    first = [min((s for s in saved if s > step), default=None) for step in exposures["step"]]
    consumed = pl.lit(None, pl.Boolean)
    if any(saved):
        of_ledger = run.ledger.exposures.filter(pl.col("item_id") == item_id)
        consumed = pl.col("position").is_in(of_ledger["position"].to_list())
    return exposures.with_columns(
        pl.Series("checkpoint", first, pl.Int64), consumed.alias("consumed")
    ).select("step", "checkpoint", "position", "offset", "tokens", "consumed")
