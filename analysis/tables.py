"""Tables of results for papers: LaTeX (booktabs), Markdown and CSV, with intervals."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.figures import sources
from palimpsest.analysis.figures.export import csv_of, inert, write
from palimpsest.analysis.report.answer import interval, number, p_value
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import PAIRED
from palimpsest.data.errors import UserError, nearest

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "\u00a0": "~",
    "\u200b": "{}",
}
_MISSING = "–"


def results(
    estimates: pl.DataFrame,
    metric: str,
    *,
    statistic: str = "gain",
    family: str = "all",
    step: int | None = None,
) -> pl.DataFrame:
    """Estimates of one metric by dose, one column per run, as in a paper's table.

    Args:
        estimates: estimate rows.
        metric: name of the metric.
        statistic: ``mean``, ``gain`` or ``auc``.
        family: name of the family; ``all`` pools the families.
        step: checkpoint; the last if None.

    Returns:
        ``dose``, ``n``, and for each run NAME the columns ``NAME``, ``NAME_low``, ``NAME_high`` and, if the estimate
        was tested, ``NAME_p``. If the rows come from several runs (column ``source``), NAME includes the source.

    Raises:
        UserError: if there are no such rows; the message lists the available values.
    """
    rows = sources.apart(estimates, "table of results")
    for column, value in (("metric", metric), ("statistic", statistic), ("family", family)):
        known = [str(name) for name in rows[column].drop_nulls().unique()]
        rows = rows.filter(pl.col(column) == value)
        if rows.is_empty():
            raise UserError(f"no estimate has {column}={value!r}{nearest(value, known)}")
    rows = rows.filter(pl.col("step") == (rows["step"].max() if step is None else step))
    if rows.is_empty():
        raise UserError(f"there is no estimate of {metric} at step {step}")
    order = [PAIRED, "perturbed", "twin"]
    runs = sorted(
        rows["run"].unique(), key=lambda run: (order.index(run) if run in order else len(order), run)
    )
    table = rows.group_by("dose").agg(pl.col("n").max()).sort("dose")
    for run in runs:
        own = rows.filter(pl.col("run") == run).select(
            "dose",
            pl.col("estimate").alias(run),
            pl.col("low").alias(f"{run}_low"),
            pl.col("high").alias(f"{run}_high"),
            *([pl.col("p").alias(f"{run}_p")] if "p" in rows.columns else []),
        )
        table = table.join(own, on="dose", how="left", maintain_order="left")
        if f"{run}_p" in table.columns and table[f"{run}_p"].is_null().all():
            table = table.drop(f"{run}_p")
    return table


def save(
    table: pl.DataFrame | Table,
    path: Path | str,
    *,
    caption: str = "",
    label: str = "",
    digits: int | None = None,
) -> None:
    """Write a table to ``path`` as ``.tex``, ``.md`` and ``.csv``; each file is written atomically.

    The CSV has the frame's columns at full precision; the other two print ``estimate [low, high]`` in one cell.

    Args:
        table: a frame, in which the columns ``X``, ``X_low`` and ``X_high`` (or ``estimate``, ``low`` and ``high``)
            form one printed column; or a table of the report.
        path: without a suffix; a suffix ``.tex``, ``.md`` or ``.csv`` is removed.
        caption: text above the table; the report table's own caption if empty.
        label: LaTeX label, for ``\\ref``.
        digits: decimals of numbers without an interval; four significant digits if None.
    """
    target = Path(path)
    if target.suffix in (".tex", ".md", ".csv"):
        target = target.with_suffix("")
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = as_text(table, digits=digits)
    raw = csv_of(table) if isinstance(table, pl.DataFrame) else _csv(table)
    for suffix, text in (
        ("tex", to_latex(shown, caption=caption, label=label)),
        ("md", to_markdown(shown, caption=caption)),
        ("csv", raw),
    ):
        write(target.with_name(f"{target.name}.{suffix}"), text.encode())


def to_latex(
    table: pl.DataFrame | Table, *, caption: str = "", label: str = "", digits: int | None = None
) -> str:
    """LaTeX ``table`` environment with ``booktabs`` rules; all text is escaped."""
    shown = as_text(table, digits=digits)
    columns = "".join("l" if i in shown.text_columns else "r" for i in range(len(shown.head)))
    caption = caption or shown.caption
    lines = [r"\begin{table}[t]", r"\centering"]
    lines += [rf"\caption{{{escape_latex(caption)}}}"] if caption else []
    lines += [rf"\label{{{_label(label)}}}"] if label else []
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(shown.head), r"\midrule"]
    lines += [_latex_row(row) for row in shown.body]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {escape_latex(shown.note)}"] if shown.note else []
    return "\n".join([*lines, r"\end{table}", ""])


def to_markdown(table: pl.DataFrame | Table, *, caption: str = "", digits: int | None = None) -> str:
    """Markdown pipe table; characters that Markdown or HTML would read as markup are escaped."""
    shown = as_text(table, digits=digits)
    marks = [":---" if i in shown.text_columns else "---:" for i in range(len(shown.head))]
    rows = [shown.head, *shown.body]
    lines = ["| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join(marks) + " |")
    caption = caption or shown.caption
    before = [escape_markdown(caption), ""] if caption else []
    after = ["", escape_markdown(shown.note)] if shown.note else []
    return "\n".join([*before, *lines, *after, ""])


def escape_latex(text: str) -> str:
    """Text escaped for LaTeX; control characters and line breaks become spaces."""
    # Two hyphens would be drawn as a dash.
    text = _visible(text).replace("--", "-\u200b-")
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Text escaped for one cell of a Markdown table."""
    text = (
        re.sub(r"[\x00-\x1f\x7f]+", " ", text)
        .replace("\\", "\\\\")
        .replace("&", "&amp;")
        .replace("<", "&lt;")
    )
    return re.sub(r"([|`*_~]|\](?=[(\[]))", r"\\\1", text)


