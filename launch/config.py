"""From Hydra to frozen dataclasses, and from errors to one line and an exit status."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from data.artifact import json_digest
from data.errors import UserError, nearest
from data.prepare import CorpusConfig
from insertion.ledger import PlanViolation
from insertion.plan import InsertionConfig, RunShape
from pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig, TrainConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
INTEGRITY = 3
"""Exit status when an audit fails or a batch is not what the plan says."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What the report computes."""

    prefix_tokens: int
    suffix_tokens: int
    bootstrap: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything that a person can set."""

    experiment: str
    name: str
    seed: int
    run: Literal["perturbed", "twin"]
    runs: Path
    takes: str
    shard: str | None
    index: bool
    verify: bool
    show: int | None
    wandb: Literal["off", "offline", "online"]
    corpus: CorpusConfig
    model: ModelConfig
    insertion: InsertionConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    parallel: ParallelConfig
    runtime: RuntimeConfig
    report: ReportConfig

    def __post_init__(self) -> None:
        for key, value in (("experiment", self.experiment), ("name", self.name)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
                raise UserError(
                    f"{key}={value!r} must be letters, digits, '.', '_' and '-' (it names a directory)"
                )

    @property
    def corpus_directory(self) -> Path:
        """Where the prepared corpus lies; runs that read the same text share it."""
        digest = json_digest(_plain(self.corpus))[:8]
        return self.runs / "corpora" / f"{self.corpus.source.kind}-{digest}"

    @property
    def directory(self) -> Path:
        """Where this run lies. The digest covers what changes the result, and nothing else."""
        train = {k: v for k, v in _plain(self.train).items() if k != "micro_batch_size"}
        parts = [_plain(part) for part in (self.corpus, self.model, self.insertion, self.optimizer)]
        return self.runs / self.experiment / f"{self.name}-{json_digest([*parts, train])[:8]}"

    @property
    def shape(self) -> RunShape:
        """What the plan needs to know of the run."""
        train = self.train
        return RunShape(
            steps=train.steps,
            global_batch_size=train.global_batch_size,
            sequence_length=train.sequence_length,
        )


def _plain(value: Any) -> Any:
    """A setting as JSON values."""
    return TypeAdapter(Path if isinstance(value, Path) else type(value)).dump_python(value, mode="json")


def resolved(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON values."""
    return {field.name: _plain(getattr(experiment, field.name)) for field in fields(experiment)}


def build(config: DictConfig) -> Experiment:
    """Check a composed configuration and turn it into dataclasses.

    Raises:
        UserError: for a missing, unknown or impossible value.
    """
    if OmegaConf.is_missing(config, "experiment"):
        raise UserError(f"no experiment was chosen: add +experiment=NAME{nearest('', _experiments())}")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no value; set it: {missing[0]}=...")
    values: Any = OmegaConf.to_container(config, resolve=True)
    _refuse_unknown(Experiment, values, "")
    try:
        return TypeAdapter(Experiment).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise cause from None
        key = ".".join(str(part) for part in first["loc"])
        given = "" if isinstance(first["input"], dict) else f"={first['input']}"
        raise UserError(f"{key}{given}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _refuse_unknown(kind: type, values: dict[str, Any], prefix: str) -> None:
    """A key added with ``+`` that no dataclass has is a mistake, not a comment."""
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{prefix}{key}: there is no such setting{nearest(key, known)}")
        if is_dataclass(types[key]) and isinstance(value, dict):
            _refuse_unknown(types[key], value, f"{prefix}{key}.")  # type: ignore[arg-type]


def _experiments() -> list[str]:
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def _keys(config: DictConfig) -> set[str]:
    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            name = f"{prefix}{key}"
            yield name
            value = None if OmegaConf.is_missing(node, key) else node[key]
            if isinstance(value, DictConfig):
                yield from walk(value, f"{name}.")

    return set(walk(config, ""))


def _one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's errors in one line, with what would have been right."""
    text = str(error)
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group = CONF / found[1]
        return f"{found[1]}={found[2]}: there is no such {found[1]}" + nearest(
            found[2], [path.stem for path in group.glob("*.yaml")]
        )
    if found := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            known = _keys(compose("config"))
        return f"{found[1]}: there is no such setting{nearest(found[1].split('=')[0].lstrip('+~'), known)}"
    return " ".join(text.split())


def program(main: Callable[[Experiment], int | None]) -> Callable[[], None]:
    """Make a program of a function: Hydra's command line in, exit status out.

    0: done. 1: a bug (with a traceback). 2: something that the user can mend, in one line. 3: the experiment is not
    what was planned.
    """

    def start() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us
        rank = int(os.environ.get("RANK", "0"))
        logging.basicConfig(
            level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr
        )
        logging.getLogger("megatron").setLevel(logging.CRITICAL)  # what matters is raised, too
        warnings.filterwarnings("ignore", module=r"(megatron|torch|hydra)")
        composed: list[DictConfig] = []

        @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
        def compose(config: DictConfig) -> None:
            composed.append(config)  # the work is done outside, where Hydra adds nothing to errors

        status = 0
        try:
            compose()
            for config in composed:  # none after --help or --cfg
                status = max(status, main(build(config)) or 0)
        except PlanViolation as error:
            _end(str(error), INTEGRITY, 0)  # whichever rank saw it says so
        except (UserError, HydraException, OmegaConfBaseException) as error:
            line = str(error) if isinstance(error, UserError) else _one_line(error)
            _end(line, 2, rank)
        except OSError as error:
            if error.errno in _FULL_DISK:
                _end(
                    f"the disk is full ({error}); what was finished before is intact: free space, run again",
                    2,
                    rank,
                )
            if isinstance(error, PermissionError) or error.errno == errno.EROFS:
                _end(f"no permission to write: {error}", 2, rank)
            raise
        except KeyboardInterrupt:
            _end("interrupted; run the same command again to go on", 130, rank)
        sys.exit(status)

    return start


def say(line: str) -> None:
    """Tell the person; one rank alone speaks."""
    logging.getLogger("palimpsest").info(line)


def _end(line: str, status: int, rank: int) -> None:
    if rank == 0 or "RANK" not in os.environ:
        sys.stderr.write(f"palimpsest: {line}\n")
        sys.stderr.flush()
    sys.exit(status)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a run's directory: two trainings in one directory would ruin each other.

    Raises:
        UserError: if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, never inherited by a child
        except OSError:
            raise UserError(
                f"{directory} is in use by another process; wait for it, or set another name=..."
            ) from None
        yield
