"""Files of a run, read on first use, and tables derived from them.

The figures are in :mod:`analysis.run.figures`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.analysis.scoring import scores as stored
from palimpsest.data import artifact
from palimpsest.data.errors import UserError, nearest
from palimpsest.pretrain import saved
from palimpsest.pretrain.saved import parse

if TYPE_CHECKING:
    from palimpsest.analysis.metrics import Parameters
    from palimpsest.analysis.report import ReportInputs, Results
    from palimpsest.data.tokenizer import Tokenizer
    from palimpsest.insertion.ledger import Ledger
    from palimpsest.insertion.plan import Plan

log = logging.getLogger(__name__)

PAIR = ("perturbed", "twin")
"""Names of the two runs of a pair; the twin may be absent."""
_MOST_CORPORA = 4


class RunFiles:
    """A run on disk: its plan, ledgers and scores, and the tables computed from these.

    Files are read on first access. Access to the output of a stage that has not run raises a ``UserError`` that names
    the stage. Frames are Polars', charts Altair's. For a run in progress, :meth:`refresh` drops the cached data.

    Args:
        directory: the run's directory, which :func:`open_run` finds.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def name(self) -> str:
        """Name of the run, ``experiment/name-digest``."""
        place = self.directory.absolute()
        return f"{place.parent.name}/{place.name}"

    @cached_property
    def plan(self) -> Plan:
        """The plan: frames ``items``, ``wordings``, ``probes``, ``exposures``, ``edits``; ``shape``; ``manifest``."""
        from palimpsest.insertion import plan

        return plan.read(self.directory / "plan")

    @property
    def released(self) -> dict[str, Any] | None:
        """Facts of a released model: ``models``, ``revisions`` and ``declared``
        (``analysis.report.ReportInputs.released``); None for a run trained here.
        """
        facts: dict[str, Any] | None = self.plan.manifest.config.get("released")
        if facts is None:
            return None
        revisions = {
            str(manifest.facts["step"]): revision
            for which in PAIR
            for _, manifest in stored.parts(self.directory / "scores" / which)
            if (revision := manifest.facts.get("revision"))
        }
        declared = self.plan.manifest.facts["exposures_declared"]
        return {**facts, "revisions": revisions, "declared": declared}

    @property
    def probes(self) -> pl.DataFrame:
        """One row per probe: probe_id, item_id, kind, text, tokens, ... (``insertion.items.PROBE_SCHEMA``)."""
        return self.plan.probes

    @cached_property
    def exposures(self) -> pl.DataFrame:
        """One row per planned exposure, in training order: item_id, step and the plan's other columns."""
        named = self.plan.items.with_row_index("item").select(pl.col("item").cast(pl.Int32), "item_id")
        return self.plan.exposures.join(named, on="item", maintain_order="left").with_columns(
            step=pl.col("position") // self.plan.shape.global_batch_size
        )

    @cached_property
    def ledger(self) -> Ledger:
        """Ledger of the perturbed run: frames ``windows`` (position, digest) and ``exposures``."""
        return self.ledger_of("perturbed")

    def ledger_of(self, which: str) -> Ledger:
        """Ledger of one run of the pair, up to its last checkpoint.

        Args:
            which: ``perturbed`` or ``twin``.
        """
        from palimpsest.insertion import ledger

        place = self._member(which) / "checkpoints"
        steps = self.checkpoints(which)
        head = saved.read(place, steps[-1]).inputs["ledger"] if steps else ""
        if not head:
            raise UserError(f"no checkpoint in {place} has a ledger yet; run launch/train.py first")
        return ledger.read(self.directory / which / "ledger", head=head)

    def checkpoints(self, which: str = "perturbed") -> list[int]:
        """Steps of the finished checkpoints on disk, ascending.

        Args:
            which: ``perturbed`` or ``twin``.
        """
        steps: list[int] = saved.finished(self._member(which) / "checkpoints")
        return steps

    def _member(self, which: str) -> Path:
        if which not in PAIR:
            raise UserError(f"there is no run {which!r} in a pair{nearest(which, PAIR)}")
        return self.directory / which

    @cached_property
    def training(self) -> pl.DataFrame:
        """One row per step and run, from ``metrics.jsonl``: run, step, loss (nats/token), tokens and its other values.

        ``loss_inserted`` and ``loss_corpus`` split the perturbed run's loss; null if a batch has no such token. A
        released model has no rows.
        """
        if self.released is not None:
            return pl.DataFrame(
                schema={"run": pl.String, "step": pl.Int64, "loss": pl.Float64, "tokens": pl.Int64}
            )
        tables = []
        for which in PAIR:
            path = self.directory / which / "metrics.jsonl"
            lines = [line for line in path.read_bytes().split(b"\n") if line] if path.is_file() else []
            records = [record for record in map(parse, lines) if record is not None]
            if len(records) < len(lines):
                log.warning(
                    "%s: %d of %d lines are damaged and left out", path, len(lines) - len(records), len(lines)
                )
            if records:
                tables.append(pl.DataFrame(records, infer_schema_length=None).with_columns(run=pl.lit(which)))
        if not tables:
            raise UserError(
                f"there is no metrics.jsonl in {self.directory / PAIR[0]}; run launch/train.py first"
            )
        return pl.concat(tables, how="diagonal")  # losses on inserted tokens are the perturbed run's alone

    @cached_property
    def _scored(self) -> tuple[pl.DataFrame, dict[str, str]]:
        return stored.read(self.directory / "scores", PAIR, plan=self.plan.digest)

    @property
    def scores(self) -> pl.DataFrame:
        """One row per probe, checkpoint and run: run, step, probe_id, and lists with one entry per token: logprob
        (nats), rank (0: the argmax), entropy, variance, margin, argmax
        (``analysis.scoring.token_statistics.SCORE_SCHEMA``).
        """
        return self._scored[0]

    @cached_property
    def _generated(self) -> tuple[pl.DataFrame, dict[str, Any]]:
        from palimpsest.analysis.generation import continuations

        return continuations.read(self.directory / continuations.KIND, PAIR, plan=self.plan.digest)

    @property
    def generated(self) -> pl.DataFrame:
        """One row a continuation: run, step, probe_id, prefix, sample, tokens, reference, text, ...
        (``analysis.generation.continuations.SCHEMA``); without rows before ``palimpsest generate``.
        """
        return self._generated[0]

    @cached_property
    def _attacked(self) -> tuple[pl.DataFrame, dict[str, Any]]:
        from palimpsest.analysis.attacks import values

        return values.read(self.directory / values.KIND, PAIR, plan=self.plan.digest)

    @property
    def attacked(self) -> pl.DataFrame:
        """One row a text and attack: run, step, probe_id, attack, value (``analysis.attacks.values.SCHEMA``); without
        rows before ``palimpsest attack``.
        """
        return self._attacked[0]

    @cached_property
    def derived(self) -> list[tuple[dict[str, Any], pl.DataFrame]]:
        """Models that were tested for being derived from the run: facts (model, rho, p, ...) and rows of the windows
        (``analysis.attacks.order.read``); empty before ``palimpsest derived``.
        """
        from palimpsest.analysis.attacks import order

        return order.read(self.directory / order.KIND, plan=self.plan.digest)

    @cached_property
    def reshuffled(self) -> list[dict[str, Any]]:
        """Texts that were compared under models of other orders: text, p, p_t, ...
        (``analysis.attacks.reshuffled.read``); empty before ``palimpsest derived`` with ``derived.texts``.
        """
        from palimpsest.analysis.attacks import reshuffled

        return reshuffled.read(self.directory / reshuffled.KIND, plan=self.plan.digest)

    @property
    def score_digests(self) -> dict[str, str]:
        """Path of each part of the scores, of the continuations, of the attacks' values and of order tests -> its
        digest.
        """
        derived = {
            f"derived/{facts['model']}-{k}": facts["digest"] for k, (facts, _) in enumerate(self.derived)
        }
        texts = {
            f"reshuffled/{facts['text']}-{k}": facts["digest"] for k, facts in enumerate(self.reshuffled)
        }
        attacked = self._attacked[1]["digests"]
        return {**self._scored[1], **self._generated[1]["digests"], **attacked, **derived, **texts}

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """The audit's ``verdict``, ``checks`` and ``failures``; None if there is no valid audit.

        An audit is invalid if the plan or a ledger has changed since; this is logged. The corpus is not checked again.
        """
        from palimpsest.insertion import audit

        place = self.directory / "audit"
        if not (place / artifact.MANIFEST).is_file():
            return None
        manifest = artifact.read(place, kind=audit.KIND, schema_version=audit.VERSION)
        artifact.verify(place, manifest)
        now = {"plan": self.plan.digest}
        for which in PAIR:
            steps = self.checkpoints(which)
            place_of = self.directory / which / "checkpoints"
            now[which] = saved.read(place_of, steps[-1]).inputs["ledger"] if steps else ""
        if changed := [name for name, digest in now.items() if manifest.inputs[name] != digest]:
            log.warning(
                "the audit in %s no longer holds: %s changed since; run launch/audit.py again",
                place,
                " and ".join(changed),
            )
            return None
        result: dict[str, Any] = json.loads((place / "audit.json").read_text(encoding="utf-8"))
        return result

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings of the finished stages: ``insertion``, ``run`` and, if there are a checkpoint and a report, the last
        checkpoint's (``model``, ``optimizer``, ``train`` and others) and the report's.
        """
        settings = dict(self.plan.manifest.config)
        if steps := self.checkpoints():
            settings |= saved.read(self.directory / "perturbed" / "checkpoints", steps[-1]).config
        if reported := self._reported():
            settings["report"] = reported
        return settings

    def _reported(self) -> dict[str, Any]:
        from palimpsest.analysis.report.inputs import KIND, VERSION

        place = self.directory / "report"
        if not (place / artifact.MANIFEST).is_file():
            return {}
        return artifact.read(place, kind=KIND, schema_version=VERSION).config

    @cached_property
    def corpus(self) -> Path:
        """Directory of the prepared corpus; of the first corpus if the run reads several.

        Raises:
            UserError: if the corpus is not in ``corpora/`` of the same ``runs/`` directory as the run.
        """
        from palimpsest.data.mixture import digest_of

        wanted = self.plan.manifest.inputs["corpus"]
        place = self.directory.absolute().parent.parent / "corpora"
        known = {
            json.loads(path.read_text(encoding="utf-8"))["digest"]: path.parent
            for path in place.glob(f"*/{artifact.MANIFEST}")
        }
        for several in range(1, min(len(known), _MOST_CORPORA) + 1):
            for digests in permutations(sorted(known), several):
                if digest_of(digests) == wanted:
                    return known[digests[0]]
        raise UserError(
            f"{place} does not hold the corpus that {self.directory} was made with (digest {wanted}); put it back, or "
            "run launch/prepare.py with the settings of the run"
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus or, for a released model, of the model."""
        from palimpsest.data import prepare, tokenizer

        if self.released is not None:
            return tokenizer.load(
                self.directory / "plan" / tokenizer.FILE, self.plan.manifest.facts["eod_token"]
            )
        return prepare.load_tokenizer(self.corpus)

    @cached_property
    def parameters(self) -> Parameters:
        """Settings of the metrics: those of the report if there is one, so that its numbers are reproduced."""
        from palimpsest.analysis.metrics import Parameters

        asked = self._reported()
        if not asked:
            return Parameters()
        return Parameters(prefix=asked["prefix_tokens"], suffix=asked["suffix_tokens"])

    def metrics(self, *names: str, steps: Iterable[int] | None = None, **settings: Any) -> pl.DataFrame:
        """Metric rows of every probe on which the metrics are defined, at every checkpoint of both runs.

        ``run.metrics("extracted", prefix=8, suffix=16)``; ``analysis.metrics.METRICS`` lists the names;
        ``analysis.metrics.metric`` registers a metric of your own.

        Args:
            names: names of metrics; the report's metrics if none is named.
            steps: checkpoints, such as ``[run.last_step]``; all if not given.
            settings: fields of :class:`analysis.metrics.Parameters` that override :attr:`parameters`.

        Returns:
            Tidy rows: run, step, probe_id, item_id, family, stratum, dose, metric, value, reason. ``value`` is null if
            it was not computed, and ``reason`` then says why; otherwise ``reason`` is null.

        Raises:
            UserError: for an unknown metric, setting or step.
        """
        from palimpsest.analysis.metrics import compute

        known = {field.name for field in fields(self.parameters)}
        if strangers := sorted(set(settings) - known):
            raise UserError(f"metrics have no setting {strangers[0]!r}{nearest(strangers[0], known)}")
        scores = self.scores if steps is None else self._at(steps)
        parameters = replace(self.parameters, **settings)
        return compute(self.plan.items, self.probes, scores, names or None, parameters)

    def tokens(self, item_id: str, step: int | None = None) -> pl.DataFrame:
        """Tokens of an item's text with the log-probability (nats) of each in both runs.

        Args:
            item_id: the item.
            step: checkpoint; :attr:`last_step` if not given.

        Returns:
            One row per run and token: run, position, token, logprob.

        Raises:
            UserError: if there is no such item, or the step was not scored.
        """
        probe = self.probes.filter((pl.col("item_id") == item_id) & (pl.col("kind") == "verbatim"))
        if probe.is_empty():
            known = self.plan.items["item_id"].to_list()
            raise UserError(f"the plan has no item {item_id!r}{nearest(item_id, known)}")
        step = self.last_step if step is None else step
        scores = self._at([step]).filter(pl.col("probe_id") == probe["probe_id"][0])
        texts = [self.tokenizer.decode([token]) for token in probe["tokens"][0]]
        return (
            scores.select("run", "logprob")
            .explode("logprob")
            .with_columns(position=pl.int_range(pl.len()).over("run"), token=pl.Series(texts * scores.height))
            .select("run", "position", "token", pl.col("logprob").cast(pl.Float64))
        )

    def _at(self, steps: Iterable[int]) -> pl.DataFrame:
        """The score rows at the given steps."""
        there = set(self.scores["step"].unique())
        wanted = list(steps)
        if missing := sorted(set(wanted) - there):
            raise UserError(f"step {missing[0]} was not scored; scored steps: {sorted(there)}")
        return self.scores.filter(pl.col("step").is_in(wanted))

    @cached_property
    def last_step(self) -> int:
        """Step of the last checkpoint that is scored in every run with scores; headline numbers refer to it."""
        steps = self.scores.select("run", "step").unique()
        shared = steps.group_by("step").len().filter(pl.col("len") == steps["run"].n_unique())["step"]
        return int(max(shared.to_list() or steps.filter(pl.col("run") == PAIR[0])["step"].to_list()))

    def inputs(self, **known: Any) -> ReportInputs:
        """Inputs of the report.

        Args:
            known: fields of ``ReportInputs`` that replace those read from the run's files.
        """
        from palimpsest.analysis.report import ReportInputs

        facts = self.plan.manifest.facts
        if "audit" not in known:
            known["audit"] = self.audit
        fields = {
            "title": self.directory.absolute().parent.name,
            "items": self.plan.items,
            "probes": self.probes,
            "scores": self.scores,
            "training": self.training,
            "exposures": self.exposures,
            "balance": facts["balance"],
            "facts": facts,
            "config": self.config,
            "released": self.released,
            "generated": self.generated,
            "generation": self._generated[1]["settings"],
            "attacked": self.attacked,
            "derived": self.derived,
            "reshuffled": self.reshuffled,
            "manifests": {"plan": {"digest": self.plan.digest, **self.plan.manifest.made_by}},
            "parameters": self.parameters,
            "signature": self.signature,
        }
        return ReportInputs(**{**fields, **known})

    @cached_property
    def results(self) -> Results:
        """The report's numbers: ``rows`` (metrics), ``estimates``, ``step``, ``arms``. The first access takes
        seconds.
        """
        from palimpsest.analysis.report import analyse

        return analyse(self.inputs())

    def estimates(self, *names: str) -> pl.DataFrame:
        """Estimates with 95 % intervals at every dose and checkpoint: means, gains over dose 0, AUC.

        Args:
            names: names of metrics; the report's metrics if none is named. Estimates of metrics outside the report have
                no ``p``.

        Returns:
            Rows of :data:`analysis.statistics.ESTIMATE_SCHEMA`: run (also ``perturbed - twin``, item by item), step,
            metric, statistic, family, dose, estimate, low, high, n, n_control, clusters, clusters_control, p, method;
            and source, seed and digest (:attr:`signature`), which distinguish several runs in one figure or table.

        Raises:
            UserError: for an unknown metric.
        """
        from palimpsest.analysis.metrics import METRICS, defaults
        from palimpsest.analysis.statistics import auc, difference_to_twin, gain_over_control, mean_by_dose

        if not names:
            return self.signed(self.results.estimates)
        frames = []
        ours = [name for name in names if name in defaults()]
        if ours:
            frames.append(self.results.estimates.filter(pl.col("metric").is_in(ours)))
        if others := [name for name in names if name not in ours]:
            rows = self.metrics(*others)
            both = pl.concat([rows, difference_to_twin(rows)])
            for name in others:
                own, bounds = both.filter(pl.col("metric") == name), METRICS[name].bounds
                frames += [mean_by_dose(own, bounds=bounds), gain_over_control(own, bounds=bounds)]
            frames.append(auc(rows))
        return self.signed(pl.concat(frames))

    @property
    def signature(self) -> dict[str, Any]:
        """Columns that distinguish this run's rows from another run's: source (the run's name), seed (of the training;
        unknown for a released model), digest (of the plan).
        """
        if self.released is not None:
            return {"source": self.name, "seed": None, "digest": self.plan.digest}
        steps = self.checkpoints()
        settings = saved.read(self.directory / PAIR[0] / "checkpoints", steps[-1]).config if steps else {}
        seed = (settings.get("train") or {}).get("seed", self.plan.manifest.config["insertion"].get("seed"))
        return {"source": self.name, "seed": seed, "digest": self.plan.digest}

    def signed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with the columns of :attr:`signature` added, so that rows of several runs can be concatenated."""
        return rows.with_columns(pl.lit(value).alias(name) for name, value in self.signature.items())

    def refresh(self, *names: str) -> None:
        """Drop cached data, so that the files of a run in progress are read again.

        Args:
            names: names of the attributes to drop; all if none is named.
        """
        for name in names or [name for name in vars(self) if name != "directory"]:
            vars(self).pop(name, None)

    def __repr__(self) -> str:
        """Overview of the run in a few lines, from manifests and logs; scores are not read."""
        if (released := self.released) is not None:
            return (
                "\n".join(
                    [
                        f"<Run {self.name}",
                        f"  released: {len(self.plan.items):,} items, {released['declared']} exposures declared, "
                        "no ledger, no audit",
                        *(
                            f"  {which}: {name}, {len(stored.parts(self.directory / 'scores' / which))} parts of scores"
                            for which, name in released["models"].items()
                        ),
                    ]
                )
                + ">"
            )
        facts, shape = self.plan.manifest.facts, self.plan.shape
        lines = [
            f"<Run {self.name}",
            f"  plan: {facts['items']:,} items, {facts['exposures']:,} exposures in {shape.steps:,} steps",
        ]
        for which in PAIR:
            steps = self.checkpoints(which)
            scored = len(list((self.directory / "scores" / which).glob(f"step_*/{artifact.MANIFEST}")))
            at = (
                f"step {steps[-1]:,} of {shape.steps:,}, {len(steps)} checkpoints" if steps else "not trained"
            )
            lines.append(f"  {which}: {at}" + (f", {scored} parts of scores" if scored else ", not scored"))
        audit = self.audit
        lines.append(f"  audit: {audit['verdict'] if audit else 'none that holds'}>")
        return "\n".join(lines)
