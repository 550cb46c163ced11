"""The plan: assignment and exposures with their provenance, as a directory of Parquet and JSON files.

Files: ``items.parquet`` (``items.ITEM_SCHEMA``), ``wordings.parquet`` (``items.WORDING_SCHEMA``), ``probes.parquet``
(``items.PROBE_SCHEMA``), ``exposures.parquet`` (``exposures.EXPOSURE_SCHEMA``), ``edits.parquet``
(``interventions.EDIT_SCHEMA``), for a variant ``moved.parquet`` (``placement.paired.MOVED_SCHEMA``), and
``manifest.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError, nearest
from palimpsest.data.mixture import Windows
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion import interventions, preflight
from palimpsest.insertion.assemble import assemble, family_context, heldout_probes, joined, totals
from palimpsest.insertion.exposures import EXPOSURE_SCHEMA
from palimpsest.insertion.families.registry import Reference, digest_of, files_of
from palimpsest.insertion.overlay import Overlay
from palimpsest.insertion.placement import paired
from palimpsest.insertion.placement.interface import Setting
from palimpsest.insertion.settings import InsertionConfig, RunShape, identifying

KIND = "plan"
VERSION = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan in memory."""

    items: pl.DataFrame
    wordings: pl.DataFrame
    probes: pl.DataFrame
    exposures: pl.DataFrame
    edits: pl.DataFrame
    manifest: Manifest

    def item_named(self, name: str) -> str:
        """Id of an item, by that id or by the one that it has in the user's table: ``keeper`` for ``table-keeper``.

        Raises:
            UserError: if there is no such item.
        """
        known = self.items["item_id"]
        if name in known:
            return name
        own = known.filter(known.str.ends_with(f"-{name}"))
        if len(own) != 1:
            raise UserError(f"item={name}: the plan has no such item{nearest(name, known.to_list())}")
        return str(own[0])

    @property
    def digest(self) -> str:
        """Digest that identifies the plan."""
        return self.manifest.digest

    @property
    def shape(self) -> RunShape:
        """Shape of the run that the plan was made for."""
        return RunShape(**self.manifest.config["run"])

    def reshuffled(self, source: npt.NDArray[np.int64]) -> Plan:
        """The plan for windows that are read in another order.

        Args:
            source: for each position of the new order, the position of its window in the order that the plan was made
                for, (positions,).
        """
        place = np.argsort(source)

        def moved(rows: pl.DataFrame, within: str) -> pl.DataFrame:
            own = place[rows["position"].to_numpy()]
            return rows.with_columns(position=pl.Series(own, dtype=pl.Int64)).sort("position", within)

        return replace(self, exposures=moved(self.exposures, "offset"), edits=moved(self.edits, "start"))

    def overlay(self) -> Overlay:
        """The overlay that applies the plan."""
        lengths = self.wordings["tokens"].list.len().to_numpy()
        return Overlay(
            **{name: self.exposures[name].to_numpy() for name in EXPOSURE_SCHEMA},
            tokens=self.wordings["tokens"].explode().to_numpy(),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            eod=self.manifest.facts["eod"],
            edits=interventions.as_arrays(self.edits),
        )


def read(directory: Path) -> Plan:
    """Read a finished plan and check every file against its digest."""
    manifest = artifact.read(directory, kind=KIND, schema_version=VERSION)
    artifact.verify(directory, manifest)
    items, wordings, probes, exposures, edits = (
        pl.read_parquet(directory / f"{name}.parquet")
        for name in ("items", "wordings", "probes", "exposures", "edits")
    )
    return Plan(items, wordings, probes, exposures, edits, manifest)


@dataclass(frozen=True, slots=True)
class Before:
    """Run from whose checkpoint another run starts."""

    plan: Plan
    """Plan of the run; for a twin, of the perturbed run."""
    directory: Path
    perturbed: bool
    end: int
    """Step of the checkpoint."""


def history(plan: Plan) -> list[Before]:
    """The runs that a plan's run continues, from first to last."""
    runs: list[Before] = []
    while start := plan.manifest.facts["start_from"]:
        run, end = Path(start).parents[1], plan.shape.begin
        plan = read(run.parent / "plan")
        runs.append(Before(plan, run, run.name == "perturbed", end))
    return runs[::-1]


