"""Progress of a running experiment as JSON values, for ``launch/watch.py``.

Each call reads only new data: the ends of the logs, and new parts of ledgers and scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from palimpsest.analysis.metrics import METRICS, Parameters, compute
from palimpsest.analysis.run.figures import PRIMARY
from palimpsest.analysis.run.files import PAIR, RunFiles
from palimpsest.analysis.scoring import scores
from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError
from palimpsest.insertion import ledger
from palimpsest.pretrain import saved
from palimpsest.pretrain.saved import parse

LOSSES = ("loss", "loss_corpus", "loss_inserted")
"""Names of the training losses shown, nats/token: over all tokens, corpus tokens, inserted tokens."""
POINTS = 400
"""Largest number of points in a curve; longer curves are averaged."""
_RECENT = 20
"""Number of last steps over which the current speed is averaged."""
STRETCHES = 100
"""Number of equal intervals of steps in which exposures are counted."""


class Log:
    """Incremental reader of a growing ``metrics.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] = (0, 0)
        self.records: list[dict[str, Any]] = []
        self.damaged = 0
        """Number of complete lines that cannot be parsed."""

    def read(self) -> None:
        """Read new lines. A file that was truncated or replaced, as on resuming a training, is read again from its
        start.
        """
        try:
            with self.path.open("rb") as file:
                inode, start = self._file
                status = self.path.stat()
                if status.st_ino != inode or status.st_size < start:
                    inode, start, self.records, self.damaged = status.st_ino, 0, [], 0
                file.seek(start)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            self._file, self.records, self.damaged = (0, 0), [], 0
            return
        self._file = (inode, start + len(whole) + len(newline))
        lines = [parse(line) for line in whole.split(b"\n") if line]
        self.damaged += lines.count(None)
        self.records += [record for record in lines if record is not None]


