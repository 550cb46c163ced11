"""Settings of ``launch/released.py``, as one frozen dataclass that checks itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from palimpsest.analysis.generation.continuations import GenerateConfig
from palimpsest.analysis.scoring.hub import steps
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion import declared
from palimpsest.insertion.declared import SameText
from palimpsest.launch.compose import RELEASED, checked, values_of
from palimpsest.launch.experiment import ReportConfig, ScoreConfig
from palimpsest.launch.program import share_of
from palimpsest.pretrain.config import check_seed

_ROLES = ("perturbed", "standard")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPair:
    """A model and its standard model, trained without the items."""

    perturbed: str
    """Directory, or name on the hub."""
    standard: str | None = None
    """Standard model; None: there is none."""
    final_step: int | None = None
    """Step of a revision whose name contains none; None: the value for all models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedConfig:
    """All settings; those that determine the items and their tokens name the run's directory."""

    experiment: str
    name: str = "run"
    seed: int = 1
    """Seed of permutations."""
    runs: Path = Path("runs")
    models: Mapping[str, str | ModelPair | None] = field(default_factory=dict)
    """``perturbed`` and ``standard``; or several models or pairs by name, each with a run of its own."""
    only: tuple[str, ...] = ()
    """Names of the models to score now; empty: all."""
    revisions: tuple[str, ...] = ()
    """Revisions of every model; see ``analysis.scoring.hub.steps``. Empty: the default revision."""
    final_step: int | None = None
    """Step of a revision whose name contains none."""
    items: str | Mapping[str, str]
    """File or data set of items; or several by name, which is the family of rows without one."""
    sets: tuple[str, ...] = ()
    """Names of the files to read; empty: all."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Column -> its name in the files (``insertion.declared``)."""
    limit: int | None = None
    """Largest number of rows of each file; None: all."""
    same_text: SameText = "refuse"
    """Treatment of rows with the same text that differ otherwise (``insertion.declared.read``)."""
    shard: str | None = None
    """Share of the scoring to do, ``k/n``."""
    dry_run: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: str | None = None
    """Precision of the weights; None: float32 on CPUs, else that of the files."""
    device_map: str | None = None
    """Distribution of the layers over several devices, as in ``transformers``, such as ``auto``."""
    generated: bool = False
    """Continue items and prompts, too."""
    score: ScoreConfig
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    report: ReportConfig

    def __post_init__(self) -> None:
        for key, value in (("experiment", self.experiment), ("name", self.name), *self._names()):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
                raise UserError(
                    f"{key}={value!r} must be letters, digits, '.', '_' and '-' (it names a directory)"
                )
        check_seed("seed", self.seed)
        if self.shard is not None:
            share_of(self.shard)
        if not self.pairs:
            raise UserError(
                "models.perturbed has no value; name a model: models.perturbed=EleutherAI/pythia-70m"
            )
        for key in self.fields:
            if key not in declared.FIELDS:
                raise UserError(f"fields.{key}: there is no such column{nearest(key, declared.FIELDS)}")
        for key in self.only:
            if key not in self.pairs:
                raise UserError(f"only={key}: there is no such model{nearest(key, self.pairs)}")
        for key in self.sets:
            if key not in self.sources:
                known = [] if isinstance(self.items, str) else list(self.items)
                raise UserError(f"sets={key}: items has no such name{nearest(key, known)}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit} must be above 0, or null")
        if len(self.chosen) > 1 and self.report.out is not None:
            raise UserError(
                "report.out names one directory; with several models leave it out, or set only=[NAME]"
            )
        for pair in self.pairs.values():
            steps(self.revisions, pair.final_step)  # checks them

    def _names(self) -> list[tuple[str, str]]:
        return [
            ("models", name) for name in (*self.models, *([] if isinstance(self.items, str) else self.items))
        ]

    @property
    def pairs(self) -> dict[str, ModelPair]:
        """Models by name; the single pair's name is empty."""
        given = {name: model for name, model in self.models.items() if model is not None}
        roles = {name: model for name, model in given.items() if name in _ROLES}
        others = {name: model for name, model in given.items() if name not in _ROLES}
        if roles and others:
            raise UserError(
                f"models: {', '.join(roles)} name one pair and {', '.join(others)} name further models; "
                f"leave out the pair or the others"
            )
        if any(isinstance(model, ModelPair) for model in roles.values()) or (
            roles and "perturbed" not in roles
        ):
            raise UserError(
                "models.perturbed and models.standard must be names or directories; set models.perturbed"
            )
        standard = str(roles["standard"]) if "standard" in roles else None
        by_name = {"": ModelPair(perturbed=str(roles["perturbed"]), standard=standard)} if roles else {}
        for name, model in others.items():
            by_name[name] = model if isinstance(model, ModelPair) else ModelPair(perturbed=str(model))
        return {
            name: pair
            if pair.final_step is not None
            else ModelPair(perturbed=pair.perturbed, standard=pair.standard, final_step=self.final_step)
            for name, pair in by_name.items()
        }

    @property
    def chosen(self) -> dict[str, ModelPair]:
        """Models that are scored now."""
        return {name: pair for name, pair in self.pairs.items() if not self.only or name in self.only}

    @property
    def sources(self) -> dict[str, str]:
        """Files and data sets of items, by name."""
        given = {"items": self.items} if isinstance(self.items, str) else dict(self.items)
        return {name: path for name, path in given.items() if not self.sets or name in self.sets}

    def directory(self, name: str) -> Path:
        """Directory of a model's run, named by the settings that determine the items; all revisions share it."""
        pair = self.pairs[name]
        parts = [pair.perturbed, pair.standard, *self.reading().values(), declared.digests(self.sources)]
        full = f"{self.name}-{name}" if name else self.name
        return self.runs / self.experiment / f"{full}-{json_digest(parts)[:8]}"

    def reading(self) -> dict[str, Any]:
        """Settings that the items depend on, besides the files."""
        return {
            "fields": dict(self.fields),
            "limit": self.limit,
            "same_text": self.same_text,
        }


def build(config: DictConfig) -> ReleasedConfig:
    """Check a composed configuration.

    Raises:
        UserError: for a missing, unknown or impossible value.
    """
    return checked(ReleasedConfig, values_of(ReleasedConfig, config, RELEASED))
