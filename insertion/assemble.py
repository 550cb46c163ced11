"""One design made into tables: items with their arms, exposures with times and places, probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion import design, placements, preflight, schedule, variants
from palimpsest.insertion.arms import Arm
from palimpsest.insertion.families.registry import FamilyContext, Reference, make
from palimpsest.insertion.items import ITEM_SCHEMA, Item, Probe, tokenize_items, tokenize_probes
from palimpsest.insertion.settings import InsertionConfig, RunShape
from palimpsest.insertion.variants import Kept, Pattern

EXPOSURE_SCHEMA = pl.Schema(
    {
        "position": pl.Int64(),
        "item": pl.Int32(),
        "wording": pl.Int32(),
        "offset": pl.Int32(),
        "lead": pl.Boolean(),
        "trail": pl.Boolean(),
        "cut": pl.Int32(),
        "overwrite": pl.Boolean(),
        "loss": pl.Int8(),
    }
)
"""One row an exposure, ascending by position and offset. ``item`` and ``wording`` are rows of their tables; ``offset``
is where the first item token sits in the finished window (0: it is not predicted); ``lead`` and ``trail`` say whether
the plan puts an end-of-document token before and after it; ``cut`` corpus tokens are removed at the window's head;
``overwrite`` replaces the corpus tokens in its place instead of shifting them; ``loss`` is 0 where all of the item's
tokens count, 1 where none does, and K where one in K does not (``overlay.counted``). The corpus tokens displaced are
the ``cut`` first ones and, without ``overwrite``, as many of the last ones as the window would be too long."""


@dataclass(frozen=True, slots=True)
class Made:
    """A design in tables. Items, wordings and exposures refer to each other by row."""

    made: list[Item]
    items: pl.DataFrame
    wordings: pl.DataFrame
    exposures: pl.DataFrame
    probes: pl.DataFrame
    facts: dict[str, Any]


def assemble(
    name: str,
    insertion: InsertionConfig,
    run: RunShape,
    *,
    order: Windows,
    tokenizer: Tokenizer,
    heldout: Sequence[tuple[str, str]],
    reference: Callable[[str], Reference] | None = None,
    model: Pattern | None = None,
) -> Made:
    """Make items, assignment and placement of one design.

    Args:
        name: of the experiment that it is, which goes before the names of its items, arms and strata; empty for none.
        insertion: the design.
        run: steps, batch and sequence length of the training run.
        order: the corpus's windows.
        tokenizer: the corpus's.
        heldout: (digest, text) of the held-out documents.
        reference: opens the model at a path, for families that sample from one.
        model: the plan that this one is a variant of.

    Raises:
        UserError: see ``plan.create``.
    """
    basis = family_context(insertion, order, tokenizer, heldout, reference)
    screened = preflight.screen(
        [
            (family, insertion.size(family), partial(_make, family, basis, given))
            for family, given in insertion.families.items()
        ],
        partial(tokenize_items, tokenizer=tokenizer),
        insertion.preflight,
        _limits(insertion, run, tokenizer, basis.occurrences),
    )
    items, wordings = screened.items, screened.wordings
    given = None if insertion.placements is None else placements.read(insertion.placements)
    losses = None
    if insertion.likelihood_model is not None:
        scorer = basis.reference(insertion.likelihood_model)
        losses = np.array([scorer.loss(text) for text in items["text"]])
    rng = np.random.default_rng([insertion.seed, 1])
    items, assigned = _assigned(items, insertion, rng, model, given, losses)
    if given is not None and placements.positioned(given):
        placed = placements.exposures(given, items, wordings, insertion, run, order)
        codes = np.array([arm.skipped for _, arm in insertion.arms()])[assigned]
        exposures = placed.with_columns(loss=codes[placed["item"]]).cast(EXPOSURE_SCHEMA)
    else:
        exposures = _exposures(items, assigned, wordings, insertion, run, order, tokenizer, model)
    asked = [(item.id, item.family, probe) for item in screened.made for probe in item.probes]
    probes, left_out = tokenize_probes(asked, tokenizer)
    balance = design.balance(items, losses, seed=insertion.seed)
    counts = {
        arm: {"items": int(members), "exposures": int(members) * one.dose}
        for (arm, one), members in zip(
            insertion.arms(), np.bincount(assigned, minlength=len(insertion.arms())), strict=True
        )
    }
    facts = {
        "probes_left_out": left_out,
        "findings": screened.reported,
        "dropped": screened.dropped,
        "balance": balance,
        "arms": counts,
    }
    if name:
        before = f"{name}:"
        ids = pl.format(before + "{}", "item_id").alias("item_id")
        items = items.with_columns(ids, pl.format(before + "{}", "stratum").alias("stratum"))
        items = items.with_columns(pl.format(before + " {}", "arm").alias("arm"))
        probes = probes.with_columns(ids, pl.format(before + "{}", "probe_id").alias("probe_id"))
        facts["arms"] = {f"{before} {arm}": one for arm, one in counts.items()}
        facts["balance"] = [row | {"covariate": f"{before}{row['covariate']}"} for row in balance]
        facts["probes_left_out"] = [f"{before}{line}" for line in left_out]
        for kind, lines_of in (("findings", screened.reported), ("dropped", screened.dropped)):
            facts[kind] = {found: [f"{before}{line}" for line in lines] for found, lines in lines_of.items()}
    facts |= totals(wordings, exposures, insertion.max_share, run, f".experiments.{name}" if name else "")
    return Made(screened.made, items, wordings, exposures, probes, facts)


def joined(parts: Sequence[Made]) -> Made:
    """Independent designs as one: rows are renumbered, nothing else changes.

    Raises:
        UserError: if two have an item in common.
    """
    if len(parts) == 1:
        return parts[0]
    items, wordings = 0, 0
    tables: list[tuple[pl.DataFrame, pl.DataFrame]] = []
    for part in parts:
        tables.append(
            (
                part.wordings.with_columns(pl.col("item") + items),
                part.exposures.with_columns(pl.col("item") + items, pl.col("wording") + wordings),
            )
        )
        items, wordings = items + len(part.items), wordings + len(part.wordings)
    texts = pl.concat([own for own, _ in tables])
    table = pl.concat([part.items for part in parts])
    if len(twice := texts.filter(pl.col("text").is_duplicated()).sort("text")):
        one, other = (table["item_id"][int(row)] for row in twice["item"][:2])
        raise UserError(
            f"insertion.experiments: items {one} and {other} have the same text; give the experiments different seeds "
            "or families"
        )
    facts: dict[str, Any] = {"findings": {}, "dropped": {}, "arms": {}, "balance": [], "probes_left_out": []}
    for part in parts:
        facts["arms"] |= part.facts["arms"]
        facts["balance"] += part.facts["balance"]
        facts["probes_left_out"] += part.facts["probes_left_out"]
        for kind in ("findings", "dropped"):
            for name, lines in part.facts[kind].items():
                facts[kind].setdefault(name, []).extend(lines)
    return Made(
        [item for part in parts for item in part.made],
        table,
        texts,
        pl.concat([own for _, own in tables]).sort("position", "offset"),
        pl.concat([part.probes for part in parts]),
        facts,
    )


def family_context(
    insertion: InsertionConfig,
    order: Windows,
    tokenizer: Tokenizer,
    heldout: Sequence[tuple[str, str]],
    reference: Callable[[str], Reference] | None = None,
) -> FamilyContext:
    """What the families of a plan may draw on."""

    def occurrences(spans: Sequence[npt.NDArray[np.int32]]) -> list[int]:
        return [
            sum(found)
            for found in zip(*(preflight.occurrences(p, spans) for p in order.prefixes), strict=True)
        ]

    windows = insertion.window_slice
    own = sorted(heldout)[windows.number :: windows.of]
    basis = FamilyContext(insertion.seed, tokenizer, own, occurrences)
    return replace(basis, reference=reference) if reference else basis


def totals(
    wordings: pl.DataFrame, exposures: pl.DataFrame, max_share: float, run: RunShape, where: str = ""
) -> dict[str, Any]:
    """How much of the run the exposures are.

    Raises:
        UserError: if they are more than ``max_share`` of its tokens; ``where`` is what of ``insertion`` says so.
    """
    lengths = wordings["tokens"].list.len()[exposures["wording"]]
    inserted = int(lengths.to_numpy().sum()) + int(
        exposures.select(pl.col("lead", "trail").sum()).sum_horizontal()[0]
    )
    share = inserted / (len(run.positions) * run.sequence_length)
    if share > max_share:
        raise UserError(
            f"the plan inserts {share:.1%} of the run's tokens, more than insertion{where}.max_share="
            f"{max_share:.0%}; lower insertion{where}.doses, train longer, or raise insertion{where}.max_share"
        )
    return {
        "exposures": len(exposures),
        "windows": len(run.positions),
        "windows_perturbed": exposures["position"].n_unique(),
        "tokens_inserted": inserted,
        "share_of_tokens_inserted": share,
        "exposures_at_document_boundary": int((exposures["trail"] & ~exposures["lead"]).sum()),
        "exposures_with_unpredicted_first_token": int((exposures["offset"] == 0).sum()),
    }


def _assigned(
    items: pl.DataFrame,
    insertion: InsertionConfig,
    rng: np.random.Generator,
    model: Pattern | None,
    given: pl.DataFrame | None,
    losses: npt.NDArray[np.float64] | None,
) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
    """Items with stratum, arm and dose, and the number of each one's arm."""
    families = items["family"].to_numpy()
    unit, first = design.clusters(items)
    size = np.bincount(unit)
    own = [f"{f}/{s}" if s else f for f, s in items[first].select("family", "stratum").iter_rows()]
    lengths = np.bincount(unit, weights=items["length"].to_numpy()) / size
    strata = design.strata(np.array(own), lengths, insertion.length_quantiles)
    if losses is not None:
        likely = np.bincount(unit, weights=losses) / size
        strata = design.strata(np.array(strata), likely, insertion.likelihood_quantiles, "likelihood")
    blocks = np.array(strata)[unit]
    assigned = np.empty(len(items), dtype=np.int64)
    if model is not None:
        assigned = variants.arms(model, items, [name for name, _ in insertion.arms()])
    if given is not None:
        assigned = placements.arms(given, items, insertion)
    for name in insertion.families if model is None and given is None else ():
        members = families == name
        ids = items["item_id"].filter(members).to_list()
        assigned[members] = _arms_of(name, ids, blocks[members], unit[members], insertion, rng)
    arms = insertion.arms()
    table = items.with_columns(
        pl.Series("stratum", blocks.tolist()),
        pl.Series("arm", [arms[number][0] for number in assigned]),
        pl.Series("dose", [arms[number][1].dose for number in assigned], dtype=pl.Int32),
    )
    return table.select(ITEM_SCHEMA.keys()), assigned


