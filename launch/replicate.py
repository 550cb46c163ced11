"""Replication of a published finding: ``python launch/replicate.py dose``.

``conf/replicate/NAME.yaml`` declares the runs, the seeds and the claims with their tests. The program makes every run
with every seed, by ``launch/run.py`` or the program that the run names (``adaptive``, ``posttrain``); finished runs are
reused, so the same command continues after a stop. Then it tests the claims and writes
``results/replications/NAME.md``, with tables, a figure and an overview of all pages.

    python launch/replicate.py all                     every replication
    python launch/replicate.py dose jobs=2             two runs at a time
    python launch/replicate.py dose seeds=[101,102]    pilot runs: prints mean and deviation, writes no page
    python launch/replicate.py list                    names, titles, planned power
    python launch/replicate.py mine.yaml               a replication of your own

Its own settings are ``seeds``, ``jobs`` and ``out`` (directory of the pages). Other settings, such as ``runs=DIR`` and
``runtime.device=cuda``, apply to the runs; with a setting that changes the result the runs are pilots.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from palimpsest.analysis import Run
from palimpsest.analysis.replication import claims, page
from palimpsest.analysis.replication.claims import Replication
from palimpsest.analysis.replication.quantities import Posttrained
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError, nearest
from palimpsest.launch import adaptive, posttrain, sweep
from palimpsest.launch.compose import CONF, checked
from palimpsest.launch.process import INTEGRITY, locked, say
from palimpsest.launch.program import plain

FOLDER = CONF / "replicate"
_SAME_RESULT = re.compile(r"[+~]*(runs=|runtime\.|wandb|launcher\b)")
"""Settings that change no result."""
PROGRAMS = ("run", "adaptive", "posttrain")
"""Programs that make a replication's runs."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    names: list[str]
    seeds: tuple[int, ...] | None
    jobs: int
    out: Path
    overrides: list[str]


def names() -> list[str]:
    """Names of all replications."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """File of a replication: of ``conf/replicate/``, or the path itself if it ends in ``.yaml``."""
    return Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"


def load(name: str) -> Replication:
    """The declaration of a replication.

    Args:
        name: a name of :func:`names`, or the path of a file of one's own.

    Raises:
        UserError: if there is none of that name, or it cannot be read.
    """
    path = path_of(name)
    if not path.is_file():
        raise UserError(f"{name}: there is no such replication{nearest(name, ['all', 'list', *names()])}")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        return checked(Replication, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


def asked(arguments: Sequence[str]) -> Asked:
    """Parse the command line.

    Raises:
        UserError: for an unknown name, no name, or a value that is no number.
    """
    chosen = [text for text in arguments if "=" not in text]
    own = {key: value for key, _, value in (text.partition("=") for text in arguments if "=" in text)}
    if len(chosen) != 1:
        raise UserError(f"give one replication: all, list, or one of {', '.join(names())}")
    wanted = names() if chosen[0] == "all" else chosen
    try:
        seeds = tuple(int(text) for text in own["seeds"].strip("[]").split(",")) if "seeds" in own else None
        jobs = int(own.get("jobs", "1"))
    except ValueError as error:
        raise UserError(f"seeds=[1,2,3] and jobs=2 are numbers ({error})") from None
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be above 0")
    overrides = [
        text for text in arguments if "=" in text and text.split("=")[0] not in ("seeds", "jobs", "out")
    ]
    return Asked(wanted, seeds, jobs, Path(own.get("out", "results/replications")), overrides)


def composed(replication: Replication, seeds: Sequence[int], overrides: Sequence[str]) -> list[sweep.Run]:
    """Runs of a replication: those of ``launch/run.py`` before those of other programs, which may start from them; then
    those of the first seed first, in the order of the declaration.

    Raises:
        UserError: for a program that makes no runs of a replication, and as ``launch.sweep.composed``.
    """
    lines: dict[str, list[tuple[tuple[str, ...], dict[str, str]]]] = {"run": []}
    for seed in seeds:
        for name in replication.runs:
            program, own = replication.program_of(name)
            if program not in PROGRAMS:
                raise UserError(
                    f"runs.{name}: there is no program {program} to make a run with{nearest(program, PROGRAMS)}; give "
                    f"one of {', '.join(PROGRAMS)}"
                )
            line = (*replication.arguments, *own, *overrides, f"seed={seed}")
            lines.setdefault(program, []).append((line, {"run": name, "seed": str(seed)}))
    made = [run for program, own in lines.items() for run in sweep.composed(own, program)]
    return [replace(run, index=index) for index, run in enumerate(made)]


def audit_of(run: sweep.Run) -> str | None:
    """Verdict of a run's audit, ``PASS`` or ``FAIL``; None if the run is not finished."""
    if run.program == "adaptive":
        return adaptive.verdict(run.experiment)
    if run.program == "posttrain":
        return "PASS" if posttrain.compared(run.experiment) else None  # it ends where an audit fails
    summary = sweep.verdict(run.experiment)
    return None if summary is None else str(summary["audit"])


def opened(run: sweep.Run) -> Run:
    """A finished run, for the quantities of claims."""
    if run.program == "posttrain" and (found := posttrain.compared(run.experiment)) is not None:
        return Posttrained(run.experiment.directory, *found)
    return Run(run.experiment.directory)


