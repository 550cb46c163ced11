"""Variants of a plan: the same placement with one family only, with other wordings, or with items in other phases.

A variant's items keep their arms, and every exposure keeps its window if its arm allows it. If a window has the same
exposures of the same lengths as before, they also keep their offsets. Moved exposures are listed, so that it is known
which differences between the runs are paired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.placement.interface import Integers, Setting
from palimpsest.insertion.placement.offsets import Places
from palimpsest.insertion.placement.randomised import Randomised
from palimpsest.insertion.settings import InsertionConfig, identifying

MOVED_SCHEMA = pl.Schema(
    {
        "item_id": pl.String(),
        "exposure": pl.Int32(),
        "position_before": pl.Int64(),
        "offset_before": pl.Int32(),
        "position": pl.Int64(),
        "offset": pl.Int32(),
    }
)
"""Columns of moved exposures, one row per exposure whose place differs from the paired plan: number k within its item
in training order, and the old place, null if the item had fewer exposures."""

_PLACES = ("position", "displace", "frame", "named_arms", "per_window")
"""Settings that determine the places in windows."""
_TIMES = ("phase", "spacing", "batch", "last_exposure_within", "named_arms", "slice")
"""Settings that determine, with the dose, the intervals of exposures."""


@dataclass(frozen=True, slots=True)
class PairedPlan:
    """The plan that another one is a variant of."""

    items: pl.DataFrame
    exposures: pl.DataFrame
    """Exposures with their number within the item (``k``) and the ``length`` of their wording, sorted by item and
    ``k``."""
    settings: dict[str, Any]
    """Settings of the design as JSON values."""


def as_json(insertion: InsertionConfig) -> dict[str, Any]:
    """A design as JSON values, in the form of a plan's manifest."""
    values: dict[str, Any] = json.loads(json.dumps(identifying(asdict(insertion))))
    return values


def paired_plan(
    items: pl.DataFrame, wordings: pl.DataFrame, exposures: pl.DataFrame, settings: dict[str, Any]
) -> PairedPlan:
    """The tables of a plan, prepared for ``Paired``."""
    lengths = wordings["tokens"].list.len().cast(pl.Int64)
    ordered = exposures.with_columns(length=lengths[exposures["wording"]]).sort("item", "position", "offset")
    return PairedPlan(items, ordered.with_columns(k=pl.int_range(pl.len()).over("item")), settings)


def arms(model: PairedPlan, items: pl.DataFrame, names: Sequence[str]) -> Integers:
    """Index of each item's arm in the paired plan.

    Raises:
        UserError: for an item that is not in that plan, or an arm that the design lacks.
    """
    known = dict(model.items.select("item_id", "arm").iter_rows())
    numbers = []
    for item in items["item_id"]:
        if item not in known:
            raise UserError(
                f"insertion.paired_with: that plan has no item {item}{nearest(item, known)}; a variant has the same "
                "items or some of them"
            )
        if known[item] not in names:
            raise UserError(
                f"insertion.paired_with: item {item} has the arm '{known[item]}' there, and this design has "
                f"none of that name{nearest(known[item], names)}; keep insertion.doses and the factors, or name arms"
            )
        numbers.append(names.index(known[item]))
    return np.array(numbers, dtype=np.int64)


class Paired(Randomised):
    """``interface.Placement`` with the arms of another plan, and with its windows and offsets as far as the design
    allows.
    """

    def __init__(self, setting: Setting, model: PairedPlan) -> None:
        super().__init__(setting)
        self.model = model
        self._matched: Matches | None = None

    def assign(self, items: pl.DataFrame) -> Integers:
        """Index of each item's arm in ``InsertionConfig.arms``; see ``interface.Placement``."""
        return arms(self.model, items, [name for name, _ in self.setting.insertion.arms])

    def given_windows(self, items: pl.DataFrame, table: pl.DataFrame) -> Integers | None:
        """Positions of the exposures that stay; see ``Randomised``."""
        matched = self._matched = matches(
            self.model,
            items["item_id"].to_numpy()[table["item"].to_numpy()],
            table.select(pl.int_range(pl.len()).over("item")).to_series().to_numpy(),
            table["low"].to_numpy(),
            table["high"].to_numpy(),
            batch=self.setting.run.global_batch_size,
            apart=table["apart"].to_numpy(),
            insertion=self.setting.insertion,
        )
        return matched.position

    def given_places(self, ranked: Integers, at: Integers, lengths: Integers, places: Places) -> Places:
        """Places with those of the other plan; see ``Randomised``."""
        assert self._matched is not None
        own = Matches(self._matched.row[ranked], self._matched.position[ranked])
        return same_places(self.model, own, at, lengths, places, self.setting.insertion)


