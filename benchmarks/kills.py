"""Programs that are killed at random moments and started again: is anything lost, doubled or changed?

    PYTHONPATH=. python -m benchmarks.kills [--kills 100] [--seed 0] [--out results/kills_DATE.md]

A small experiment goes through prepare, plan, train (perturbed and twin), audit, score and report, on 1 and on 2 ranks,
with synchronous and with asynchronous saves: once in each of these ways without interruption, and then again and again
with SIGKILLs. Half of them fall at uniform moments of a stage, half within 40 ms after a temporary directory has
appeared; half strike a whole process group, half one process alone, whose children must end by themselves. A program
that was killed is started again until it is done. Then corpus, plan, every tensor of every checkpoint, ledgers, records
of training, scores, audit and report are compared with those of the uninterrupted run, bit by bit, and the audit must
pass.

Programs run in forks of a process that has imported torch (``tests.warm``), so that kills fall into their work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from palimpsest.data.artifact import MANIFEST
from palimpsest.pretrain import checkpoint
from tests import warm
from tests.conftest import SMALL, write_text

REPO = Path(__file__).resolve().parent.parent
EXPERIMENT = [*SMALL, "train.steps=30", "train.checkpoint_every=6", "runtime.workers=1"]
STAGES: dict[str, tuple[str, list[str], int]] = {
    "prepare": ("prepare", [], 2),
    "plan": ("plan", [], 2),
    "train": ("train", ["run=perturbed"], 6),
    "train its twin": ("train", ["run=twin"], 5),
    "audit": ("audit", [], 2),
    "score": ("score", [], 4),
    "report": ("report", [], 2),
}
"""Stage -> program, its settings, and kills of a journey through all stages."""
Way = tuple[int, bool]
WAYS: list[Way] = [(1, True), (2, True), (1, False), (2, False)]
"""Ranks, and whether saves are asynchronous."""
TIMED = ("seconds", "tokens_per_second", "mfu", "memory", "wait", "time")
"""Parts of the names of what is measured, which differs between any two runs."""


def _leader(arguments: list[str], directory: str, environment: dict[str, str], out: str) -> None:
    """Run a program as the leader of a process group of its own."""
    os.setsid()
    warm._begin(arguments, directory, environment, out)


class Program:
    """A program that runs, on one or several ranks."""

    def __init__(self, place: Path, stage: str, ranks: int, settings: Sequence[str]) -> None:
        program, own, _ = STAGES[stage]
        arguments = [str(REPO / "launch" / f"{program}.py"), *EXPERIMENT, *settings, *own]
        told = warm._told(ranks if program == "train" else 1)
        self.outs = [place / f"out.{rank}" for rank in range(len(told))]
        self.processes = [
            warm.FORKS.Process(target=_leader, args=(arguments, str(place), more, str(out)))
            for more, out in zip(told, self.outs, strict=True)
        ]
        for process in self.processes:
            process.start()

    @property
    def alive(self) -> bool:
        """True while a rank runs."""
        return any(process.is_alive() for process in self.processes)

    def kill(self, rng: random.Random) -> None:
        """SIGKILL to every rank, in random order: to their process groups, or to them alone."""
        groups = rng.random() < 0.5
        for process in rng.sample(self.processes, len(self.processes)):
            with suppress(ProcessLookupError):
                (os.killpg if groups else os.kill)(process.pid, signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.02))
        for process in self.processes:
            process.join()

    def end(self, seconds: float = 300) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: if it takes longer, or ends with another status than 0.
        """
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        if any(statuses):  # None, too
            self.kill(random.Random())
            raise RuntimeError(f"status {statuses}: " + "\n".join(out.read_text() for out in self.outs))


def drafts(place: Path) -> set[str]:
    """Temporary directories that are there now."""
    walked = os.walk(place / "runs")  # which does not mind what vanishes meanwhile
    return {str(Path(parent, name)) for parent, names, _ in walked for name in names if ".tmp" in name}


