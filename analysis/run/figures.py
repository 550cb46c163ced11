"""The figures of ``analysis.figures``, drawn from a run: ``run.figures.dose_response()``.

Each figure's parameters are filled by name with the run's frames (:data:`FROM_RUN`) or with rows computed for that
figure (:data:`analysis.run.rows.ROWS`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.analysis import figures
from palimpsest.analysis.figures.theme import Figure
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.run.rows import ROWS
from palimpsest.data.errors import UserError, nearest

if TYPE_CHECKING:
    from palimpsest.analysis.run.files import RunFiles

PRIMARY = "loglik_per_byte"
"""Metric that is drawn by default, which is the report's primary metric."""


_OF_A_SWEEP = (
    "compares several runs: palimpsest.open_sweep(DIRECTORY).figures.{}() draws those of palimpsest sweep"
)
SEVERAL: Mapping[str, str] = {
    **{name: _OF_A_SWEEP.format(name) for name in ("interference", "shapes", "profile_correlation")},
    "hubble": "compares with published tables; pass the rows of palimpsest.figures.hubble_tables(FILE)",
}
"""Figures of more than one run -> what makes their rows."""
FROM_RUN: Mapping[str, Callable[[RunFiles], pl.DataFrame]] = {
    "estimates": lambda run: run.estimates(),
    "training": lambda run: run.training,
    "exposures": lambda run: run.exposures,
    "items": lambda run: run.plan.items,
    "probes": lambda run: run.probes,
    "scores": lambda run: run.scores,
}
"""Name of a figure's parameter -> function that reads the frame from a run."""


class Figures:
    """Every figure, drawn from one run.

    ``run.figures.dose_response("extracted")`` draws from the run's own rows; ``run.figures.dose_response(rows)`` from
    yours. A notebook displays the returned figure; ``.chart`` is its Altair chart, ``.rows`` the rows it draws.
    ``dir(run.figures)`` lists the figures, and ``help(run.figures.dose_response)`` describes a figure's arguments.
    """

    def __init__(self, run: RunFiles) -> None:
        self._run = run

    def __dir__(self) -> list[str]:
        return _names()

    def __getattr__(self, name: str) -> Callable[..., Figure]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in _names():
            raise AttributeError(f"there is no figure {name!r}{nearest(name, _names())}")
        return bind(getattr(figures, name), self._run)

    def __repr__(self) -> str:
        return f"<figures of {self._run.name}: {', '.join(_names())}>"


def _names() -> list[str]:
    """Public functions that return a figure."""
    return sorted(name for name in figures.__all__ if _draws(getattr(figures, name)))


def _draws(thing: object) -> bool:
    return inspect.isfunction(thing) and inspect.signature(thing).return_annotation in ("Figure", Figure)


def bind(draw: Callable[..., Figure], run: RunFiles) -> Callable[..., Figure]:
    """Bind a figure function to a run: frames that the caller does not pass are taken from the run.

    Args:
        draw: figure function of :mod:`analysis.figures`.
        run: the run.

    Raises:
        UserError: when called, if the figure needs rows that one run does not have.
    """
    signature = inspect.signature(draw)
    # The first parameter is the rows, whatever it is called.
    frames = [name for number, name in enumerate(signature.parameters) if name in FROM_RUN or number == 0]
    left = [p for p in signature.parameters.values() if p.name not in frames]
    shown = signature.replace(
        parameters=[p.replace(default=PRIMARY) if p.name == "metric" else p for p in left]
    )

    @functools.wraps(draw)
    def drawn(*arguments: Any, **settings: Any) -> Figure:
        own = {name: settings.pop(name) for name in frames if name in settings}
        if arguments and isinstance(arguments[0], pl.DataFrame):
            own[frames[0]], arguments = arguments[0], arguments[1:]
        given = shown.bind_partial(*arguments, **settings).arguments
        if "metric" in shown.parameters and frames[0] not in own:
            given.setdefault("metric", PRIMARY)
        metric = given.get("metric")
        frames_of_run = {name: _frame(name, draw, run, metric) for name in frames if name not in own}
        return draw(**_texts(shown, given), **own, **frames_of_run, **given)

    drawn.__signature__ = shown  # type: ignore[attr-defined]
    return drawn


def _frame(name: str, draw: Callable[..., Figure], run: RunFiles, metric: str | None) -> pl.DataFrame:
    """The run's rows for a figure's parameter: the frame of that name, or the rows computed for the figure."""
    if name == "estimates" and metric is not None:
        return run.estimates(metric)
    if name in FROM_RUN:
        return FROM_RUN[name](run)
    if draw.__name__ in ROWS:
        return ROWS[draw.__name__](run)
    if draw.__name__ in SEVERAL:
        raise UserError(f"figure {draw.__name__} {SEVERAL[draw.__name__]}")
    columns = figures.FIGURES[draw.__name__].columns
    wanted = ", ".join(f"{column} ({meaning})" for column, meaning in columns.items())
    raise UserError(
        f"figure {draw.__name__} needs rows that one run does not have; pass them as "
        f"run.figures.{draw.__name__}(rows), "
        f"with the columns {wanted}"
    )


def _texts(shown: inspect.Signature, given: Mapping[str, Any]) -> dict[str, str]:
    """Required text arguments of a figure, such as its axis title, derived from the metric."""
    metric = METRICS.get(str(given.get("metric")))
    if metric is None:
        return {}
    texts = {"title": metric.formula, "y_title": f"{metric.name} ({metric.unit})", "unit": metric.unit}
    return {
        name: text
        for name, text in texts.items()
        if name not in given
        and name in shown.parameters
        and shown.parameters[name].default is inspect.Parameter.empty
    }