def _visible(text: str) -> str:
    """Text without invisible characters: line breaks, control characters and marks of text direction."""
    return "".join(
        " " if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character for character in text
    )


def as_text(table: pl.DataFrame | Table, *, digits: int | None = None) -> Table:
    """Header and printed cells: ``estimate [low, high]`` in one cell, Unicode minus signs, ``–`` for missing values."""
    if isinstance(table, Table):
        return table
    columns = list(_columns(table, digits))
    body = [[cells[i] for _, cells, _ in columns] for i in range(table.height)]
    words = frozenset(i for i, (_, _, is_text) in enumerate(columns) if is_text)
    return Table([head for head, _, _ in columns], body, text_columns=words)


def _columns(table: pl.DataFrame, digits: int | None) -> Iterator[tuple[str, list[str], bool]]:
    """Header of a column, its cells, and true if the cells are text."""
    used: set[str] = set()
    for name in table.columns:
        low, high = ("low", "high") if name == "estimate" else (f"{name}_low", f"{name}_high")
        if {low, high} <= set(table.columns):
            used |= {low, high}
    for name in table.columns:
        if name in used:
            continue
        low, high = ("low", "high") if name == "estimate" else (f"{name}_low", f"{name}_high")
        heading = "p" if name.endswith("_p") else name.replace("_", " ")
        column = table[name]
        if low in used:
            rows = zip(column, table[low], table[high], strict=True)
            yield heading.replace(" - ", " − ") + " [95 %]", [_interval(*row) for row in rows], False
        elif name == "p" or name.endswith("_p"):
            yield heading, [p_value(value) for value in column], False
        elif column.dtype.is_numeric():
            yield heading, [_number(value, digits) for value in column], False
        else:
            yield heading, [_MISSING if value is None else str(value) for value in column], True


def _interval(estimate: float | None, low: float | None, high: float | None) -> str:
    return _MISSING if estimate is None else interval({"estimate": estimate, "low": low, "high": high})


def _number(value: Any, digits: int | None) -> str:
    if value is None or value != value:
        return _MISSING
    if isinstance(value, int):
        return str(value).replace("-", "−")
    return number(value, digits) if digits is not None else f"{value:.4g}".replace("-", "−")


def _latex_row(cells: Sequence[str]) -> str:
    escaped = [escape_latex(str(cell)) for cell in cells]
    # After \\ an opening bracket or a star would be taken for its argument.
    if escaped and escaped[0][:1] in ("[", "*"):
        escaped[0] = "{}" + escaped[0]
    return " & ".join(escaped) + r" \\"


def _label(label: str) -> str:
    if re.search(r"[^A-Za-z0-9:._-]", label):
        raise UserError(f"label={label!r} must consist of letters, digits and : . _ -")
    return label


def _csv(table: Table) -> str:
    """Cells as printed, but with ASCII minus signs, which programs can parse."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(
        [[inert(str(cell).replace("−", "-")) for cell in row] for row in (table.head, *table.body)]
    )
    return text.getvalue()