def make(name: str, runs: Sequence[sweep.Run], jobs: int) -> None:
    """Make the runs that are not finished.

    Raises:
        UserError: if one of them failed.
    """
    waiting = [run for run in runs if audit_of(run) is None]
    directory = runs[0].experiment.runs / "replications" / name
    say(
        f"{name}: {len(runs)} runs, {len(runs) - len(waiting)} of them finished; logs are in {directory / 'logs'}"
    )
    if not waiting:
        return
    with locked(directory):
        sweep.write(directory, runs)
        # The first one alone: it makes the corpus and the twin that the others share.
        several = [run for run in waiting if run.program == "run"]
        rest = [run for run in waiting if run.program != "run"]
        failed: dict[int, int] = {}
        for group, at_once in ((several[:1], 1), (several[1:], jobs), (rest, 1)):
            failed = failed or sweep.run_locally(group, at_once, directory / "logs")
    if failed:
        raise UserError(
            f"{name}: {len(failed)} of {len(waiting)} runs failed; logs are in {directory / 'logs'}; the same command "
            "starts them again"
        )


def replicate(name: str, given: Asked) -> int:
    """Make a replication's runs, test its claims and write its page.

    Returns:
        Exit status: 0, or 3 if an audit failed.
    """
    replication, path = load(name), path_of(name)
    name = path.stem
    seeds = given.seeds or replication.seeds
    runs = composed(replication, seeds, given.overrides)
    began = time.monotonic()
    fresh = any(audit_of(run) is None for run in runs)
    make(name, runs, given.jobs)
    minutes = (time.monotonic() - began) / 60 if fresh else float("nan")
    failed = [run.title for run in runs if audit_of(run) != "PASS"]
    if failed:
        say(f"{name}: the audit failed: {', '.join(failed)}; nothing is tested")
        return INTEGRITY
    by_seed = {
        seed: {run.factors["run"]: opened(run) for run in runs if run.factors["seed"] == str(seed)}
        for seed in seeds
    }
    measured = {
        key: [claim.measure(by_seed[seed]) for seed in seeds] for key, claim in replication.claims.items()
    }
    for key, estimates in measured.items():
        values = np.array([estimate.value for estimate in estimates])
        spread = f", deviation {values.std(ddof=1):.3g}" if len(values) > 1 else ""
        errors = ", ".join(
            f"{estimate.value:.3g} ± {estimate.error:.2g}{estimate.reason}" for estimate in estimates
        )
        say(f"  {key}: {values.mean():.3g}{spread} ({errors})")
    pilot = [text for text in given.overrides if not _SAME_RESULT.match(text)]
    if set(seeds) != set(replication.seeds) or pilot:
        say(f"{name}: pilot runs ({', '.join([f'seeds {list(seeds)}', *pilot])}); no page is written")
        return 0
    outcomes = claims.judge(replication.claims, measured)
    arms = pl.concat(
        [
            page.arms_of(run, replication.figure).with_columns(run=pl.lit(key), seed=pl.lit(seed))
            for seed, group in by_seed.items()
            for key, run in group.items()
        ]
    )
    written = page.write(name, replication, outcomes, arms, _provenance(path, runs, minutes), given.out)
    page.overview(given.out)
    for key, outcome in outcomes.items():
        say(
            f"  {replication.claims[key].text}: {outcome.verdict}{f' ({outcome.why})' if outcome.why else ''}"
        )
    say(f"{name}: {claims.overall(outcomes)}; {written}")
    return 0


def _provenance(path: Path, runs: Sequence[sweep.Run], minutes: float) -> page.Provenance:
    prepared = artifact.read(
        runs[0].experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    )
    made = [Run(run.experiment.directory).plan.manifest.made_by for run in runs]
    commits = sorted({str(one["git_commit"])[:9] + ("+" if one["git_dirty"] else "") for one in made})
    packages = made[-1]["packages"]
    return page.Provenance(
        date=datetime.now(UTC).date().isoformat(),
        command=f"palimpsest replicate {path.stem if path.parent == FOLDER else path}",
        hardware=hardware(),
        design=_design(path, {str(one["git_commit"]) for one in made}),
        made_by=f"{' and '.join(commits)} (torch {packages['torch']}, megatron-core {packages['megatron-core']})",
        corpus=prepared.digest[:12],
        minutes=minutes,
    )


def hardware() -> str:
    """Processor or GPU of this machine, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else []
    return f"{os.cpu_count()} cores of {models[0] if models else platform.processor() or platform.machine()}"


def _design(path: Path, made_with: Set[str]) -> str:
    """Commit that last changed a file, and whether the commits that the runs were made with contain it."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(path.parent), *words], check=False, capture_output=True, text=True
        )

    commit = git("log", "-1", "--format=%h of %cs", "--", path.name).stdout.strip()
    if not commit:
        return "no commit"
    if git("status", "--porcelain", "--", path.name).stdout.strip():
        return f"{commit}, and changed since"
    inside = [git("merge-base", "--is-ancestor", commit.split()[0], one).returncode for one in made_with]
    return f"{commit}, {'after' if 1 in inside else 'before'} the runs" if set(inside) <= {0, 1} else commit


def work(arguments: Sequence[str]) -> int:
    """Run the replications of the command line."""
    given = asked(arguments)
    if given.names == ["list"]:
        for name in names():
            one = load(name)
            power = min(claim.power(len(one.seeds), len(one.claims)) for claim in one.claims.values())
            say(
                f"{name:12} {one.title} ({len(one.claims)} claims, {len(one.seeds)} seeds, least power {power:.2f})"
            )
        return 0
    return max(replicate(name, given) for name in given.names)


def main() -> None:
    """Run replications."""
    plain(__doc__, work)


if __name__ == "__main__":
    main()
