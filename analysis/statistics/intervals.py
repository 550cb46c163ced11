"""Intervals in closed form: stratified Welch t, Clopper-Pearson, and the difference of two rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def clopper_pearson(
    successes: ArrayLike, trials: ArrayLike, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact binomial interval (Clopper & Pearson 1934): beta quantiles; 0 and 1 at the ends.

    Args:
        successes: counts, any shape.
        trials: numbers of trials, each at least 1.
        level: confidence.
    """
    x, n = np.asarray(successes, float), np.asarray(trials, float)
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(x > 0, stats.beta.ppf(tail, x, n - x + 1), 0.0)
        high = np.where(x < n, stats.beta.ppf(1 - tail, x + 1, n - x), 1.0)
    return low, high


def rate_difference(
    x1: ArrayLike, n1: ArrayLike, x0: ArrayLike, n0: ArrayLike, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of ``x1/n1 - x0/n0`` from the two Clopper-Pearson intervals (MOVER; Zou & Donner 2008).

    Unlike a t interval it does not shrink to a point when no item, or every item, is a hit.
    """
    p1, p0 = np.asarray(x1, float) / np.asarray(n1, float), np.asarray(x0, float) / np.asarray(n0, float)
    low1, high1 = clopper_pearson(x1, n1, level)
    low0, high0 = clopper_pearson(x0, n0, level)
    low = p1 - p0 - np.hypot(p1 - low1, high0 - p0)
    high = p1 - p0 + np.hypot(high1 - p1, p0 - low0)
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


def stratified_t(rows: pl.DataFrame, by: Sequence[str], level: float = 0.95) -> pl.DataFrame:
    """Stratified mean, or difference of means, with a Welch t interval.

    ``estimate = sum_s w_s (mean_s,treated - mean_s,control)``, ``w_s`` = share of the treated items in cell s
    (only the first term if no row is a control). Its variance is ``sum_(f,a) s2_(f,a) sum_(s in f) w_s^2 /
    n_(s,a)``, where ``s2_(f,a)`` is the within-cell variance of arm a pooled over the cells of family f:
    cells of two or three items have no usable variance of their own, while doses and families do differ in
    variance. Degrees of freedom by Satterthwaite (1946).

    Args:
        rows: value, family, cell, arm (true: treated) and the columns ``by``.
        by: columns that tell one estimate from another.
        level: confidence.

    Returns:
        The columns ``by``, estimate, low, high (null where an arm of a family has one item), n, n_control,
        df.
    """
    n, w, arm = pl.col("n"), pl.col("w"), pl.col("arm")
    value = pl.col("value")
    cells = rows.group_by([*by, "family", "cell", "arm"]).agg(
        n=pl.len().cast(pl.Int64), mean=value.mean(), squares=((value - value.mean()) ** 2).sum()
    )
    treated = pl.when(arm).then(n).otherwise(0).sum()
    cells = cells.with_columns(w=treated.over([*by, "family", "cell"]) / treated.over(list(by)))
    parts = (
        cells.group_by([*by, "family", "arm"])
        .agg(
            part=(w * pl.col("mean")).sum(),
            v=pl.col("squares").sum() / (n - 1).sum() * (w**2 / n).sum(),
            df=(n - 1).sum(),
            n=n.sum(),
        )
        .sort([*by, "family", "arm"])
    )
    total = parts.group_by(list(by), maintain_order=True).agg(
        estimate=pl.when(arm).then(pl.col("part")).otherwise(-pl.col("part")).sum(),
        v=pl.col("v").sum(),
        v2=(pl.col("v") ** 2 / pl.col("df")).sum(),
        enough=(pl.col("df") > 0).all(),
        n=n.filter(arm).sum(),
        n_control=n.filter(~arm).sum(),
    )
    v, v2 = total["v"].to_numpy(), total["v2"].to_numpy()
    # Zero variance is a point, not an error: at step 0 a run and its twin differ by exactly nothing.
    df = np.divide(v**2, v2, out=np.full(len(v), np.inf), where=v2 > 0)
    half = np.where(total["enough"].to_numpy(), stats.t.ppf((1 + level) / 2, df) * np.sqrt(v), np.nan)
    return total.with_columns(
        low=(pl.col("estimate") - pl.Series(half)).fill_nan(None),
        high=(pl.col("estimate") + pl.Series(half)).fill_nan(None),
        df=pl.Series(df),
    ).drop("v", "v2", "enough")
