"""A run written by hand, stage by stage: what training and scoring would leave, with answers known in advance."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from palimpsest.data import artifact
from palimpsest.insertion import ledger, plan
from palimpsest.insertion.items import span_hash

LEVEL, GAIN = -3.0, 0.25
"""ln p of every token is LEVEL + GAIN * dose in the perturbed run, LEVEL in the twin, for items alike."""


class Written:
    """A run's directory under ``runs/small/`` of a place, with the plan of another run."""

    def __init__(self, place: Path, prepared, name: str = "run-0123abcd") -> None:
        self.directory = place / "runs" / "small" / name
        shutil.copytree(prepared.directory() / "plan", self.directory / "plan")
        (self.directory / "plan" / "manifest.json").touch()  # made now
        if not (place / "runs" / "corpora").exists():
            (place / "runs" / "corpora").symlink_to(prepared.path / "runs" / "corpora")
        self.plan = plan.read(self.directory / "plan")
        self.heads = {"perturbed": "", "twin": ""}
        self.saved = {"perturbed": 0, "twin": 0}

    def exposures(self, start, stop):
        """What the ledger of the steps ``start <= step < stop`` should hold, from the plan's tokens."""
        batch = self.plan.shape.global_batch_size
        names, tokens = self.plan.items["item_id"], self.plan.wordings["tokens"]
        rows = [
            (e["position"], names[e["item"]], e["offset"], len(tokens[e["wording"]]),
             span_hash(tokens[e["wording"]].to_numpy()))
            for e in self.plan.exposures.iter_rows(named=True)
            if start * batch <= e["position"] < stop * batch
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=ledger.EXPOSURE_SCHEMA, orient="row")

    def log(self, which, steps, **values):
        """Append the records of some steps to ``metrics.jsonl``."""
        path = self.directory / which / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            for step in steps:
                record = {
                    "step": step,
                    "loss": 6 - step / 10,
                    "tokens": 512 * step,
                    "tokens_per_second": 256.0,
                }
                file.write(json.dumps({**record, **values}) + "\n")

    def save(self, which, step, exposures=None):
        """A part of the ledger up to a step, and the checkpoint that names it."""
        start, batch = self.saved[which], self.plan.shape.global_batch_size
        if step:
            position = np.arange(start * batch, step * batch)
            own = self.exposures(start, step) if which == "perturbed" else self.exposures(0, 0)
            self.heads[which] = ledger.write_part(
                self.directory / which / "ledger",
                start=start,
                stop=step,
                global_batch_size=batch,
                windows=[pl.DataFrame({"position": position, "digest": position.astype(np.uint64)})],
                exposures=[own if exposures is None else exposures],
                previous=self.heads[which],
                plan=self.plan.digest if which == "perturbed" else "",
                order="order",
            )  # fmt: skip
        self.saved[which] = step
        with artifact.writing(
            self.directory / which / "checkpoints" / f"step_{step:08d}",
            kind="checkpoint",
            schema_version=1,
            config={"vocab_size": 400, "model": {"hidden": 32}},
            inputs={"plan": self.plan.digest, "order": "order", "ledger": self.heads[which]},
        ) as draft:
            (draft.path / "weights").write_text("none")

    def score(self, which, step):
        """Scores of all probes: the same for every token of a text; argmax hits from dose 4 on."""
        dose = dict(self.plan.items.select("item_id", "dose").iter_rows())
        rows = []
        for probe in self.plan.probes.iter_rows(named=True):
            n = len(probe["tokens"])
            own = dose.get(probe["item_id"], 0) if which == "perturbed" and step else 0
            one = [LEVEL + GAIN * own] * n
            rows.append(
                (probe["probe_id"], one, [int(own < 4)] * n, [1.0] * n, [1.0] * n, [0.0] * n, [0] * n)
            )
        schema = {
            "probe_id": pl.String,
            "logprob": pl.List(pl.Float32),
            "rank": pl.List(pl.UInt16),
            "entropy": pl.List(pl.Float32),
            "variance": pl.List(pl.Float32),
            "margin": pl.List(pl.Float32),
            "argmax": pl.List(pl.Int32),
        }
        with artifact.writing(
            self.directory / "scores" / which / f"step_{step:08d}",
            kind="scores",
            schema_version=2,
            config={},
            inputs={"checkpoint": str(step), "items": self.plan.digest},
        ) as draft:
            pl.DataFrame(rows, schema=schema, orient="row").write_parquet(draft.path / "scores.parquet")
            draft.facts.update(step=step, part=0, parts=1, probes=len(rows))

    def audit(self, verdict="PASS"):
        """An audit of all that is there now."""
        with artifact.writing(
            self.directory / "audit",
            kind="audit",
            schema_version=1,
            config={},
            inputs={"plan": self.plan.digest, "corpus": "", **self.heads},
        ) as draft:
            check = {"name": "all of it", "passed": verdict == "PASS", "detail": "by hand"}
            artifact.write_json(
                draft.path / "audit.json", {"verdict": verdict, "checks": [check], "failures": []}
            )

    def report(self):
        """A report's manifest, which says what extraction was asked for: 3 tokens after 2."""
        with artifact.writing(
            self.directory / "report",
            kind="report",
            schema_version=2,
            config={"prefix_tokens": 2, "suffix_tokens": 3, "bootstrap": 100},
            inputs={},
        ) as draft:
            (draft.path / "report.html").write_text("")

    def whole(self):
        """Everything: 20 steps of both runs, scored at steps 0 and 20, audited and reported."""
        for which in ("perturbed", "twin"):
            self.log(which, range(1, 21))
            for step in (0, 20):
                self.save(which, step)
                self.score(which, step)
        self.audit()
        self.report()
        return self
