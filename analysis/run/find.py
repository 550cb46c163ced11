"""Search for a run by its path: ``run = palimpsest.open_run("runs/quickstart")``.

A run's directory holds a pair of trainings, ``perturbed`` and ``twin``; one run object reads both. Opening takes
milliseconds: files are read, checked against their digests and cached on first access. Torch is never imported.
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
"""Environment variable with the path of the run to open by default."""
_SHOWN = 8


def open_run(path: str | Path | None = None) -> Run:
    """Open a run for reading.

    Args:
        path: the run's directory, ``runs/<experiment>/<name>-<digest>``. The digest may be left out, and also the name
            if the experiment has only one run; runs that are only planned are ignored unless there are no others. If
            None: the run that ``PALIMPSEST_RUN`` names; without that variable, the most recently scored run (or
            planned, if none is scored) in ``runs/`` of the working directory or of its nearest parent that has one.

    Returns:
        The run; none of its files has been read yet.

    Raises:
        UserError: if there is no run at that path, or more than one.
    """
    if path is None and not os.environ.get(ENVIRONMENT):
        return Run(_newest(Path.cwd()))
    given = Path(path or os.environ[ENVIRONMENT]).expanduser()
    runs = _runs_at(given)
    if len(runs) > 1:
        more = f", ... ({len(runs)} in all)" if len(runs) > _SHOWN else ""
        raise UserError(
            f"{given} means several runs: {', '.join(map(_named, runs[:_SHOWN]))}{more}; give one of them"
        )
    if not runs:
        raise UserError(_no_run(given))
    return Run(runs[0])


def _named(run: Path) -> str:
    """Directory of a run, marked if it has a report."""
    return f"{run} (has a report)" if (run / "report" / artifact.MANIFEST).is_file() else str(run)


def _is_run(directory: Path) -> bool:
    return (directory / "plan" / artifact.MANIFEST).is_file()


def _below(directory: Path) -> list[Path]:
    """Directories of the runs in ``runs/`` or in one experiment's directory."""
    levels = ("*/plan", "*/*/plan")
    return sorted({p.parent for level in levels for p in directory.glob(level) if _is_run(p.parent)})


def _begun(runs: list[Path]) -> list[Path]:
    """The runs with a checkpoint or scores; all runs if none has either."""
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
    """Error text for a path without a run: the reason, and a remedy."""
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
    """The most recently scored run in the nearest ``runs/``; the most recently planned one if none is scored."""
    for directory in (start, *start.parents):
        runs = _begun(_below(directory / "runs"))
        if runs:
            return max(runs, key=_age)
    raise UserError(
        f"there is no run in {start / 'runs'}, or in the runs/ of a directory above it; give the path of a run: "
        "palimpsest.open_run('...'), or "
        f"{ENVIRONMENT}=... in the environment"
    )


def _age(run: Path) -> tuple[float, float]:
    scored = [p.stat().st_mtime for p in run.glob(f"scores/perturbed/step_*/{artifact.MANIFEST}")]
    return max(scored, default=0.0), (run / "plan" / artifact.MANIFEST).stat().st_mtime
