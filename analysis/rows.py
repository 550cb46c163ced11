"""The rows of one run that a figure draws, where they are neither its estimates nor a file of it.

Columns are those that ``analysis.figures`` names; what a figure compares across runs (models, corpora, phases) one run
does not have, and it is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from analysis.run import Run

ATTACKS = ("loglik_per_token", "zlib_ratio", "min_k_logprob", "min_k_plus_plus", "reference_difference")
"""Membership scores, as metrics; higher = more likely a member."""
PREFIXES = (1, 2, 4, 8, 16, 32, 50)
"""Tokens of context."""


def attacks(run: Run) -> pl.DataFrame:
    """``score`` and ``member`` of every item of the highest dose and of dose 0, one ``run`` an attack, last checkpoint.

    Of the perturbed run, less the mean of the controls of the item's family: kinds of text differ by themselves.
    """
    from analysis.statistics import per_item

    rows = run.metrics(*ATTACKS, steps=[run.last_step]).filter(pl.col("run") == "perturbed")
    items = per_item(rows).filter(pl.col("dose").is_not_null())
    control = pl.col("value").filter(pl.col("dose") == 0).mean().over("metric", "family")
    return (
        items.with_columns(score=pl.col("value") - control)
        .filter(pl.col("dose").is_in([0, items["dose"].max()]) & pl.col("score").is_not_null())
        .select(run="metric", item_id="unit", family="family", score="score", member=pl.col("dose") > 0)
    )


def areas(run: Run) -> pl.DataFrame:
    """AUC of every attack against dose 0, within families, by dose (``against``, ``x``), last checkpoint."""
    from analysis.statistics import auc

    rows = auc(run.metrics(*ATTACKS, steps=[run.last_step]).filter(pl.col("run") == "perturbed"))
    found = rows.filter((pl.col("family") == "all") & pl.col("estimate").is_not_null())
    return found.select(
        pl.lit("dose").alias("against"),
        x="dose",
        run="metric",
        estimate="estimate",
        low="low",
        high="high",
        n="n",
    )


def extraction(run: Run) -> pl.DataFrame:
    """Share of items reproduced after each number of tokens of context (``against``, ``x``), one ``run`` a dose.

    The continuation is as long as the report's; items too short for context and continuation are left out, and ``n``
    counts the others.
    """
    from analysis.statistics import mean_by_dose

    suffix = run.parameters.suffix
    frames = [
        mean_by_dose(
            run.metrics("verbatim", steps=[run.last_step], prefix=prefix, suffix=suffix), method="rate"
        ).with_columns(x=pl.lit(prefix))
        for prefix in PREFIXES
    ]
    kept = (pl.col("run") == "perturbed") & (pl.col("family") == "all") & pl.col("estimate").is_not_null()
    found = (
        pl.concat(frames)
        .filter(kept)
        .with_columns(against=pl.lit("prefix"), run=pl.format("dose {}", "dose"))
    )
    return found.select("against", "x", "run", "estimate", "low", "high", "n")


def longest(run: Run) -> pl.DataFrame:
    """``length``: tokens of each item that greedy decoding reproduces after the report's prompt; one ``run`` a dose."""
    rows = run.metrics("longest_extracted", steps=[run.last_step])
    known = rows.filter((pl.col("run") == "perturbed") & pl.col("value").is_not_null()).sort(
        "dose", "item_id"
    )
    return known.select(
        pl.format("dose {}", "dose").alias("run"), "item_id", length=pl.col("value").cast(pl.Int64)
    )


def lengths(run: Run) -> pl.DataFrame:
    """``tokens`` of every item, one ``group`` a dose."""
    items = run.items.sort("dose", "item_id")
    return items.select("item_id", tokens="length", group=pl.format("dose {}", "dose"))


def assignment(run: Run) -> pl.DataFrame:
    """One row an item: ``family``, ``dose``."""
    return run.items.select("item_id", "family", "dose")


ROWS: Mapping[str, Callable[[Run], pl.DataFrame]] = {
    "roc": attacks,
    "auc_against": areas,
    "extraction_rate": extraction,
    "run_lengths": longest,
    "lengths": lengths,
    "assignment_flow": assignment,
}
"""Figure -> its rows."""
