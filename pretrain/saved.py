"""Which checkpoints a run has: their places and manifests, read without torch."""

from __future__ import annotations

import re
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest

KIND = "checkpoint"
VERSION = 1


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` finished steps lies."""
    return directory / f"step_{step:08d}"


def finished(directory: Path) -> list[int]:
    """Steps of the finished checkpoints (those with a manifest), ascending."""
    names = (re.fullmatch(r"step_(\d+)", p.name) for p in directory.glob("step_*"))
    return sorted(
        int(name[1]) for name in names if name and (directory / name[0] / artifact.MANIFEST).is_file()
    )


def read(directory: Path, step: int) -> Manifest:
    """The manifest of a checkpoint."""
    return artifact.read(path_of(directory, step), kind=KIND, schema_version=VERSION)
