"""Controlled insertion into language-model pretraining: planned, proven, measured.

In a notebook: ``run = palimpsest.open_run("runs/quickstart")``. The folders of the checkout are this package's
subpackages: ``palimpsest.data`` is ``data/``, and so on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from palimpsest.analysis import figures, metrics, statistics, tables
    from palimpsest.analysis.run import Run, open_run, open_sweep
    from palimpsest.data.errors import UserError

__all__ = ["Run", "UserError", "figures", "metrics", "open_run", "open_sweep", "statistics", "tables"]

_FROM = {
    "Run": "analysis.run",
    "open_run": "analysis.run",
    "open_sweep": "analysis.run",
    "UserError": "data.errors",
}


def __getattr__(name: str) -> object:
    """The names above, imported when they are asked for: ``import palimpsest`` itself costs nothing."""
    if name in _FROM:
        return getattr(import_module(f"palimpsest.{_FROM[name]}"), name)
    if name in __all__:
        return import_module(f"palimpsest.analysis.{name}")
    raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
