"""Forget sets, and the plan of the leave-out twin: the same plan without the exposures of some items."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from palimpsest.data import artifact
from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.assemble import totals
from palimpsest.insertion.design import clusters
from palimpsest.insertion.plan import KIND, VERSION, Plan, read


def forget_set(
    plan: Plan, seed: int, share: float, families: Sequence[str] = (), doses: Sequence[int] = ()
) -> pl.Series:
    """Ids of the items to forget: a random ``share`` of the inserted items of each combination of arm and
    family (kind of item), at least one of each. Items of a cluster, such as those about one person, are forgotten
    together or not at all; the share is then of clusters.

    Args:
        plan: items and arms.
        seed: of the draw.
        share: above 0, at most 1.
        families: to draw from; empty: all.
        doses: to draw from; empty: all above 0.

    Raises:
        UserError: if a family or dose has no inserted item.
    """
    inserted = plan.items.filter(pl.col("dose") > 0)
    for name, wanted in (("family", families), ("dose", doses)):
        known = set(inserted[name].unique())
        if strangers := [str(value) for value in wanted if value not in known]:
            raise UserError(
                f"posttrain.forget: no inserted item has the {name} {strangers[0]}"
                f"{nearest(strangers[0], map(str, sorted(known)))}"
            )
        if wanted:
            inserted = inserted.filter(pl.col(name).is_in(list(wanted)))
    if inserted.is_empty():
        raise UserError("the plan inserts no item, so there is nothing to forget")
    unit, first = clusters(inserted)
    key = pl.Series(np.random.default_rng(seed).random(inserted.height)).gather(first)
    units = inserted[first].select("arm", "family", key=key, unit=pl.int_range(pl.len()))
    drawn = (share * pl.len().over("arm", "family")).round().clip(1)
    chosen = units.filter(pl.col("key").rank("ordinal").over("arm", "family") <= drawn)["unit"]
    return inserted.filter(pl.Series(unit).is_in(chosen.implode()))["item_id"].sort()


def without(plan: Plan, left_out: Collection[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and exposures of a plan without the exposures of some items, whose dose is then 0.

    Where a window held several exposures, those that follow one that is left out move towards the head of the window by
    the tokens that it took, and so keep their places in the corpus's text.
    """
    lengths = plan.wordings["tokens"].list.len().cast(pl.Int32)
    leaves = plan.items["item_id"].is_in(list(left_out))
    frames = pl.col("lead").cast(pl.Int32) + pl.col("trail").cast(pl.Int32)
    exposures = plan.exposures.with_columns(
        leaves=leaves.gather(plan.exposures["item"]), taken=frames + lengths.gather(plan.exposures["wording"])
    )
    gone = pl.when(pl.col("leaves") & ~pl.col("overwrite")).then(pl.col("taken")).otherwise(0)
    exposures = exposures.with_columns(
        offset=(pl.col("offset") - (gone.cum_sum() - gone).over("position")).cast(pl.Int32)
    ).filter(~pl.col("leaves"))
    never = plan.items.filter(pl.col("dose") == 0)["arm"][0]
    items = plan.items.with_columns(
        dose=pl.when(leaves).then(0).otherwise(pl.col("dose")).cast(plan.items.schema["dose"]),
        arm=pl.when(leaves).then(pl.lit(never)).otherwise(pl.col("arm")),
    )
    return items, exposures.select(plan.exposures.columns)


def write(plan: Plan, left_out: Sequence[str], directory: Path) -> Plan:
    """The leave-out twin's plan, written to ``directory`` unless it is there."""
    config = {**plan.manifest.config, "left_out": sorted(left_out)}
    inputs = {**plan.manifest.inputs, "plan": plan.digest}
    done, _ = artifact.reuse(directory, kind=KIND, schema_version=VERSION, config=config, inputs=inputs)
    if done is None:
        items, exposures = without(plan, left_out)
        tables = {
            "items": items,
            "wordings": plan.wordings,
            "probes": plan.probes,
            "exposures": exposures,
            "edits": plan.edits,
        }
        with artifact.writing(
            directory, kind=KIND, schema_version=VERSION, config=config, inputs=inputs
        ) as draft:
            for name, table in tables.items():
                table.write_parquet(draft.path / f"{name}.parquet")
            draft.facts.update(plan.manifest.facts)
            draft.facts.update(totals(plan.wordings, exposures, 1.0, plan.shape))
            draft.facts["arms"] = _counts(items, exposures)
    return read(directory)


def _counts(items: pl.DataFrame, exposures: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Arm -> numbers of its items and exposures."""
    arms = items["arm"].gather(exposures["item"]).value_counts().rows()
    inserted = dict(arms)
    return {
        arm: {"items": n, "exposures": inserted.get(arm, 0)}
        for arm, n in items.group_by("arm", maintain_order=True).len().iter_rows()
    }
