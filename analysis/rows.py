"""The rows of one run that a figure draws, where they are neither its estimates nor a file of it.

Columns are those that ``analysis.figures`` names; what a figure compares across runs (models, corpora, phases) one run
does not have, and it is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import polars as pl

from palimpsest.data.errors import UserError

if TYPE_CHECKING:
    from palimpsest.analysis.run import Run

ATTACKS = ("loglik_per_token", "zlib_ratio", "min_k_logprob", "min_k_plus_plus", "reference_difference")
"""Membership scores, as metrics; higher = more likely a member."""
PREFIXES = (1, 2, 4, 8, 16, 32, 50)
"""Tokens of context."""


def attacks(run: Run) -> pl.DataFrame:
    """``score`` and ``member`` of every item of the highest dose and of dose 0, one ``run`` an attack, last checkpoint.

    Of the perturbed run, less the mean of the controls of the item's family: kinds of text differ by themselves.
    """
    from palimpsest.analysis.statistics import per_item

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
    from palimpsest.analysis.statistics import auc

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
    from palimpsest.analysis.statistics import mean_by_dose

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


def most_gained(run: Run) -> pl.DataFrame:
    """The tokens of the inserted item that gained most over the twin: an example, chosen for being extreme."""
    from palimpsest.analysis.report.results import item_gains

    return run.tokens(item_gains(run.results, run.inputs()).row(0, named=True)["item_id"])


def events(run: Run, stretches: int = 8) -> pl.DataFrame:
    """Effect of a single exposure (items of dose 1) on the report's metric by steps since it, ``since``.

    The difference from the twin, less that of the family's never-inserted items at the same checkpoint, by stretches.
    A run has so many of them, and none lies across the exposure; each comes with its mean step and a 95 % interval over
    items, which ``n`` counts; those of a single item are left out. Right after the exposure's step ``since`` is 1.

    Raises:
        UserError: if there is no twin, or no item of dose 1.
    """
    from palimpsest.analysis.statistics import cluster_mean, difference_to_twin, per_item

    values = per_item(difference_to_twin(run.metrics("loglik_per_byte"))).rename({"unit": "item_id"})
    control = (
        values.filter(pl.col("dose") == 0).group_by("step", "family").agg(control=pl.col("value").mean())
    )
    rows = (
        values.filter(pl.col("dose") == 1)
        .join(control, on=["step", "family"])
        .join(run.exposures.select("item_id", exposed="step"), on="item_id")
        .with_columns(gain=pl.col("value") - pl.col("control"), since=pl.col("step") - pl.col("exposed"))
    )
    if rows.is_empty():
        raise UserError(
            f"{run.name} has no items of dose 1 with scores in both runs: there is no event to study"
        )
    width = max(1, -(-run.plan.shape.steps // stretches))
    # Stretches end where the exposure falls: none mixes what was before it with what came after.
    rows = rows.with_columns(stretch=(pl.col("since") - 1) // width)
    found = []
    for part in rows.partition_by("stretch"):
        n = part["item_id"].n_unique()
        if n > 1:
            effect = cluster_mean(part["gain"].to_numpy(), part["item_id"].rank("dense").to_numpy())
            found.append(
                {
                    "since": part["since"].mean(),
                    "estimate": effect.estimate,
                    "low": effect.low,
                    "high": effect.high,
                }
                | {"n": n}
            )
    schema = {
        "since": pl.Float64,
        "estimate": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "n": pl.Int64,
    }
    return pl.DataFrame(found, schema=schema).sort("since")


def choices(run: Run) -> pl.DataFrame:
    """Accuracy of choices between an answer and its decoys by what is asked (``field``), at the last checkpoint.

    The likeliest answer is chosen; limits are exact (Clopper and Pearson). ``n`` counts questions, ``run`` is the run.

    Raises:
        UserError: if no probe is a choice.
    """
    from palimpsest.analysis.statistics import clopper_pearson

    asked = run.probes.filter(pl.col("kind") == "choice").select(
        "probe_id", "item_id", "name", "correct", "target_start"
    )
    if asked.is_empty():
        raise UserError(f"{run.name} has no choices: none of its families asks for one")
    loglik = pl.col("logprob").list.slice(pl.col("target_start")).list.sum()
    picked = (
        run.scores.filter(pl.col("step") == run.last_step)
        .join(asked, on="probe_id")
        .join(run.items.select("item_id", "dose"), on="item_id")
        .sort("run", "item_id", "name", "probe_id")
        .group_by("run", "name", "dose", "item_id", maintain_order=True)
        .agg(right=pl.col("correct").get(loglik.arg_max()))
    )
    counted = (
        picked.group_by("run", "name", "dose")
        .agg(pl.col("right").sum(), n=pl.len())
        .sort("name", "run", "dose")
    )
    low, high = clopper_pearson(counted["right"].to_numpy(), counted["n"].to_numpy())
    return counted.select(
        pl.lit("choice among decoys").alias("format"),
        "run",
        "dose",
        "n",
        field="name",
        estimate=pl.col("right") / pl.col("n"),
        low=pl.Series(low),
        high=pl.Series(high),
    )


ROWS: Mapping[str, Callable[[Run], pl.DataFrame]] = {
    "roc": attacks,
    "auc_against": areas,
    "extraction_rate": extraction,
    "run_lengths": longest,
    "lengths": lengths,
    "assignment_flow": assignment,
    "token_strip": most_gained,
    "event_study": events,
    "personal": choices,
}
"""Figure -> its rows."""
