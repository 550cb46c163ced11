"""Counterfactual memorization, influence and a privacy bound: from runs that include each item by a coin.

Runs that differ in ``insertion.coin_seed`` alone read the same windows and start from the same weights, and every item
is in some of them. Its counterfactual memorization is the difference between the runs with it and those without it
(Zhang et al., 2021).

Shape suffixes: R runs, N items, H held-out documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from palimpsest.analysis.figures import theme
from palimpsest.analysis.metrics.membership import one_run_epsilon
from palimpsest.analysis.metrics.profiles import counterfactual_memorization, influence
from palimpsest.analysis.report.answer import interval
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import difference_to_twin, holm, mean_limits, per_item

COINS = "insertion.coin_seed"
"""Factor whose levels are the coins."""
LEAST = 4
"""Fewest runs for which anything is reported."""
_HELDOUT = "heldout_loglik_per_byte"
_LISTED = 8
Floats = NDArray[np.float64]


class Coins(NamedTuple):
    """Scores of the R runs of a sweep, each of which includes every one of N items or not by the toss of a coin."""

    items: pl.DataFrame
    """``item_id`` and ``family``, one row an item."""
    included: NDArray[np.bool_]
    """(R, N)."""
    score: Floats
    """(R, N) of the primary metric: differences from the twin where there is one, else of the perturbed run."""
    heldout: Floats
    """(R, H) log-likelihood of held-out documents in the perturbed run, nats/byte; no columns if it was not scored."""


def read(runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> Coins | None:
    """The scores of runs, from their ``report/metrics.parquet``.

    Args:
        runs: directory and ``summary.json`` of each.

    Returns:
        None for fewer than ``LEAST`` runs, runs whose rows are gone, runs with different items, a run that includes all
        items or none, or if no item is in two runs at least and in two not.
    """
    if len(runs) < LEAST:
        return None
    tables, heldout = [], []
    for directory, summary in runs:
        path = directory / "report" / "metrics.parquet"
        if not path.is_file():
            return None
        rows = pl.read_parquet(path).filter(pl.col("step") == summary["step"])
        held = rows.filter((pl.col("metric") == _HELDOUT) & (pl.col("run") == "perturbed"))
        heldout.append(held.sort("probe_id").select("probe_id", "value"))
        rows = rows.filter((pl.col("metric") == summary["primary_metric"]) & pl.col("dose").is_not_null())
        paired = difference_to_twin(rows) if (rows["run"] == "twin").any() else rows
        tables.append(per_item(paired).sort("family", "unit"))
    names = tables[0].select("family", "unit")
    if any(not table.select("family", "unit").equals(names) for table in tables):
        return None
    included = np.array([table["dose"].to_numpy() > 0 for table in tables])
    split = included.any(axis=1) & ~included.all(axis=1)
    often = included.sum(axis=0)
    if not split.all() or not ((often >= 2) & (len(runs) - often >= 2)).any():
        return None
    same = all(held["probe_id"].equals(heldout[0]["probe_id"]) for held in heldout)
    return Coins(
        names.select(item_id="unit", family="family"),
        included,
        np.array([table["value"].to_numpy() for table in tables], np.float64),
        np.array([held["value"].to_numpy() if same else [] for held in heldout], np.float64),
    )


def memorization(coins: Coins) -> pl.DataFrame:
    """Counterfactual memorization of every item that at least two runs include and two do not: its mean score in the
    runs that include it minus that in those that do not.

    Returns:
        ``item_id``, ``family``, ``estimate``, ``low``, ``high`` (Welch's 95 % interval), ``p`` (one-sided: above 0),
        ``p_holm`` (corrected over the items), ``runs_with``, ``runs_without``, and ``influence``: the same difference
        in the mean log-likelihood of the held-out documents, nats/byte, with ``influence_low`` and
        ``influence_high``; the largest estimate first.
    """
    rows = []
    for number, (item, family) in enumerate(coins.items.iter_rows()):
        inside = coins.included[:, number]
        if min(inside.sum(), (~inside).sum()) < 2:
            continue
        score = coins.score[:, number]
        effect = counterfactual_memorization(score[inside], score[~inside])
        row = {"item_id": item, "family": family, **effect._asdict()}
        if coins.heldout.size:
            other = influence(coins.heldout.mean(axis=1, keepdims=True), inside)
            row |= {
                "influence": float(other.estimate[0]),
                "influence_low": float(other.low[0]),
                "influence_high": float(other.high[0]),
            }
        rows.append(row)
    schema = {
        **{"item_id": pl.String, "family": pl.String},
        **dict.fromkeys(("estimate", "error", "low", "high", "p"), pl.Float64),
        **dict.fromkeys(("models_with", "models_without"), pl.Int64),
        **dict.fromkeys(("influence", "influence_low", "influence_high"), pl.Float64),
    }
    table = pl.DataFrame(rows, schema=schema)
    return (
        table.with_columns(p_holm=pl.Series(holm(table["p"].to_list()), dtype=pl.Float64))
        .rename({"models_with": "runs_with", "models_without": "runs_without"})
        .drop("error")
        .sort("estimate", descending=True)
    )


def epsilons(coins: Coins) -> list[float]:
    """Lower 95 % bound on the epsilon of differential privacy, from each run alone (Steinke et al., 2023).

    The attacker guesses that the half of the items with the highest scores is included. Empty where the coins are not
    of one half, which the bound presumes.
    """
    inside = coins.included
    if stats.binomtest(int(inside.sum()), inside.size).pvalue < 1e-3:
        return []
    bounds = []
    for inside, score in zip(coins.included, coins.score, strict=True):
        guessed = np.zeros(len(score), dtype=np.bool_)
        guessed[np.argsort(-score, kind="stable")[: len(score) // 2]] = True
        bounds.append(one_run_epsilon(int((guessed == inside).sum()), len(score)))
    return bounds


def overall(coins: Coins) -> tuple[float, float, float]:
    """Mean over items of the counterfactual memorization, and its 95 % interval over runs and their coins.

    Each run estimates it by the mean of its included items less that of the others.
    """
    pairs = zip(coins.included, coins.score, strict=True)
    means = [score[inside].mean() - score[~inside].mean() for inside, score in pairs]
    return float(np.mean(means)), *mean_limits(means)


def figure(rows: pl.DataFrame, unit: str) -> theme.Figure:
    """Draw the estimate of every item with its 95 % interval, the most memorised first: a long tail.

    Args:
        rows: rows of :func:`memorization`.
        unit: unit of the estimates, for the axis.
    """
    ranked = rows.with_row_index("rank", offset=1)
    x = alt.X(
        "rank:Q",
        title="items, from the most to the least memorised",
        scale=alt.Scale(domain=[0.5, ranked.height + 0.5], nice=False),
        axis=alt.Axis(format="d", tickMinStep=1),
    )
    title = f"counterfactual memorization, {unit}"
    families = ranked["family"].unique(maintain_order=True).to_list()
    base = alt.Chart(theme.values(ranked)).encode(x=x, color=theme.colour(families, "family"))
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.2).encode(alt.Y("low:Q", title=title), alt.Y2("high")),
        base.mark_point(filled=True, size=40, opacity=1).encode(
            alt.Y("estimate:Q", title=title), shape=theme.shape(families, "family")
        ),
        theme.line(y=0),
    ).properties(width=620, height=280)
    return theme.Figure(theme.styled(chart), ranked)


def table(rows: pl.DataFrame) -> Table:
    """The items with the highest memorization."""
    body = [
        [
            row["item_id"],
            row["family"],
            f"{row['runs_with']} / {row['runs_without']}",
            interval(row, signed=True),
            "–"
            if row["influence"] is None
            else interval(
                {key: row[f"influence{end}"] for key, end in _ENDS.items()},
                signed=True,
            ),
        ]
        for row in rows.head(_LISTED).iter_rows(named=True)
    ]
    return Table(
        ["item", "family", "runs with / without", "memorization", "influence on held-out text"],
        body,
        f"The {len(body)} most memorised of {rows.height} items; the others are in the CSV",
        frozenset({0, 1}),
    )


_ENDS = {"estimate": "", "low": "_low", "high": "_high"}


def sentence(coins: Coins, rows: pl.DataFrame, unit: str) -> str:
    """Sentences of the sweep's report: mean effect of inclusion, number of items with an effect, bounds on epsilon."""
    average = interval(dict(zip(_ENDS, overall(coins), strict=True)), signed=True)
    shown = int((rows["p_holm"] <= 0.05).sum())
    bounds = epsilons(coins)
    private = bounds and (
        " Guessing from one run's scores which items it had read bounds its epsilon from below by "
        f"{min(bounds):.2f} to {max(bounds):.2f} (95 % each)."
    )
    return (
        f"In {len(coins.score)} runs with other coins, an item's inclusion changed its score by {average} {unit} "
        f"on average; the difference is above 0 for {shown} of {rows.height} items "
        f"(Holm over the items).{private or ''}"
    )