@dataclass(frozen=True, slots=True)
class Matches:
    """The paired plan's counterpart of each exposure of the variant; all arrays (N,), -1 where it has none."""

    row: Integers
    """Rows of the paired plan's exposures."""
    position: Integers
    """Position that an exposure keeps; -1 if it has no counterpart or must move."""


def matches(
    model: PairedPlan,
    ids: npt.NDArray[np.str_],
    number: Integers,
    low: Integers,
    high: Integers,
    *,
    batch: int,
    apart: Integers,
    insertion: InsertionConfig,
) -> Matches:
    """Counterparts of the exposures, and those that stay in their windows.

    Args:
        model: the plan that this one is paired with.
        ids: (N,) item of each exposure.
        number: (N,) number of the exposure within its item.
        low: (N,) first allowed position.
        high: (N,) end position.
        batch: windows a step.
        apart: (N,) group whose exposures must fall into different steps; -1 for none.
        insertion: the design.
    """
    own, windows = as_json(insertion), insertion.window_slice
    before = model.exposures.with_columns(
        item_id=model.items["item_id"][model.exposures["item"]]
    ).with_row_index("row")
    wanted = pl.DataFrame({"item_id": ids, "k": number})
    joined = wanted.join(before, on=["item_id", "k"], how="left", maintain_order="left")
    row = joined["row"].cast(pl.Int64).fill_null(-1).to_numpy()
    at = joined["position"].fill_null(-1).to_numpy()
    stays = at >= 0
    if any(own[name] != model.settings[name] for name in _TIMES):
        stays &= (at >= low) & (at < high) & (windows.before(at + 1) > windows.before(at))
    table = pl.DataFrame({"at": at, "apart": apart, "step": at // batch, "stays": stays})
    among = table.with_columns(
        rank=pl.when("stays").then(pl.int_range(pl.len()).over("at", "stays")).otherwise(0),
        again=pl.when(pl.col("apart") >= 0)
        .then(pl.int_range(pl.len()).over("apart", "step", "stays"))
        .otherwise(0),
    )
    stays &= (among["rank"] < insertion.per_window).to_numpy() & (among["again"] == 0).to_numpy()
    return Matches(row, np.where(stays, at, -1))


def same_places(
    model: PairedPlan,
    matched: Matches,
    at: Integers,
    lengths: Integers,
    places: Places,
    insertion: InsertionConfig,
) -> Places:
    """Places in windows; a window with the same exposures as in the paired plan gets that plan's places.

    Args:
        model: the plan that this one is paired with.
        matched: counterparts of the exposures, in the order of ``at``.
        at: (N,) positions, ascending.
        lengths: (N,) tokens of the wording.
        places: newly drawn places.
        insertion: the design.
    """
    own = as_json(insertion)
    if any(own[name] != model.settings[name] for name in _PLACES):
        return places
    old = model.exposures
    there = dict(old.group_by("position").len().iter_rows())
    same = (matched.position >= 0) & (old["length"].to_numpy()[matched.row] == lengths)
    window, count = np.unique(at, return_inverse=True, return_counts=True)[1:]
    whole = np.bincount(window, weights=same).astype(np.int64) == count
    whole &= count == np.array([there.get(p, -1) for p in np.unique(at).tolist()])
    rows = np.flatnonzero(whole[window])
    taken = {name: getattr(places, name).copy() for name in Places.__slots__}
    for name, values in taken.items():
        values[rows] = old[name].to_numpy()[matched.row[rows]]
    return Places(**taken)


def moved(model: PairedPlan, items: pl.DataFrame, exposures: pl.DataFrame) -> pl.DataFrame:
    """``MOVED_SCHEMA`` of a variant's exposures."""
    before = model.exposures.with_columns(item_id=model.items["item_id"][model.exposures["item"]]).select(
        "item_id", "k", position_before="position", offset_before="offset"
    )
    now = exposures.with_columns(item_id=items["item_id"][exposures["item"]]).sort(
        "item", "position", "offset"
    )
    both = now.with_columns(k=pl.int_range(pl.len()).over("item")).join(
        before, on=["item_id", "k"], how="left", maintain_order="left"
    )
    elsewhere = pl.col("position").ne_missing(pl.col("position_before")) | pl.col("offset").ne_missing(
        pl.col("offset_before")
    )
    return both.filter(elsewhere).rename({"k": "exposure"}).select(MOVED_SCHEMA.keys()).cast(MOVED_SCHEMA)
