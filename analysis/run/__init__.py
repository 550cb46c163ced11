"""Reading of a run: its files, tables and figures."""

from palimpsest.analysis.run.files import PAIR
from palimpsest.analysis.run.find import ENVIRONMENT, open_run
from palimpsest.analysis.run.run import Run
from palimpsest.analysis.run.sweep import Sweep, open_sweep

__all__ = ["ENVIRONMENT", "PAIR", "Run", "Sweep", "open_run", "open_sweep"]
