"""Measurement of memorization in checkpoints, and reports on it.

In a notebook: ``run = palimpsest.open_run("runs/quickstart")``.
"""

from palimpsest.analysis.run import Run, open_run

__all__ = ["Run", "open_run"]
