"""Tables of a run: ``palimpsest show RUN gains``, ``palimpsest show RUN items``, ``palimpsest show RUN item=ID``.

    palimpsest show runs/quickstart                    what the run is: command, steps, audit, the report's sentence
    palimpsest show runs/quickstart gains rows=10      items by what they gained over the twin, the ten highest
    palimpsest show runs/quickstart items              which of them are reproduced verbatim
    palimpsest show runs/quickstart item=ghost-00003   its exposures, with the first checkpoint that has seen each

RUN is a run's directory; without it, the newest run is shown.
``metric=NAME`` is what gains are of (loglik_per_byte), ``step=S`` the checkpoint (the last one), ``rows=N`` how many
rows are shown (20; 0: all), ``csv=FILE`` writes the whole table instead.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from palimpsest.analysis.figures.export import csv_of, write
from palimpsest.analysis.run import Run, open_run
from palimpsest.data.errors import UserError, nearest
from palimpsest.launch import recorded
from palimpsest.launch.process import say
from palimpsest.launch.program import plain

TABLES = ("gains", "items")
_KEYS = ("item", "metric", "step", "rows", "csv")
_COLUMNS = {
    "difference": "perturbed - twin",
    "gain": "the difference less its mean over the family's items of dose 0; it says what insertion did",
    "perturbed_extracted": "true if greedy decoding from its first report.prefix_tokens tokens gives the next "
    "report.suffix_tokens; empty for an item that is shorter than both together",
    "perturbed_longest": "number of tokens that it reproduces in a row",
    "checkpoint": "the first that has seen the exposure, by its finished steps; steps are counted from 0",
}
"""Meaning of columns that their names leave open."""


def _asked(arguments: Sequence[str]) -> tuple[str | None, str, Mapping[str, str]]:
    """Run, table and settings from the command line."""
    place, table, wanted = None, "", {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in _KEYS:
            wanted[key] = value
        elif argument in TABLES:
            table = argument
        elif equals and "/" not in key:
            raise UserError(f"{argument}: there is no such setting{nearest(key, _KEYS)}")
        elif place is not None:
            raise UserError(
                f"{argument}: give one run and one of {', '.join(TABLES)} or item=ID (its exposures); "
                f"{place} was given before"
            )
        elif difflib.get_close_matches(argument, TABLES) and not Path(argument).exists():
            raise UserError(f"{argument}: there is no such table{nearest(argument, TABLES)}")
        else:
            place = argument
    if "item" in wanted:
        table = "item"
    return place, table, wanted


def _number(wanted: Mapping[str, str], key: str) -> int | None:
    if key not in wanted:
        return None
    if not wanted[key].isdecimal():
        raise UserError(f"{key}={wanted[key]} must be a whole number")
    return int(wanted[key])


def table_of(run: Run, table: str, wanted: Mapping[str, str]) -> pl.DataFrame:
    """The table that the command line names."""
    step = _number(wanted, "step")
    if table == "item":
        return run.exposures_of(wanted["item"])
    if table == "items":
        return run.items(step)
    return run.gains(wanted.get("metric"), step)


def about(run: Run) -> list[str]:
    """Overview of a run, in lines: the command that made it, its progress, and the headline of its report."""
    lines = repr(run).splitlines()
    if command := recorded.command(run.directory):
        lines.append(f"  made by: {command}")
    path = run.directory / "report" / "summary.json"
    if path.is_file():
        lines.append(f"  report: {json.loads(path.read_text(encoding='utf-8'))['headline']}")
        lines.append(f"  {path.with_name('report.html')}")
    return lines


def work(arguments: Sequence[str]) -> int:
    """Print the table of the run that the command line names."""
    place, table, wanted = _asked(arguments)
    run = open_run(place)
    if not table:
        if wanted:
            raise UserError(f"{next(iter(wanted))}= works only with one of {', '.join(TABLES)}, or item=ID")
        lines = about(run)
    else:
        shown, rows = table_of(run, table, wanted), _number(wanted, "rows")
        if path := wanted.get("csv"):
            write(Path(path), csv_of(run.signed(shown)).encode())
            say(f"{shown.height:,} rows in {path}")
            return 0
        rows = 20 if rows is None else rows or shown.height
        with pl.Config(
            tbl_rows=rows, tbl_cols=-1, tbl_width_chars=_width(), fmt_str_lengths=40, tbl_hide_dataframe_shape=True,
            tbl_hide_column_data_types=True, tbl_formatting="NOTHING", float_precision=3,
        ):  # fmt: skip
            lines = [
                f"{run.name}: {table if table != 'item' else wanted['item']}",
                str(_plain(shown.head(rows)))
                if table != "item" or len(shown)
                else "never inserted: a control, of dose 0",
            ]
        lines += [f"{column}: {meaning}" for column, meaning in _COLUMNS.items() if column in shown.columns]
        if shown.height > rows:
            lines.append(f"{shown.height - rows:,} more; rows=0 shows all, csv=FILE writes them")
    try:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # a reader that has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _plain(table: pl.DataFrame) -> pl.DataFrame:
    """The table with line breaks in texts replaced, so that each text is one line."""
    return table.with_columns(pl.col(pl.String).str.replace_all(r"\s+", " "))


def _width() -> int:
    return os.get_terminal_size().columns if sys.stdout.isatty() else 160


def main() -> None:
    """Run the program."""
    plain(__doc__, work)


if __name__ == "__main__":
    main()
