"""Runs by their place: ``run = palimpsest.open_run("runs/quickstart")``.

A run's directory holds the pair, ``perturbed`` and ``twin``, and one run object reads both. Opening costs milliseconds:
files are read, and checked against their digests, when they are first asked for, and kept. Torch is never imported.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from palimpsest.analysis.run.files import PAIR
from palimpsest.analysis.run.run import Run
from palimpsest.data import artifact
from palimpsest.data.errors import UserError, nearest

ENVIRONMENT = "PALIMPSEST_RUN"
"""Environment variable: the run that is opened where none is named."""
_SHOWN = 8


def open_run(path: str | Path | None = None) -> Run:
    """Open a run for reading.

    Args:
        path: the run's directory, ``runs/<experiment>/<name>-<digest>``. The digest may be left out, and the name too
            where the experiment has one run only; runs that are planned and no more count where there are no others.
            None: what ``PALIMPSEST_RUN`` names, or else the run in ``runs/`` of this directory, or of the nearest one
            above it, that was scored last (or planned last, if none is scored).

    Returns:
        The run; nothing of it has been read yet.

    Raises:
        UserError: if there is no run at that place, or more than one.
    """
    if path is None and not os.environ.get(ENVIRONMENT):
        return Run(_newest(Path.cwd()))
    given = Path(path or os.environ[ENVIRONMENT]).expanduser()
    found = _runs_at(given)
    if len(found) > 1:
        more = f", ... ({len(found)} in all)" if len(found) > _SHOWN else ""
        raise UserError(
            f"{given} means several runs: {', '.join(str(p) for p in found[:_SHOWN])}{more}; give one of them"
        )
    if not found:
        raise UserError(_no_run(given))
    return Run(found[0])


def _is_run(directory: Path) -> bool:
    return (directory / "plan" / artifact.MANIFEST).is_file()


def _below(directory: Path) -> list[Path]:
    """The runs in a directory of runs, or of one experiment."""
    levels = ("*/plan", "*/*/plan")
    return sorted({p.parent for level in levels for p in directory.glob(level) if _is_run(p.parent)})


def _begun(runs: list[Path]) -> list[Path]:
    """Those of which something was trained or scored, or else all of them."""
    signs = ("perturbed/metrics.jsonl", "perturbed/checkpoints", "scores")
    return [run for run in runs if any((run / sign).exists() for sign in signs)] or runs


def _runs_at(given: Path) -> list[Path]:
    if _is_run(given):
        return [given]
    if given.is_dir():
        return _begun(_below(given))
    digest = "[0-9a-f]" * 8
    return _begun(sorted(p for p in given.parent.glob(f"{glob.escape(given.name)}-{digest}") if _is_run(p)))


def _no_run(given: Path) -> str:
    """Reason why there is no run at a place, and what to do."""
    for above in given.absolute().parents:
        if _is_run(above):
            return f"{given} is a part of a run; open {above}"
    if given.is_file():
        return f"{given} is a file; give the directory of a run, runs/<experiment>/<name>-<digest>"
    if not given.exists():
        others = [p.name for p in given.parent.glob("*") if p.is_dir()] if given.parent.is_dir() else []
        return f"there is no {given}" + (
            nearest(given.name, others) or "; runs lie in runs/<experiment>/<name>-<digest>"
        )
    if any((given / which).is_dir() for which in PAIR):
        return f"{given} is an unfinished run: it has no plan; run launch/plan.py first"
    return f"{given} is not a run and holds none; runs lie in runs/<experiment>/<name>-<digest>, each with a plan"


def _newest(start: Path) -> Path:
    """The run scored last, or else planned last, in the nearest ``runs/``."""
    for directory in (start, *start.parents):
        found = _begun(_below(directory / "runs"))
        if found:
            return max(found, key=_age)
    raise UserError(
        f"there is no run in {start / 'runs'}, nor in a directory above; name one: palimpsest.open_run('...'), or "
        f"{ENVIRONMENT}=... in the environment"
    )


def _age(run: Path) -> tuple[float, float]:
    scored = [p.stat().st_mtime for p in run.glob(f"scores/perturbed/step_*/{artifact.MANIFEST}")]
    return max(scored, default=0.0), (run / "plan" / artifact.MANIFEST).stat().st_mtime
