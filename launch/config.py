"""From Hydra to frozen dataclasses, and from errors to one line and an exit status."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.data.mixture import MAIN, MixtureConfig
from palimpsest.data.prepare import CorpusConfig
from palimpsest.data.tokenizer import FILE, TokenizerConfig
from palimpsest.insertion.families import registry
from palimpsest.insertion.ledger import PlanViolation
from palimpsest.insertion.settings import InsertionConfig, RunShape
from palimpsest.pretrain import laws
from palimpsest.pretrain.config import (
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ProfileConfig,
    RuntimeConfig,
    TrainConfig,
    check_seed,
)
from palimpsest.pretrain.identity import result_settings
from palimpsest.pretrain.interrupts import REQUEUE, Interrupted

CONF = Path(__file__).resolve().parent.parent / "conf"
INTEGRITY = 3
"""Exit status when an audit fails or a batch is not what the plan says."""
STATUS = "PALIMPSEST_STATUS"
"""Environment variable: a file that gets exit status and line of the first rank that fails, for torchrun itself
always ends with 1."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, kw_only=True, slots=True)
class LauncherConfig:
    """Where ``launch/sweep.py`` runs a sweep. Only ``kind`` and ``jobs`` matter outside SLURM."""

    kind: Literal["local", "slurm", "report"]
    """``report`` starts nothing: it shows how far the sweep is and writes its report."""
    jobs: int | None = None
    """Runs at a time; None: as many as the cluster gives (locally: one)."""
    partition: str | None = None
    account: str | None = None
    time: str = "24:00:00"
    """Limit of one job, as SLURM writes it."""
    signal_before: int = 300
    """Seconds before the limit at which the programs get SIGTERM."""
    retries: int = 3
    """How often a job is put back that ended by a signal or a crash. Preemption and the time limit do not count."""
    nodes: int = 1
    """Nodes of one training."""
    processes: int = 1
    """Training processes on a node; one a GPU."""
    gpus: int = 0
    """GPUs a node."""
    cpus: int = 1
    """CPU cores a process."""
    memory: str | None = None
    """Memory a node, as SLURM writes it."""
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
    """Jobs among which the checkpoints of a run are divided for scoring."""

    def __post_init__(self) -> None:
        for name in ("jobs", "nodes", "processes", "cpus", "score_shares"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"launcher.{name}={value} must be above 0")
        for name in ("signal_before", "retries", "gpus"):
            if getattr(self, name) < 0:
                raise UserError(f"launcher.{name}={getattr(self, name)} must be 0 or above")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What the report computes."""

    prefix_tokens: int
    suffix_tokens: int
    metrics: tuple[str, ...]
    """More of ``analysis.metrics`` than the default ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything that a person can set."""

    experiment: str
    name: str
    seed: int
    run: Literal["perturbed", "twin"]
    runs: Path
    estimated_duration: str
    shard: str | None
    index: bool
    verify: bool
    dry_run: bool
    show: int | None
    step: int | None
    format: Literal["megatron", "jsonl"]
    wandb: Literal["off", "offline", "online"]
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
    report: ReportConfig
    launcher: LauncherConfig

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
        self.optimizer.check(self.train, self.model, self.parallel)
        if self.eval.enabled and self.parallel.tensor * self.parallel.pipeline > 1:
            raise UserError(
                "eval.heldout_every and eval.probes_every need a model that one rank has whole (parallel.tensor=1 "
                "parallel.pipeline=1); launch/score.py asks the checkpoints of any topology afterwards"
            )
        # Only the number of data-parallel ranks is not known yet; the trainer checks again with it.
        self.parallel.check(self.parallel.min_world_size, self.model, self.train)

    @property
    def corpus_directory(self) -> Path:
        """Where the prepared corpus lies; runs that read the same text share it."""
        digest = json_digest(_plain(self.corpus))[:8]
        return self.runs / "corpora" / f"{self.corpus.source.kind}-{digest}"

    @property
    def corpora(self) -> dict[str, tuple[CorpusConfig, Path]]:
        """Every corpus by name, the first being ``corpus``: what it is made of, and where it lies."""
        place = self.corpus_directory
        found = {MAIN: (self.corpus, place)}
        for name, given in self.mixture.corpora.items():
            tokenizer = TokenizerConfig(kind="file", path=str(place / FILE), eod=self.corpus.tokenizer.eod)
            config = replace(given, tokenizer=tokenizer)
            digest = json_digest([_plain(given), place.name])[:8]
            found[name] = (config, self.runs / "corpora" / f"{given.source.kind}-{digest}")
        return found

    @property
    def directory(self) -> Path:
        """Where this run lies. The digest covers what changes the result, and nothing else."""
        settings = result_settings(self.model, self.optimizer, self.train)
        insertion = _plain(self.insertion)
        parts = [
            _plain(self.corpus),
            settings["model"],
            insertion,
            settings["optimizer"],
            settings["train"],
        ]
        if not self.mixture.plain:
            parts.append(_plain(self.mixture))
        return self.runs / self.experiment / f"{self.name}-{json_digest(parts)[:8]}"

    @property
    def shape(self) -> RunShape:
        """What the plan needs to know of the run."""
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


def resolved(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON values."""
    return {field.name: _plain(getattr(experiment, field.name)) for field in fields(experiment)}


