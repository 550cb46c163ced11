"""The plan: every exposure, the assignment, and where they came from; a directory of Parquet and JSON.

Files: ``items.parquet`` (``items.ITEM_SCHEMA``), ``wordings.parquet`` (``items.WORDING_SCHEMA``), ``probes.parquet``
(``items.PROBE_SCHEMA``), ``exposures.parquet`` (``EXPOSURE_SCHEMA``), ``edits.parquet`` (``interventions.EDIT_SCHEMA``)
and ``manifest.json``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data import artifact
from data.artifact import Manifest
from data.errors import UserError
from data.mixture import Windows
from data.tokenizer import Tokenizer
from insertion import design, interventions, preflight, schedule
from insertion.arms import FACTORS, Arm, Counts, NamedArm, Phase, items_of_doses, product
from insertion.families.registry import Ground, Reference, files_of, make
from insertion.interventions import Intervention
from insertion.items import ITEM_SCHEMA, Item, Probe, tokenize_items, tokenize_probes
from insertion.overlay import Overlay
from insertion.preflight import PreflightConfig

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
        "loss": pl.Int8(),
    }
)
"""One row an exposure, ascending by position and offset. ``item`` and ``wording`` are rows of their tables; ``offset``
is where the first item token sits in the finished window (0: it is not predicted); ``lead`` and ``trail`` say whether
the plan puts an end-of-document token before and after it; ``cut`` corpus tokens are removed at the window's head;
``overwrite`` replaces the corpus tokens in its place instead of shifting them; ``loss`` is 0 where all of the item's
tokens count, 1 where none does, and K where one in K does not (``overlay.counted``). The corpus tokens displaced are
the ``cut`` first ones and, without ``overwrite``, as many of the last ones as the window would be too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InsertionConfig:
    """What is inserted, how often, when and where, and by which randomisation."""

    families: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Family -> its settings."""
    doses: tuple[int, ...]
    """How many times an item is inserted; dose 0 is the never-inserted control."""
    items_per_dose: Counts | Mapping[str, Counts] = 0
    """Items of each family in each arm of a dose: one number for all doses, one for each, or ``hubble:N``
    (``insertion.arms.items_of_doses``); a mapping gives every family its own."""
    named_arms: Mapping[str, NamedArm] = field(default_factory=dict)
    """Arms by name, where they are no product; then ``doses`` is empty and ``items_per_dose`` is not used."""
    phase: tuple[Phase, ...] = (Phase(),)
    """This and the following are the factors besides the dose: every level of one is crossed with all levels of the
    others. What the levels mean is said in ``insertion.arms.Arm``."""
    spacing: tuple[str, ...] = ("uniform",)
    position: tuple[str, ...] = ("boundary",)
    displace: tuple[str, ...] = ("tail",)
    frame: tuple[str, ...] = ("document",)
    wording: tuple[str, ...] = ("verbatim",)
    batch: tuple[str, ...] = ("any",)
    loss: tuple[str, ...] = ("counted",)
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
    interventions: Mapping[str, Intervention] = field(default_factory=dict)
    """Changes to the corpus's own text, by name."""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    """What to do about items that are too long, in the corpus already, or alike."""
    seed: int
    """Of items, assignment and placement."""

    def __post_init__(self) -> None:
        if not self.families:
            raise UserError("insertion.families is empty; name at least one family")
        doses = (
            sorted({arm.dose for arm in self.named_arms.values()}) if self.named_arms else list(self.doses)
        )
        if self.named_arms and self.doses:
            raise UserError(
                f"insertion.named_arms and insertion.doses={list(self.doses)} are two designs; to use the named arms "
                "write insertion.doses=[]"
            )
        if 0 not in doses:
            raise UserError(f"insertion.doses={doses} lacks 0; a design without controls shows nothing")
        if len(doses) < 2 or len(set(doses)) < len(doses) or min(doses) < 0:
            raise UserError(f"insertion.doses={doses} must be different numbers, 0 and at least one more")
        if isinstance(self.items_per_dose, Mapping) and (
            lacking := [name for name in self.families if name not in self.items_per_dose]
        ):
            raise UserError(f"insertion.items_per_dose has no entry for family {lacking[0]}")
        for name, value in (("length_quantiles", self.length_quantiles), ("per_window", self.per_window)):
            if value < 1:
                raise UserError(f"insertion.{name}={value} must be at least 1")
        if self.per_window > 1 and {arm.displace for _, arm in self.arms() if arm.dose} != {"tail"}:
            raise UserError(
                f"insertion.per_window={self.per_window} needs insertion.displace=[tail]: exposures that trim or "
                "overwrite would cut into each other"
            )
        self.arms()  # checks every combination
        for family in self.families:
            if not self.named_arms and min(self.counts(family).values()) < 2:
                raise UserError(
                    f"insertion.items_per_dose={self.items_per_dose}: below 2 nothing has an error bar"
                )

    def arms(self) -> list[tuple[str, Arm]]:
        """All arms with their names, dose 0 first."""
        factors = {name: getattr(self, name) for name in FACTORS}
        arms = product(self.doses, factors)
        if self.named_arms:
            arms = [(name, arm.arm(factors, name)) for name, arm in self.named_arms.items()]
            arms.sort(key=lambda entry: entry[1].dose > 0)
        if not self.hold_last:
            return arms
        return [
            (n, Arm(**{**_fields(a), "hold_last": self.hold_last})) if a.dose else (n, a) for n, a in arms
        ]

    def counts(self, family: str) -> dict[int, int]:
        """Number of an arm -> items of a family that the lot puts into it."""
        if self.named_arms:
            return {n: self.named_arms[name].drawn for n, (name, _) in enumerate(self.arms())}
        given = self.items_per_dose
        per_dose = items_of_doses(given[family] if isinstance(given, Mapping) else given, self.doses)
        return {number: per_dose[arm.dose] for number, (_, arm) in enumerate(self.arms())}

    def arm_sizes(self, family: str) -> list[int]:
        """Items of a family in each arm."""
        if self.named_arms:
            return [self.named_arms[name].size for name, _ in self.arms()]
        return list(self.counts(family).values())

    def size(self, family: str) -> int:
        """Items that a family makes."""
        listed = max((arm.reach for arm in self.named_arms.values()), default=0)
        return max(sum(self.arm_sizes(family)), listed)


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
    edits: pl.DataFrame
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


