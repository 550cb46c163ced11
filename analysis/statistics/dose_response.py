"""Dose-response: means by dose, gains over the never-inserted controls, the minimum effective dose, the A/A
control.

All functions take metric rows (``analysis.metrics``; several runs, steps and metrics at once) and return
estimate rows (:data:`~analysis.statistics.rows.ESTIMATE_SCHEMA`). Items are the unit; intervals are 95 %.

The default interval is the stratified Welch t: with 5 to 10 items a cell the percentile bootstrap of the same
estimate covers less than it says (``tests/analysis/test_statistics.py`` measures both).
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
import polars as pl

from palimpsest.analysis.statistics.intervals import clopper_pearson, rate_difference, stratified_t
from palimpsest.analysis.statistics.resampling import bootstrap, permutation_p
from palimpsest.analysis.statistics.rows import BY, by_group, comparable_cells, estimates, per_item

Method = Literal["t", "bootstrap", "rate"]
"""``t``: stratified Welch t. ``bootstrap``: stratified percentile bootstrap. ``rate``: exact binomial, values
0/1."""

KEYS = [*BY, "group", "dose"]
_NAMES = {
    "t": "stratified Welch t",
    "bootstrap": "stratified percentile bootstrap",
}


def mean_by_dose(
    rows: pl.DataFrame, *, method: Method = "t", replicates: int = 2000, seed: int = 0
) -> pl.DataFrame:
    """Mean over the items of each dose (``statistic = mean``), for each family and for all.

    Args:
        rows: metric rows.
        method: interval; ``rate`` gives Clopper-Pearson.
        replicates: bootstrap samples.
        seed: of the bootstrap.
    """
    items = by_group(per_item(rows)).with_columns(arm=pl.lit(True))
    if method == "rate":
        return _rates(items)
    # A stratum with one item has no variance; a family of such strata is taken as one.
    alone = pl.len().over([*KEYS, "family"]) - pl.col("stratum").n_unique().over([*KEYS, "family"]) < 1
    items = items.with_columns(cell=pl.when(alone).then(pl.lit("**")).otherwise("stratum"))
    found = stratified_t(items, KEYS).drop("n_control")
    if method == "bootstrap":
        found = _with_bootstrap(found, items, replicates, seed)
    return _finish(found, "mean", _NAMES[method])


def gain_over_control(
    rows: pl.DataFrame,
    *,
    method: Method = "t",
    permutations: int = 0,
    replicates: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """Gain of each dose over dose 0 (``statistic = gain``): what the insertions added.

    ``sum_s w_s (mean_s,d - mean_s,0)`` over strata s, weighted by the treated items in each. Give it the rows
    of :func:`~analysis.statistics.rows.difference_to_twin` for the paired version.

    Args:
        rows: metric rows.
        method: interval; ``rate`` compares the two plain rates (MOVER on Clopper-Pearson limits).
        permutations: if positive, ``p`` is the one-sided permutation p, doses permuted within strata.
        replicates: bootstrap samples.
        seed: of bootstrap and permutations.
    """
    items = by_group(per_item(rows).filter(pl.col("dose").is_not_null()))
    doses = items.filter(pl.col("dose") > 0)["dose"].unique().sort()
    compared = [
        items.filter(pl.col("dose").is_in([0, dose])).with_columns(
            arm=pl.col("dose") == dose, dose=pl.lit(dose, pl.Int32)
        )
        for dose in doses
    ]
    return _compare(compared, "gain", method, permutations, replicates, seed)


def split_controls(rows: pl.DataFrame, *, method: Method = "t", seed: int = 0) -> pl.DataFrame:
    """Negative control (``statistic = split``): dose 0 against dose 0, in two random halves, by the same
    estimator.

    Its interval contains 0 in 95 of 100 experiments; one that does not is a reason to look closer. Halves
    differ by at most one item in every stratum and are the same for every run, step and metric.
    """
    controls = per_item(rows).filter(pl.col("dose") == 0)
    units = controls.select("unit", "family", "stratum").unique().sort("family", "stratum", "unit")
    shuffled = units.with_columns(key=pl.Series(np.random.default_rng(seed).random(units.height)))
    # Alternating through the sorted strata, not within each, also balances strata of odd size against each
    # other.
    halves = shuffled.sort("family", "stratum", "key").with_columns(arm=pl.int_range(pl.len()) % 2 == 0)
    compared = by_group(controls.join(halves.select("unit", "arm"), on="unit"))
    return _compare([compared] if compared.height else [], "split", method, 0, 0, seed)


def minimum_effective_dose(gains: pl.DataFrame, *, alpha: float = 0.05) -> int | None:
    """Lowest dose shown to be effective, or None if not even the highest is.

    Closed testing in a fixed sequence, from the highest dose down on the permutation p: a dose counts only if
    it and every higher one is significant at ``alpha``, which holds the familywise error at ``alpha`` without
    a correction.

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
    frames: list[pl.DataFrame], statistic: str, method: Method, permutations: int, replicates: int, seed: int
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
    if method == "rate":
        found, name = _rate_gains(usable), "difference of rates, MOVER on Clopper-Pearson limits"
    else:
        found, name = stratified_t(usable, KEYS), _NAMES[method]
        if method == "bootstrap":
            found = _with_bootstrap(found, usable, replicates, seed)
    if permutations:
        found = found.join(_p_values(usable, permutations, seed), on=KEYS, how="left")
    return _finish(found.join(left_out, on=KEYS, how="full", coalesce=True), statistic, name)


