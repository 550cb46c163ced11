"""The plan: every exposure, the assignment, and where they came from; a directory of Parquet and JSON.

Files: ``items.parquet`` (``items.ITEM_SCHEMA``), ``wordings.parquet`` (``items.WORDING_SCHEMA``), ``probes.parquet``
(``items.PROBE_SCHEMA``), ``exposures.parquet`` (``EXPOSURE_SCHEMA``) and ``manifest.json``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
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
from data.mixture import Windows
from data.tokenizer import Tokenizer
from insertion import design, schedule
from insertion.arms import FACTORS, Arm, Phase, product
from insertion.families.registry import OVERLAP, Ground, files_of, make
from insertion.items import ITEM_SCHEMA, Item, Probe, tokenize_items, tokenize_probes
from insertion.overlay import Overlay

log = logging.getLogger(__name__)

KIND = "plan"
VERSION = 3

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
    }
)
"""One row an exposure, ascending by position and offset. ``item`` and ``wording`` are rows of their tables; ``offset``
is where the first item token sits in the finished window (0: it is not predicted); ``lead`` and ``trail`` say whether
the plan puts an end-of-document token before and after it; ``cut`` corpus tokens are removed at the window's head;
``overwrite`` replaces the corpus tokens in its place instead of shifting them. The corpus tokens displaced are the
``cut`` first ones and, without ``overwrite``, as many of the last ones as the window would be too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InsertionConfig:
    """What is inserted, how often, when and where, and by which randomisation."""

    families: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Family -> its settings."""
    doses: tuple[int, ...]
    """How many times an item is inserted; dose 0 is the never-inserted control."""
    items_per_dose: int | tuple[int, ...]
    """Items of each family in each arm of a dose: one number for all doses, or one for each."""
    phase: tuple[Phase, ...] = (Phase(),)
    """This and the following are the factors besides the dose: every level of one is crossed with all levels of the
    others. What the levels mean is said in ``insertion.arms.Arm``."""
    spacing: tuple[str, ...] = ("uniform",)
    position: tuple[str, ...] = ("boundary",)
    displace: tuple[str, ...] = ("tail",)
    frame: tuple[str, ...] = ("document",)
    wording: tuple[str, ...] = ("verbatim",)
    batch: tuple[str, ...] = ("any",)
    hold_last: int = 0
    """Steps; see ``Arm.hold_last``."""
    per_window: int = 1
    """Exposures that one window takes."""
    max_share: float = 0.2
    """Largest share of the run's tokens that may be inserted."""
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
        if min(self._per_dose().values()) < 2:
            raise UserError(
                f"insertion.items_per_dose={self.items_per_dose}: below 2 nothing has an error bar"
            )
        for name, value in (("length_quantiles", self.length_quantiles), ("per_window", self.per_window)):
            if value < 1:
                raise UserError(f"insertion.{name}={value} must be at least 1")
        if self.per_window > 1 and set(self.displace) != {"tail"}:
            raise UserError(
                f"insertion.per_window={self.per_window} needs insertion.displace=[tail]: exposures that trim or "
                "overwrite would cut into each other"
            )
        self.arms()  # checks every combination

    def _per_dose(self) -> dict[int, int]:
        each = self.items_per_dose
        counts = (each,) * len(self.doses) if isinstance(each, int) else each
        return dict(sorted(zip(self.doses, counts, strict=True)))

    def arms(self) -> list[tuple[str, Arm]]:
        """All arms with their names, dose 0 first."""
        factors = {name: getattr(self, name) for name in FACTORS}
        arms = product(self.doses, factors)
        if not self.hold_last:
            return arms
        return [
            (n, Arm(**{**_fields(a), "hold_last": self.hold_last})) if a.dose else (n, a) for n, a in arms
        ]

    def counts(self) -> dict[int, int]:
        """Number of an arm -> items of each family in it."""
        per_dose = self._per_dose()
        return {number: per_dose[arm.dose] for number, (_, arm) in enumerate(self.arms())}


def _fields(arm: Arm) -> dict[str, Any]:
    return {name: getattr(arm, name) for name in ("dose", *FACTORS)}


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
    wordings: pl.DataFrame
    probes: pl.DataFrame
    exposures: pl.DataFrame
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
        lengths = self.wordings["tokens"].list.len().to_numpy()
        return Overlay(
            **{name: self.exposures[name].to_numpy() for name in EXPOSURE_SCHEMA},
            tokens=self.wordings["tokens"].explode().to_numpy(),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            eod=self.manifest.facts["eod"],
        )


def read(directory: Path) -> Plan:
    """Read a finished plan and check every file against its digest."""
    manifest = artifact.read(directory, kind=KIND, schema_version=VERSION)
    artifact.verify(directory, manifest)
    items, wordings, probes, exposures = (
        pl.read_parquet(directory / f"{name}.parquet")
        for name in ("items", "wordings", "probes", "exposures")
    )
    return Plan(items, wordings, probes, exposures, manifest)


