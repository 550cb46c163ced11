"""Intervals in closed form, over clusters: stratified means and differences of means, and shares.

Two estimators serve every table. Metrics without bounds get a stratified Welch t interval with limits corrected for
skewness. Metrics with bounds (rates, accuracies, shares of tokens) get exact mid-P limits at the sample's effective
size, combined by MOVER; these never have width 0. ``results/coverage_*.md`` has the measured coverage of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]
Bounds = tuple[float, float]
"""Lowest and highest possible value of a metric; infinite if it has none."""
UNBOUNDED: Bounds = (-math.inf, math.inf)

_SKEWNESS = 7.0
"""Factor by which the sample's skewness is multiplied, because it is far too small in samples of 5 to 20 values (it
cannot exceed ``(n-2)/sqrt(n-1)``): ten lognormal values with sd 1 show 0.28 of their distribution's skewness on
average. With the factor 7, which becomes 4.7 at nine degrees of freedom, their intervals have a coverage of 93 %;
intervals of ten normal values become a tenth wider."""
_MOST_SKEWED = 3.0
"""Largest skewness of a mean that is used; larger values are cut."""
_NORMAL = 1e6
"""Effective size above which a share's limits are normal limits."""


def clopper_pearson(successes: ArrayLike, trials: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Exact binomial interval (Clopper & Pearson 1934): by beta quantiles. Its coverage is at least ``level``, mostly
    more; that of :func:`share_limits` is ``level`` on average.

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


def mean_limits(values_N: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of N independent values, N above 1.

    Args:
        values_N: (N,).
        level: confidence.
    """
    values = np.asarray(values_N, float)
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * error)
    return float(values.mean()) - half, float(values.mean()) + half


def share_limits(share: ArrayLike, size: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Mid-P interval of a share (Lancaster 1961) at an effective sample size (Korn & Graubard 1998).

    The lower limit solves ``(P[X > x] + P[X >= x]) / 2 = (1 - level) / 2`` for ``X ~ Bin(size, p)``, with the binomial
    tails as incomplete beta functions, so that ``x = share * size`` need not be whole; the upper one likewise.

    Args:
        share: observed, 0 to 1; any shape.
        size: effective number of independent observations, above 0; of the same shape.
        level: confidence.
    """
    p, n = np.broadcast_arrays(np.asarray(share, np.float64), np.asarray(size, np.float64))
    high = 1 - _lower(1 - p, n, level)
    return _lower(p, n, level), high


def _lower(share: Floats, size: Floats, level: float) -> Floats:
    """Lower limit of a share, by bisection on the logit scale."""
    tail, x = (1 - level) / 2, share * size
    some = (x > 1e-9) & (size < _NORMAL)
    a, rest = x[some], np.maximum((size - x)[some], 0.0)
    low, high = np.full(a.shape, -60.0), special.logit(np.minimum(share[some], 1 - 1e-12))
    for _ in range(44):
        middle = (low + high) / 2
        p = special.expit(middle)
        more = np.where(rest > 1e-9, special.betainc(a + 1, np.maximum(rest, 1e-300), p), 0.0)
        under = (special.betainc(a, rest + 1, p) + more) / 2 < tail
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    limit = np.zeros(share.shape)
    limit[some] = special.expit((low + high) / 2)
    many = size >= _NORMAL
    z = float(stats.norm.ppf(1 - tail))
    limit[many] = (share - z * np.sqrt(share * (1 - share) / np.where(many, size, 1.0)))[many]
    return limit


def none_of(size: ArrayLike, level: float = 0.95) -> Floats:
    """Upper mid-P limit of a share if none of ``size`` observations is a success: ``1 - (1 - level)^(1/size)``."""
    return np.asarray(1 - (1 - level) ** (1 / np.asarray(size, np.float64)))


def skewed_limits(
    estimate: Floats, variance: Floats, third: Floats, df: Floats, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Limits of a mean: on each side the outer of Student's t limit and the limit corrected for skewness (Johnson
    1978).

    With t the quantile of Student's distribution and g the skewness of the mean, the lower quantile of the studentised
    mean is ``-(t + g (2 t^2 + 1) / 6)`` to first order (Cornish & Fisher 1938; Hall 1992, 3.5). Values skewed to the
    right (g > 0) therefore move the upper limit outwards, those skewed to the left the lower one. g is ``third /
    variance^1.5`` times ``_SKEWNESS (1 - 3 / df)``: at few degrees of freedom the sample's skewness says little.

    Args:
        estimate: mean or difference of means.
        variance: variance of the estimate.
        third: third central moment of the estimate, not of the single values.
        df: degrees of freedom of the variance.
        level: confidence.
    """
    error = np.sqrt(variance)
    t = stats.t.ppf((1 + level) / 2, df)
    known = _SKEWNESS * np.clip(1 - 3 / np.maximum(df, 1), 0, 1)
    skewness = np.divide(third, error**3, out=np.zeros_like(error), where=error > 0)
    further = np.clip(known * skewness, -_MOST_SKEWED, _MOST_SKEWED) * (2 * t**2 + 1) / 6
    return (
        estimate - (t + np.maximum(-further, 0)) * error,
        estimate + (t + np.maximum(further, 0)) * error,
    )


def stratified(
    rows: pl.DataFrame, by: Sequence[str], bounds: Bounds = UNBOUNDED, level: float = 0.95
) -> pl.DataFrame:
    """Stratified mean, or difference of means, with an interval over clusters.

    ``estimate = sum_s w_s (mean_s,treated - mean_s,control)`` over cells s, ``w_s`` = share of the treated items in
    cell s (only the first term if no row is a control). A cell's mean has the variance ``C d2 / N^2``: C clusters of N
    items, and ``d2`` the variance, between clusters, of the sum of a cluster's deviations from the cell's mean. ``d2``
    is pooled over the cells of a family and arm, because a cell of two or three clusters is too small to estimate it;
    it is not pooled over doses or families, because their variances differ. Degrees of freedom: ``(sum v)^2 / sum(v^2 /
    (df + 2)) - 2`` over the parts, one for each family and arm (Welch 1947): Satterthwaite's formula without its bias
    at few degrees of freedom. With clusters of one item this is Welch's t.

    Args:
        rows: value, family, cell, cluster (within one cell and arm), arm (true: treated) and the columns ``by``.
        by: columns that tell one estimate from another.
        bounds: lowest and highest possible value; if both are finite, each family and arm gets the limits of a share
            (:func:`share_limits`), and MOVER (Zou & Donner 2008) combines them.
        level: confidence.

    Returns:
        The columns ``by``, estimate, low, high (null where an arm of a family has one cluster), n, n_control, clusters,
        clusters_control; error, the standard error, and df, its degrees of freedom.
    """
    parts = _parts(rows, by, bounds)
    arm = pl.col("arm")
    sign = pl.when(arm).then(1).otherwise(-1)
    total = parts.group_by(list(by), maintain_order=True).agg(
        estimate=(sign * pl.col("part")).sum(),
        v=pl.col("v").sum(),
        v2=(pl.col("v") ** 2 / (pl.col("df") + 2)).sum(),
        third=(sign * pl.col("third")).sum(),
        enough=(pl.col("df") > 0).all(),
        n=pl.col("n").filter(arm).sum(),
        n_control=pl.col("n").filter(~arm).sum(),
        clusters=pl.col("clusters").filter(arm).sum(),
        clusters_control=pl.col("clusters").filter(~arm).sum(),
    )
    v, v2 = total["v"].fill_nan(0).to_numpy(), total["v2"].fill_nan(0).to_numpy()
    # Squares of estimated variances are too large by (df + 2) / df, and so is the square of their sum.
    df = np.maximum(np.divide(v**2, v2, out=np.full(len(v), np.inf), where=v2 > 0) - 2, 1.0)
    if np.isfinite(bounds).all():
        total = _bounded(total.with_columns(df=pl.Series(df)), parts, by, bounds, level)
    else:
        # Zero variance is a point: at step 0 a run and its twin differ by exactly nothing.
        low, high = skewed_limits(total["estimate"].to_numpy(), v, total["third"].to_numpy(), df, level)
        total = total.with_columns(low=pl.Series(low), high=pl.Series(high)).with_columns(
            pl.when("enough").then(name).alias(name) for name in ("low", "high")
        )
    counts = ("n", "n_control", "clusters", "clusters_control")
    total = total.with_columns(error=pl.Series(np.sqrt(v)), df=pl.Series(df))
    return total.select(*by, "estimate", "low", "high", *counts, "error", "df")


def _parts(rows: pl.DataFrame, by: Sequence[str], bounds: Bounds) -> pl.DataFrame:
    """One row per family and arm: its part of the estimate, the variance and third moment of that part, and its counts.

    ``whole`` is true if every value equals one of the bounds.
    """
    keys = [*by, "family", "arm"]
    here = [*keys, "cell"]
    value, n = pl.col("value"), pl.col("n")
    # Sorted: the last digits of a sum depend on its order, and group_by keeps none.
    clusters = (
        rows.group_by([*here, "cluster"])
        .agg(
            total=value.sum(),
            n=pl.len().cast(pl.Int64),
            whole=value.cast(pl.Float64).is_in([float(end) for end in bounds]).all(),
        )
        .sort([*here, "cluster"])
    )
    deviation = pl.col("total") - n * (pl.col("total").sum().over(here) / n.sum().over(here))
    cells = (
        clusters.with_columns(deviation=deviation)
        .group_by(here)
        .agg(
            mean=pl.col("total").sum() / n.sum(),
            d2=(pl.col("deviation") ** 2).sum(),
            d3=(pl.col("deviation") ** 3).sum(),
            clusters=pl.len().cast(pl.Int64),
            n=n.sum(),
            whole=pl.col("whole").all(),
        )
        .sort(here)
    )
    treated = pl.when("arm").then(n).otherwise(0).sum()
    w, c = treated.over([*by, "family", "cell"]) / treated.over(list(by)), pl.col("clusters")
    cells = cells.with_columns(w=w)
    cubes = ((c - 1) * (c - 2) / c).sum()
    w = pl.col("w")
    return (
        cells.group_by(keys)
        .agg(
            part=(w * pl.col("mean")).sum(),
            weight=w.sum(),
            v=pl.col("d2").sum() / (c - 1).sum() * (w**2 * c / n**2).sum(),
            third=pl.when(cubes > 0)
            .then(pl.col("d3").sum() / cubes * (w**3 * c / n**3).sum())
            .otherwise(0.0),
            df=(c - 1).sum(),
            spread=(w**2 / n).sum(),
            clusters=c.sum(),
            n=n.sum(),
            whole=pl.col("whole").all(),
        )
        .sort(keys)
    )


def _bounded(
    total: pl.DataFrame, parts: pl.DataFrame, by: Sequence[str], bounds: Bounds, level: float
) -> pl.DataFrame:
    """The rows with ``low`` and ``high``, combined by MOVER from the limits of each family and arm."""
    least, most = bounds
    parts = parts.join(total.select(*by, total_df="df"), on=list(by), how="left", nulls_equal=True)
    weight, clusters = parts["weight"].to_numpy(), parts["clusters"].to_numpy().astype(np.float64)
    p = np.clip((parts["part"].to_numpy() / weight - least) / (most - least), 0.0, 1.0)
    v = parts["v"].fill_nan(0).fill_null(0).to_numpy() / (weight * (most - least)) ** 2
    # What can only be hit or miss, item by item, has the binomial variance, whatever the sample shows.
    whole = parts["whole"].to_numpy()
    plain = whole & (clusters == parts["n"].to_numpy())
    z, t = (
        float(stats.norm.ppf((1 + level) / 2)),
        stats.t.ppf((1 + level) / 2, parts["total_df"].to_numpy()),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(plain, weight**2 / parts["spread"].to_numpy(), p * (1 - p) / v * (z / t) ** 2)
    size = np.where(whole, np.minimum(size, parts["n"].to_numpy()), size)
    known = plain | (v > 1e-14)
    low, high = share_limits(p, np.where(known, np.maximum(size, 1.0), 1.0), level)
    # All agree: at most so many others are like something else.
    other = none_of(clusters, level)
    low, high = np.where(known, low, p - other * p), np.where(known, high, p + other * (1 - p))
    scale = weight * (most - least)
    down, up = ((scale * (p - low)) ** 2, (scale * (high - p)) ** 2)
    arm = parts["arm"].to_numpy()
    margins = (
        parts.select(by)
        .with_columns(
            down=pl.Series(np.where(arm, down, up)),
            up=pl.Series(np.where(arm, up, down)),
        )
        .group_by(list(by))
        .agg(pl.col("down").sum().sqrt(), pl.col("up").sum().sqrt())
    )
    reach = most - least
    between = pl.when(pl.col("n_control") > 0)
    return total.join(margins, on=list(by), how="left", nulls_equal=True).with_columns(
        low=pl.max_horizontal(
            pl.col("estimate") - pl.col("down"), between.then(pl.lit(-reach)).otherwise(pl.lit(least))
        ),
        high=pl.min_horizontal(
            pl.col("estimate") + pl.col("up"), between.then(pl.lit(reach)).otherwise(pl.lit(most))
        ),
    )
