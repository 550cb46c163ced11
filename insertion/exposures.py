"""Schema of the exposures table of a plan."""

from __future__ import annotations

import polars as pl

EXPOSURE_SCHEMA = pl.Schema(
    {
        "position": pl.Int64(),
        "item": pl.Int32(),
        "wording": pl.Int32(),
        "offset": pl.Int32(),
        "lead": pl.Boolean(),
        "trail": pl.Boolean(),
        "cut": pl.Int32(),
        "overwrite": pl.Boolean(),
        "loss": pl.Int8(),
    }
)
"""Columns of exposures, one row per exposure, ascending by position and offset. ``item`` and ``wording`` are rows of
their tables; ``offset`` is where the first item token sits in the finished window (0: it is not predicted); ``lead``
and ``trail`` are true if the plan puts an end-of-document token before and after it; ``cut`` corpus tokens are removed
at the window's head; ``overwrite`` replaces the corpus tokens in its place instead of shifting them; ``loss`` is 0
where all of the item's tokens count, 1 where none does, and K where one in K does not (``overlay.counted``). The corpus
tokens displaced are the ``cut`` first ones and, without ``overwrite``, as many of the last ones as the window would be
too long."""
