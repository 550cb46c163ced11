"""The runs of a sweep, and figures that compare them: ``palimpsest.open_sweep("runs/sweeps/quickstart-0123abcd")``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.analysis.run.run import Run
from palimpsest.data import artifact
from palimpsest.data.errors import UserError, nearest

if TYPE_CHECKING:
    from palimpsest.analysis.figures.theme import Figure

MANIFEST = "runs.jsonl"
PRIMARY = "loglik_per_byte"


class Sweep:
    """A sweep on disk: its scored runs by their factors (the settings that differ), and plots that compare them.

    Args:
        directory: the sweep's directory, ``runs/sweeps/<experiment>-<digest>``.

    Raises:
        UserError: if it is no sweep, or none of its runs is scored.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not (directory / MANIFEST).is_file():
            raise UserError(
                f"{directory} is no sweep: it has no {MANIFEST}; give runs/sweeps/<experiment>-<digest>"
            )
        lines = [json.loads(line) for line in (directory / MANIFEST).read_text(encoding="utf-8").splitlines()]
        found = {title_of(line["factors"]): self._place(Path(line["directory"])) for line in lines}
        self.runs = {title: Run(place) for title, place in found.items() if _scored(place)}
        """Factors, such as ``model=nano seed=1`` -> run, of the scored runs."""
        if not self.runs:
            raise UserError(f"no run of {directory} is scored; palimpsest sweep makes them")

    def _place(self, run: Path) -> Path:
        """Directory of a run; relative ones are those of the working directory in which the sweep was started."""
        return run if run.is_absolute() or run.is_dir() else self.directory.parents[1] / Path(*run.parts[-2:])

    def gains(self, metric: str = PRIMARY) -> pl.DataFrame:
        """Gain of each dose over dose 0 at each run's last checkpoint, with ``title``, the run's factors: of the
        differences from the twin or, without a twin, of the perturbed run.
        """
        from palimpsest.analysis.statistics import PAIRED

        frames = []
        for title, run in self.runs.items():
            rows = run.estimates(metric).filter(
                (pl.col("statistic") == "gain") & (pl.col("step") == run.last_step)
            )
            paired = rows.filter(pl.col("run") == PAIRED)
            rows = paired if paired.height else rows.filter(pl.col("run") == "perturbed")
            frames.append(rows.with_columns(title=pl.lit(title)))
        return pl.concat(frames)

    @cached_property
    def figures(self) -> SweepFigures:
        """Figures that compare the runs: ``sweep.figures.shapes()``; ``dir(sweep.figures)`` lists them."""
        return SweepFigures(self)


def open_sweep(path: str | Path) -> Sweep:
    """Open a sweep for reading.

    Args:
        path: the sweep's directory, ``runs/sweeps/<experiment>-<digest>``.

    Raises:
        UserError: if it is no sweep, or none of its runs is scored.
    """
    return Sweep(Path(path).expanduser())


def title_of(factors: Mapping[str, str]) -> str:
    """Printed text of a run's factors."""
    return " ".join(f"{key}={value}" for key, value in factors.items()) or "the only run"


def _scored(run: Path) -> bool:
    return any((run / "scores" / "perturbed").glob(f"step_*/{artifact.MANIFEST}"))


def _interference(sweep: Sweep) -> pl.DataFrame:
    rows = sweep.gains().filter(pl.col("family") != "all")
    return rows.select("family", "dose", "estimate", "low", "high", "n", training="title")


def _shapes(sweep: Sweep) -> pl.DataFrame:
    rows = sweep.gains().filter(pl.col("family") == "all")
    return rows.select("dose", "estimate", "low", "high", "n", shape="title")


def _profiles(sweep: Sweep) -> pl.DataFrame:
    from palimpsest.analysis.run.time_rows import profile

    return pl.concat([profile(run).with_columns(run=pl.lit(title)) for title, run in sweep.runs.items()])


ROWS: Mapping[str, Callable[[Sweep], pl.DataFrame]] = {
    "interference": _interference,
    "shapes": _shapes,
    "profile_correlation": _profiles,
}
"""Name of a figure that compares runs -> function that computes its rows from a sweep."""


class SweepFigures:
    """The figures that compare the runs of a sweep, each a method without arguments but the figure's own settings."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def __dir__(self) -> list[str]:
        return sorted(ROWS)

    def __getattr__(self, name: str) -> Callable[..., Figure]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in ROWS:
            raise AttributeError(
                f"there is no figure of a sweep {name!r}{nearest(name, ROWS)}; those of one run: "
                "sweep.runs[...].figures"
            )

        def drawn(**settings: Any) -> Figure:
            from palimpsest.analysis import figures

            figure: Figure = getattr(figures, name)(ROWS[name](self._sweep), **settings)
            return figure

        return drawn
