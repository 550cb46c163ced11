"""The run object that ``palimpsest.open_run`` returns."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from palimpsest.analysis.run import tables
from palimpsest.analysis.run.files import RunFiles

if TYPE_CHECKING:
    from palimpsest.analysis.run.figures import Figures


class Run(RunFiles):
    """A run on disk: its files (:class:`~analysis.run.files.RunFiles`), summary tables of items, and every figure."""

    def gains(self, metric: str | None = None, step: int | None = None) -> pl.DataFrame:
        """Gain of every item over the twin, highest first (:func:`analysis.run.tables.gains`).

        Args:
            metric: name of the metric; the report's primary metric if None.
            step: checkpoint; the last one if None.
        """
        from palimpsest.analysis.run.figures import PRIMARY

        return tables.gains(self, metric or PRIMARY, step)

    def items(self, step: int | None = None) -> pl.DataFrame:
        """Verbatim reproduction of every item at a checkpoint, the last one if None
        (:func:`analysis.run.tables.reproduced`). ``run.plan.items`` has the plan's other columns of items.
        """
        return tables.reproduced(self, step)

    def exposures_of(self, item_id: str) -> pl.DataFrame:
        """The exposures of an item, each with its step and the first checkpoint after it
        (:func:`analysis.run.tables.exposures_of`).
        """
        return tables.exposures_of(self, item_id)

    @cached_property
    def figures(self) -> Figures:
        """Every figure, drawn from this run: ``run.figures.dose_response()``; ``dir(run.figures)`` lists them."""
        from palimpsest.analysis.run.figures import Figures

        return Figures(self)
