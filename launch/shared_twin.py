"""Twins that another run has trained already: runs that differ in their insertions alone have the same twin."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from palimpsest.data.errors import UserError
from palimpsest.launch import recorded
from palimpsest.launch.experiment import Experiment, resolved
from palimpsest.launch.process import say
from palimpsest.pretrain import saved

_SAME = ("model", "optimizer", "train", "parallel")
"""Settings that must be equal; ``order``, by its digest, covers the corpora."""


def adopt(experiment: Experiment, order: str) -> bool:
    """Link the finished twin of another run into this one, if there is one and this run has none.

    Its checkpoints and ledger are hard links (copies on another file system), so they take no room and outlive the
    other run. The audit checks them as it checks a twin that was trained here.

    Args:
        experiment: the settings.
        order: identity of the windows' order, which covers the corpora.

    Returns:
        True if a twin was linked.
    """
    place = experiment.directory / "twin"
    # After the last exposures of an arm there are checkpoints at steps that the plan decides.
    if saved.finished(place / "checkpoints") or experiment.train.checkpoint_after_last:
        return False
    wanted = _settings(resolved(experiment))
    for other in sorted(experiment.runs.glob(f"*/*/{recorded.FILE}")):
        twin = other.parent / "twin"
        if other.parent != experiment.directory and _fits(other, twin, wanted, experiment.train.end, order):
            _link(twin, place)
            say(f"twin: the same training as {twin}, whose checkpoints are linked here")
            return True
    return False


def _settings(values: Any) -> dict[str, Any]:
    return {name: values.get(name) for name in _SAME}


def _fits(config: Path, twin: Path, wanted: dict[str, Any], end: int, order: str) -> bool:
    steps = saved.finished(twin / "checkpoints")
    if not steps or steps[-1] != end:
        return False
    try:
        manifest = saved.read(twin / "checkpoints", end)
        settings = OmegaConf.to_container(OmegaConf.load(config))
    except (UserError, OSError, ValueError):  # somebody else's damage is no reason to stop
        return False
    return manifest.inputs["order"] == order and _settings(settings) == wanted


def _link(source: Path, target: Path) -> None:
    """Copy a twin. Checkpoints, which nobody writes to again, are linked."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("ledger", "checkpoints"):  # checkpoints last: what they need is there when they appear
        draft = target / f".building-{name}"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source / name, draft, copy_function=_one)
        shutil.rmtree(target / name, ignore_errors=True)
        draft.rename(target / name)
    if (source / "metrics.jsonl").is_file():
        shutil.copy2(source / "metrics.jsonl", target / "metrics.jsonl")


def _one(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