def same_order(plan: Plan) -> list[Before]:
    """The last of the runs that a plan's run continues and that read the same windows."""
    runs = history(plan)
    other = [
        k for k, run in enumerate(runs) if run.plan.manifest.inputs["order"] != plan.manifest.inputs["order"]
    ]
    return runs[other[-1] + 1 :] if other else runs


def earlier(plan: Plan) -> list[tuple[Plan, int]]:
    """Plans of the perturbed runs that a plan's run continues, from first to last, with the step at which each ends."""
    return [(before.plan, before.end) for before in same_order(plan) if before.perturbed]


def _changed_at_start(start_from: str | None, order: Windows, tokenizer: Tokenizer) -> list[str]:
    """Those of ``corpus`` and ``order`` that differ from the run of ``train.start_from``.

    Raises:
        UserError: if that run had another tokenizer.
    """
    if start_from is None or not (place := Path(start_from).parents[1].parent / "plan").is_dir():
        return []
    before = read(place).manifest
    if before.facts.get("tokenizer", tokenizer.digest) != tokenizer.digest:
        raise UserError(
            f"train.start_from={start_from} is of a run with another tokenizer; use its own: "
            "corpus.tokenizer.kind=file +corpus.tokenizer.path=.../tokenizer.json of its corpus"
        )
    if before.inputs["corpus"] != order.corpus_digest:
        return ["corpus", "order"]
    return ["order"] if before.inputs["order"] != order.identity else []


def concatenated(runs: list[Before]) -> Plan:
    """Joint plan of consecutive runs, each up to the step of its successor's start; doses count the exposures up to
    there.
    """
    items, wordings = 0, 0
    tables: list[Plan] = []
    for before in runs:
        plan, end = before.plan, before.end * before.plan.shape.global_batch_size
        done = pl.col("position") < (end if before.perturbed else 0)
        exposures, edits = plan.exposures.filter(done), plan.edits.filter(done)
        counts = np.bincount(exposures["item"].to_numpy(), minlength=len(plan.items)).astype(np.int32)
        moved = exposures.with_columns(pl.col("item") + items, pl.col("wording") + wordings)
        texts = plan.wordings.with_columns(pl.col("item") + items)
        own = plan.items.with_columns(dose=counts)
        tables.append(replace(plan, items=own, wordings=texts, exposures=moved, edits=edits))
        items, wordings = items + len(plan.items), wordings + len(plan.wordings)
    first, last = runs[0].plan.shape, runs[-1]
    run = asdict(first) | {"steps": last.end}
    manifest = replace(last.plan.manifest, config={**last.plan.manifest.config, "run": run})
    return Plan(
        pl.concat([one.items for one in tables]),
        pl.concat([one.wordings for one in tables]),
        pl.concat([one.probes for one in tables]),
        pl.concat([one.exposures for one in tables]),
        pl.concat([one.edits for one in tables]),
        manifest,
    )


def require_order(plan: Plan, order: Windows) -> None:
    """Check that a plan was made for these windows.

    Raises:
        UserError: if it was not.
    """
    if plan.manifest.inputs["order"] != order.identity:
        raise UserError("the plan was made for another corpus or order; run launch/plan.py again")


def plan_config(insertion: InsertionConfig, run: RunShape) -> dict[str, Any]:
    """The settings that determine a plan, as JSON values."""
    own = identifying(asdict(insertion))
    settings: dict[str, Any] = json.loads(json.dumps({"insertion": own, "run": asdict(run)}))
    return settings


def plan_inputs(insertion: InsertionConfig, order: Windows) -> dict[str, str]:
    """Digests of a plan's inputs other than settings: the corpus, its order, and the families' files."""
    files = {
        f"{experiment}{':' * bool(experiment)}{name}.{key}": digest
        for experiment, one in insertion.designs()
        for name, given in one.families.items()
        for key, digest in files_of(name, given).items()
    }
    model = {} if insertion.paired_with is None else {"paired_with": read(Path(insertion.paired_with)).digest}
    others = {
        f"{experiment}{':' * bool(experiment)}{key}": digest
        for experiment, one in insertion.designs()
        for key in ("placements", "likelihood_model")
        if (value := getattr(one, key)) and (digest := digest_of(value, f"insertion.{key}"))
    }
    return {"corpus": order.corpus_digest, "order": order.identity, **files, **model, **others}