def build(config: DictConfig) -> Experiment:
    """Check a composed configuration and turn it into dataclasses.

    Raises:
        UserError: for a missing, unknown or impossible value.
    """
    if OmegaConf.is_missing(config, "experiment"):
        known = nearest("", _experiments())
        raise UserError(f"no experiment was chosen: add +experiment=NAME, such as quickstart{known}")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no value; set it: {missing[0]}=...")
    values: Any = OmegaConf.to_container(config, resolve=True)
    values = _fitted(Experiment, values, "")
    insertion = values.get("insertion")
    shared = insertion.get("experiments") if isinstance(insertion, dict) else None
    for one in (insertion, *(shared.values() if isinstance(shared, dict) else ())):
        if isinstance(one, dict) and isinstance(families := one.get("families"), dict):
            one["families"] = dict(sorted(families.items()))  # their order means nothing
    if isinstance(shared, dict):
        insertion["experiments"] = dict(sorted(shared.items()))
    for line in laws.apply(values):
        say(line)
    try:
        return TypeAdapter(Experiment).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise cause from None
        key = _key(first["loc"], values)
        given = "" if isinstance(first["input"], dict) else f"={_typed(first['input'])}"
        raise UserError(f"{key}{given}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _key(location: tuple[int | str, ...], values: Any) -> str:
    """The setting that a pydantic location means: without the names of a union's alternatives."""
    parts = []
    for part in location:
        inside = part in values if isinstance(values, dict) else isinstance(values, list)
        if inside and (isinstance(values, dict) or isinstance(part, int)):
            values = values[part]
            parts.append(str(part))
        elif isinstance(values, dict) and part == location[-1]:  # what is missing
            parts.append(str(part))
    return ".".join(parts)


def _typed(value: object) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _fitted(kind: Any, value: Any, name: str) -> Any:
    """A value from OmegaConf made ready for pydantic, which takes much (true as 1) and says little.

    Numbers become texts where a text is wanted (``name=2024``).

    Raises:
        UserError: for a setting that no dataclass has, true or false for a number, a number that is not finite, or
            one value where a list is wanted.
    """
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    lists = [option for option in options if get_origin(option) is tuple]
    records = [option for option in options if is_dataclass(option)]
    tables = [option for option in options if get_origin(option) is Mapping]
    if isinstance(value, dict) and records:
        types = get_type_hints(records[0])
        for key in value:
            if key not in types:  # one added with + is a mistake, not a comment
                prefix = f"{name}." if name else ""
                raise UserError(f"{prefix}{key}: there is no such setting{nearest(key, types)}")
        return {k: _fitted(types[k], v, f"{name}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, dict) and tables:
        return {k: _fitted(get_args(tables[0])[1], v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list) and lists:
        return [_fitted(get_args(lists[0])[0], part, name) for part in value]
    if lists == list(options) and value is not None:
        raise UserError(f"{name}={_typed(value)} must be a list: write it as {name}=[{_typed(value)}]")
    numbers = {int, float} & set(options)
    if isinstance(value, bool) and numbers and bool not in options:
        raise UserError(f"{name}: {_typed(value)} is no number")
    if isinstance(value, float) and numbers and not math.isfinite(value):
        raise UserError(f"{name}: {value} is no finite number")
    if isinstance(value, int | float) and not isinstance(value, bool) and not numbers:
        return str(value) if {str, Path} & set(options) else value
    return value


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
    if found := re.search(r"Could not override 'experiment'.*", text):
        typed = next((a for a in sys.argv[1:] if a.startswith("experiment=")), "experiment=NAME")
        return f"{typed} lacks a plus: write +{typed}"
    if found := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            known = _keys(compose("config"))
        if found[1] in known:  # Hydra takes new entries of a table with a plus alone
            return f"{found[1]} is a table; add entries to it with a plus: +{found[1]}.NAME=..."
        return f"{found[1]}: there is no such setting{nearest(found[1].split('=')[0].lstrip('+~'), known)}"
    return " ".join(text.split())


def program(main: Callable[[Experiment], int | None]) -> Callable[[], None]:
    """Make a program of a function: Hydra's command line in, exit status out.

    0: done. 1: a bug (with a traceback). 2: something that the user can mend, in one line. 3: the experiment is not
    what was planned. 75: told to stop by a signal, and saved.
    """

    def start() -> None:
        composed: list[DictConfig] = []

        @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
        def compose(config: DictConfig) -> None:
            composed.append(config)  # the work is done outside, where Hydra adds nothing to errors

        def work() -> int:
            _compose(compose)
            return max(
                (main(build(config)) or 0 for config in composed), default=0
            )  # none after --help or --cfg

        guarded(work)

    return start


def guarded(work: Callable[[], int]) -> NoReturn:
    """Do the work of a program and end with its status, or with what its error means."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    logging.getLogger("megatron").setLevel(logging.CRITICAL)  # what matters is raised, too
    warnings.filterwarnings("ignore", module=r"(megatron|torch|hydra)")
    status = 0
    try:
        status = work()
    except Interrupted as error:
        end(str(error), REQUEUE, rank)
    except PlanViolation as error:
        end(str(error), INTEGRITY, 0)  # whichever rank saw it says so
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = str(error) if isinstance(error, UserError) else _one_line(error)
        end(line, 2, rank)
    except OSError as error:
        if error.errno in _FULL_DISK:
            end(
                f"the disk is full ({error}); what was finished before is intact: free space, run again",
                2,
                rank,
            )
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            end(f"no permission to write: {error}", 2, rank)
        raise
    except KeyboardInterrupt:
        end("interrupted; run the same command again to go on", 130, rank)
    sys.exit(status)


def plain(description: str | None, work: Callable[[Sequence[str]], int]) -> None:
    """Run a program that has no configuration: ``--help`` prints what it is, anything else is guarded work.

    Args:
        description: the program's docstring.
        work: from the arguments of the command line to the status.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        sys.stdout.write(f"{description}\n")
        return
    guarded(lambda: work(sys.argv[1:]))


def take(first: str, *others: str, word: bool = False) -> dict[str, str]:
    """Take settings that a program has for itself out of the command line, where Hydra would refuse them.

    Args:
        first: the one that asks for them; without it nothing is taken.
        others: those that go with it.
        word: whether the first is a word instead of ``first=value``.

    Returns:
        Setting -> value as typed, the last one if there are several; of a word "".
    """
    wanted: dict[str, str] = {}
    left = sys.argv[:1]
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if (key == first and bool(equals) != word) or (key in others and equals):
            wanted[key] = value
        else:
            left.append(argument)
    if first not in wanted:
        return {}
    sys.argv[:] = left
    return wanted


def share_of(text: str) -> tuple[int, int]:
    """``k/n`` as two numbers.

    Raises:
        UserError: if it is none of ``0/n`` ... ``n-1/n``.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise UserError(f"shard={text!r} is not k/n; give shard=0/8, shard=1/8, ... shard=7/8")
    return int(found[1]), int(found[2])


def say(line: str) -> None:
    """Tell the person; one rank alone speaks."""
    logging.getLogger("palimpsest").info(line)


def _compose(compose: Callable[[], None]) -> None:
    """Let Hydra work. A reader of ``--help`` that has seen enough, such as ``head``, is no error."""
    try:
        compose()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(0)


def end(line: str, status: int, rank: int = 0) -> NoReturn:
    """End the program with one line. Of several ranks the first one speaks; see also ``STATUS``."""
    ranked = "RANK" in os.environ
    if ranked and (path := os.environ.get(STATUS)):
        # Only the first to fail says why; the others fail because of it.
        with contextlib.suppress(FileExistsError), Path(path).open("x") as file:
            file.write(f"{status}\n{line}")
    if rank == 0 or not ranked:
        sys.stderr.write(f"palimpsest: {line}\n")
        sys.stderr.flush()
    sys.exit(status)


def end_with_parent(number: int) -> None:
    """Ask Linux to send this child a signal when its parent dies; other systems go without."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


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
