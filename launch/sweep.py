"""Many runs from one line: ``python launch/sweep.py +experiment=quickstart seed=1,2,3 model=nano,tiny``.

Every setting with several values is a factor; all combinations are run, each as ``launch/run.py`` would. The sweep lies
in ``runs/sweeps/<experiment>-<digest>/``: ``runs.jsonl`` (one line per run), logs, and the report of the sweep. The
same command again goes on: runs that are finished are skipped, those that failed or were stopped are started again,
alone.

``+sweep=hubble_timing`` takes the runs from ``conf/sweep/hubble_timing.yaml``; their names there are a factor.

``launcher.jobs=4`` runs four at a time and divides the GPUs among them; ``launcher=slurm`` submits arrays
(``conf/launcher/``); ``launcher=report`` starts nothing. ``dry_run=true`` says what each run would make and reuse; with
``launcher=slurm`` it also writes the scripts and prints the submission.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from palimpsest.analysis.report import sweep as pages
from palimpsest.analysis.report.inputs import KIND as REPORT
from palimpsest.analysis.report.inputs import VERSION as REPORT_VERSION
from palimpsest.analysis.run.sweep import MANIFEST, title_of
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.launch import dry_run, help, preconditions, slurm
from palimpsest.launch.compose import CONF, build, scaled
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import INTEGRITY, end_with_parent, locked, say
from palimpsest.launch.program import guarded, program
from palimpsest.launch.report import settings as report_settings

KIND = "sweep"
VERSION = 1
_OF_THE_SWEEP = re.compile(r"[+~]*(launcher\b|dry_run=)")
"""Arguments of the sweep itself, not of its runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One line of a sweep."""

    index: int
    arguments: tuple[str, ...]
    factors: dict[str, str]
    """Factor -> value in this run."""
    experiment: Experiment
    program: str = "run"
    """Program that makes it."""

    @property
    def title(self) -> str:
        """Printed text of the factors."""
        return title_of(self.factors)


def expand(arguments: Sequence[str]) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """All combinations of settings with several values (Hydra's syntax: ``a,b``, ``choice``, ``range``).

    Returns:
        For each, the arguments of a run, and the factors' values; the last factor changes fastest.

    Raises:
        UserError: for values that cannot be enumerated.
    """
    parser = OverridesParser.create()
    options: list[list[tuple[str, str | None, str]]] = []
    for argument in arguments:
        if argument.startswith("-"):
            options.append([(argument, None, "")])
            continue
        override = parser.parse_override(argument)
        if not override.is_sweep_override():
            options.append([(argument, None, "")])
            continue
        key = override.get_key_element()
        if not override.is_discrete_sweep() or "glob(" in argument:
            raise UserError(f"{argument}: give the values of a sweep one by one: {key}=a,b,c")
        values = list(override.sweep_string_iterator())
        if len(set(values)) < len(values):
            raise UserError(f"{argument} has a value twice; remove one")
        options.append([(f"{key}={value}", key.lstrip("+"), value) for value in values])
    return [
        (tuple(text for text, _, _ in chosen), {key: value for _, key, value in chosen if key is not None})
        for chosen in itertools.product(*options)
    ]


def lines_of(arguments: Sequence[str]) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """As ``expand``, for each run of ``+sweep=NAME`` if this is among the arguments.

    Raises:
        UserError: as for ``expand``, and for an unknown sweep.
    """
    chosen = [text for text in arguments if text.partition("=")[0] in ("+sweep", "sweep")]
    if not chosen:
        return expand(arguments)
    name, folder = chosen[-1].partition("=")[2], CONF / "sweep"
    if not (file := folder / f"{name}.yaml").is_file():
        known = nearest(name, [path.stem for path in folder.glob("*.yaml")])
        raise UserError(f"{chosen[-1]}: there is no such sweep{known}")
    given: Any = OmegaConf.to_container(OmegaConf.load(file))
    rest = [text for text in arguments if text not in chosen]
    return [
        (words, {name: run, **factors})
        for run, own in given["runs"].items()
        for words, factors in expand([*given["arguments"], *own, *rest])
    ]


def composed(lines: Sequence[tuple[tuple[str, ...], dict[str, str]]], program: str = "run") -> list[Run]:
    """Check every line's configuration.

    Args:
        lines: arguments of each run, and its factors.
        program: that makes the runs.

    Raises:
        UserError: for a mistake in any line, and for two lines that identify the same run.
    """
    GlobalHydra.instance().clear()
    runs: list[Run] = []
    made: dict[tuple[Path, object], Run] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for index, (arguments, factors) in enumerate(lines):
            for key in factors:
                if key.split(".")[0] in ("launcher", "runs", "dry_run"):
                    raise UserError(f"{key} must have one value, because it applies to the whole sweep")
            experiment = build(compose("config", _overrides(scaled(arguments))))
            run = Run(
                index=index,
                arguments=tuple(text for text in arguments if not _OF_THE_SWEEP.match(text)),
                factors=factors,
                experiment=experiment,
                program=program,
            )
            # Post-trained runs lie in the directory of the run that they start from.
            settings = repr(experiment.posttrain) if program == "posttrain" else None
            other = made.setdefault((experiment.directory, settings), run)
            if other is not run:
                raise UserError(
                    f"{run.title} and {other.title} are the same run, {experiment.directory}: they "
                    f"differ in nothing that changes the result; leave out one"
                )
            runs.append(run)
    return runs


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Arguments for Hydra's compose, with ``--config-dir`` converted to a search path."""
    overrides = []
    for argument in arguments:
        if argument.startswith("--config-dir="):
            overrides.append(f"hydra.searchpath=[file://{Path(argument.split('=', 1)[1]).absolute()}]")
        elif argument.startswith("-"):
            raise UserError(f"a sweep takes no {argument}; known: --config-dir=DIRECTORY, --help, --cfg job")
        else:
            overrides.append(argument)
    return overrides


def directory_of(runs: Sequence[Run]) -> Path:
    """Directory of a sweep; its digest covers which runs it has."""
    experiments = list(dict.fromkeys(run.experiment.experiment for run in runs))
    digest = json_digest([run.experiment.directory.name for run in runs] + experiments)[:8]
    return runs[0].experiment.runs / "sweeps" / f"{'+'.join(experiments)}-{digest}"


def verdict(experiment: Experiment) -> dict[str, Any] | None:
    """The summary of a finished run; None if there is no report, or one with other settings of the report."""
    place = experiment.directory / "report"
    if not (place / artifact.MANIFEST).is_file():
        return None
    manifest = artifact.read(place, kind=REPORT, schema_version=REPORT_VERSION)
    if artifact.differences(manifest, config=report_settings(experiment), inputs=manifest.inputs):
        return None
    summary: dict[str, Any] = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    return summary


def write(directory: Path, runs: Sequence[Run]) -> None:
    """Write the manifest with one line per run, and the same arguments quoted for a shell."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "index": run.index,
            "directory": str(run.experiment.directory),
            "factors": run.factors,
            "arguments": list(run.arguments),
        }
        for run in runs
    ]
    for name, text in (
        (MANIFEST, "".join(json.dumps(line) + "\n" for line in lines)),
        ("arguments.txt", "".join(shlex.join(run.arguments) + "\n" for run in runs)),
    ):
        draft = directory / f".{name}.tmp"
        draft.write_text(text, encoding="utf-8")
        draft.rename(directory / name)


def gpus() -> list[str]:
    """GPUs that runs may use, in the notation of ``CUDA_VISIBLE_DEVICES``; read from the driver, because importing
    torch takes seconds.
    """
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stdout.split() if done.returncode == 0 else []


def gpus_of(slot: int, jobs: int, gpus: Sequence[str]) -> list[str]:
    """GPUs of one of ``jobs`` concurrent runs: an equal share, or one GPU that several runs share."""
    share = len(gpus) // jobs
    return list(gpus[slot * share : (slot + 1) * share]) if share else [gpus[slot % len(gpus)]]


def run_locally(waiting: Sequence[Run], jobs: int, logs: Path) -> dict[int, int]:
    """Start runs, ``jobs`` at a time, until all have ended.

    Returns:
        Index -> exit status of failed runs.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ}
    if jobs > 1:  # or each would use all cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    devices = gpus() if jobs > 1 else []
    left, ended = list(waiting), 0
    running: dict[int, tuple[Run, subprocess.Popen[bytes], float]] = {}  # by slot
    failed: dict[int, int] = {}
    try:
        while left or running:
            for slot in sorted(set(range(jobs)) - set(running))[: len(left)]:
                run = left.pop(0)
                own = {"CUDA_VISIBLE_DEVICES": ",".join(gpus_of(slot, jobs, devices))} if devices else {}
                with (logs / f"run-{run.index}.log").open("ab") as log:
                    process = subprocess.Popen(
                        [sys.executable, str(slurm.PROGRAMS / f"{run.program}.py"), *run.arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**environment, **own},
                        # lest the next sweep finds a child of one that was killed at work
                        preexec_fn=partial(end_with_parent, signal.SIGTERM),
                    )
                running[slot] = (run, process, time.monotonic())
            for slot, (run, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                index = run.index
                ended += 1
                line = f"[{ended}/{len(waiting)}] {run.title}"
                if process.returncode:
                    failed[index] = process.returncode
                    say(f"{line}: failed, {_last_line(logs / f'run-{index}.log')}")
                else:
                    say(f"{line}: done in {time.monotonic() - began:.0f} s")
            time.sleep(0.1)
    finally:
        for _, process, _ in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process, _ in running.values():
            process.wait()
    return failed


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"see {path}"


def _submit(runs: Sequence[Run], waiting: Sequence[Run], directory: Path, arguments: Sequence[str]) -> None:
    """Submit the unfinished runs, or show the submission (``dry_run=true``)."""
    record = directory / "jobs.json"
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    launcher, dry = runs[0].experiment.launcher, runs[0].experiment.dry_run
    if not dry and slurm.queued(list(before.values())):
        raise UserError(
            f"this sweep is in SLURM's queue (squeue -j {','.join(before.values())}); wait, or scancel it first"
        )
    corpora: dict[Path, int] = {}
    for run in waiting:
        corpora.setdefault(run.experiment.corpus_directory, run.index)
    if not dry:
        for line in preconditions.idle(runs[0].experiment):
            say(f"to mend: {line}")
    scripts = slurm.write_scripts(launcher, directory, arguments)
    indices = [run.index for run in waiting], sorted(corpora.values())
    if dry:
        for line in slurm.preview(launcher, scripts, *indices):
            say(line)
        return
    jobs = slurm.submit(launcher, scripts, *indices)
    artifact.write_json(record, jobs)
    say(f"submitted: {', '.join(f'{name} {job}' for name, job in jobs.items())}")
    say(f"squeue -j {','.join(jobs.values())} shows them; logs are in {directory / 'logs'}")


def preview(runs: Sequence[Run], directory: Path, arguments: Sequence[str]) -> None:
    """Print the artefacts that every run would make and reuse, and the submission. Only sbatch scripts are written."""
    waiting = [run for run in runs if verdict(run.experiment) is None]
    say(
        f"{directory}: {len(runs)} runs, {len(runs) - len(waiting)} of them finished; dry_run=true: nothing is run or "
        "submitted"
    )
    for run in runs:
        say(
            f"{run.index}  {run.title}: {run.experiment.directory}" + ("" if run in waiting else ": finished")
        )
        if run in waiting:
            for stage, line in dry_run.stages(run.experiment):
                say(f"     {stage}: {line}")
    for line in dict.fromkeys(line for run in waiting for line in preconditions.missing(run.experiment)):
        say(f"missing: {line}")
    for line in dict.fromkeys(line for run in waiting for line in preconditions.to_mend(run.experiment)):
        say(f"to mend: {line}")
    if waiting:
        say(dry_run.whole([run.experiment for run in waiting]))
    if runs[0].experiment.launcher.kind == "slurm" and waiting:
        write(directory, runs)
        _submit(runs, waiting, directory, arguments)
        say(f"the scripts are in {directory}; nothing was submitted")


def _scale(experiment: Experiment) -> dict[str, float]:
    """Axes along which memorization may scale, for ``analysis.report.scaling``."""
    train, model = experiment.train, experiment.model
    vocabulary = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    ).facts["vocab_size"]
    return {
        "parameters": model.parameters(vocabulary, train.sequence_length),
        "tokens": train.steps * train.global_batch_size * train.sequence_length,
        "learning rate": experiment.optimizer.learning_rate,
        "windows a step": train.global_batch_size,
        "experts": model.experts or 1,
    }


