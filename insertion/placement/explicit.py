"""Explicit placement: doses and places from a table of exposures instead of a random draw (``insertion.placements``).

The table gives each item's number of exposures and, if it has positions, their windows and offsets. Nothing is
randomised here; causal conclusions depend on the randomisation behind the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from palimpsest.data.errors import UserError, nearest
from palimpsest.data.mixture import Windows
from palimpsest.insertion.exposures import EXPOSURE_SCHEMA
from palimpsest.insertion.placement.interface import Integers, Setting
from palimpsest.insertion.placement.randomised import Randomised
from palimpsest.insertion.settings import InsertionConfig, RunShape

SCHEMA = pl.Schema(
    {
        "item_id": pl.String(),
        "position": pl.Int64(),
        "offset": pl.Int32(),
        "cut": pl.Int32(),
        "length": pl.Int32(),
        "lead": pl.Boolean(),
        "overwrite": pl.Boolean(),
    }
)
"""Columns of the table, one row per exposure. ``position``, ``offset``, ``cut``, ``lead`` and ``overwrite`` are those
of a plan's exposures (``exposures.EXPOSURE_SCHEMA``); all positions are null if only doses are given. ``length`` counts
the inserted tokens, including end-of-document tokens; null: the item and one end-of-document token after it."""


class Explicit:
    """``interface.Placement`` from the table of ``insertion.placements``; places are drawn if it gives doses only."""

    def __init__(self, setting: Setting) -> None:
        assert setting.insertion.placements is not None
        self.setting = setting
        self.table = read(setting.insertion.placements)

    def assign(self, items: pl.DataFrame) -> Integers:
        """Index of each item's arm in ``InsertionConfig.arms``; see ``interface.Placement``."""
        return arms(self.table, items, self.setting.insertion)

    def expose(self, items: pl.DataFrame, assigned: Integers, wordings: pl.DataFrame) -> pl.DataFrame:
        """All exposures; see ``interface.Placement``."""
        insertion = self.setting.insertion
        if not positioned(self.table):
            return Randomised(self.setting).expose(items, assigned, wordings)
        placed = exposures(self.table, items, wordings, insertion, self.setting.run, self.setting.order)
        codes = np.array([arm.skipped for _, arm in insertion.arms])[assigned]
        return placed.with_columns(loss=codes[placed["item"]]).cast(EXPOSURE_SCHEMA)


def read(path: str) -> pl.DataFrame:
    """The table at a path.

    Raises:
        UserError: if it cannot be read, lacks a column, or gives a position for some exposures but not for all.
    """
    where = f"insertion.placements={path}"
    try:
        table = pl.read_parquet(Path(path))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if lacking := [name for name in SCHEMA if name not in table.columns]:
        raise UserError(
            f"{where} has no column {lacking[0]}; insertion/placement/explicit.py says what it must have"
        )
    table = table.select(SCHEMA.keys()).cast(SCHEMA)
    if len(table) and 0 < table["position"].null_count() < len(table):
        raise UserError(
            f"{where}: {table['position'].null_count():,} of {len(table):,} exposures have no position"
        )
    return table


def positioned(table: pl.DataFrame) -> bool:
    """True if the table gives places as well as doses."""
    return len(table) > 0 and table["position"].null_count() == 0


def arms(table: pl.DataFrame, items: pl.DataFrame, insertion: InsertionConfig) -> Integers:
    """Index of each item's arm, (items,), determined by its number of exposures.

    Raises:
        UserError: for an item that does not exist, or numbers of items that differ from ``items_per_dose``.
    """
    names = items["item_id"].to_list()
    counts = dict(table.group_by("item_id").len().iter_rows())
    if unknown := sorted(counts.keys() - set(names)):
        raise UserError(
            f"insertion.placements={insertion.placements} has exposures of {unknown[0]}, which is no item"
            f"{nearest(unknown[0], names)}"
        )
    number = {arm.dose: k for k, (_, arm) in enumerate(insertion.arms)}
    doses = [counts.get(name, 0) for name in names]
    if other := sorted(set(doses) - set(number)):
        raise UserError(
            f"insertion.placements={insertion.placements} has items with {other[0]} exposures, but insertion.doses="
            f"{list(insertion.doses)}"
        )
    numbers = np.array([number[dose] for dose in doses], dtype=np.int64)
    for family in insertion.families:
        members = numbers[(items["family"] == family).to_numpy()]
        for k, wanted in insertion.counts(family).items():
            if (members == k).sum() != wanted:
                raise UserError(
                    f"insertion.placements={insertion.placements} gives {(members == k).sum()} items of {family} the "
                    f"dose {insertion.arms[k][1].dose}, but insertion.items_per_dose says {wanted}"
                )
    return numbers