def interrupted(program: Program, place: Path, lasts: float, rng: random.Random) -> bool:
    """Kill a program at a random moment.

    Args:
        program: just started.
        place: where it works.
        lasts: seconds that the stage takes when nothing interrupts it.
        rng: random numbers.

    Returns:
        False if it had ended before.
    """
    began = time.monotonic()
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, lasts))
    else:
        before, skip = drafts(place), rng.choice((0, 0, 1, 2, 3))
        while program.alive and time.monotonic() - began < 2 * lasts:
            if new := drafts(place) - before:
                before |= new
                skip -= 1
                if skip < 0:
                    break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.04))
    if not program.alive:
        return False
    program.kill(rng)
    return True


def contents(run: Path, runs: Path) -> dict[str, Any]:
    """Everything that a run's stages made, by name, in a form that compares bit by bit."""
    found: dict[str, Any] = {}
    for directory in [*runs.glob("corpora/[!.]*"), *(run / name for name in ("plan", "audit", "report"))]:
        found |= _files(directory, str(directory.relative_to(runs)))
    for directory in sorted(run.glob("scores/*/*")):
        found |= _files(directory, str(directory.relative_to(runs)))
    for which in ("perturbed", "twin"):
        for path in sorted((run / which / "checkpoints").glob("step_*")):
            manifest = json.loads((path / MANIFEST).read_text())
            found[f"{which} {path.name}"] = (manifest["config"], manifest["inputs"], checkpoint.tensors(path))
        for part in sorted((run / which / "ledger").iterdir()):
            found |= _files(part, f"{which} ledger {part.name}")
        lines = (run / which / "metrics.jsonl").read_text().splitlines()
        found[f"{which} metrics"] = [
            {key: value for key, value in json.loads(line).items() if not any(word in key for word in TIMED)}
            for line in lines
        ]
    return found


def _files(directory: Path, name: str) -> dict[str, Any]:
    """Digests of an artefact's files; the manifest itself tells when and where it was made."""
    return {
        f"{name}/{file}": digest
        for file, digest in json.loads((directory / MANIFEST).read_text())["contents"].items()
    }


def different(one: Any, other: Any) -> bool:
    """True unless two values are the same; tensors by their bytes."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return not (same and torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(different(one[key], other[key]) for key in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) != len(other) or any(map(different, one, other))
    return bool(one != other)


def left(place: Path) -> Iterator[str]:
    """Processes that still work in a directory, half-built directories below it."""
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(place):
            yield f"process {process.info['cmdline']}"
    yield from drafts(place)


class Journey:
    """One way through all stages in a directory of its own."""

    def __init__(self, place: Path, text: Path, ranks: int, asynchronous: bool) -> None:
        self.place, self.ranks = place, ranks
        self.settings = [f"train.checkpoint_async={str(asynchronous).lower()}"]
        place.mkdir()
        shutil.copyfile(text, place / "text.jsonl")

    def start(self, stage: str) -> Program:
        """Start a stage's program."""
        return Program(self.place, stage, self.ranks, self.settings)

    def results(self) -> dict[str, Any]:
        """See :func:`contents`; and the verdict of the audit."""
        (run,) = (path for path in (self.place / "runs" / "small").iterdir() if path.name[0] != ".")
        verdict = json.loads((run / "audit" / "audit.json").read_text())["verdict"]
        return {**contents(run, self.place / "runs"), "verdict": verdict}


def reference(place: Path, text: Path, way: Way) -> tuple[dict[str, Any], dict[str, float]]:
    """The uninterrupted run: its results, and seconds of each stage."""
    journey, seconds = Journey(place, text, *way), {}
    for stage in STAGES:
        began = time.monotonic()
        journey.start(stage).end()
        seconds[stage] = time.monotonic() - began
    return journey.results(), seconds


def killed(
    journey: Journey, seconds: dict[str, float], most: int, rng: random.Random, kills: Counter[str]
) -> None:
    """Go through all stages with kills, at most ``most``; ``kills`` counts them by stage."""
    for stage, (_, _, wanted) in STAGES.items():
        for _ in range(wanted):
            program = journey.start(stage)
            if kills.total() < most and interrupted(program, journey.place, seconds[stage], rng):
                kills[stage] += 1
                print(".", end="", flush=True)
                continue
            break
        else:
            program = journey.start(stage)
        program.end()


