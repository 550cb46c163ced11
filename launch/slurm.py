"""Sweep as SLURM job arrays: one sbatch script per stage, whose array index is the sweep's line.

prepare (once for each corpus) -> plan -> training of the perturbed run and of the twin -> scoring -> audit and report
-> report of the sweep. Each task waits only for its own predecessor (``aftercorr``), so that a failed run does not
block others. The scripts are in the sweep's directory, and can be submitted by hand.

Neither submitit nor Hydra's launcher is used: both start pickled Python functions, do not support dependencies between
arrays, and would intercept the signals that ``srun`` and ``torchrun`` pass to a training.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsest.data.errors import UserError
from palimpsest.launch.experiment import LauncherConfig
from palimpsest.launch.process import INTEGRITY
from palimpsest.pretrain.interrupts import REQUEUE

PROGRAMS = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One array of jobs."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    """Programs with their arguments, run in order; the second also runs after a failed audit."""
    training: bool = False
    """True if the stage runs a training, on all the nodes and processes that the launcher's settings give; others run
    as one process."""
    gpu: bool = False
    single: bool = False
    """True if the stage is one job for the whole sweep, without an array index."""


def stages(launcher: LauncherConfig, sweep_arguments: Sequence[str]) -> list[Stage]:
    """The arrays of a sweep, in order."""
    shares = launcher.score_shares
    scores = [
        Stage(
            name="score" if shares == 1 else f"score-{k}",
            commands=(("score", f"shard={k}/{shares}"),),
            gpu=True,
        )
        for k in range(shares)
    ]
    return [
        Stage(name="prepare", commands=(("prepare",),)),
        Stage(name="plan", commands=(("plan",),)),
        Stage(name="train-perturbed", commands=(("train", "run=perturbed"),), training=True, gpu=True),
        Stage(name="train-twin", commands=(("train", "run=twin"),), training=True, gpu=True),
        *scores,
        Stage(name="report", commands=(("audit",), ("report",))),
        Stage(name="sweep", commands=(("sweep", *sweep_arguments, "launcher=report"),), single=True),
    ]


def script(stage: Stage, launcher: LauncherConfig, directory: Path) -> str:
    """The sbatch script of a stage.

    Args:
        stage: the stage.
        launcher: settings of the cluster.
        directory: absolute path of the sweep's directory, which has ``arguments.txt`` with one line per run, quoted for
            the shell.
    """
    nodes, processes, gpus = _resources(stage, launcher)
    which = "%j" if stage.single else "%a"
    sbatch: dict[str, object] = {
        "job-name": f"palimpsest-{stage.name}",
        "account": launcher.account,
        "partition": launcher.partition,
        "time": launcher.time,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": launcher.cpus * processes,
        "gpus-per-node": gpus or None,
        "mem": launcher.memory,
        "signal": f"TERM@{launcher.signal_before}" if launcher.signal_before else None,
        "chdir": Path.cwd(),
        "output": directory / "logs" / f"{stage.name}-{which}.log",
        "open-mode": "append",
    }
    head = [
        f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in sbatch.items() if value is not None
    ]
    head += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in launcher.options)]
    start = [
        "set -uo pipefail",
        # since SLURM 22.05 srun no longer takes over the cores that sbatch was asked for
        f'export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_PER_TASK:-{launcher.cpus * processes}}}"',
        *(f"module load {shlex.quote(module)}" for module in launcher.modules),
    ]
    start += launcher.setup
    if not stage.single:
        start += [
            f'line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(directory / "arguments.txt"))})',
            'eval "set -- $line"',
        ]
    status = f"{shlex.quote(str(directory / 'logs'))}/.{stage.name}-$SLURM_JOB_ID.status"
    ends = [
        f"export PALIMPSEST_STATUS={status}  # torchrun always ends with 1; its ranks write theirs here",
        'rm -f "$PALIMPSEST_STATUS"',
        _command(stage.commands[0], launcher, nodes, processes),
        "status=$?",
        'if [ -s "$PALIMPSEST_STATUS" ]; then status=$(head -n 1 "$PALIMPSEST_STATUS"); fi',
        'rm -f "$PALIMPSEST_STATUS"',
        *(
            f'if [ "$status" -eq 0 ] || [ "$status" -eq {INTEGRITY} ]; then\n'
            f"  {_command(command, launcher, nodes, processes)}\n  status=$?\nfi"
            for command in stage.commands[1:]
        ),
        'case "$status" in 0 | 2 | 3) exit "$status" ;; esac  # done, or nothing that another try would change',
        f'if [ "$status" -eq {REQUEUE} ] || [ "${{SLURM_RESTART_COUNT:-0}}" -lt {launcher.retries} ]; then',
        '  echo "palimpsest: ended with status $status; put back, to go on from the last checkpoint"',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$status"',
    ]
    return "\n".join(["#!/bin/bash", *head, *start, *ends]) + "\n"


def _command(command: tuple[str, ...], launcher: LauncherConfig, nodes: int, processes: int) -> str:
    """Shell command of one program under srun, which passes signals to it, and under torchrun if it has several
    processes.
    """
    python = "python" if launcher.container else sys.executable
    container = shlex.split(launcher.container) if launcher.container else []
    srun = ["srun", "--kill-on-bad-exit=1", *launcher.srun, *container]
    program = str(PROGRAMS / f"{command[0]}.py")
    given = shlex.join(command[1:])
    if nodes * processes == 1:
        return f'{shlex.join([*srun, python, program])} "$@" {given}'.rstrip()
    # The agent must leave TERM to the ranks, which get it from srun, too: it would kill them after 30 seconds.
    torchrun = (
        f"trap '' TERM; exec {shlex.quote(python)} -m torch.distributed.run --signals_to_handle=SIGINT "
        f'--nnodes={nodes} --nproc-per-node={processes} --node-rank="$SLURM_NODEID" '
        '--master-addr="$1" --master-port="$2" "${@:3}"'
    )
    head = (
        '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" "$((20000 + SLURM_JOB_ID % 10000))"'
    )
    return f'{shlex.join([*srun, "bash", "-c", torchrun, "torchrun"])} {head} {shlex.quote(program)} "$@" {given}'


def write_scripts(
    launcher: LauncherConfig, directory: Path, arguments: Sequence[str]
) -> list[tuple[Stage, Path]]:
    """Write the sbatch script of every stage.

    Args:
        launcher: settings of the cluster.
        directory: directory of the sweep.
        arguments: arguments of the sweep's command line, without the launcher's.

    Returns:
        The stages in order, each with its script.
    """
    directory = directory.absolute()
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    scripts = []
    for stage in stages(launcher, arguments):
        path = directory / f"{stage.name}.sh"
        path.write_text(script(stage, launcher, directory), encoding="utf-8")
        scripts.append((stage, path))
    return scripts


def submit(
    launcher: LauncherConfig,
    scripts: Sequence[tuple[Stage, Path]],
    unfinished: Sequence[int],
    corpora: Sequence[int],
) -> dict[str, str]:
    """Submit the arrays.

    Args:
        launcher: settings of the cluster.
        scripts: the stages in order, each with its script.
        unfinished: indices of the runs to submit.
        corpora: the first of these indices for each corpus.

    Returns:
        Stage -> job number.

    Raises:
        UserError: if SLURM is missing or refuses a job; the jobs already submitted are cancelled.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "launcher=slurm, but there is no sbatch on this machine; use a login node, launcher=local, or "
            "dry_run=true to see what would be submitted"
        )
    jobs: dict[str, str] = {}
    try:
        for stage, path in scripts:
            indices = corpora if stage.name == "prepare" else unfinished
            jobs[stage.name] = _sbatch(_command_of(stage, path, launcher, jobs, indices), path)
    except BaseException:
        if jobs:
            subprocess.run(["scancel", *jobs.values()], check=False)
        raise
    return jobs


