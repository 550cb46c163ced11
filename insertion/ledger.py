"""The ledger: a record of the windows that the trainer consumed.

Every window that is handed to the model gets a digest, and every planned span in it is checked, before the step
is taken. Records are keyed by position, never by rank. At each checkpoint the records since the last one are
written as one *part*: a directory ``<first step>-<end step>`` with ``windows.parquet`` and ``exposures.parquet``,
whose manifest names the digest of the part before it, and the steps that were skipped. A checkpoint names the last
part that belongs to it; parts beyond it were never committed and are discarded on resume.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.insertion.items import span_hash
from palimpsest.insertion.overlay import Overlay
from palimpsest.insertion.plan import Plan

KIND = "ledger"
VERSION = 2

WINDOW_SCHEMA = pl.Schema({"position": pl.Int64(), "digest": pl.UInt64()})
"""Columns of consumed windows, one row per window, ascending by position."""

EXPOSURE_SCHEMA = pl.Schema(
    {
        "position": pl.Int64(),
        "item_id": pl.String(),
        "offset": pl.Int32(),
        "length": pl.Int32(),
        "hash": pl.UInt64(),
    }
)
"""Columns of consumed exposures, one row per exposure; the hash is of its tokens in the batch."""


def window_digest(
    window: npt.NDArray[np.int64], loss_mask: npt.NDArray[np.bool_] | npt.NDArray[np.float32]
) -> int:
    """XXH3-64 of a window's L + 1 tokens (int32, little-endian) and its L loss flags (packed bits).

    Where a loss has a weight other than 0 and 1, all L weights (float32, little-endian) follow.
    """
    digest = xxhash.xxh3_64(np.ascontiguousarray(window, dtype="<i4").tobytes())
    flags = loss_mask != 0
    digest.update(np.packbits(flags).tobytes())
    if loss_mask.dtype != np.bool_ and (loss_mask != flags).any():
        digest.update(np.ascontiguousarray(loss_mask, dtype="<f4").tobytes())
    return digest.intdigest()


class PlanViolation(RuntimeError):
    """Error: a batch differs from the plan, so that the step must not be taken."""


@dataclass
class Recorder:
    """Recorder that checks and records the windows which one rank passes to the model.

    Args:
        plan: the plan, or None for the twin.
        global_batch_size: windows per step.
        rank: rank of this process, for messages.
    """

    plan: Plan | None
    global_batch_size: int
    rank: int
    _positions: list[int] = field(default_factory=list)
    _digests: list[int] = field(default_factory=list)
    _exposures: list[tuple[int, str, int, int, int]] = field(default_factory=list)
    # The recorder reads the plan for itself: what the loader applied is not taken at its word.
    _planned: Overlay = field(default_factory=Overlay.empty)
    _hashes: list[int] = field(default_factory=list)
    _ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.plan is not None:
            self._planned = self.plan.overlay()
            self._hashes = self.plan.wordings["hash"].to_list()
            self._ids = self.plan.items["item_id"].to_list()

    def record(
        self,
        positions: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        loss_mask: npt.NDArray[np.float32],
    ) -> None:
        """Check and record one micro-batch, just before it is handed to the model.

        Args:
            positions: (B,) sample indices.
            tokens: (B, L) input ids.
            labels: (B, L) target ids.
            loss_mask: (B, L) weight of each target's loss, or flags.

        Raises:
            PlanViolation: naming item, step, rank and row.
        """
        if not np.array_equal(tokens[:, 1:], labels[:, :-1]):
            raise PlanViolation(
                f"rank {self.rank}: labels are not the tokens shifted by one at positions {positions.tolist()}"
            )
        windows = np.concatenate([tokens, labels[:, -1:]], axis=1)
        for position, window, mask in zip(positions.tolist(), windows, loss_mask, strict=True):
            self._check(position, window, mask)
            self._positions.append(position)
            self._digests.append(window_digest(window, mask))

    def _check(self, position: int, window: npt.NDArray[np.int64], mask: npt.NDArray[np.float32]) -> None:
        self._check_edits(position, window, mask)
        for span in self._planned.spans(position):
            end = span.offset + span.length
            span_digest = span_hash(window[span.offset : end])
            where = (
                f"item {self._ids[span.item]}, step {position // self.global_batch_size}, rank {self.rank}, "
                f"row {position % self.global_batch_size}, offset {span.offset}"
            )
            if span_digest != self._hashes[span.wording]:
                raise PlanViolation(f"planned tokens are not in the batch: {where}; no step was taken")
            if not self._planned.framed(span, window):
                raise PlanViolation(
                    f"end-of-document tokens around the planned ones are missing: {where}; no step was taken"
                )
            # The token at offset k is the target at k - 1; a window's first token is no target.
            wanted = self._planned.counted(span)[int(span.offset == 0) :]
            wrong = mask[max(span.offset - 1, 0) : end - 1] != wanted
            if wrong.any():
                off = "off" if wanted[wrong].any() else "on"  # or weighs something else than 1
                raise PlanViolation(
                    f"the loss is {off} on planned tokens where the plan says otherwise: {where}; no step was taken"
                )
            self._exposures.append((position, self._ids[span.item], span.offset, span.length, span_digest))

    def _check_edits(
        self, position: int, window: npt.NDArray[np.int64], mask: npt.NDArray[np.float32]
    ) -> None:
        edits = self._planned.edited(position)
        if not edits:
            return
        origin = self._planned.origins(position, len(window))
        for start, tokens, weight in edits:
            left = np.flatnonzero(
                (origin >= start) & (origin < start + len(tokens))
            )  # what exposures leave of it
            where = (
                f"step {position // self.global_batch_size}, rank {self.rank}, row "
                f"{position % self.global_batch_size}, offset {start}"
            )
            if not np.array_equal(window[left], tokens[origin[left] - start]):
                raise PlanViolation(
                    f"a planned change of the corpus's text is not in the batch: {where}; no step was taken"
                )
            given = mask[left[left > 0] - 1]
            if (wrong := given != weight).any():
                raise PlanViolation(
                    f"the loss on changed text has the weight {float(given[wrong][0]):g} where the plan says "
                    f"{weight:g}: {where}; no step was taken"
                )

    def drain(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return windows and exposures recorded since the last call, as two tables, and drop them here."""
        windows = pl.DataFrame(
            {"position": self._positions, "digest": self._digests}, schema=WINDOW_SCHEMA
        )  # fmt: skip
        exposures = pl.DataFrame(self._exposures, schema=EXPOSURE_SCHEMA, orient="row")
        self._positions, self._digests, self._exposures = [], [], []
        return windows, exposures