def require_order(plan: Plan, order: Windows) -> None:
    """Check that a plan was made for these windows.

    Raises:
        UserError: if it was not.
    """
    if plan.manifest.inputs["order"] != order.identity:
        raise UserError("the plan was made for another corpus or order; run launch/plan.py again")


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
    insertion: InsertionConfig,
    order: Windows,
    tokenizer: Tokenizer,
    heldout: Sequence[tuple[str, str]],
    reference: Callable[[str], Reference] | None = None,
) -> Ground:
    """What the families of a plan may draw on."""

    def occurrences(spans: Sequence[npt.NDArray[np.int32]]) -> list[int]:
        return [
            sum(found)
            for found in zip(*(preflight.occurrences(p, spans) for p in order.prefixes), strict=True)
        ]

    basis = Ground(insertion.seed, tokenizer, sorted(heldout), occurrences)
    return replace(basis, reference=reference) if reference else basis


def create(
    insertion: InsertionConfig,
    run: RunShape,
    *,
    order: Windows,
    tokenizer: Tokenizer,
    heldout: list[tuple[str, str]],
    directory: Path,
    reference: Callable[[str], Reference] | None = None,
) -> Manifest:
    """Make the plan: items, assignment, placement; and write it.

    Args:
        insertion: the design.
        run: steps, batch and sequence length of the training run.
        order: the corpus's windows.
        tokenizer: the corpus's.
        heldout: (digest, text) of the held-out documents.
        directory: where the plan goes.
        reference: opens the model at a path, for families that sample from one.

    Raises:
        UserError: for an unknown family, an item that does not fit, more exposures than windows, or a run that
            leaves the epoch. Nothing is written then.
    """
    order.require(run.windows)
    arms = insertion.arms()

    basis = ground(insertion, order, tokenizer, heldout, reference)
    screened = preflight.screen(
        [
            (name, insertion.size(name), partial(_make, name, basis, given))
            for name, given in insertion.families.items()
        ],
        partial(tokenize_items, tokenizer=tokenizer),
        insertion.preflight,
        _limits(insertion, run, tokenizer, basis.occurrences),
    )
    made, items, wordings = screened.made, screened.items, screened.wordings
    items, assigned = _assigned(items, insertion, np.random.default_rng([insertion.seed, 1]))
    exposures = _exposures(items, assigned, wordings, insertion, run, order, tokenizer)
    probes, left_out = _probes(made, heldout, insertion.heldout_probes, run.sequence_length, tokenizer)

    edits, changes = interventions.edits(
        insertion.interventions,
        order,
        tokenizer,
        [text for _, text in sorted(heldout)],
        steps=run.steps,
        batch=run.global_batch_size,
    )
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
            ("edits", edits),
        ):
            table.write_parquet(draft.path / f"{name}.parquet")
        draft.facts.update(
            _facts(items, wordings, exposures, insertion, run),
            probes=len(probes),
            probes_left_out=left_out,
            interventions=changes,
            found=screened.reported,
            dropped=screened.dropped,
            items_alike=preflight.alike(items, wordings),
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
        assigned[members] = _arms_of(
            name, items["item_id"].filter(members).to_list(), blocks[members], insertion, rng
        )
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
    insertion: InsertionConfig,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Numbers of the arms of a family's items: those that are listed, and the others by lot."""
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
            f"are to be drawn by lot; the first that is not listed is {ids[rest[0]] if len(rest) else 'none'}"
        )
    if len(rest):
        arms[rest] = design.assign(blocks[rest].tolist(), {k: n for k, n in counts.items() if n}, rng)
    return arms


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
            "loss": np.array([arm.skipped for arm in arms], dtype=np.int8)[arm_of[ranked]],
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


def _make(name: str, ground: Ground, given: Mapping[str, Any], count: int) -> Sequence[Item]:
    return make(name, ground, count, given)


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
