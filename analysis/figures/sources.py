"""Rows of several runs in one frame: they are named by their run, or refused if they do not identify it."""

from __future__ import annotations

import polars as pl

from palimpsest.data.errors import UserError

SOURCE, SEED = "source", "seed"
"""Columns that identify a row's run and seed, from ``Run.signature``."""
_NUMBERS = {"estimate", "low", "high", "n", "n_control", "clusters", "clusters_control", "p", "method", "mde"}


def apart(rows: pl.DataFrame, what: str) -> pl.DataFrame:
    """The rows, with ``run`` extended by the source if they are of several runs.

    Args:
        rows: run, dose, estimate, and ``source`` if they may be of several runs.
        what: name of the figure or table, for the error message.

    Returns:
        The rows. For several runs, ``perturbed`` becomes ``perturbed · seed 2`` or, if they differ in more than the
        seed, ``perturbed · quickstart/run-1a2b3c4d``.

    Raises:
        UserError: if two rows have the same run, step, dose and other keys.
    """
    if SOURCE in rows.columns and rows[SOURCE].n_unique() > 1:
        rows = rows.with_columns(run=pl.concat_str("run", _names(rows), separator=" · "))
    keys = [name for name in rows.columns if name not in _NUMBERS]
    twice = rows.filter(pl.struct(keys).is_duplicated())
    if twice.height:
        first = twice.row(0, named=True)
        shared = ", ".join(
            f"{name} {first[name]}" for name in ("run", "step", "dose") if first.get(name) is not None
        )
        raise UserError(
            f"{what}: {twice.height} rows share run, step and dose ({shared}), as rows of several runs do; give each a "
            f"column '{SOURCE}' (run.estimates() and the CSVs of a report have it), or take one run"
        )
    return rows


def _names(rows: pl.DataFrame) -> pl.Expr:
    """Name of each source: its seed if the sources differ in the seed only, else the run's name."""
    sources = rows[SOURCE].n_unique()
    if SEED in rows.columns and rows[SEED].null_count() == 0:
        alike = (
            rows.select(pl.col(SOURCE).cast(pl.String).str.replace(r"-[0-9a-f]{8}$", "").n_unique()).item()
            == 1
        )
        if alike and rows[SEED].n_unique() == sources and rows.select(SOURCE, SEED).n_unique() == sources:
            return pl.format("seed {}", SEED)
    return pl.col(SOURCE).cast(pl.String)
