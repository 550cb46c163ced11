"""The whole experiment, finished stages reused: ``python launch/run.py +experiment=quickstart``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import audit as audits
from launch import train as training
from launch.config import INTEGRITY, STATUS, Experiment, end, program, say
from launch.plan import plan
from launch.prepare import prepare
from launch.report import report
from launch.score import score


def train(experiment: Experiment, which: str, overrides: Sequence[str] = ()) -> None:
    """Train here, or through torchrun where the topology needs several processes.

    Args:
        experiment: the settings.
        which: ``perturbed`` or ``twin``.
        overrides: what sets it apart from the settings of this process's command line.
    """
    ranks = experiment.parallel.tensor * experiment.parallel.pipeline
    if ranks == 1:
        training.train(experiment, which)
        return
    script = Path(__file__).with_name("train.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        str(script),
    ]
    with tempfile.TemporaryDirectory() as directory:
        told = Path(directory, "status")
        done = subprocess.run(
            [*command, *sys.argv[1:], *overrides, f"run={which}"],
            check=False,
            env={**os.environ, STATUS: str(told)},
        )
        said = told.read_text() if told.exists() else ""
    if done.returncode:
        status, _, line = said.partition("\n")
        here = f"training {which} on {ranks} processes"
        if status:
            end(f"{here}: {line}", int(status))
        end(f"{here} ended with status {done.returncode}; see above", 1)


@program
def main(experiment: Experiment) -> int:
    """Run every stage in order."""
    result: dict[str, str] = {}

    def proof() -> None:
        result.update(audits.audit(experiment))
        audits.announce(result)

    stages: list[tuple[str, Callable[[], object]]] = [
        ("prepare: text to tokens", lambda: prepare(experiment)),
        ("plan: which text goes where, and when", lambda: plan(experiment)),
        ("train the perturbed run", lambda: train(experiment, "perturbed")),
        ("train its twin: the same, nothing inserted", lambda: train(experiment, "twin")),
        ("audit: was what was planned consumed?", proof),
        ("score: what does each checkpoint remember?", lambda: score(experiment)),
        ("report", lambda: report(experiment)),
    ]
    began = time.monotonic()
    say(
        f"{experiment.experiment}, in {experiment.directory}"
        + (f": {experiment.takes}" if experiment.takes else "")
    )
    for number, (title, stage) in enumerate(stages, start=1):
        say(f"[{number}/{len(stages)}] {title}  ({time.monotonic() - began:.0f} s so far)")
        stage()
    say(f"done in {time.monotonic() - began:.0f} s; open {experiment.directory / 'report' / 'report.html'}")
    return 0 if result["verdict"] == "PASS" else INTEGRITY


if __name__ == "__main__":
    main()
