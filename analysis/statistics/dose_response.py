"""Dose-response: means by dose, gains over the never-inserted controls, the minimum effective dose, the A/A
control.

The functions take metric rows (``analysis.metrics``) of any number of runs, steps and metrics, and return estimate rows
(:data:`~analysis.statistics.rows.ESTIMATE_SCHEMA`). Intervals are 95 %, over clusters of items
(:func:`~analysis.statistics.intervals.stratified`).
"""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl
from scipy import stats

from palimpsest.analysis.statistics.intervals import UNBOUNDED, Bounds, stratified
from palimpsest.analysis.statistics.resampling import Alternative, permutation_p
from palimpsest.analysis.statistics.rows import BY, PAIRED, by_group, comparable_cells, estimates, per_item

KEYS = [*BY, "group", "dose"]


def mean_by_dose(rows: pl.DataFrame, *, bounds: Bounds = UNBOUNDED) -> pl.DataFrame:
    """Mean over the items of each dose (``statistic = mean``), for each family and for all families pooled.

    Args:
        rows: metric rows.
        bounds: of the metric's values (``Metric.bounds``); differences from the twin have twice the reach.
    """
    items = by_group(per_item(rows)).with_columns(arm=pl.lit(True))
    # A stratum with one cluster has no variance; a family of such strata is taken as one.
    here = [*KEYS, "family"]
    alone = pl.col("cluster").n_unique().over(here) - pl.col("stratum").n_unique().over(here) < 1
    items = items.with_columns(cell=pl.when(alone).then(pl.lit("**")).otherwise("stratum"))
    return _finish(_stratified(items, bounds).drop("n_control", "clusters_control"), "mean", bounds)


