"""All settings of an experiment, as one frozen dataclass that checks itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from palimpsest.analysis.attacks.order import DerivedConfig
from palimpsest.analysis.attacks.values import AttackConfig
from palimpsest.analysis.generation.continuations import GenerateConfig
from palimpsest.data import identity
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError, together
from palimpsest.data.mixture import MAIN, MixtureConfig
from palimpsest.data.prepare import CorpusConfig
from palimpsest.data.shards import SHUFFLED
from palimpsest.data.tokenizer import FILE, TokenizerConfig
from palimpsest.insertion import contrasts
from palimpsest.insertion.families import registry
from palimpsest.insertion.settings import InsertionConfig, RunShape, identifying
from palimpsest.pretrain.config import (
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PosttrainConfig,
    ProfileConfig,
    RuntimeConfig,
    TrainConfig,
    check_seed,
)
from palimpsest.pretrain.identity import result_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class LauncherConfig:
    """Settings of the machines on which ``launch/sweep.py`` runs a sweep. Only ``kind`` and ``jobs`` apply outside
    SLURM.
    """

    kind: Literal["local", "slurm", "report"]
    """Kind of launcher; ``report`` starts no runs, shows the sweep's progress and writes its report."""
    jobs: int | None = None
    """Number of concurrent runs; None: as many as the cluster allows (locally: one)."""
    partition: str | None = None
    account: str | None = None
    time: str = "24:00:00"
    """Time limit of one job, in SLURM's notation."""
    signal_before: int = 300
    """Time before the limit at which programs get SIGTERM, seconds."""
    retries: int = 3
    """Largest number of requeues of a job that ended by a signal or a crash; requeues after preemption or the time
    limit do not count."""
    nodes: int = 1
    """Number of nodes of one training."""
    processes: int = 1
    """Number of training processes per node, one per GPU."""
    gpus: int = 0
    """Number of GPUs per node."""
    cpus: int = 4
    """Number of CPU cores per process."""
    memory: str | None = None
    """Memory per node, in SLURM's notation, such as ``64G``."""
    container: str | None = None
    """Command that the programs are started with, such as ``apptainer exec --nv image.sif``."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    setup: tuple[str, ...] = ()
    """Shell lines at the start of each job."""
    options: tuple[str, ...] = ()
    """Further options of sbatch."""
    srun: tuple[str, ...] = ()
    """Further options of srun."""
    score_shares: int = 1
    """Number of jobs that share the scoring of a run's checkpoints."""

    def __post_init__(self) -> None:
        for name in ("jobs", "nodes", "processes", "cpus", "score_shares"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"launcher.{name}={value} must be above 0")
        for name in ("signal_before", "retries", "gpus"):
            if getattr(self, name) < 0:
                raise UserError(f"launcher.{name}={getattr(self, name)} must be 0 or above")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Settings of scoring: the section ``score`` of a config."""

    bos: Literal["auto", "always", "never"]
    """Reading of prompts after the beginning-of-text token: ``always``, ``never``, or ``auto``, if the tokenizer adds
    it. Texts without a prompt are always read after it."""
    long_texts: Literal["refuse", "truncate"]
    """Treatment of texts longer than the model's positions: ``refuse`` or ``truncate``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Settings of the report: the section ``report`` of a config."""

    prefix_tokens: int
    """Tokens of context in verbatim extraction."""
    suffix_tokens: int
    """Tokens to be reproduced after the context in verbatim extraction."""
    metrics: tuple[str, ...]
    """Metrics of ``analysis.metrics`` in addition to the default ones."""
    contrasts: tuple[str, ...]
    """Arms or levels to compare, each ``FIRST vs SECOND``; none: every pair of levels of each factor."""
    out: Path | None
    """Directory of the report; None: ``report/`` in the run's directory. With another directory, read access to the run
    is enough."""


