"""Tables of one design: items with their arms, exposures with times and places, probes."""

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
from palimpsest.insertion import design, fuzzy, preflight
from palimpsest.insertion.families.registry import FamilyContext, Reference, make
from palimpsest.insertion.items import (
    ITEM_SCHEMA,
    Item,
    Probe,
    require_questions,
    tokenize_items,
    tokenize_probes,
)
from palimpsest.insertion.placement.explicit import Explicit
from palimpsest.insertion.placement.interface import Placement, Setting
from palimpsest.insertion.placement.paired import Paired, PairedPlan
from palimpsest.insertion.placement.randomised import Randomised
from palimpsest.insertion.settings import InsertionConfig, RunShape


@dataclass(frozen=True, slots=True)
class PlanTables:
    """Items, wordings, exposures and probes of one design, as tables that refer to each other by row."""

    entries: list[Item]
    items: pl.DataFrame
    wordings: pl.DataFrame
    exposures: pl.DataFrame
    probes: pl.DataFrame
    facts: dict[str, Any]


def placement_of(setting: Setting, model: PairedPlan | None) -> Placement:
    """The placement method of a design.

    Args:
        setting: the design, the run and the corpus.
        model: the plan that this one is a variant of.
    """
    if setting.insertion.placements is not None:
        return Explicit(setting)
    return Randomised(setting) if model is None else Paired(setting, model)


def assemble(
    name: str, setting: Setting, context: FamilyContext, *, model: PairedPlan | None = None
) -> PlanTables:
    """Create items, assignment and placement of one design.

    Args:
        name: name of the experiment, which prefixes the names of its items, arms and strata; empty: no prefix.
        setting: the design, the run and the corpus.
        context: inputs of the families.
        model: the plan that this one is a variant of.

    Raises:
        UserError: see ``plan.create``.
    """
    insertion = setting.insertion
    screened = preflight.screen(
        [
            (family, insertion.size(family), partial(_make, family, context, given))
            for family, given in insertion.families.items()
        ],
        partial(tokenize_items, tokenizer=setting.tokenizer),
        insertion.preflight,
        _limits(setting, context.occurrences),
    )
    losses = None
    if insertion.likelihood_model is not None:
        scorer = context.reference(insertion.likelihood_model)
        losses = np.array([scorer.loss(text) for text in screened.items["text"]])
    placement = placement_of(setting, model)
    items = _stratified(screened.items, insertion, losses)
    assigned = placement.assign(items)
    items = items.with_columns(
        pl.Series("arm", [insertion.arms[number][0] for number in assigned]),
        pl.Series("dose", [insertion.arms[number][1].dose for number in assigned], dtype=pl.Int32),
    ).select(ITEM_SCHEMA.keys())
    items, wordings = fuzzy.with_variants(
        items,
        screened.wordings,
        [insertion.arms[number][1] for number in assigned],
        setting.tokenizer,
        seed=insertion.seed,
        longest=_limits(setting, context.occurrences).longest,
    )
    exposures = placement.expose(items, assigned, wordings)
    asked = [(item.id, item.family, probe) for item in screened.entries for probe in item.probes]
    probes, left_out = tokenize_probes(asked, setting.tokenizer)
    require_questions(screened.entries, probes, left_out)
    members = np.bincount(assigned, minlength=len(insertion.arms)).tolist()
    facts = {
        "probes_left_out": left_out,
        "findings": screened.reported,
        "dropped": screened.dropped,
        "balance": design.balance(items, losses, seed=insertion.seed),
        "arms": {
            arm: {"items": count, "exposures": count * one.dose}
            for (arm, one), count in zip(insertion.arms, members, strict=True)
        },
    }
    tables = PlanTables(screened.entries, items, wordings, exposures, probes, facts)
    if name:
        tables = _prefixed(tables, f"{name}:")
    where = f".experiments.{name}" if name else ""
    share = totals(tables.wordings, tables.exposures, insertion.max_share, setting.run, where)
    return replace(tables, facts=tables.facts | share)