def _paired_plan(insertion: InsertionConfig, run: RunShape, order: Windows) -> paired.PairedPlan | None:
    """The plan that this one is a variant of.

    Raises:
        UserError: if it was made for another run or corpus.
    """
    if insertion.paired_with is None:
        return None
    other = read(Path(insertion.paired_with))
    for name, value in asdict(run).items():
        if other.manifest.config["run"][name] != value:
            raise UserError(
                f"insertion.paired_with={insertion.paired_with}: that plan's run has {name}="
                f"{other.manifest.config['run'][name]}, this one {value}; only runs of one shape can be paired"
            )
    if other.manifest.inputs["order"] != order.identity:
        raise UserError(
            f"insertion.paired_with={insertion.paired_with}: that plan has another corpus or order"
        )
    settings = other.manifest.config["insertion"]
    if settings["experiments"]:
        raise UserError(
            f"insertion.paired_with={insertion.paired_with} has several experiments; name a plan of a single design"
        )
    return paired.paired_plan(other.items, other.wordings, other.exposures, settings)


def create(
    insertion: InsertionConfig,
    run: RunShape,
    *,
    order: Windows,
    tokenizer: Tokenizer,
    heldout: list[tuple[str, str]],
    directory: Path,
    reference: Callable[[str], Reference] | None = None,
    start_from: str | None = None,
) -> Manifest:
    """Create the plan (items, assignment, placement) and write it.

    Args:
        insertion: the design.
        run: steps, batch and sequence length of the training run.
        order: windows of the corpus.
        tokenizer: tokenizer of the corpus.
        heldout: (digest, text) of the held-out documents.
        directory: directory of the plan.
        reference: function that opens the model at a path, for families that sample from one.
        start_from: checkpoint that the run continues from.

    Raises:
        UserError: for an unknown family, an item that does not fit, more exposures than windows, or a run that
            leaves the epoch. Nothing is written then.
    """
    order.require(run.windows)
    changed_at_start = _changed_at_start(start_from, order, tokenizer)
    model = _paired_plan(insertion, run, order)
    parts = []
    for name, one in insertion.designs():
        context = family_context(one, order, tokenizer, heldout, reference)
        parts.append(assemble(name, Setting(one, run, order, tokenizer), context, model=model))
    whole = joined(parts)
    others = heldout_probes(whole.entries, heldout, insertion.heldout_probes, run.sequence_length, tokenizer)
    probes = pl.concat([whole.probes, others])
    edits, changes = interventions.edits(
        insertion.interventions,
        order,
        tokenizer,
        [text for _, text in sorted(heldout)],
        steps=run.steps,
        batch=run.global_batch_size,
        begin=run.begin,
    )
    with artifact.writing(
        directory,
        kind=KIND,
        schema_version=VERSION,
        config=plan_config(insertion, run),
        inputs=plan_inputs(insertion, order),
    ) as draft:
        for name, table in (
            ("items", whole.items),
            ("wordings", whole.wordings),
            ("probes", probes),
            ("exposures", whole.exposures),
            ("edits", edits),
        ):
            table.write_parquet(draft.path / f"{name}.parquet")
        if model is not None:
            changed = paired.moved(model, whole.items, whole.exposures)
            changed.write_parquet(draft.path / "moved.parquet")
            draft.facts["moved"] = len(changed)
        draft.facts.update(
            whole.facts,
            **totals(whole.wordings, whole.exposures, insertion.max_share, run),
            items=len(whole.items),
            probes=len(probes),
            interventions=changes,
            items_alike=preflight.alike(whole.items, whole.wordings),
            eod=tokenizer.eod,
            tokenizer=tokenizer.digest,
            start_from=start_from,
            changed_at_start=changed_at_start,
        )
    assert draft.manifest is not None
    return draft.manifest
