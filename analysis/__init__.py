"""What the checkpoints remember. In a notebook: ``run = analysis.open_run("runs/quickstart")``."""

from analysis.run import Run, open_run

__all__ = ["Run", "open_run"]