def preview(
    launcher: LauncherConfig,
    scripts: Sequence[tuple[Stage, Path]],
    unfinished: Sequence[int],
    corpora: Sequence[int],
) -> Iterator[str]:
    """The submission as lines of a shell, each after a comment with its tasks, nodes, GPUs and time limit.

    The arguments are those of ``submit``, but nothing is submitted, and SLURM is not needed.
    """
    jobs: dict[str, str] = {}
    for stage, path in scripts:
        indices = corpora if stage.name == "prepare" else unfinished
        nodes, _, gpus = _resources(stage, launcher)
        tasks = 1 if stage.single else len(indices)
        yield (
            f"# {stage.name}: {tasks} task{'s' if tasks > 1 else ''} of {nodes} node{'s' if nodes > 1 else ''}, "
            f"{gpus} GPUs a node, at most {launcher.time} each"
        )
        name = stage.name.replace("-", "_")
        yield f"{name}=$({' '.join(_command_of(stage, path, launcher, jobs, indices))})"
        jobs[stage.name] = f"${name}"


def _command_of(
    stage: Stage, path: Path, launcher: LauncherConfig, jobs: dict[str, str], indices: Sequence[int]
) -> list[str]:
    """The sbatch command of a stage; ``jobs`` are those submitted before it."""
    command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
    if not stage.single:
        throttle = f"%{launcher.jobs}" if launcher.jobs else ""
        command.append(f"--array={','.join(map(str, indices))}{throttle}")
    if waits := _dependency(stage, jobs):
        command.append(f"--dependency={waits}")
    return [*command, str(path)]


def _sbatch(command: Sequence[str], path: Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"sbatch refuses {path}: {' '.join(done.stderr.split())}; see launcher.* (conf/launcher/)"
        )
    return done.stdout.strip().split(";")[0]


def _resources(stage: Stage, launcher: LauncherConfig) -> tuple[int, int, int]:
    """Number of nodes, processes per node and GPUs per node of a stage."""
    nodes, processes = (launcher.nodes, launcher.processes) if stage.training else (1, 1)
    gpus = (launcher.gpus if stage.training else min(1, launcher.gpus)) if stage.gpu else 0
    return nodes, processes, gpus


def _dependency(stage: Stage, jobs: dict[str, str]) -> str:
    """Dependency of a stage in sbatch's syntax; ``jobs`` are those submitted before it."""
    trainings = [job for name, job in jobs.items() if name.startswith("train-")]
    scores = [job for name, job in jobs.items() if name.startswith("score")]
    if stage.name == "plan":
        return f"afterok:{jobs['prepare']}"
    if stage.training:
        return f"aftercorr:{jobs['plan']}"
    if stage.name.startswith("score"):
        return f"aftercorr:{':'.join(trainings)}"
    if stage.name == "report":
        return f"aftercorr:{':'.join(scores)}"
    return f"afterany:{jobs['report']}" if stage.single else ""


def queued(jobs: Sequence[str]) -> bool:
    """True if any of the jobs is pending or running."""
    if not jobs or shutil.which("squeue") is None:
        return False
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}"],
        check=False,
        capture_output=True,
        text=True,
    )
    return bool(done.stdout.strip())  # SLURM forgets jobs, and then says that there are none
