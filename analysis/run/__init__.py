"""Reading of a run: its files, tables and figures."""

from palimpsest.analysis.run.files import PAIR
from palimpsest.analysis.run.find import ENVIRONMENT, open_run
from palimpsest.analysis.run.run import Run

__all__ = ["ENVIRONMENT", "PAIR", "Run", "open_run"]
