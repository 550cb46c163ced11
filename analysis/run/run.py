"""A run, opened for reading."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from palimpsest.analysis.run.files import RunFiles

if TYPE_CHECKING:
    from palimpsest.analysis.run.figures import Figures


class Run(RunFiles):
    """A run on disk: its files (:class:`~analysis.run.files.RunFiles`), and every figure drawn from them."""

    @cached_property
    def figures(self) -> Figures:
        """Every figure, drawn from this run: ``run.figures.dose_response()``; ``dir(run.figures)`` lists them."""
        from palimpsest.analysis.run.figures import Figures

        return Figures(self)
