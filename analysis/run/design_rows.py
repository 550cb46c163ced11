"""Rows for the figures of a run's design: covariate balance, A/A tests of the controls, perplexities under the twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import stats

from palimpsest.data.errors import UserError

if TYPE_CHECKING:
    from palimpsest.analysis.run.files import RunFiles

SPLITS = 100
"""Number of random halvings of the controls in the A/A test."""


def balance(run: RunFiles) -> pl.DataFrame:
    """Standardised difference of each covariate from dose 0, by dose: ``covariate``, ``dose``, ``difference``, ``n``.

    The covariates are length in tokens, length in bytes and, if the run has a twin, the log-likelihood under the twin
    at the last checkpoint. The difference is ``(mean at the dose - mean at dose 0) / standard deviation``: means are
    compared within families and weighted by the dose's items, the standard deviation is that within families and doses.
    ``low`` and ``high`` are normal 95 % limits.
    """
    items = run.plan.items.select(
        "item_id", "family", "dose", length_in_tokens="length", length_in_bytes="bytes"
    )
    rows = run.metrics("loglik_per_byte", steps=[run.last_step]).filter(pl.col("run") == "twin")
    if rows.height:
        twin = rows.group_by("item_id").agg(loglik_of_twin=pl.col("value").mean())
        items = items.join(twin, on="item_id", how="left")
    long = items.unpivot(index=["item_id", "family", "dose"], variable_name="covariate").filter(
        pl.col("value").is_not_null()
    )
    here = ["covariate", "family"]
    never = long.filter(pl.col("dose") == 0).group_by(here).agg(control=pl.col("value").mean(), m=pl.len())
    spread = long.with_columns(off=pl.col("value") - pl.col("value").mean().over(*here, "dose"))
    deviation = spread.group_by("covariate").agg(deviation=(pl.col("off") ** 2).mean().sqrt())
    cells = (
        long.filter(pl.col("dose") > 0).group_by(*here, "dose").agg(mean=pl.col("value").mean(), n=pl.len())
    )
    differences = (
        cells.join(never, on=here)
        .join(deviation, on="covariate")
        .filter(pl.col("deviation") > 0)
        .group_by("covariate", "dose")
        .agg(
            difference=((pl.col("mean") - pl.col("control")) / pl.col("deviation") * pl.col("n")).sum()
            / pl.col("n").sum(),
            n=pl.col("n").sum(),
            m=pl.col("m").sum(),
        )
    )
    half = stats.norm.ppf(0.975) * (1 / pl.col("n") + 1 / pl.col("m")).sqrt()
    return (
        differences.with_columns(low=pl.col("difference") - half, high=pl.col("difference") + half)
        .with_columns(pl.col("covariate").str.replace_all("_", " "))
        .sort("covariate", "dose")
        .drop("m")
    )


def halves(run: RunFiles) -> pl.DataFrame:
    """A/A test: p-values ``p`` of one random half of the never-inserted items against the other, at the last
    checkpoint.

    Each is computed by the report's permutation test (two-sided) of ``loglik_per_byte``: of the difference from the
    twin or, without a twin, of the perturbed run's values.

    Raises:
        UserError: if there are fewer than four clusters of controls.
    """
    from palimpsest.analysis.statistics import PAIRED, difference_to_twin, per_item, permutation_p

    rows = run.metrics("loglik_per_byte", steps=[run.last_step])
    both = difference_to_twin(rows)
    items = per_item(both if both.height else rows.filter(pl.col("run") == "perturbed"))
    controls = items.filter(pl.col("dose") == 0).sort("unit")
    clusters = controls.select("cluster", "family").unique().sort("family", "cluster")
    if clusters.height < 4:
        raise UserError(
            f"{run.name} has {clusters.height} clusters of never-inserted items; 4 or more are needed to halve them"
        )
    value, cell = controls["value"].to_numpy(), controls["family"].rank("dense").to_numpy().astype(np.int64)
    p_values = []
    rng = np.random.default_rng(0)
    for _ in range(SPLITS):
        key = pl.Series(rng.random(clusters.height))
        drawn = clusters.with_columns(key=key).sort("family", "key")
        half = drawn.with_columns(first=pl.int_range(pl.len()) % 2 == 0).select("cluster", "first")
        first = controls.join(half, on="cluster", maintain_order="left")["first"].to_numpy()
        p = permutation_p(
            value,
            cell,
            first,
            controls["cluster"].to_numpy(),
            permutations=199,
            seed=int(rng.integers(2**63)),
            alternative="two-sided",
        )
        p_values.append(p)
    return pl.DataFrame({"run": [PAIRED if both.height else "perturbed"] * len(p_values), "p": p_values})


def perplexities(run: RunFiles) -> pl.DataFrame:
    """``perplexity`` of every item under the twin at the last checkpoint; ``group`` is the item's dose.

    Raises:
        UserError: if there is no twin with scores.
    """
    rows = run.metrics("loglik_per_token", steps=[run.last_step]).filter(
        (pl.col("run") == "twin") & pl.col("value").is_not_null()
    )
    if rows.is_empty():
        raise UserError(
            f"{run.name} has no scores of a twin, which is the reference model of this figure; train and score the twin"
        )
    return rows.sort("dose", "item_id").select(
        "item_id", group=pl.format("dose {}", "dose"), perplexity=(-pl.col("value")).exp()
    )