PAIR = ("perturbed", "twin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """All settings of an experiment."""

    experiment: str
    name: str
    seed: int
    run: str
    """The run that is trained, perturbed or twin; of export also ``leave_out`` or a post-trained one."""
    runs: Path
    estimated_duration: str
    shard: str | None
    index: bool
    verify: bool
    dry_run: bool
    show: int | None
    step: int | Literal["all"] | None
    format: Literal["megatron", "jsonl"]
    wandb: Literal["off", "offline", "online"]
    wandb_project: str
    wandb_entity: str | None
    wandb_group: str | None
    tensorboard: bool
    corpus: CorpusConfig
    mixture: MixtureConfig
    model: ModelConfig
    insertion: InsertionConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    parallel: ParallelConfig
    eval: EvalConfig
    profile: ProfileConfig
    runtime: RuntimeConfig
    posttrain: PosttrainConfig
    score: ScoreConfig
    report: ReportConfig
    launcher: LauncherConfig
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    derived: DerivedConfig = field(default_factory=DerivedConfig)

    def __post_init__(self) -> None:
        for key, value in (("experiment", self.experiment), ("name", self.name)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
                raise UserError(
                    f"{key}={value!r} must be letters, digits, '.', '_' and '-' (it names a directory)"
                )
        check_seed("seed", self.seed)
        if self.insertion.heldout_probes < 0:
            raise UserError(f"insertion.heldout_probes={self.insertion.heldout_probes} must be 0 or above")
        for name, one in self.insertion.designs():
            check_seed(f"insertion{f'.experiments.{name}' if name else ''}.seed", one.seed)
            for family, settings in one.families.items():
                registry.check(family, settings)
        self._check_contrasts()
        if self.corpus.order != SHUFFLED and not self.mixture.plain:
            raise UserError(
                f"corpus.order={self.corpus.order} reads one corpus, once; set mixture.epochs=1 and no "
                "mixture.phases"
            )
        together(
            lambda: self.model.check(self.train.sequence_length),
            lambda: self.optimizer.check(self.train, self.model, self.parallel),
            # Only the number of data-parallel ranks is not known yet; the trainer checks again with it.
            lambda: self.parallel.check(self.parallel.min_world_size, self.model, self.train),
        )
        if self.eval.enabled and self.parallel.tensor * self.parallel.pipeline > 1:
            raise UserError(
                "eval.heldout_every and eval.probes_every need a model that one rank has whole (parallel.tensor=1 "
                "parallel.pipeline=1); launch/score.py asks the checkpoints of any topology afterwards"
            )

    def _check_contrasts(self) -> None:
        """Check ``report.contrasts`` before training, if the settings determine the arms."""
        designs = self.insertion.designs()
        if not self.report.contrasts or any(one.placements or one.adaptive for _, one in designs):
            return
        names = [
            f"{name}: {arm}" if name else arm
            for name, one in designs
            for arm, treatment in one.arms
            if treatment.dose
        ]
        contrasts.chosen(self.report.contrasts, names)

    @property
    def corpus_directory(self) -> Path:
        """Directory of the prepared corpus; runs that read the same text share it."""
        return self._corpus_named(self.corpus, json_digest(self._by_contents(self.corpus)))

    def _by_contents(self, corpus: CorpusConfig) -> dict[str, Any]:
        return identity.by_contents(corpus, self.runs / "corpora")

    def _corpus_named(self, corpus: CorpusConfig, digest: str) -> Path:
        return self.runs / "corpora" / f"{corpus.source.kind}-{digest[:8]}"

    @property
    def corpora(self) -> dict[str, tuple[CorpusConfig, Path]]:
        """Name -> settings and directory of every corpus; the main one (``corpus``) is first."""
        place = self.corpus_directory
        corpora = {MAIN: (self.corpus, place)}
        for name, given in self.mixture.corpora.items():
            tokenizer = TokenizerConfig(kind="file", path=str(place / FILE), eod=self.corpus.tokenizer.eod)
            config = replace(given, tokenizer=tokenizer)
            digest = json_digest([self._by_contents(given), place.name])
            corpora[name] = (config, self._corpus_named(given, digest))
        return corpora

    @property
    def directory(self) -> Path:
        """Directory of this run. The digest in its name covers exactly the settings that change the result."""
        settings = result_settings(self.model, self.optimizer, self.train)
        insertion = identifying(_plain(self.insertion))
        parts = [
            self._by_contents(self.corpus),
            settings["model"],
            insertion,
            settings["optimizer"],
            settings["train"],
        ]
        if not self.mixture.plain:
            others = {name: self._by_contents(one) for name, one in self.mixture.corpora.items()}
            parts.append(_plain(self.mixture) | {"corpora": others})
        if self.corpus.order != SHUFFLED:
            parts.append(identity.order_by_contents(self.corpus, self.runs / "corpora"))
        return self.runs / self.experiment / f"{self.name}-{json_digest(parts)[:8]}"

    @property
    def shape(self) -> RunShape:
        """Shape of the run for the plan: steps, batch size, window length."""
        train = self.train
        return RunShape(
            steps=train.end,
            global_batch_size=train.global_batch_size,
            sequence_length=train.sequence_length,
            begin=train.begin,
        )


def _plain(value: Any) -> Any:
    """A setting as JSON values."""
    return TypeAdapter(Path if isinstance(value, Path) else type(value)).dump_python(value, mode="json")


def resolved(settings: Any) -> dict[str, Any]:
    """A dataclass of settings, such as an experiment, as JSON values."""
    return {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}
