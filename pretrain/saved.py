"""Files of a training run, read without torch: paths and manifests of checkpoints, lines of the log."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError

KIND = "checkpoint"
VERSION = 1
REMOVED = "removed.txt"


def path_of(directory: Path, step: int) -> Path:
    """Directory of the checkpoint after ``step`` finished steps."""
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


def removed(directory: Path) -> set[int]:
    """Steps of the checkpoints that a program removed (``train.checkpoint_keep``, ``runs.py prune``), from
    ``removed.txt``, one step per line; it distinguishes pruned checkpoints from lost ones.

    Raises:
        UserError: if the file cannot be read.
    """
    path = directory / REMOVED
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): it lists the steps of the checkpoints that were pruned, a step a line; "
            "delete it, and those will be named as missing"
        ) from None
    return {int(line) for line in lines if line.isdecimal()}


def remove(directory: Path, steps: Iterable[int]) -> None:
    """Delete checkpoints and record their removal. The manifest is deleted first, so that a partly deleted checkpoint
    is never read.
    """
    for step in steps:
        path = path_of(directory, step)
        with (directory / REMOVED).open("a", encoding="utf-8") as file:
            file.write(f"{step}\n")
        (path / artifact.MANIFEST).unlink()
        shutil.rmtree(path)


def parse(line: bytes) -> dict[str, Any] | None:
    """Record of a line of ``metrics.jsonl``; None if the line is damaged or truncated."""
    try:
        record = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one, too
        return None
    numbers = ("step", "tokens", "tokens_per_second")
    if not isinstance(record, dict) or "loss" not in record:
        return None
    values = [*(record.get(name) for name in numbers), 0.0 if record["loss"] is None else record["loss"]]
    if not all(type(value) in (int, float) for value in values):
        return None
    whole = isinstance(record["step"], int) and all(0 < record[name] < math.inf for name in numbers)
    return record if whole else None