def gather(runs: Sequence[Run], directory: Path) -> None:
    """Write the report of the finished runs."""
    finished = [
        pages.SweepRun(
            factors=run.factors,
            directory=run.experiment.directory,
            summary=summary,
            link=os.path.relpath(run.experiment.directory / "report" / "report.html", directory / "report"),
            scale=_scale(run.experiment),
        )
        for run in runs
        if (summary := verdict(run.experiment)) is not None
    ]
    if not finished:
        say("no run is finished: there is nothing to report")
        return
    inputs = {
        run.directory.name: artifact.read(
            run.directory / "report", kind=REPORT, schema_version=REPORT_VERSION
        ).digest
        for run in finished
    }
    with artifact.writing(
        directory / "report", kind=KIND, schema_version=VERSION, config={}, inputs=inputs
    ) as draft:
        pages.build(directory.name, finished, len(runs), draft.path)
    say(f"report: {directory / 'report' / 'report.html'}")


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def sweep(arguments: Sequence[str]) -> int:
    """Run the sweep of the command line.

    Returns:
        Exit status: 0; 3 if an audit failed; else that of the first failed run.
    """
    runs = composed(lines_of(arguments))
    launcher = runs[0].experiment.launcher
    directory = directory_of(runs)
    run_arguments = [text for text in arguments if not _OF_THE_SWEEP.match(text)]
    if runs[0].experiment.dry_run:
        preview(runs, directory, run_arguments)
        return 0
    if launcher.kind != "report":
        preconditions.require(run.experiment for run in runs if verdict(run.experiment) is None)
    with locked(directory):
        write(directory, runs)
        waiting = [run for run in runs if verdict(run.experiment) is None]
        done = len(runs) - len(waiting)
        say(f"{directory}: {len(runs)} runs" + (f", {done} of them finished" if done else ""))
        failed: dict[int, int] = {}
        if launcher.kind == "slurm" and waiting:
            _submit(runs, waiting, directory, run_arguments)
            return 0
        if launcher.kind == "local" and waiting:
            signal.signal(signal.SIGTERM, _interrupted)
            failed = run_locally(waiting, launcher.jobs or 1, directory / "logs")
        gather(runs, directory)
        for run in runs:
            if (summary := verdict(run.experiment)) is None:
                say(f"  {run.index}  {run.title}: unfinished")
            else:
                say(f"  {run.index}  {run.title}: {summary['headline']}")
    if failed:
        status = next(iter(failed.values()))
        raise_ = (
            f"{len(failed)} of {len(runs)} runs failed ({', '.join(map(str, sorted(failed)))}); logs are in "
        )
        say(f"{raise_}{directory / 'logs'}; the same command starts them again, and them alone")
        return status if status in (1, 2, INTEGRITY) else 1
    verdicts = [summary["verdict"] for run in runs if (summary := verdict(run.experiment))]
    return INTEGRITY if "audit failed" in verdicts else 0


@program
def _single(experiment: Experiment) -> int:
    """Hydra entry for ``--help`` and ``--cfg``, which run nothing."""
    raise AssertionError(experiment)


def main() -> None:
    """Run the sweep, or let Hydra handle options such as ``--help``."""
    arguments = sys.argv[1:]
    if any(
        text.split("=")[0] in ("--help", "-h", help.EVERY, "--cfg", "-c", "--hydra-help", "--info", "-i")
        for text in arguments
    ):
        _single()
        return
    guarded(lambda: sweep(arguments))


if __name__ == "__main__":
    main()