def _stratified(
    items: pl.DataFrame, insertion: InsertionConfig, losses: npt.NDArray[np.float64] | None
) -> pl.DataFrame:
    """Items with their strata, which combine family, own stratum, and quantiles of length and likelihood (for a
    cluster, of their means).
    """
    unit, first = design.clusters(items)
    size = np.bincount(unit)
    own = [f"{f}/{s}" if s else f for f, s in items[first].select("family", "stratum").iter_rows()]
    lengths = np.bincount(unit, weights=items["length"].to_numpy()) / size
    strata = design.strata(np.array(own), lengths, insertion.length_quantiles)
    if losses is not None:
        likely = np.bincount(unit, weights=losses) / size
        strata = design.strata(np.array(strata), likely, insertion.likelihood_quantiles, "likelihood")
    return items.with_columns(pl.Series("stratum", np.array(strata)[unit].tolist()))


def _prefixed(tables: PlanTables, before: str) -> PlanTables:
    """Tables of one of several experiments, whose name prefixes those of its items, arms, strata and probes."""
    facts = tables.facts
    ids = pl.format(before + "{}", "item_id").alias("item_id")
    lines = {
        kind: {name: [f"{before}{line}" for line in of_name] for name, of_name in facts[kind].items()}
        for kind in ("findings", "dropped")
    }
    return replace(
        tables,
        items=tables.items.with_columns(
            ids,
            pl.format(before + "{}", "stratum").alias("stratum"),
            pl.format(before + " {}", "arm").alias("arm"),
        ),
        probes=tables.probes.with_columns(ids, pl.format(before + "{}", "probe_id").alias("probe_id")),
        facts=facts
        | lines
        | {
            "arms": {f"{before} {arm}": one for arm, one in facts["arms"].items()},
            "balance": [row | {"covariate": f"{before}{row['covariate']}"} for row in facts["balance"]],
            "probes_left_out": [f"{before}{line}" for line in facts["probes_left_out"]],
        },
    )


def joined(parts: Sequence[PlanTables]) -> PlanTables:
    """Concatenate the tables of independent designs; only row numbers change.

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
    return PlanTables(
        [item for part in parts for item in part.entries],
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
    """Inputs of the families of a design."""

    def occurrences(spans: Sequence[npt.NDArray[np.int32]]) -> list[int]:
        return [
            sum(counts)
            for counts in zip(*(preflight.occurrences(p, spans) for p in order.prefixes), strict=True)
        ]

    windows = insertion.window_slice
    own = sorted(heldout)[windows.number :: windows.of]
    basis = FamilyContext(insertion.seed, tokenizer, own, occurrences)
    return replace(basis, reference=reference) if reference else basis


def totals(
    wordings: pl.DataFrame, exposures: pl.DataFrame, max_share: float, run: RunShape, where: str = ""
) -> dict[str, Any]:
    """Counts of the exposures and their share of the run's tokens.

    Raises:
        UserError: if they are more than ``max_share`` of its tokens; ``where`` names the setting of ``insertion``.
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


def _make(name: str, context: FamilyContext, given: Mapping[str, Any], count: int) -> Sequence[Item]:
    return make(name, context, count, given)


def _limits(
    setting: Setting, occurrences: Callable[[Sequence[npt.NDArray[np.int32]]], list[int]]
) -> preflight.Limits:
    length, slots = setting.run.sequence_length, setting.insertion.per_window
    return preflight.Limits(
        # Each with end-of-document tokens on either side, and one token of the corpus before them.
        longest=length // slots - 2,
        because=f"train.sequence_length={length} with insertion.per_window={slots}",
        vocab_size=setting.tokenizer.vocab_size,
        occurrences=occurrences,
    )


def heldout_probes(
    items: Sequence[Item],
    heldout: Sequence[tuple[str, str]],
    count: int,
    sequence_length: int,
    tokenizer: Tokenizer,
) -> pl.DataFrame:
    """Probes of held-out documents from which no item was made."""
    taken = {item.provenance for item in items}
    spare = [text for digest, text in sorted(heldout) if f"held-out document {digest}" not in taken]
    asked: list[tuple[str | None, str, Probe]] = []
    for text in spare[:count]:
        opening = tokenizer.decode(tokenizer.encode(text)[: sequence_length // 2])
        asked.append((None, "heldout", Probe("heldout", "", opening)))
    return tokenize_probes(asked, tokenizer)[0]
