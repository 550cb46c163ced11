"""Randomised placement: arms inside strata with exact counts, windows and offsets at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion import design, fuzzy
from palimpsest.insertion.arms import Arm
from palimpsest.insertion.exposures import EXPOSURE_SCHEMA
from palimpsest.insertion.placement.interface import Integers, Setting
from palimpsest.insertion.placement.intervals import intervals
from palimpsest.insertion.placement.offsets import Places, locate
from palimpsest.insertion.placement.windows import place
from palimpsest.insertion.settings import InsertionConfig, RunShape


class Randomised:
    """``interface.Placement`` by random draws, with a separate random generator for each purpose."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def assign(self, items: pl.DataFrame) -> Integers:
        """Index of each item's arm in ``InsertionConfig.arms``; see ``interface.Placement``."""
        insertion = self.setting.insertion
        rng = np.random.default_rng([insertion.seed, 1])
        families, strata = items["family"].to_numpy(), items["stratum"].to_numpy()
        unit, _ = design.clusters(items)
        assigned = np.empty(len(items), dtype=np.int64)
        for name in insertion.families:
            members = families == name
            if insertion.coin_seed is not None:
                assigned[members] = _coins(name, unit[members], insertion)
                continue
            ids = items["item_id"].filter(members).to_list()
            assigned[members] = _arms_of(name, ids, strata[members], unit[members], insertion, rng)
        return assigned

    def expose(self, items: pl.DataFrame, assigned: Integers, wordings: pl.DataFrame) -> pl.DataFrame:
        """All exposures; see ``interface.Placement``."""
        insertion, run = self.setting.insertion, self.setting.run
        arms = [arm for _, arm in insertion.arms]
        table = _wanted(items, assigned, insertion, run)
        which = table["item"].to_numpy()
        arm_of = assigned[which]
        apart = np.where(np.array([arm.batch == "apart" for arm in arms], dtype=np.bool_)[arm_of], which, -1)
        table = table.with_columns(apart=apart)
        position = place(
            table["low"].to_numpy(),
            table["high"].to_numpy(),
            slots=insertion.per_window,
            batch=run.global_batch_size,
            apart=apart,
            rng=np.random.default_rng([insertion.seed, 4]),
            windows=insertion.window_slice,
            preset=self.given_windows(items, table),
        )
        ranked = np.argsort(position, kind="stable")
        chosen = table["wording"].to_numpy()[ranked]
        lengths = wordings["tokens"].list.len().to_numpy().astype(np.int64)[chosen]
        places = locate(
            arms,
            arm_of[ranked],
            position[ranked],
            lengths,
            sequence_length=run.sequence_length,
            starts=_starts(self.setting.order, self.setting.tokenizer),
            rng=np.random.default_rng([insertion.seed, 5]),
        )
        places = self.given_places(ranked, position[ranked], lengths, places)
        return pl.DataFrame(
            {
                "position": position[ranked],
                "item": which[ranked],
                "wording": chosen,
                "offset": places.offset,
                "lead": places.lead,
                "trail": places.trail,
                "cut": places.cut,
                "overwrite": places.overwrite,
                "loss": np.array([arm.skipped for arm in arms], dtype=np.int8)[arm_of[ranked]],
            }
        ).cast(EXPOSURE_SCHEMA).sort("position", "offset")  # fmt: skip

    def given_windows(self, items: pl.DataFrame, table: pl.DataFrame) -> Integers | None:
        """Given positions, (exposures,), -1 for positions to draw; None if all are drawn.

        Args:
            items: ``items.ITEM_SCHEMA``.
            table: ``item``, ``low``, ``high`` and ``apart`` (``windows.place``) of every exposure.
        """
        return None

    def given_places(self, ranked: Integers, at: Integers, lengths: Integers, places: Places) -> Places:
        """Places in the windows, with given places in place of the drawn ones.

        Args:
            ranked: (N,) rows of the exposures in the table of ``given_windows``.
            at: (N,) positions, ascending.
            lengths: (N,) tokens of the wordings.
            places: as drawn.
        """
        return places


def _coins(family: str, unit: npt.NDArray[np.int64], insertion: InsertionConfig) -> npt.NDArray[np.int64]:
    """Arms of a family's items, each cluster's drawn by itself."""
    counts = insertion.counts(family)
    own, of = np.unique(unit, return_inverse=True)
    rng = np.random.default_rng(
        [insertion.seed, 6, insertion.coin_seed or 0, xxhash.xxh3_64_intdigest(family.encode())]
    )
    shares = np.array(list(counts.values()), np.float64) / sum(counts.values())
    drawn = rng.choice(np.array(list(counts), np.int64), size=len(own), p=shares)
    return np.asarray(drawn[of], np.int64)


