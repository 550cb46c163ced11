"""Checkpoints of a run as models of ``transformers``, for programs that ask them more than scores: generate, attack."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.data.artifact import MANIFEST
from palimpsest.data.errors import UserError
from palimpsest.launch.experiment import PAIR, Experiment
from palimpsest.launch.process import INTEGRITY, say
from palimpsest.launch.report import place, report
from palimpsest.pretrain import saved

if TYPE_CHECKING:
    from palimpsest.analysis.scoring.store import Checkpoint


def steps_of(experiment: Experiment, which: str) -> list[int]:
    """Checkpoints of one of the pair that are asked for (``step``); none of a twin that was not trained.

    Raises:
        UserError: if the perturbed run has none, or not the one that is asked for.
    """
    directory = experiment.directory / which / "checkpoints"
    there = saved.finished(directory)
    if not there:
        if which == "perturbed":
            raise UserError(f"there are no checkpoints in {directory}; run launch/train.py first")
        return []
    if experiment.step == "all":
        return there
    step = there[-1] if experiment.step is None else experiment.step
    if step not in there:
        raise UserError(f"step={step}: there is no such checkpoint in {directory}; there are {there}")
    return [step]


def checkpoints_of(experiment: Experiment, which: str, eod: int) -> list[Checkpoint]:
    """The checkpoints of :func:`steps_of`, to be loaded when they are needed.

    Args:
        experiment: the settings.
        which: ``perturbed`` or ``twin``.
        eod: id of the token that begins a text.

    Raises:
        UserError: as :func:`steps_of`, or without ``transformers``.
    """
    from palimpsest.analysis.scoring.store import Checkpoint
    from palimpsest.pretrain import checkpoint
    from palimpsest.pretrain.huggingface import files

    files.require()
    directory = experiment.directory / which / "checkpoints"
    return [
        Checkpoint(
            step, checkpoint.read(directory, step).digest, partial(_load, experiment, directory, step, eod)
        )
        for step in steps_of(experiment, which)
    ]


def _load(experiment: Experiment, directory: Path, step: int, eod: int) -> Any:
    """The model of a checkpoint; in float32 on CPUs, as in scoring."""
    import torch

    from palimpsest.pretrain.huggingface import export
    from palimpsest.pretrain.parallel import pick_device

    device = pick_device(experiment.runtime)
    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    model = export.load(directory, step, eod=eod)
    return model.float() if device.type == "cpu" else model.to(device)


def announce(
    experiment: Experiment, which: str, steps: list[int], texts: str, parts: int, done: int, verb: str
) -> None:
    """Print what was done of one of the pair, such as ``12 prompts at step 300; 1 of 1 parts written now``."""
    if steps:
        shared = f" by shard={experiment.shard}" if experiment.shard else ""
        say(
            f"{which}: {texts} at {'steps' if len(steps) > 1 else 'step'} {', '.join(map(str, steps))}; "
            f"{done} of {parts * len(steps)} parts {verb} now{shared}"
        )


def preview(experiment: Experiment, kind: str, program: str, done: str) -> Iterator[str]:
    """Lines of ``dry_run=true``: the checkpoints that a program would ask, and those that it has asked.

    Args:
        experiment: the settings.
        kind: directory of the program's results.
        program: its name.
        done: participle of what it does.
    """
    for which in PAIR:
        at = experiment.directory / kind / which
        steps = steps_of(experiment, which)
        there = sum((saved.path_of(at, step) / MANIFEST).is_file() for step in steps)
        if steps:
            yield f"{program} {which}: {at}, {len(steps)} checkpoints, {there} of them {done} before"


def reported(experiment: Experiment) -> int:
    """Write the report again, unless only a share was done or there are no scores; status 3 if the audit failed."""
    if experiment.shard is not None:
        return 0
    if not any((experiment.directory / "scores" / "perturbed").glob(f"step_*/{MANIFEST}")):
        say("no report: there are no scores; run launch/score.py, then launch/report.py")
        return 0
    summary = report(experiment)
    say(summary["headline"])
    say(f"report: {place(experiment) / 'report.html'}")
    return INTEGRITY if summary["verdict"] == "audit failed" else 0
