"""The whole experiment, finished stages reused: ``python launch/run.py +experiment=quickstart``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from palimpsest.launch import dry_run, pair_audit, preconditions
from palimpsest.launch import train as training
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.plan import plan
from palimpsest.launch.prepare import prepare
from palimpsest.launch.process import INTEGRITY, STATUS, end, end_with_parent, say
from palimpsest.launch.program import program
from palimpsest.launch.report import place, report
from palimpsest.launch.score import score
from palimpsest.pretrain.interrupts import REQUEUE, SIGNALS


def train(experiment: Experiment, which: str, overrides: Sequence[str] = ()) -> None:
    """Train in this process, or through torchrun if the topology needs several processes.

    Args:
        experiment: the settings.
        which: ``perturbed`` or ``twin``.
        overrides: settings added to this process's command line.
    """
    ranks = experiment.parallel.min_world_size
    if ranks == 1:
        training.train(experiment, which)
        return
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        "--signals_to_handle=SIGINT",
        str(Path(__file__).with_name("train.py")),
    ]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "status")
        status, signalled = _torchrun(
            [*command, *sys.argv[1:], *overrides, f"run={which}"], {**os.environ, STATUS: str(path)}
        )
        rank_status, _, line = (path.read_text() if path.exists() else "").partition("\n")
    here = f"training {which} on {ranks} processes"
    if rank_status:
        end(f"{here}: {line}", int(rank_status))
    if status and signalled:
        end(f"{here}: told to stop before its first step; run the same command again to go on", REQUEUE)
    if status:
        end(f"{here} ended with status {status}; see above", 1)


def _torchrun(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bool]:
    """Run torchrun to its end, and pass on to its ranks the signals that ask a training to save and stop.

    torchrun gets its own session, so that signals to this process's group do not reach it directly; it would kill ranks
    that take more than 30 seconds to save.

    Returns:
        Its exit status, and true if there was such a signal.
    """
    signals = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        ranks = psutil.Process(agent.pid).children()
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)
        if not ranks:
            agent.send_signal(signal.SIGINT)

    with subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, signal.SIGINT),  # after which torchrun takes its ranks along
    ) as agent:
        before = {number: signal.signal(number, pass_on) for number in SIGNALS}
        try:
            return agent.wait(), bool(signals)
        except KeyboardInterrupt:
            agent.send_signal(signal.SIGINT)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def work(experiment: Experiment) -> int:
    """Run every stage in order; exit status 3 if the audit failed.

    Raises:
        UserError: before the first stage, naming every input that is missing.
    """
    preconditions.require([experiment])
    result: dict[str, str] = {}
    overrides: list[str] = []

    def proof() -> None:
        result.update(pair_audit.audit(experiment))
        pair_audit.announce(result)

    def tell() -> None:
        overrides.append(report(experiment)["headline"])

    stages: list[tuple[str, Callable[[], object]]] = [
        ("prepare: text to tokens", lambda: prepare(experiment)),
        ("plan: which text goes where, and when", lambda: plan(experiment)),
        ("train the perturbed run", lambda: train(experiment, "perturbed")),
        ("train its twin: the same, nothing inserted", lambda: train(experiment, "twin")),
        ("audit: was what was planned consumed?", proof),
        ("score: what does each checkpoint remember?", lambda: score(experiment)),
        ("report", tell),
    ]
    began = time.monotonic()
    say(
        f"{experiment.experiment}, in {experiment.directory}"
        + (f" (as shipped: {experiment.estimated_duration})" if experiment.estimated_duration else "")
    )
    for number, (title, stage) in enumerate(stages, start=1):
        say(f"[{number}/{len(stages)}] {title}  ({time.monotonic() - began:.0f} s so far)")
        stage()
    say(f"done in {time.monotonic() - began:.0f} s; open {place(experiment) / 'report.html'}")
    say(overrides[0])
    return 0 if result["verdict"] == "PASS" else INTEGRITY


main = program(work, dry_run=dry_run.lines)

if __name__ == "__main__":
    main()