def _arms_of(
    family: str,
    ids: list[str],
    blocks: npt.NDArray[np.str_],
    unit: npt.NDArray[np.int64],
    insertion: InsertionConfig,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Indices of the arms of a family's items: listed items as listed, the others assigned at random, cluster by
    cluster.
    """
    arms = np.full(len(ids), -1, dtype=np.int64)
    for number, (name, _) in enumerate(insertion.arms):
        listed = insertion.named_arms[name].chosen(ids) if insertion.named_arms else None
        if listed is None:
            continue
        if (twice := [ids[row] for row in listed if arms[row] >= 0]) or len(set(listed)) < len(listed):
            raise UserError(
                f"insertion.named_arms.{name}.items: an item is listed twice ({twice or 'in this arm'})"
            )
        arms[listed] = number
    rest = np.flatnonzero(arms < 0)
    counts = insertion.counts(family)
    if len(rest) != sum(counts.values()):
        raise UserError(
            f"insertion.named_arms: {len(rest)} items of family {family} are not listed, and {sum(counts.values())} "
            f"are to be drawn at random; the first that is not listed is {ids[rest[0]] if len(rest) else 'none'}"
        )
    if len(rest):
        _, first, own, size = np.unique(
            unit[rest], return_index=True, return_inverse=True, return_counts=True
        )
        wanted = {k: n // int(size[0]) for k, n in counts.items() if n}
        if len(set(size.tolist())) > 1 or any(n % size[0] for n in counts.values()):
            raise UserError(
                f"insertion.families.{family}: clusters of {size.min()} to {size.max()} items cannot fill arms of "
                f"{', '.join(map(str, sorted(set(counts.values()))))} items exactly; make them all of one size that "
                "divides insertion.items_per_dose"
            )
        arms[rest] = design.assign(blocks[rest[first]].tolist(), wanted, rng)[own]
    if any(len(set(arms[unit == one].tolist())) > 1 for one in np.unique(unit)):
        raise UserError(
            f"insertion.named_arms: a cluster of {family} is listed in several arms; list it in one"
        )
    return arms


def _wanted(
    items: pl.DataFrame, assigned: npt.NDArray[np.int64], insertion: InsertionConfig, run: RunShape
) -> pl.DataFrame:
    """Item, interval of positions (``low``, ``high``) and wording of every exposure, by item."""
    batch = run.global_batch_size
    item, low, high, wording = ([np.empty(0, dtype=np.int64)] for _ in range(4))
    first = np.concatenate([[0], np.cumsum(items["wordings"].to_numpy())])
    for number, (_, arm) in enumerate(insertion.arms):
        members = np.flatnonzero(assigned == number)
        rng = np.random.default_rng([insertion.seed, 2, number])
        earliest, end = intervals(
            arm,
            len(members),
            steps=run.steps,
            batch=batch,
            tokens_a_step=batch * run.sequence_length,
            rng=rng,
            begin=run.begin,
        )
        item.append(np.repeat(members, arm.dose))
        low.append(earliest.ravel())
        high.append(end.ravel())
        wording.append(
            _wordings(arm, items, members, first, np.random.default_rng([insertion.seed, 3, number]))
        )
    columns = {"item": np.concatenate(item), "low": np.concatenate(low), "high": np.concatenate(high)}
    columns["wording"] = np.concatenate(wording)
    # By item, so that the placement of one does not depend on which arm has which number.
    return pl.DataFrame(columns).with_row_index("k").sort("item", "k")


def _wordings(
    arm: Arm,
    items: pl.DataFrame,
    members: npt.NDArray[np.intp],
    first: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Rows of the wordings table for the exposures of an arm, (items x dose) flattened."""
    if arm.wording == "verbatim":
        return np.repeat(first[members], arm.dose)
    if arm.replaced:
        return fuzzy.rows(arm, first[members], items["wordings"].to_numpy()[members])
    available = items["wordings"].to_numpy()[members]
    needed = arm.dose if arm.wording == "fresh" else int(arm.wording.split(":")[1])
    if len(members) and available.min() < needed:
        worst = members[int(available.argmin())]
        raise UserError(
            f"insertion.wording={arm.wording} at dose {arm.dose} needs {needed} wordings an item, but item "
            f"{items['item_id'][int(worst)]} has {available.min()}; give it more paraphrases or use verbatim"
        )
    rows = []
    for start, count in zip(first[members], available, strict=True):
        drawn = rng.permutation(int(count))[: max(needed, 1)]
        rows.append(start + drawn[np.arange(arm.dose) % max(len(drawn), 1)])
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)


def _starts(order: Windows, tokenizer: Tokenizer) -> Callable[[str, Integers], tuple[Any, Any]]:
    """Look-up of the offsets at which documents, sentences or words start in windows."""

    def starts(kind: str, at: Integers) -> tuple[Integers, Integers]:
        if kind == "boundary":
            return order.boundaries(at)
        texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
        opens = np.array([text[:1].isspace() and bool(text.strip()) for text in texts])
        closes = np.array([text.rstrip()[-1:] in {".", "!", "?"} for text in texts])
        looked_up = []
        for position in at.tolist():
            window = order.window(position)
            begins = opens[window[1:]] & (closes[window[:-1]] if kind == "sentence" else True)
            looked_up.append(np.flatnonzero(begins) + 1)
        splits = np.concatenate([[0], np.cumsum([len(own) for own in looked_up])])
        return splits, np.concatenate([*looked_up, np.empty(0, dtype=np.int64)]).astype(np.int64)

    return starts