def _arms_of(
    family: str,
    ids: list[str],
    blocks: npt.NDArray[np.str_],
    unit: npt.NDArray[np.int64],
    insertion: InsertionConfig,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Numbers of the arms of a family's items: those that are listed, and the others at random, a cluster at a time."""
    arms = np.full(len(ids), -1, dtype=np.int64)
    for number, (name, _) in enumerate(insertion.arms()):
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
        raise UserError(f"insertion.named_arms: a cluster of {family} is listed in several arms")
    return arms


def _exposures(
    items: pl.DataFrame,
    assigned: npt.NDArray[np.int64],
    wordings: pl.DataFrame,
    insertion: InsertionConfig,
    run: RunShape,
    order: Windows,
    tokenizer: Tokenizer,
    model: Pattern | None,
) -> pl.DataFrame:
    """Times, places and wordings of all exposures. Each purpose has random numbers of its own."""
    arms = [arm for _, arm in insertion.arms()]
    batch = run.global_batch_size
    table = _wanted(items, assigned, insertion, run)
    which = table["item"].to_numpy()
    arm_of = assigned[which]
    apart = np.where(np.array([arm.batch == "apart" for arm in arms], dtype=np.bool_)[arm_of], which, -1)
    low, high = table["low"].to_numpy(), table["high"].to_numpy()
    kept = None
    if model is not None:
        ids = items["item_id"].to_numpy()[which]
        number = table.select(pl.int_range(pl.len()).over("item")).to_series().to_numpy()
        kept = variants.keep(model, ids, number, low, high, batch=batch, apart=apart, insertion=insertion)
    position = schedule.place(
        low,
        high,
        slots=insertion.per_window,
        batch=batch,
        apart=apart,
        rng=np.random.default_rng([insertion.seed, 4]),
        windows=insertion.window_slice,
        kept=None if kept is None else kept.position,
    )
    ranked = np.argsort(position, kind="stable")
    chosen = table["wording"].to_numpy()[ranked]
    lengths = wordings["tokens"].list.len().to_numpy().astype(np.int64)[chosen]
    places = schedule.locate(
        arms,
        arm_of[ranked],
        position[ranked],
        lengths,
        sequence_length=run.sequence_length,
        starts=_starts(order, tokenizer),
        rng=np.random.default_rng([insertion.seed, 5]),
    )
    if model is not None and kept is not None:
        own = Kept(kept.row[ranked], kept.position[ranked])
        places = variants.same_places(model, own, position[ranked], lengths, places, insertion)
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


def _wanted(
    items: pl.DataFrame, assigned: npt.NDArray[np.int64], insertion: InsertionConfig, run: RunShape
) -> pl.DataFrame:
    """Item, interval of positions (``low``, ``high``) and wording of every exposure, by item."""
    batch = run.global_batch_size
    item, low, high, wording = ([np.empty(0, dtype=np.int64)] for _ in range(4))
    first = np.concatenate([[0], np.cumsum(items["wordings"].to_numpy())])
    for number, (_, arm) in enumerate(insertion.arms()):
        members = np.flatnonzero(assigned == number)
        rng = np.random.default_rng([insertion.seed, 2, number])
        earliest, end = schedule.intervals(
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
    """Rows of the wordings table, (items x dose) flat: which wording each exposure of an arm uses."""
    if arm.wording == "verbatim":
        return np.repeat(first[members], arm.dose)
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


def _starts(order: Windows, tokenizer: Tokenizer) -> Callable[[str, schedule.Integers], tuple[Any, Any]]:
    """Where documents, sentences or words start in windows."""

    def starts(kind: str, at: schedule.Integers) -> tuple[schedule.Integers, schedule.Integers]:
        if kind == "boundary":
            return order.boundaries(at)
        texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
        opens = np.array([text[:1].isspace() and bool(text.strip()) for text in texts])
        closes = np.array([text.rstrip()[-1:] in {".", "!", "?"} for text in texts])
        found = []
        for position in at.tolist():
            window = order.window(position)
            begins = opens[window[1:]] & (closes[window[:-1]] if kind == "sentence" else True)
            found.append(np.flatnonzero(begins) + 1)
        splits = np.concatenate([[0], np.cumsum([len(own) for own in found])])
        return splits, np.concatenate([*found, np.empty(0, dtype=np.int64)]).astype(np.int64)

    return starts


def _make(name: str, family_context: FamilyContext, given: Mapping[str, Any], count: int) -> Sequence[Item]:
    return make(name, family_context, count, given)


def _limits(
    insertion: InsertionConfig,
    run: RunShape,
    tokenizer: Tokenizer,
    occurrences: Callable[[Sequence[npt.NDArray[np.int32]]], list[int]],
) -> preflight.Limits:
    return preflight.Limits(
        # Each with end-of-document tokens on either side, and one token of the corpus before them.
        longest=run.sequence_length // insertion.per_window - 2,
        because=f"train.sequence_length={run.sequence_length} with insertion.per_window={insertion.per_window}",
        vocab_size=tokenizer.vocab_size,
        occurrences=occurrences,
    )


def heldout_probes(
    made: Sequence[Item],
    heldout: Sequence[tuple[str, str]],
    count: int,
    sequence_length: int,
    tokenizer: Tokenizer,
) -> pl.DataFrame:
    """Probes of held-out documents that no item was made of."""
    taken = {item.provenance for item in made}
    spare = [text for digest, text in sorted(heldout) if f"held-out document {digest}" not in taken]
    asked: list[tuple[str | None, str, Probe]] = []
    for text in spare[:count]:
        opening = tokenizer.decode(tokenizer.encode(text)[: sequence_length // 2])
        asked.append((None, "heldout", Probe("heldout", "", opening)))
    return tokenize_probes(asked, tokenizer)[0]