class Progress:
    """Reader of a running experiment's progress.

    Args:
        run: the run; a plan is enough.
    """

    def __init__(self, run: RunFiles) -> None:
        self.run = run
        self._logs = {which: Log(run.directory / which / "metrics.jsonl") for which in PAIR}
        self._scored: dict[str, pl.DataFrame] = {}
        self._audited: tuple[int, dict[str, Any] | None] = (0, None)
        self._parts: dict[str, dict[str, tuple[Manifest, Mapping[str, Any]]]] = {which: {} for which in PAIR}

    def read(self) -> dict[str, Any]:
        """The run's current state.

        Returns:
            JSON values: ``run``, ``steps`` (of a whole run), ``runs`` (name -> step, tokens, loss, tokens_per_second,
            seconds_left), ``losses`` (name -> columns step, loss, ...), ``exposures`` (planned, done, to_come, arms,
            timeline), ``probes`` (metric, unit, rows: run, step, dose, value, n), ``audit`` (verdict, checks) and
            ``damaged`` (log -> number of lines that cannot be read).
        """
        for log in self._logs.values():
            log.read()
        return {
            "run": self.run.name,
            "directory": str(self.run.directory.absolute()),
            "steps": self.run.plan.shape.steps,
            "runs": {which: self._at(log.records) for which, log in self._logs.items() if log.records},
            "losses": {which: curve(log.records) for which, log in self._logs.items() if log.records},
            "exposures": self._exposures(),
            "probes": self._probes(),
            "audit": self._audit(),
            "damaged": {str(log.path): log.damaged for log in self._logs.values() if log.damaged},
        }

    def _step(self, which: str) -> int:
        records = self._logs[which].records
        return int(records[-1]["step"]) if records else 0

    def _at(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        last = records[-1]
        # The median: a step that wrote a checkpoint says nothing of the next ones.
        speed = median([record["tokens_per_second"] for record in records[-_RECENT:]])
        left = (self.run.plan.shape.steps - last["step"]) * last["tokens"] / last["step"]
        return {
            "step": last["step"],
            "tokens": last["tokens"],
            "loss": next((one["loss"] for one in reversed(records) if one["loss"] is not None), None),
            "tokens_per_second": speed,
            "seconds_left": left / speed,
        }

    @cached_property
    def _when(self) -> pl.DataFrame:
        """Arm and step of every planned exposure."""
        arms = self.run.plan.items.select("item_id", "arm")
        return self.run.exposures.select("item_id", "step").join(arms, on="item_id").select("arm", "step")

    def _exposures(self) -> dict[str, Any]:
        steps, done = self.run.plan.shape.steps, pl.col("step") < self._step("perturbed")
        counted = self._when.group_by("arm").agg(planned=pl.len(), done=done.sum())
        arms = (
            self.run.plan.items.group_by("arm", "dose")
            .agg(items=pl.len())
            .join(counted, on="arm", how="left")
        )
        arms = arms.with_columns(pl.col("planned", "done").fill_null(0)).sort("dose", "arm")
        bins = min(STRETCHES, steps)
        timeline = np.bincount(self._when["step"].to_numpy() * bins // steps, minlength=bins)
        count = int(arms["done"].sum())
        return {
            "planned": self._when.height,
            "done": count,
            "to_come": self._when.height - count,
            "arms": arms.to_dicts(),
            "timeline": timeline.tolist(),
        }

    def _probes(self) -> dict[str, Any]:
        frames = []
        for which in PAIR:
            for place, manifest in scores.parts(self.run.directory / "scores" / which):
                if manifest.inputs["items"] != self.run.plan.digest:
                    raise UserError(f"{place} was scored with another plan; run launch/score.py again")
                key = f"{which} {manifest.digest}"
                if key not in self._scored:
                    self._scored[key] = self._by_dose(which, place, manifest)
                frames.append(self._scored[key])
        rows: list[dict[str, Any]] = []
        if frames:  # a checkpoint may be scored in several parts
            by = pl.concat(frames).group_by("run", "step", "dose").agg(pl.col("total", "n").sum())
            by = by.select("run", "step", "dose", value=pl.col("total") / pl.col("n"), n="n")
            rows = by.sort("run", "step", "dose").to_dicts()
        metric = METRICS[PRIMARY]
        return {"metric": metric.name, "formula": metric.formula, "unit": metric.unit, "rows": rows}

    def _by_dose(self, which: str, place: Path, manifest: Manifest) -> pl.DataFrame:
        """Sum and count of the values by dose in one part of the scores: run, step, dose, total, n."""
        scores_of_part = pl.read_parquet(place / scores.FILE).with_columns(
            run=pl.lit(which), step=pl.lit(manifest.facts["step"], dtype=pl.Int64)
        )
        probes = self.run.probes.filter(pl.col("probe_id").is_in(scores_of_part["probe_id"].to_list()))
        rows = compute(self.run.plan.items, probes, scores_of_part, [PRIMARY], Parameters())
        known = rows.filter(pl.col("value").is_not_null() & pl.col("dose").is_not_null())
        return known.group_by("run", "step", "dose").agg(total=pl.col("value").sum(), n=pl.len())

    @cached_property
    def _expected(self) -> pl.DataFrame:
        return planned(self.run)

    def _audit(self) -> dict[str, Any]:
        """The audit's result if there is one, and the result of checking the ledger's parts up to the last
        checkpoint.
        """
        path = self.run.directory / "audit" / artifact.MANIFEST
        written = path.stat().st_mtime_ns if path.is_file() else 0
        if written != self._audited[0]:
            self.run.refresh("audit")
            self._audited = written, self.run.audit
        if result := self._audited[1]:
            return {"verdict": result["verdict"], "checks": result["checks"]}
        parts = {which: self._committed(which) for which in PAIR}
        checks = []
        if consumed := parts["perturbed"]:
            failed = [name for name, (_, facts) in consumed.items() if not facts["as_planned"]]
            total = sum(facts["exposures"] for _, facts in consumed.values())
            detail = f"{total:,} exposures up to step {_stop(consumed):,}"
            if failed:
                detail = f"not in the steps {', '.join(failed)}"
            checks.append(
                {"name": "what was consumed is what was planned", "passed": not failed, "detail": detail}
            )
        if twin := parts["twin"]:
            failed = [name for name, (_, facts) in twin.items() if facts["exposures"]]
            detail = f"up to step {_stop(twin):,}" if not failed else f"not in the steps {', '.join(failed)}"
            checks.append({"name": "the twin had no exposure", "passed": not failed, "detail": detail})
        return {"verdict": None, "checks": checks}

    def _committed(self, which: str) -> Mapping[str, tuple[Manifest, Mapping[str, Any]]]:
        """Ledger parts that a checkpoint lists, with the check's result for each; new parts are checked now."""
        steps = saved.finished(self.run.directory / which / "checkpoints")
        known, checked = self._parts[which], {}
        for place in sorted((self.run.directory / which / "ledger").glob("*-*")):
            if not (place / artifact.MANIFEST).is_file():
                continue
            manifest = artifact.read(place, kind=ledger.KIND, schema_version=ledger.VERSION)
            if not steps or manifest.config["stop"] > steps[-1]:
                break  # not committed yet: its checkpoint is being written, or never was
            if place.name in known and known[place.name][0].digest == manifest.digest:
                checked[place.name] = known[place.name]
            else:
                checked[place.name] = manifest, self._examined(place, manifest, which)
        self._parts[which] = checked
        return checked

    def _examined(self, place: Path, manifest: Manifest, which: str) -> Mapping[str, Any]:
        artifact.verify(place, manifest)
        exposures = pl.read_parquet(place / "exposures.parquet")
        if which == "twin":
            return {"exposures": exposures.height}
        batch = manifest.config["global_batch_size"]
        inside = pl.col("position").is_between(
            manifest.config["start"] * batch, manifest.config["stop"] * batch, closed="left"
        )
        same = exposures.equals(self._expected.filter(inside))
        return {"exposures": exposures.height, "as_planned": same}


def _stop(parts: Mapping[str, tuple[Manifest, Mapping[str, Any]]]) -> int:
    return max(int(manifest.config["stop"]) for manifest, _ in parts.values())


def planned(run: RunFiles) -> pl.DataFrame:
    """The plan's exposures in the ledger's schema (``insertion.ledger.EXPOSURE_SCHEMA``)."""
    wordings = run.plan.wordings.select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias("wording"),
        pl.col("tokens").list.len().cast(pl.Int32).alias("length"),
        "hash",
    )
    return (
        run.exposures.join(wordings, on="wording", how="left")
        .select(list(ledger.EXPOSURE_SCHEMA))
        .cast(ledger.EXPOSURE_SCHEMA)
        .sort("position", "offset")
    )


def curve(records: Sequence[Mapping[str, Any]], points: int = POINTS) -> dict[str, list[float | None]]:
    """Loss curves; with more than ``points`` steps, losses are averaged over intervals of equal length.

    Args:
        records: records of ``metrics.jsonl``, by ascending step.
        points: largest number of points returned.

    Returns:
        ``step`` (the last of each interval) and each recorded loss of :data:`LOSSES`; a loss is None if an interval has
        no such token.
    """
    every = math.ceil(len(records) / points)
    stretches = [records[k : k + every] for k in range(0, len(records), every)]
    columns: dict[str, list[float | None]] = {"step": [float(part[-1]["step"]) for part in stretches]}
    for name in LOSSES:
        if any(name in record for record in records[-1:]):
            columns[name] = [
                _mean([r[name] for r in part if type(r.get(name)) in (int, float)]) for part in stretches
            ]
    return columns


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