def part_name(start: int, stop: int) -> str:
    """Directory name of the part for the steps ``start <= step < stop``."""
    return f"{start:08d}-{stop:08d}"


def write_part(
    directory: Path,
    *,
    start: int,
    stop: int,
    global_batch_size: int,
    windows: Iterable[pl.DataFrame],
    exposures: Iterable[pl.DataFrame],
    previous: str,
    plan: str,
    order: str,
    skipped: Sequence[int] = (),
) -> str:
    """Write the part for the steps ``start <= step < stop`` from the tables of all data-parallel ranks.

    Args:
        directory: directory of the ledger.
        start: first step.
        stop: end step.
        global_batch_size: windows a step.
        windows: tables of ``WINDOW_SCHEMA``.
        exposures: tables of ``EXPOSURE_SCHEMA``.
        previous: digest of the part before, or an empty string.
        plan: digest of the plan, or an empty string for the twin.
        order: digest of the order in which windows of the corpus are read.
        skipped: steps whose windows were read and whose update was skipped.

    Returns:
        Digest of the part.

    Raises:
        PlanViolation: if the ranks' records are not exactly the steps' windows, each once.
    """
    consumed = pl.concat(list(windows)).sort("position")
    expected = np.arange(start * global_batch_size, stop * global_batch_size)
    if not np.array_equal(consumed["position"].to_numpy(), expected):
        raise PlanViolation(f"the windows of steps {start} to {stop} were not consumed exactly once each")
    with artifact.writing(
        directory / part_name(start, stop),
        kind=KIND,
        schema_version=VERSION,
        config={
            "start": start,
            "stop": stop,
            "global_batch_size": global_batch_size,
            "skipped": list(skipped),
        },
        inputs={"previous": previous, "plan": plan, "order": order},
    ) as draft:
        consumed.write_parquet(draft.path / "windows.parquet")
        pl.concat(list(exposures)).sort("position", "offset").write_parquet(draft.path / "exposures.parquet")
    assert draft.manifest is not None
    return draft.manifest.digest


