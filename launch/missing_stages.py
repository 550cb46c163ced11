"""Stages that a training needs and that are not finished: the first rank runs them, the others wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.launch import preconditions
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import end, end_with_parent, say

_POLL = 1.0
"""Interval at which a waiting rank polls, seconds."""
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "TORCHELASTIC_", "TORCH_NCCL")
"""Prefixes of the environment variables that torchrun sets."""


def make(experiment: Experiment) -> None:
    """Make missing artefacts of a training: the corpus, its order and the plan (with the reference model of traps).

    The first rank runs ``prepare`` and ``plan`` as processes of their own; the other ranks look for the result, without
    a time-out: torchrun ends them if the first rank fails.

    Raises:
        UserError: on the first rank, naming every file that the user must provide.
    """
    missing = _missing(experiment)
    if not missing:
        return
    if int(os.environ.get("RANK", "0")):
        while _missing(experiment):
            time.sleep(_POLL)
        return
    preconditions.require([experiment])
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    waiting = (
        ""
        if ranks == 1
        else "; the other rank waits"
        if ranks == 2
        else f"; the other {ranks - 1} ranks wait"
    )
    say(f"missing: {' and '.join(missing)}. They are made first{waiting}")
    began = time.monotonic()
    for program, more in (("prepare", ["index=true"]), ("plan", [])):
        if status := run_alone(program, more):
            end(f"{program}, which this training needs, ended with status {status}; see above", status)
    say(f"made in {time.monotonic() - began:.0f} s")


def _missing(experiment: Experiment) -> list[str]:
    """Names of the stages that are not finished yet."""
    corpora = all((directory / artifact.MANIFEST).is_file() for _, directory in experiment.corpora.values())
    plan = (experiment.directory / "plan" / artifact.MANIFEST).is_file()
    return [name for name, there in (("the corpus", corpora), ("the plan", plan)) if not there]


def run_alone(program: str, more: Sequence[str] = ()) -> int:
    """Run a program with the settings of this command line, outside torchrun; returns its exit status."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_TORCHRUN)}
    command = [sys.executable, str(Path(__file__).with_name(f"{program}.py")), *sys.argv[1:], *more]
    done = subprocess.run(
        command, env=environment, check=False, preexec_fn=lambda: end_with_parent(signal.SIGTERM)
    )
    return done.returncode