def name_of(way: Way) -> str:
    """A way in words."""
    return f"{way[0]} rank{'s' * (way[0] > 1)}, {'asynchronous' if way[1] else 'synchronous'} saves"


def travel(
    base: Path, most: int, rng: random.Random, first: int
) -> tuple[dict[Way, Counter[str]], Counter[Way], list[str]]:
    """Make journeys until there were so many kills, from the first of ``WAYS`` on that is asked for.

    Returns:
        Kills of each way by stage, journeys of each way, and what was wrong.
    """
    kills = {way: Counter[str]() for way in WAYS}
    journeys, wrong = Counter[Way](), []
    known: dict[Way, tuple[dict[str, Any], dict[str, float]]] = {}
    write_text(base / "text.jsonl", documents=1500)
    while (done := sum(count.total() for count in kills.values())) < most:
        way = WAYS[(first + journeys.total()) % len(WAYS)]
        if way not in known:
            known[way] = reference(base / f"whole-{len(known)}", base / "text.jsonl", way)
            seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in known[way][1].items())
            print(f"{name_of(way)}, uninterrupted; seconds: {seconds}", flush=True)
        whole, seconds_of = known[way]
        journey = Journey(base / f"killed-{journeys.total()}", base / "text.jsonl", *way)
        before, verdict = kills[way].total(), "none"
        try:
            killed(journey, seconds_of, before + most - done, rng, kills[way])
            results = journey.results()
            verdict = results["verdict"]
            apart = [key for key in whole if different(whole[key], results.get(key))]
            apart += [*sorted(results.keys() - whole.keys()), *left(journey.place)]
        except RuntimeError as error:
            apart = [f"a program did not resume: {error}"]
        wrong += [f"run {journeys.total() + 1} ({name_of(way)}): {line}" for line in apart]
        journeys[way] += 1
        new = kills[way].total() - before
        print(f"run {journeys.total()}: {name_of(way)}, {new} kills, audit {verdict}", flush=True)
        print("".join(f"  {line}\n" for line in apart), end="", flush=True)
        if not apart:
            shutil.rmtree(journey.place)
    return kills, journeys, wrong


def table(kills: dict[Way, Counter[str]], journeys: Counter[Way]) -> list[str]:
    """Counts of kills by stage and way, in Markdown."""
    lines = [f"| | {' | '.join(map(name_of, WAYS))} | all |", "|---|" + "---:|" * (len(WAYS) + 1)]
    for stage in STAGES:
        row = [kills[way][stage] for way in WAYS]
        lines.append(f"| {stage} | {' | '.join(map(str, [*row, sum(row)]))} |")
    row = [kills[way].total() for way in WAYS]
    lines.append(f"| kills | {' | '.join(map(str, [*row, sum(row)]))} |")
    row = [journeys[way] for way in WAYS]
    lines.append(f"| runs | {' | '.join(map(str, [*row, sum(row)]))} |")
    return lines


def machine() -> str:
    """Versions, processor and commit."""
    root = ["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(root, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, load average {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, torch {version('torch')}, megatron-core {version('megatron-core')}, "
        f"commit {commit}"
    )


def main(arguments: Sequence[str]) -> int:
    """Run; 1 if anything was lost, doubled or changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    about = machine()
    first = warm.FORKS.Process(target=time.sleep, args=(0,))
    first.start()  # the imports are no part of a stage's seconds
    first.join()
    with tempfile.TemporaryDirectory() as name:
        kills, journeys, wrong = travel(Path(name), given.kills, random.Random(given.seed), given.seed)
    total = sum(count.total() for count in kills.values())
    lines = [
        f"{total} SIGKILLs in {journeys.total()} runs of all stages (seed {given.seed}); every program was started "
        f"again until it was done. Different from the uninterrupted run, or left behind: {len(wrong)}.",
        "",
        *table(kills, journeys),
        "",
        *(f"- {line.splitlines()[0]}" for line in wrong),
    ]
    print("\n".join(lines))
    if given.out:
        command = "`PYTHONPATH=. python -m benchmarks.kills` (what it does is said at its top)"
        head = [f"# Kills, {time.strftime('%Y-%m-%d')}", "", f"{command}: {about}.", ""]
        given.out.write_text("\n".join([*head, *lines]).rstrip() + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