def plan_config(insertion: InsertionConfig, run: RunShape) -> dict[str, Any]:
    """The settings that determine a plan, as JSON values."""
    settings: dict[str, Any] = json.loads(json.dumps({"insertion": asdict(insertion), "run": asdict(run)}))
    return settings


def plan_inputs(insertion: InsertionConfig, order: Windows) -> dict[str, str]:
    """Digests of what determines a plan besides its settings: the corpus, its order, and the families' files."""
    files = {
        f"{name}.{key}": digest
        for name, given in insertion.families.items()
        for key, digest in files_of(name, given).items()
    }
    return {"corpus": order.corpus_digest, "order": order.identity, **files}


def ground(
    insertion: InsertionConfig, order: Windows, tokenizer: Tokenizer, heldout: Sequence[tuple[str, str]]
) -> Ground:
    """What the families of a plan may draw on."""

    def occurrences(spans: Sequence[npt.NDArray[np.int32]]) -> list[int]:
        return [sum(found) for found in zip(*(_occurrences(p, spans) for p in order.prefixes), strict=True)]

    return Ground(insertion.seed, tokenizer, sorted(heldout), occurrences)


def create(
    insertion: InsertionConfig,
    run: RunShape,
    *,
    order: Windows,
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
    arms = insertion.arms()
    per_family = sum(insertion.counts().values())

    basis = ground(insertion, order, tokenizer, heldout)
    made = [
        item for name, given in insertion.families.items() for item in make(name, basis, per_family, given)
    ]
    items, wordings = tokenize_items(made, tokenizer)
    _refuse_misfits(items, wordings, insertion, run.sequence_length, tokenizer.vocab_size)
    items, assigned = _assigned(items, insertion, np.random.default_rng([insertion.seed, 1]))
    exposures = _exposures(items, assigned, wordings, insertion, run, order, tokenizer)
    probes, left_out = _probes(made, heldout, insertion.heldout_probes, run.sequence_length, tokenizer)

    verbatim = wordings.filter(pl.col("wording") == 0)["tokens"]
    known = basis.occurrences([np.array(tokens, dtype=np.int32) for tokens in verbatim])
    with artifact.writing(
        directory,
        kind=KIND,
        schema_version=VERSION,
        config=plan_config(insertion, run),
        inputs=plan_inputs(insertion, order),
    ) as draft:
        for name, table in (
            ("items", items),
            ("wordings", wordings),
            ("probes", probes),
            ("exposures", exposures),
        ):
            table.write_parquet(draft.path / f"{name}.parquet")
        draft.facts.update(
            _facts(items, wordings, exposures, insertion, run),
            probes=len(probes),
            probes_left_out=left_out,
            items_in_corpus=[name for name, times in zip(items["item_id"], known, strict=True) if times],
            items_alike=_alike(items, wordings),
            balance=design.balance(items, seed=insertion.seed),
            arms={
                name: {
                    "items": int((assigned == number).sum()),
                    "exposures": int((assigned == number).sum()) * arm.dose,
                }
                for number, (name, arm) in enumerate(arms)
            },
            eod=tokenizer.eod,
        )
    assert draft.manifest is not None
    return draft.manifest


def _occurrences(prefix: Path, spans: Sequence[npt.NDArray[np.int32]]) -> list[int]:
    """How often the corpus has each span's most frequent run of 12 tokens, or all of a shorter span."""
    found = np.zeros(len(spans), dtype=np.int64)
    sizes = np.array([min(len(span), OVERLAP) for span in spans], dtype=np.int64)
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        for row, counts in zip(
            rows, ngram_counts(prefix, [spans[int(k)] for k in rows], n=size), strict=True
        ):
            found[row] = counts.max(initial=0)
    return found.tolist()


def _alike(items: pl.DataFrame, wordings: pl.DataFrame) -> list[str]:
    """Pairs of items that share a run of 12 tokens: what one of them teaches, the other shows."""
    owners: dict[tuple[int, ...], int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for item, tokens in wordings.select("item", "tokens").iter_rows():
        for start in range(len(tokens) - OVERLAP + 1):
            owner = owners.setdefault(tuple(tokens[start : start + OVERLAP]), item)
            if owner != item:
                pairs[owner, item] = None
    names = items["item_id"].to_list()
    return [f"{names[one]} and {names[other]}" for one, other in pairs]


def _facts(
    items: pl.DataFrame,
    wordings: pl.DataFrame,
    exposures: pl.DataFrame,
    insertion: InsertionConfig,
    run: RunShape,
) -> dict[str, Any]:
    lengths = wordings["tokens"].list.len()[exposures["wording"]]
    inserted = int(lengths.to_numpy().sum()) + int(
        exposures.select(pl.col("lead", "trail").sum()).sum_horizontal()[0]
    )
    share = inserted / (run.windows * run.sequence_length)
    if share > insertion.max_share:
        raise UserError(
            f"the plan inserts {share:.1%} of the run's tokens, more than insertion.max_share="
            f"{insertion.max_share:.0%}; lower insertion.doses, train longer, or raise insertion.max_share"
        )
    return {
        "items": len(items),
        "exposures": len(exposures),
        "windows": run.windows,
        "windows_perturbed": exposures["position"].n_unique(),
        "tokens_inserted": inserted,
        "share_of_tokens_inserted": share,
        "exposures_at_document_boundary": int((exposures["trail"] & ~exposures["lead"]).sum()),
        "exposures_with_unpredicted_first_token": int((exposures["offset"] == 0).sum()),
    }


def _assigned(
    items: pl.DataFrame, insertion: InsertionConfig, rng: np.random.Generator
) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
    """Items with stratum, arm and dose, and the number of each one's arm."""
    families = items["family"].to_numpy()
    own = [f"{f}/{s}" if s else f for f, s in items.select("family", "stratum").iter_rows()]
    blocks = np.array(design.strata(np.array(own), items["length"].to_numpy(), insertion.length_quantiles))
    assigned = np.empty(len(items), dtype=np.int64)
    for name in insertion.families:
        members = families == name
        assigned[members] = design.assign(blocks[members].tolist(), insertion.counts(), rng)
    arms = insertion.arms()
    table = items.with_columns(
        pl.Series("stratum", blocks.tolist()),
        pl.Series("arm", [arms[number][0] for number in assigned]),
        pl.Series("dose", [arms[number][1].dose for number in assigned], dtype=pl.Int32),
    )
    return table.select(ITEM_SCHEMA.keys()), assigned


def _exposures(
    items: pl.DataFrame,
    assigned: npt.NDArray[np.int64],
    wordings: pl.DataFrame,
    insertion: InsertionConfig,
    run: RunShape,
    order: Windows,
    tokenizer: Tokenizer,
) -> pl.DataFrame:
    """Times, places and wordings of all exposures. Each purpose has random numbers of its own."""
    arms = [arm for _, arm in insertion.arms()]
    batch = run.global_batch_size
    item, low, high, wording = ([np.empty(0, dtype=np.int64)] for _ in range(4))
    first = np.concatenate([[0], np.cumsum(items["wordings"].to_numpy())])
    for number, arm in enumerate(arms):
        members = np.flatnonzero(assigned == number)
        rng = np.random.default_rng([insertion.seed, 2, number])
        earliest, end = schedule.intervals(
            arm,
            len(members),
            steps=run.steps,
            batch=batch,
            tokens_a_step=batch * run.sequence_length,
            rng=rng,
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
    table = pl.DataFrame(columns).with_row_index("k").sort("item", "k")
    which = table["item"].to_numpy()
    arm_of = assigned[which]
    apart = np.array([arm.batch == "apart" for arm in arms], dtype=np.bool_)[arm_of]
    position = schedule.place(
        table["low"].to_numpy(),
        table["high"].to_numpy(),
        slots=insertion.per_window,
        batch=batch,
        apart=np.where(apart, which, -1),
        rng=np.random.default_rng([insertion.seed, 4]),
    )
    ranked = np.argsort(position, kind="stable")
    chosen = table["wording"].to_numpy()[ranked]
    places = schedule.locate(
        arms,
        arm_of[ranked],
        position[ranked],
        wordings["tokens"].list.len().to_numpy().astype(np.int64)[chosen],
        sequence_length=run.sequence_length,
        starts=_starts(order, tokenizer),
        rng=np.random.default_rng([insertion.seed, 5]),
    )
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
        }
    ).cast(EXPOSURE_SCHEMA).sort("position", "offset")  # fmt: skip


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


def _refuse_misfits(
    items: pl.DataFrame,
    wordings: pl.DataFrame,
    insertion: InsertionConfig,
    sequence_length: int,
    vocab_size: int,
) -> None:
    """Refuse items that no window can hold, or whose tokens the model does not have."""
    lengths = wordings["tokens"].list.len()
    # Each with end-of-document tokens on either side, and one token of the corpus before them.
    longest = sequence_length // insertion.per_window - 2
    if (long := lengths > longest).any():
        worst = int(lengths.arg_max() or 0)
        name, family = items.select("item_id", "family").row(wordings["item"][worst])
        raise UserError(
            f"{long.sum()} of {len(wordings)} texts are longer than a window: item {name} of family {family} has "
            f"{lengths[worst]} tokens, and train.sequence_length={sequence_length} with insertion.per_window="
            f"{insertion.per_window} takes up to {longest}; shorten the items or raise train.sequence_length"
        )
    top = wordings.filter(pl.col("tokens").list.max() >= vocab_size)
    if len(top):
        name = items["item_id"][top["item"][0]]
        raise UserError(f"item {name} has token ids beyond the vocabulary of {vocab_size}")


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