def discard_beyond(directory: Path, step: int) -> None:
    """Delete the parts that end after ``step``, whose checkpoint was never finished."""
    for part in directory.glob("*") if directory.is_dir() else ():
        name = re.fullmatch(r"(\d{8})-(\d{8})", part.name)
        if name is not None and int(name[2]) > step:
            shutil.rmtree(part)


@dataclass(frozen=True, slots=True)
class Ledger:
    """All committed parts of a run."""

    windows: pl.DataFrame
    exposures: pl.DataFrame
    steps: int
    """Finished steps covered by the ledger."""
    global_batch_size: int
    head: str
    """Digest of the last part, which includes the digests of all parts before it."""
    plan: str
    order: str
    heads: Mapping[int, str] = field(default_factory=dict)
    """Finished steps -> digest of the part that ends there, which the checkpoint of that step must name."""
    begin: int = 0
    """First step covered; for a run that starts from another's checkpoint, that checkpoint's step."""
    skipped: tuple[int, ...] = ()
    """Steps whose update was skipped because the loss or gradient was not finite; their windows were read."""


def concatenated(runs: Sequence[tuple[Ledger, int]], plan: str) -> Ledger:
    """Ledgers of consecutive runs joined into one.

    Args:
        runs: ledgers in order, each with the step at which the next run begins.
        plan: digest of the joint plan.
    """
    last, end = runs[-1]
    ends = [pl.col("position") < stop * one.global_batch_size for one, stop in runs]
    return replace(
        last,
        windows=pl.concat([one.windows.filter(done) for (one, _), done in zip(runs, ends, strict=True)]),
        exposures=pl.concat([one.exposures.filter(done) for (one, _), done in zip(runs, ends, strict=True)]),
        steps=end,
        plan=plan,
        begin=runs[0][0].begin,
        skipped=tuple(step for one, stop in runs for step in one.skipped if step < stop),
    )


def read(directory: Path, *, head: str) -> Ledger:
    """Read a ledger up to the part whose digest a checkpoint names.

    Raises:
        UserError: if a part is missing, was changed, or does not continue the one before.
    """
    parts = sorted(p for p in directory.glob("*-*") if re.fullmatch(r"\d{8}-\d{8}", p.name))
    begin = int(parts[0].name[:8]) if parts else 0
    step, previous = begin, ""
    windows, exposures = [pl.DataFrame(schema=WINDOW_SCHEMA)], [pl.DataFrame(schema=EXPOSURE_SCHEMA)]
    heads = {begin: ""}
    skipped: list[int] = []
    same: tuple[int, str, str] | None = None
    for part in parts:
        if previous == head:
            break
        manifest = artifact.read(part, kind=KIND, schema_version=VERSION)
        artifact.verify(part, manifest)
        if manifest.config["start"] != step or manifest.inputs["previous"] != previous:
            raise UserError(f"ledger part {part} does not continue the part before it; the ledger is damaged")
        own = (manifest.config["global_batch_size"], manifest.inputs["plan"], manifest.inputs["order"])
        if same is not None and own != same:
            raise UserError(
                f"ledger part {part} belongs to another plan, order or batch than the parts before it"
            )
        same = own
        step, previous = manifest.config["stop"], manifest.digest
        heads[step] = previous
        skipped += manifest.config["skipped"]
        windows.append(pl.read_parquet(part / "windows.parquet"))
        exposures.append(pl.read_parquet(part / "exposures.parquet"))
    if previous != head or same is None:
        raise UserError(f"ledger {directory} does not contain the part {head} that the checkpoint names")
    return Ledger(
        pl.concat(windows),
        pl.concat(exposures),
        step,
        same[0],
        head,
        same[1],
        same[2],
        heads,
        begin,
        tuple(skipped),
    )
