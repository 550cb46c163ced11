"""Registry of figures, and the treatment of rows that cannot be drawn."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec

import altair as alt
import polars as pl

from palimpsest.analysis.figures import sources, theme
from palimpsest.analysis.figures.theme import Figure
from palimpsest.data.errors import UserError, nearest

P = ParamSpec("P")

COLUMNS: dict[str, tuple[str, str]] = {
    "run": ("text", "line or colour: a run, a model, an attack"),
    "family": ("text", "panel: a family of items, or a task"),
    "task": ("text", "panel: the task of the probes"),
    "metric": ("text", "name of the metric"),
    "step": ("number", "training step of the checkpoint"),
    "dose": ("number", "times inserted; 0 is the never-inserted control"),
    "estimate": ("number", "estimate, the value drawn"),
    "low": ("number", "lower end of its 95 % interval; null if there is none"),
    "high": ("number", "upper end of its 95 % interval; null if there is none"),
    "n": ("number", "number of items behind the estimate"),
    "phase": ("text", "label of the phase in which the exposures fell"),
    "start": ("number", "first step of the phase"),
    "end": ("number", "last step of the phase"),
    "training": ("text", "families inserted in the run: all of them, or one alone"),
    "wording": ("text", "inserted wording: the verbatim text, or a paraphrase"),
    "shape": ("text", "depth and width of the model"),
    "field": ("text", "field of a biography"),
    "format": ("text", "attack: context given to the model, and form of the question"),
    "trained": ("text", "format of the inserted items"),
    "tested": ("text", "format of the probe"),
    "score": ("number", "membership score; higher = more likely a member"),
    "member": ("flag", "true if the item was inserted"),
    "group": ("text", "one of the groups that are compared"),
    "perplexity": ("number", "perplexity of a text under the reference model"),
    "against": ("text", "panel: quantity on the horizontal axis"),
    "x": ("number", "place on the horizontal axis"),
    "depth": ("text", "depth of the probe: memorisation, semantic, composition"),
    "since": ("number", "steps since the exposure, or since the local maximum after it"),
    "cohort": ("number", "step at which the items were inserted"),
    "position": ("number", "index of the token in its text"),
    "token": ("text", "the token, as text"),
    "logprob": ("number", "its log-probability, nats"),
    "length": ("number", "length of the longest run of tokens that greedy decoding reproduces"),
    "parameters": ("number", "number of the model's parameters, embeddings included"),
    "bits": ("number", "bits known about all items together"),
    "samples": ("number", "number of documents in the test"),
    "p": ("number", "p-value"),
    "index": ("number", "place in the training order"),
    "residual": ("number", "log-likelihood minus that of the reference model, nats per token"),
    "split": ("text", "puzzles trained on, or held out"),
    "method": ("text", "unlearning method; `retain` is the model that never saw the texts"),
    "forget": ("number", "how well it forgot; higher = better"),
    "utility": ("number", "performance on other texts; higher = better"),
    "category": ("text", "kind of memorised text"),
    "measure": ("text", "measure: recognition or recall"),
    "tokens": ("number", "length of an item"),
    "covariate": ("text", "property of the items that randomisation should balance"),
    "difference": ("number", "standardised difference from dose 0"),
}
"""Column -> its kind (``number``, ``text`` or ``flag``) and meaning, the same in all figures."""

_ESTIMATED = ("estimate", "x")
"""Columns in which null or NaN means that the row is not drawn."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered figure."""

    number: int
    """Number of the default figure; 0 for figures used only in the report."""
    name: str
    title: str
    needs: tuple[str, ...]
    """Columns that its rows must have; :data:`COLUMNS` describes them."""
    optional: tuple[str, ...]
    """Columns that are drawn if the rows have them."""
    draw: Callable[..., Figure]

    @property
    def columns(self) -> Mapping[str, str]:
        """Needed column -> its meaning."""
        return {name: COLUMNS[name][1] for name in self.needs}