def exposures(
    table: pl.DataFrame,
    items: pl.DataFrame,
    wordings: pl.DataFrame,
    insertion: InsertionConfig,
    run: RunShape,
    order: Windows,
) -> pl.DataFrame:
    """The exposures as the table has them: ``exposures.EXPOSURE_SCHEMA`` without ``loss``.

    Raises:
        UserError: for a place outside the run or its window, places that overlap, a length that is not the item's here,
            or, in front of an item without an end-of-document token of its own, a place where no document begins.
    """
    first = np.concatenate([[0], np.cumsum(items["wordings"].to_numpy())])[:-1]
    rows = pl.DataFrame({"item_id": items["item_id"], "item": np.arange(len(items)), "wording": first})
    placed = table.join(rows, on="item_id", how="left").sort("position", "offset")
    tokens = wordings["tokens"].list.len().cast(pl.Int64)[placed["wording"]]
    placed = placed.with_columns(
        tokens=tokens,
        length=pl.col("length").fill_null(tokens + 1 + pl.col("lead").cast(pl.Int64)),
        begin=pl.col("offset") - pl.col("lead").cast(pl.Int32),
    ).with_columns(
        end=pl.col("begin") + pl.col("length"),
        trail=pl.col("length") == pl.col("tokens") + pl.col("lead").cast(pl.Int32) + 1,
    )
    same = (pl.col("position") == pl.col("position").shift(1)).fill_null(False)
    whole = pl.col("length") == pl.col("tokens") + pl.sum_horizontal("lead", "trail")
    size = run.sequence_length + 1
    for wrong, message in (
        (~whole, "is {length} tokens long there and {tokens} here; it was made with another tokenizer"),
        (
            ~pl.col("position").is_between(run.positions.start, run.windows - 1),
            f"lies outside the run's windows {run.positions.start:,} to {run.windows - 1:,}",
        ),
        (
            (pl.col("begin") < 0) | (pl.col("end") > size) | ~pl.col("cut").is_between(0, pl.col("length")),
            f"does not fit into a window of train.sequence_length={run.sequence_length} (or cuts more than it inserts)",
        ),
        (same & (pl.col("begin") < pl.col("end").shift(1)), "overlaps the one before it"),
        (
            pl.len().over("position") > insertion.per_window,
            f"is one of more in its window than insertion.per_window={insertion.per_window}",
        ),
    ):
        if len(bad := placed.filter(wrong)):
            row = bad.row(0, named=True)
            raise UserError(
                f"insertion.placements={insertion.placements}: the exposure of {row['item_id']} at window "
                f"{row['position']} {message.format(**row)} ({len(bad):,} such)"
            )
    _require_boundaries(placed, insertion, order)
    return placed.select("position", "item", "wording", "offset", "lead", "trail", "cut", "overwrite")


def _require_boundaries(placed: pl.DataFrame, insertion: InsertionConfig, order: Windows) -> None:
    """Check that exposures declared to follow a document's end do so, which detects a table made for another corpus or
    order.
    """
    claims = placed.filter(
        pl.col("trail")
        & ~pl.col("lead")
        & ~pl.col("overwrite")
        & (pl.col("begin") + pl.col("cut") > 0)
        & (pl.len().over("position") == 1)
    )
    at = claims["position"].to_numpy()
    splits, starts = order.boundaries(at)
    pairs = set(zip(np.repeat(at, np.diff(splits)).tolist(), starts.tolist(), strict=True))
    points = (claims["begin"] + claims["cut"]).to_list()
    wrong = [row for row, pair in enumerate(zip(at.tolist(), points, strict=True)) if pair not in pairs]
    if wrong:
        raise UserError(
            f"insertion.placements={insertion.placements}: no document begins at token {points[wrong[0]]} of window "
            f"{at[wrong[0]]}, where {claims['item_id'][wrong[0]]} is to go, nor in {len(wrong) - 1:,} other places; "
            "this is not the corpus, the order (train.seed) or the train.sequence_length that they were made for"
        )