def gain_over_control(
    rows: pl.DataFrame,
    *,
    bounds: Bounds = UNBOUNDED,
    permutations: int = 0,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> pl.DataFrame:
    """Gain of each dose over dose 0 (``statistic = gain``): the effect of the insertions.

    ``sum_s w_s (mean_s,d - mean_s,0)`` over strata s, weighted by the treated items in each. Rows of
    :func:`~analysis.statistics.rows.difference_to_twin` give the paired version.

    Args:
        rows: metric rows.
        bounds: of the metric's values (``Metric.bounds``).
        permutations: if positive, the number of permutations behind ``p``; doses are permuted over clusters within
            strata.
        seed: of the permutations.
        alternative: of the test: ``greater`` (one-sided) or ``two-sided``.
    """
    items = by_group(per_item(rows).filter(pl.col("dose").is_not_null()))
    doses = items.filter(pl.col("dose") > 0)["dose"].unique().sort()
    compared = [
        items.filter(pl.col("dose").is_in([0, dose])).with_columns(
            arm=pl.col("dose") == dose, dose=pl.lit(dose, pl.Int32)
        )
        for dose in doses
    ]
    return _compare(compared, "gain", bounds, permutations, seed, alternative)


def crossed_gains(rows: pl.DataFrame, *, bounds: Bounds = UNBOUNDED) -> pl.DataFrame:
    """Gain of each dose over dose 0 in several training runs of the same items; the interval generalises over items and
    runs.

    Items and runs are crossed random effects: ``var = v_items + max(0, v_runs - v_rest)``, where v_items is the
    variance between items of the gain averaged over runs, v_runs the variance of the runs' gains divided by the number
    of runs, and v_rest the item-by-run variance, which both contain (method of moments for a two-way layout; Cameron,
    Gelbach & Miller 2011). Each part has its own t quantile (MOVER), so that few runs give a wide interval.

    Args:
        rows: metric rows of one run, step and metric, with the column ``replicate``, the name of the training run.
        bounds: of the metric's values (``Metric.bounds``).

    Returns:
        Columns dose, estimate, low, high, runs (their number); families are pooled.
    """
    identity = [name for name in rows.columns if name not in ("replicate", "value", "reason")]
    shared = rows.with_columns(mean=pl.col("value").mean().over(identity))
    pooled = _errors(rows.group_by(identity).agg(pl.col("value").mean()), bounds)
    parts = shared.partition_by("replicate", maintain_order=True)
    each = pl.concat([_errors(part.select(*identity, "value"), bounds) for part in parts])
    rest = pl.concat(
        [_errors(part.select(*identity, value=pl.col("value") - pl.col("mean")), UNBOUNDED) for part in parts]
    )
    runs = len(parts)
    if runs < 2:
        raise ValueError("an effect of runs needs two of them")
    v_runs = each.group_by("dose").agg(v_runs=pl.col("estimate").var() / runs)
    v_rest = rest.group_by("dose").agg(v_rest=(pl.col("error") ** 2).mean() / (runs - 1))
    variances = pooled.join(v_runs, on="dose").join(v_rest, on="dose").sort("dose")
    error, df = variances["error"].to_numpy(), variances["df"].to_numpy()
    between = np.maximum((variances["v_runs"] - variances["v_rest"]).to_numpy(), 0.0)
    half = np.sqrt((stats.t.ppf(0.975, df) * error) ** 2 + stats.t.ppf(0.975, runs - 1) ** 2 * between)
    return variances.select(
        "dose",
        "estimate",
        low=pl.col("estimate") - pl.Series(half),
        high=pl.col("estimate") + pl.Series(half),
        runs=pl.lit(runs, pl.UInt32),
    )


def _errors(rows: pl.DataFrame, bounds: Bounds) -> pl.DataFrame:
    """Columns dose, estimate, error (standard error) and df of the gains, families pooled."""
    items = by_group(per_item(rows).filter(pl.col("dose").is_not_null())).filter(pl.col("group") == "all")
    compared = [
        items.filter(pl.col("dose").is_in([0, dose])).with_columns(
            arm=pl.col("dose") == dose, dose=pl.lit(dose, pl.Int32)
        )
        for dose in items.filter(pl.col("dose") > 0)["dose"].unique().sort()
    ]
    usable = comparable_cells(pl.concat(compared), KEYS).filter(pl.col("cell").is_not_null())
    return _stratified(usable, bounds).select("dose", "estimate", "error", "df")


def split_controls(rows: pl.DataFrame, *, bounds: Bounds = UNBOUNDED, seed: int = 0) -> pl.DataFrame:
    """Negative control (``statistic = split``): the gain estimator applied to two random halves of dose 0.

    The interval should contain 0 in 95 of 100 experiments. Each cluster is in one half; in every stratum the halves'
    numbers of clusters differ by at most one. They are the same for every run, step and metric.
    """
    controls = per_item(rows).filter(pl.col("dose") == 0)
    units = controls.select("cluster", "family", "stratum").unique().sort("family", "stratum", "cluster")
    shuffled = units.with_columns(key=pl.Series(np.random.default_rng(seed).random(units.height)))
    # Alternating through the sorted strata, not within each, also balances strata of odd size against each
    # other.
    halves = shuffled.sort("family", "stratum", "key").with_columns(arm=pl.int_range(pl.len()) % 2 == 0)
    compared = by_group(controls.join(halves.select("cluster", "arm"), on="cluster"))
    return _compare([compared] if compared.height else [], "split", bounds, 0, 0, "greater")


def minimum_effective_dose(gains: pl.DataFrame, *, alpha: float = 0.05) -> int | None:
    """Minimum effective dose: the lowest dose that is significant together with all higher doses; None if not even the
    highest is.

    This is closed testing in a fixed sequence, from the highest dose down: it keeps the familywise error at ``alpha``
    without a correction of the permutation p-values.

    Args:
        gains: rows of :func:`gain_over_control` with p, of one run, step, metric and family.
        alpha: level.
    """
    if gains["dose"].is_duplicated().any():
        raise ValueError("gains of more than one run, step, metric or family")
    effective = None
    for dose, p in gains.sort("dose", descending=True).select("dose", "p").iter_rows():
        if p is None or p > alpha:
            break
        effective = int(dose)
    return effective


def _compare(
    frames: list[pl.DataFrame],
    statistic: str,
    bounds: Bounds,
    permutations: int,
    seed: int,
    alternative: Alternative,
) -> pl.DataFrame:
    if not frames:
        return estimates(pl.DataFrame())
    labelled = comparable_cells(pl.concat(frames), KEYS)
    usable = labelled.filter(pl.col("cell").is_not_null())
    left_out = (
        labelled.filter(pl.col("cell").is_null() & pl.col("arm"))
        .group_by(KEYS)
        .agg(left_out=pl.len().cast(pl.Int64))
    )
    gains = _stratified(usable, bounds)
    if permutations:
        gains = gains.join(_p_values(usable, permutations, seed, alternative), on=KEYS, how="left")
    return _finish(gains.join(left_out, on=KEYS, how="full", coalesce=True), statistic, bounds)


def _stratified(items: pl.DataFrame, bounds: Bounds) -> pl.DataFrame:
    """Estimates of a run's values and of the differences from the twin, whose bounds are twice as wide."""
    low, high = bounds
    paired = pl.col("run") == PAIRED
    return pl.concat(
        [
            stratified(items.filter(~paired), KEYS, bounds),
            stratified(items.filter(paired), KEYS, (low - high, high - low)),
        ]
    )


def _finish(rows: pl.DataFrame, statistic: str, bounds: Bounds) -> pl.DataFrame:
    left_out = pl.col("left_out") if "left_out" in rows.columns else pl.lit(None, pl.Int64)
    name = (
        "exact mid-P, within families, MOVER"
        if np.isfinite(bounds).all()
        else "stratified Welch t, skewness-corrected"
    )
    method = (
        pl.when(pl.col("estimate").is_null())
        .then(pl.lit("not computed because no control shares a family with these items"))
        .when(pl.col("low").is_null())
        .then(pl.lit("no interval because an arm of a family has one item or cluster"))
        .when(left_out.is_not_null())
        .then(pl.format(name + "; {} items of families without controls left out", left_out))
        .otherwise(pl.lit(name))
    )
    return estimates(
        rows.with_columns(statistic=pl.lit(statistic), method=method).rename({"group": "family"})
    )


def _p_values(usable: pl.DataFrame, permutations: int, seed: int, alternative: Alternative) -> pl.DataFrame:
    coded = usable.with_columns(code=pl.struct("family", "cell").rank("dense").cast(pl.Int64))
    groups = coded.sort([*KEYS, "code", "unit"]).partition_by(KEYS, as_dict=True, maintain_order=True)
    rows = [
        (
            *keys,
            permutation_p(
                group["value"].to_numpy(),
                group["code"].to_numpy(),
                group["arm"].to_numpy(),
                group["cluster"].to_numpy(),
                permutations=permutations,
                # From the metric, family and dose but not the run: perturbed and twin see the same draws.
                seed=zlib.crc32(repr((seed, *keys[1:])).encode()),
                alternative=alternative,
            ),
        )
        for keys, group in groups.items()
    ]
    schema = {name: usable.schema[name] for name in KEYS} | {"p": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