def _finish(found: pl.DataFrame, statistic: str, name: str) -> pl.DataFrame:
    left_out = pl.col("left_out") if "left_out" in found.columns else pl.lit(None, pl.Int64)
    method = (
        pl.when(pl.col("estimate").is_null())
        .then(pl.lit("not computed because no control shares a family with these items"))
        .when(pl.col("low").is_null())
        .then(pl.lit("no interval because an arm of a family has one item"))
        .when(left_out.is_not_null())
        .then(pl.format(name + "; {} items of families without controls left out", left_out))
        .otherwise(pl.lit(name))
    )
    return estimates(
        found.with_columns(statistic=pl.lit(statistic), method=method).rename({"group": "family"})
    )


def _rates(items: pl.DataFrame) -> pl.DataFrame:
    found = items.group_by(KEYS).agg(hits=pl.col("value").sum(), n=pl.len().cast(pl.Int64))
    low, high = clopper_pearson(found["hits"].to_numpy(), found["n"].to_numpy())
    found = found.with_columns(
        estimate=pl.col("hits") / pl.col("n"), low=pl.Series(low), high=pl.Series(high)
    )
    return _finish(found, "mean", "Clopper-Pearson")


def _rate_gains(usable: pl.DataFrame) -> pl.DataFrame:
    arm, value = pl.col("arm"), pl.col("value")
    found = usable.group_by(KEYS).agg(
        x1=value.filter(arm).sum(),
        n=arm.sum().cast(pl.Int64),
        x0=value.filter(~arm).sum(),
        n_control=(~arm).sum().cast(pl.Int64),
    )
    x1, n1, x0, n0 = (found[name].to_numpy() for name in ("x1", "n", "x0", "n_control"))
    low, high = rate_difference(x1, n1, x0, n0)
    return found.with_columns(estimate=pl.Series(x1 / n1 - x0 / n0), low=pl.Series(low), high=pl.Series(high))


def _groups(usable: pl.DataFrame) -> list[tuple[tuple[object, ...], pl.DataFrame]]:
    return list(
        usable.sort([*KEYS, "family", "cell", "unit"])
        .partition_by(KEYS, as_dict=True, maintain_order=True)
        .items()
    )


def _arrays(group: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cell = (group["family"] + "\0" + group["cell"]).rank("dense").to_numpy().astype(np.int64)
    return group["value"].to_numpy(), cell, group["arm"].to_numpy()


def _seed(seed: int, keys: tuple[object, ...]) -> int:
    # From the metric, family and dose but not the run: perturbed and twin see the same draws.
    return zlib.crc32(repr((seed, *keys[1:])).encode())


def _p_values(usable: pl.DataFrame, permutations: int, seed: int) -> pl.DataFrame:
    found = [
        (*keys, permutation_p(*_arrays(group), permutations=permutations, seed=_seed(seed, keys)))
        for keys, group in _groups(usable)
    ]
    schema = {name: usable.schema[name] for name in KEYS} | {"p": pl.Float64}
    return pl.DataFrame(found, schema=schema, orient="row")


def _with_bootstrap(found: pl.DataFrame, usable: pl.DataFrame, replicates: int, seed: int) -> pl.DataFrame:
    limits = [
        (
            *keys,
            *np.quantile(
                bootstrap(*_arrays(group), replicates=replicates, seed=_seed(seed, keys)), [0.025, 0.975]
            ),
        )
        for keys, group in _groups(usable)
    ]
    schema = {name: usable.schema[name] for name in KEYS} | {"low": pl.Float64, "high": pl.Float64}
    return found.drop("low", "high").join(
        pl.DataFrame(limits, schema=schema, orient="row"), on=KEYS, how="left", nulls_equal=True
    )
