"""The plan: every exposure, the assignment, and where they came from; a directory of Parquet and JSON.

Files: ``items.parquet`` (``items.ITEM_SCHEMA``), ``probes.parquet`` (``items.PROBE_SCHEMA``), ``exposures.parquet``
(``EXPOSURE_SCHEMA``) and ``manifest.json``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data import artifact
from data.artifact import Manifest
from data.contamination import ngram_counts
from data.errors import UserError
from data.order import Order
from data.tokenizer import Tokenizer
from insertion import design, schedule
from insertion.families.registry import OVERLAP, Ground, make
from insertion.items import ITEM_SCHEMA, Item, Probe, tokenize_items, tokenize_probes
from insertion.overlay import Overlay

log = logging.getLogger(__name__)

KIND = "plan"
VERSION = 1

EXPOSURE_SCHEMA = pl.Schema(
    {
        "position": pl.Int64(),
        "item": pl.Int32(),
        "offset": pl.Int32(),
        "boundary": pl.Boolean(),
    }
)
"""One row an exposure, ascending by position. ``item`` is a row of the items table; ``offset`` is where its first
token sits in the window; ``boundary`` says whether a document of the corpus ended just before it (otherwise the
plan puts an end-of-document token of its own at ``offset - 1``). An end-of-document token follows the item. The
corpus tokens displaced are the window's last ``tokens + 1`` (``+ 2`` without a boundary)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InsertionConfig:
    """What is inserted, how often, and by which randomisation."""

    families: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Family -> its settings."""
    doses: tuple[int, ...]
    """How many times an item is inserted; dose 0 is the never-inserted control."""
    items_per_dose: int | tuple[int, ...]
    """Items of each family that get a dose: one number for all doses, or one for each."""
    length_quantiles: int = 2
    """Strata of length inside each family. Above 1, the assignment depends on the items' lengths: plans that differ
    in wording fill the same windows, but not each with the same item."""
    heldout_probes: int = 64
    """Held-out documents whose likelihood is followed beside the items'."""
    seed: int
    """Of items, assignment and placement."""

    def __post_init__(self) -> None:
        if not self.families:
            raise UserError("insertion.families is empty; name at least one family")
        if 0 not in self.doses:
            raise UserError(
                f"insertion.doses={list(self.doses)} lacks 0; a design without controls shows nothing"
            )
        if len(self.doses) < 2 or len(set(self.doses)) < len(self.doses) or min(self.doses) < 0:
            raise UserError(
                f"insertion.doses={list(self.doses)} must be different numbers, 0 and at least one more"
            )
        if isinstance(self.items_per_dose, tuple) and len(self.items_per_dose) != len(self.doses):
            raise UserError(
                f"insertion.items_per_dose={list(self.items_per_dose)} must be one number, or one for each of "
                f"insertion.doses={list(self.doses)}"
            )
        if min(self.counts.values()) < 2:
            raise UserError(
                f"insertion.items_per_dose={self.items_per_dose}: below 2 nothing has an error bar"
            )
        if self.length_quantiles < 1:
            raise UserError(f"insertion.length_quantiles={self.length_quantiles} must be at least 1")

    @property
    def counts(self) -> dict[int, int]:
        """Dose -> items of each family, ascending."""
        each = self.items_per_dose
        counts = (each,) * len(self.doses) if isinstance(each, int) else each
        return dict(sorted(zip(self.doses, counts, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunShape:
    """What the plan needs to know of the run that will carry it out."""

    steps: int
    global_batch_size: int
    sequence_length: int

    @property
    def windows(self) -> int:
        """Windows in the run."""
        return self.steps * self.global_batch_size


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan in memory."""

    items: pl.DataFrame
    probes: pl.DataFrame
    exposures: pl.DataFrame
    """Ascending by position."""
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Identity of the plan."""
        return self.manifest.digest

    @property
    def shape(self) -> RunShape:
        """The run that the plan was made for."""
        return RunShape(**self.manifest.config["run"])

    def overlay(self) -> Overlay:
        """The overlay that carries the plan out."""
        lengths = self.items["tokens"].list.len().to_numpy()
        return Overlay(
            position=self.exposures["position"].to_numpy(),
            item=self.exposures["item"].to_numpy(),
            offset=self.exposures["offset"].to_numpy(),
            boundary=self.exposures["boundary"].to_numpy(),
            tokens=self.items["tokens"].explode().to_numpy(),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            eod=self.manifest.facts["eod"],
        )


def read(directory: Path) -> Plan:
    """Read a finished plan and check every file against its digest."""
    manifest = artifact.read(directory, kind=KIND, schema_version=VERSION)
    artifact.verify(directory, manifest)
    items, probes, exposures = (
        pl.read_parquet(directory / f"{name}.parquet") for name in ("items", "probes", "exposures")
    )
    return Plan(items, probes, exposures, manifest)


def plan_config(insertion: InsertionConfig, run: RunShape) -> dict[str, Any]:
    """The settings that determine a plan, as JSON values."""
    settings: dict[str, Any] = json.loads(json.dumps({"insertion": asdict(insertion), "run": asdict(run)}))
    return settings


def create(
    insertion: InsertionConfig,
    run: RunShape,
    *,
    order: Order,
    tokenizer: Tokenizer,
    heldout: list[tuple[str, str]],
    directory: Path,
) -> Manifest:
    """Make the plan: items, assignment, placement; and write it.

    Args:
        insertion: the design.
        run: steps, batch and sequence length of the training run.
        order: the corpus's windows.
        tokenizer: the corpus's.
        heldout: (digest, text) of the held-out documents.
        directory: where the plan goes.

    Raises:
        UserError: for an unknown family, an item that does not fit, more exposures than windows, or a run that
            leaves the epoch. Nothing is written then.
    """
    order.require(run.windows)
    per_family = sum(insertion.counts.values())

    def occurrences(spans: Sequence[npt.NDArray[np.int32]]) -> list[int]:
        counts = ngram_counts(order.prefix, spans, n=OVERLAP)
        return [int(found.max(initial=0)) for found in counts]

    ground = Ground(insertion.seed, tokenizer, sorted(heldout), occurrences)
    made = [
        item for name, given in insertion.families.items() for item in make(name, ground, per_family, given)
    ]
    items = tokenize_items(made, tokenizer)
    _refuse_misfits(items, run.sequence_length, tokenizer.vocab_size)
    # One stream of random numbers for each purpose: changing one part of a design leaves the others alone.
    assignment, timing, placing = (np.random.default_rng([insertion.seed, purpose]) for purpose in (1, 2, 3))
    items = _assigned(items, insertion, assignment)

    doses = items["dose"].to_numpy()
    item = np.repeat(np.arange(len(items), dtype=np.int32), doses)
    position = schedule.positions(len(item), run.windows, timing)
    lengths = items["tokens"].list.len().to_numpy().astype(np.int64)
    offset, boundary = schedule.offsets(
        position, lengths[item], run.sequence_length, order.boundaries, placing
    )
    exposures = pl.DataFrame(
        {"position": position, "item": item, "offset": offset, "boundary": boundary}
    ).cast(EXPOSURE_SCHEMA).sort("position")  # fmt: skip
    known = occurrences([np.array(tokens, dtype=np.int32) for tokens in items["tokens"]])
    in_corpus = [name for name, times in zip(items["item_id"], known, strict=True) if times]
    probes, left_out = _probes(made, heldout, insertion.heldout_probes, run.sequence_length, tokenizer)

    inserted = int(lengths[item].sum()) + len(item) + int((~boundary).sum())
    with artifact.writing(
        directory,
        kind=KIND,
        schema_version=VERSION,
        config=plan_config(insertion, run),
        inputs={"corpus": order.corpus_digest, "order": order.identity},
    ) as draft:
        items.write_parquet(draft.path / "items.parquet")
        probes.write_parquet(draft.path / "probes.parquet")
        exposures.write_parquet(draft.path / "exposures.parquet")
        draft.facts.update(
            items=len(items),
            exposures=len(exposures),
            probes=len(probes),
            probes_left_out=left_out,
            items_in_corpus=in_corpus,
            windows=run.windows,
            windows_perturbed=len(exposures),
            tokens_inserted=inserted,
            share_of_tokens_inserted=inserted / (run.windows * run.sequence_length),
            exposures_at_document_boundary=int(boundary.sum()),
            arms={
                f"dose {dose}": {
                    "items": int((doses == dose).sum()),
                    "exposures": int(doses[doses == dose].sum()),
                }
                for dose in insertion.counts
            },
            balance=design.balance(items, seed=insertion.seed),
            eod=tokenizer.eod,
        )
    assert draft.manifest is not None
    return draft.manifest


def _assigned(items: pl.DataFrame, insertion: InsertionConfig, rng: np.random.Generator) -> pl.DataFrame:
    families = items["family"].to_numpy()
    blocks = np.array(
        design.strata(families, items["tokens"].list.len().to_numpy(), insertion.length_quantiles)
    )
    doses = np.empty(len(items), dtype=np.int32)
    for name in insertion.families:
        members = families == name
        doses[members] = design.assign(blocks[members].tolist(), insertion.counts, rng)
    return items.with_columns(
        pl.Series("stratum", blocks.tolist()),
        pl.Series("arm", [f"dose {dose}" for dose in doses]),
        pl.Series("dose", doses),
    ).select(ITEM_SCHEMA.keys())


def _refuse_misfits(items: pl.DataFrame, sequence_length: int, vocab_size: int) -> None:
    """Refuse items that no window can hold, or whose tokens the model does not have."""
    # Room for one token before, and an end-of-document token on either side.
    longest = sequence_length - 2
    long = items.filter(pl.col("tokens").list.len() > longest)
    if len(long):
        worst = long.sort(pl.col("tokens").list.len()).row(-1, named=True)
        raise UserError(
            f"{len(long)} of {len(items)} items are longer than a window: item {worst['item_id']} of family "
            f"{worst['family']} has {len(worst['tokens'])} tokens, and train.sequence_length={sequence_length} "
            f"takes up to {longest}; shorten the items or raise train.sequence_length"
        )
    top = items.filter(pl.col("tokens").list.max() >= vocab_size)
    if len(top):
        raise UserError(f"item {top['item_id'][0]} has token ids beyond the vocabulary of {vocab_size}")


def _probes(
    made: list[Item], heldout: list[tuple[str, str]], count: int, sequence_length: int, tokenizer: Tokenizer
) -> tuple[pl.DataFrame, list[str]]:
    asked: list[tuple[str | None, str, Probe]] = [
        (item.id, item.family, probe) for item in made for probe in item.probes
    ]
    taken = {item.provenance for item in made}
    spare = [text for digest, text in sorted(heldout) if f"held-out document {digest}" not in taken]
    for text in spare[:count]:
        opening = tokenizer.decode(tokenizer.encode(text)[: sequence_length // 2])
        asked.append((None, "heldout", Probe("heldout", "", opening)))
    return tokenize_probes(asked, tokenizer)