FIGURES: dict[str, Registered] = {}
"""Name -> figure, in the order of the figures' numbers; filled by importing :mod:`analysis.figures`."""


def figure(
    *, number: int, title: str, needs: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Callable[[Callable[P, Figure]], Callable[P, Figure]]:
    """Register a function from rows to a figure under the function's name.

    The wrapper adds title and style, and checks the rows: a missing column or a column of another kind raises a
    ``UserError``; rows without any value give a panel with the reason; single rows without a value are left out.

    Args:
        number: number of the default figure.
        title: title of the figure.
        needs: columns that the rows must have.
        optional: columns that are drawn if the rows have them.
    """

    def register(function: Callable[P, Figure]) -> Callable[P, Figure]:
        name = function.__name__
        if name in FIGURES:
            raise ValueError(f"two figures are called {name!r}")
        if strangers := {*needs} - COLUMNS.keys():
            raise ValueError(f"figure {name!r} needs {min(strangers)!r}, which has no meaning in COLUMNS")

        @functools.wraps(function)
        def drawn(*arguments: P.args, **settings: P.kwargs) -> Figure:
            first = next(iter(inspect.signature(function).parameters))
            given = arguments[0] if arguments else settings.get(first)
            rows = checked(given, name, needs)
            if {"run", "dose", "estimate"} <= {*needs}:
                rows = sources.apart(rows, f"figure {name}")
            lacking = [column for column in _ESTIMATED if column in needs]
            usable = rows.filter([_is_there(column) for column in lacking]) if lacking else rows
            if usable.is_empty():
                return theme.nothing(str(settings.get("title") or title), rows, reason=_why(rows))
            # The rows stand first, by position or by name: what follows is as it came.
            rest: Any = (usable, *arguments[1:]) if arguments else ()
            named: Any = settings if arguments else {**settings, first: usable}
            result = function(*rest, **named)
            chart: Any = result.chart
            return Figure(
                theme.styled(chart if chart.title is not alt.Undefined else chart.properties(title=title)),
                result.rows,
            )

        entry = Registered(number, name, title, needs, optional, drawn)
        FIGURES[name] = entry
        for key in sorted(FIGURES, key=lambda key: FIGURES[key].number):
            FIGURES[key] = FIGURES.pop(key)
        return drawn

    return register


def checked(rows: object, name: str, needs: tuple[str, ...]) -> pl.DataFrame:
    """The rows, after a check that they are a frame with the needed columns of the right kinds.

    Raises:
        UserError: naming the figure, the column and its meaning.
    """
    if not isinstance(rows, pl.DataFrame):
        raise UserError(f"figure {name} needs rows as a Polars frame, not {type(rows).__name__}")
    for column in needs:
        kind, meaning = COLUMNS[column]
        if column not in rows.columns:
            raise UserError(
                f"figure {name} needs the column {column!r} ({meaning}){nearest(column, rows.columns)}"
            )
        dtype = rows.schema[column]
        right = {
            "number": dtype.is_numeric(),
            "flag": dtype == pl.Boolean,
            "text": dtype in (pl.String, pl.Categorical, pl.Enum) or dtype.is_numeric(),
        }[kind]
        if not right and dtype != pl.Null:
            raise UserError(
                f"figure {name}: the column {column!r} ({meaning}) should be a {kind}, not {dtype}"
            )
    numbers = [column for column in needs if COLUMNS[column][0] == "number"]
    texts = [column for column in needs if COLUMNS[column][0] == "text"]
    return rows.with_columns(
        *(pl.col(c).cast(pl.Float64) for c in numbers if rows.schema[c] == pl.Null),
        *(pl.col(c).cast(pl.String) for c in texts),
    )


def _is_there(column: str) -> pl.Expr:
    return pl.col(column).is_not_null() & pl.col(column).cast(pl.Float64).is_finite()


def _why(rows: pl.DataFrame) -> str:
    return "there are no rows" if rows.is_empty() else f"none of the {rows.height} rows has a value"
