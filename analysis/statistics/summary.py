"""Every metric at every dose from one stratified bootstrap: means, gains over the controls, recognition.

Shape suffixes: N items, M metrics, B replicates, D doses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.statistics.counts import (
    Counts,
    Sums,
    bootstrap_auc,
    bootstrap_sums,
    draw_counts,
    percentile_limits,
)
from palimpsest.analysis.statistics.multiplicity import simultaneous_band
from palimpsest.analysis.statistics.rows import estimates, per_item

Floats = NDArray[np.float64]


def bootstrap_all(
    rows: pl.DataFrame, *, replicates: int = 1000, seed: int = 0, clusters: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Estimate rows of all metrics from one stratified bootstrap of the items.

    ``mean`` of each dose; ``gain`` = ``sum_s w_s (mean_s,d - mean_s,0)``, s a family and stratum, w_s its share of
    the treated, with simultaneous limits over doses in ``gain_band``; ``auc`` against dose 0 within families,
    weighted by the treated. Items are resampled within family x stratum x dose, once for all metrics, so that
    estimates of one run are comparable replicate by replicate.

    Args:
        rows: metric rows of one run and step or several; those without a value or a dose are no items here.
        replicates: B.
        seed: the same for all runs and steps: they share the draws.
        clusters: item_id, cluster; whole clusters are resampled where given (each has one family and dose, and
            strata are then not held fixed).

    Returns:
        Rows of ESTIMATE_SCHEMA with family ``all``; ``method`` counts the items that no control matches.
    """
    items = per_item(rows).filter(pl.col("dose").is_not_null())
    frames = [estimates(pl.DataFrame())]
    for (run, step), part in items.partition_by(["run", "step"], as_dict=True, maintain_order=True).items():
        frames += _of_run(part, str(run), int(step), replicates, seed, clusters)
    return pl.concat(frames)


def _of_run(
    items: pl.DataFrame, run: str, step: int, replicates: int, seed: int, clusters: pl.DataFrame | None
) -> list[pl.DataFrame]:
    identity = ["unit", "family", "stratum", "dose"]
    wide = items.pivot("metric", index=identity, values="value").sort(identity)
    metrics = [name for name in wide.columns if name not in identity]
    values = wide.select(pl.col(metrics).fill_null(float("nan"))).to_numpy()
    dose = wide["dose"].to_numpy()
    family = wide["family"].to_numpy()
    stratum = wide.select(pl.col("family") + "\0" + pl.col("stratum")).to_series().to_numpy()
    counts = _draw(wide, clusters, replicates, seed)
    base = {"run": run, "step": step, "family": "all"}
    name = "stratified bootstrap, percentile" if clusters is None else "cluster bootstrap, percentile"
    cells, cell = np.unique(stratum.astype(str) + np.char.mod("\0%d", dose), return_inverse=True)
    sums = bootstrap_sums(counts, values, cell)
    first = np.array([np.flatnonzero(cell == c)[0] for c in range(cells.size)])
    table = _Cells(sums, stratum[first].astype(str), dose[first].astype(np.int64))
    # The sample itself, as the replicate in which every item occurs once: it is the estimate.
    once = np.ones((len(values), 1), np.uint8)
    sample = table._replace(sums=bootstrap_sums(once, values, cell))
    out: list[dict[str, object]] = []
    for m, metric in enumerate(metrics):
        rows = _means(table, sample, m, name) + _gains(table, sample, m, name)
        rows += _areas(counts, once, values[:, m], family, dose, name)
        out += [base | {"metric": metric} | row for row in rows]
    return [estimates(pl.DataFrame(out, infer_schema_length=None))] if out else []


class _Cells(NamedTuple):
    """Sums of every family x stratum x dose, and which it is."""

    sums: Sums
    stratum: NDArray[np.str_]
    dose: NDArray[np.int64]


def _means(cells: _Cells, sample: _Cells, m: int, name: str) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    for dose in np.unique(cells.dose):
        here = cells.dose == dose
        n = float(sample.sums.weight[here, 0, m].sum())
        if not n:
            continue
        draws = cells.sums.total[here, :, m].sum(0) / cells.sums.weight[here, :, m].sum(0)
        low, high = percentile_limits(draws)
        out.append(
            {
                "statistic": "mean",
                "dose": int(dose),
                "estimate": float(sample.sums.total[here, 0, m].sum() / n),
            }
            | {"low": float(low), "high": float(high), "n": int(n), "method": name}
        )
    return out


def _draw(wide: pl.DataFrame, clusters: pl.DataFrame | None, replicates: int, seed: int) -> Counts:
    if clusters is None:
        cells = wide.select(pl.struct("family", "stratum", "dose").rank("dense")).to_series().to_numpy()
        return draw_counts(cells, replicates, seed)
    joined = wide.join(
        clusters.select(unit="item_id", cluster=pl.col("cluster").cast(pl.String)), on="unit", how="left"
    ).with_columns(pl.col("cluster").fill_null(pl.col("unit")))
    first = joined.unique("cluster", maintain_order=True).select("cluster", "family", "dose")
    cells = first.select(pl.struct("family", "dose").rank("dense")).to_series().to_numpy()
    drawn = draw_counts(cells, replicates, seed)
    position = first.select("cluster", at=pl.int_range(pl.len()))
    at = joined.join(position, on="cluster", how="left", maintain_order="left")["at"].to_numpy()
    counts: Counts = drawn[at]
    return counts


def _gains(cells: _Cells, sample: _Cells, m: int, name: str) -> list[dict[str, object]]:
    with np.errstate(invalid="ignore", divide="ignore"):
        replicated = cells.sums.total[:, :, m] / cells.sums.weight[:, :, m]
        own = sample.sums.total[:, 0, m] / sample.sums.weight[:, 0, m]
    sizes = sample.sums.weight[:, 0, m]
    controls = {str(cells.stratum[k]): k for k in np.flatnonzero((cells.dose == 0) & (sizes > 0))}
    found: list[dict[str, object]] = []
    estimates_D, replicates_D = [], []
    for dose in np.unique(cells.dose[cells.dose > 0]):
        treated = np.flatnonzero((cells.dose == dose) & (sizes > 0))
        matched = np.array([str(cells.stratum[k]) in controls for k in treated], bool)
        alone, treated = int(sizes[treated[~matched]].sum()), treated[matched]
        if not treated.size:
            continue
        control = np.array([controls[str(cells.stratum[k])] for k in treated])
        weight = sizes[treated] / sizes[treated].sum()
        differences = replicated[treated] - replicated[control]
        # A replicate without any item of a cell says nothing of it: the others share its weight.
        usable = np.isfinite(differences)
        draws = (weight[:, None] * np.where(usable, differences, 0)).sum(0) / (weight[:, None] * usable).sum(
            0
        )
        estimate = float(weight @ (own[treated] - own[control]))
        low, high = percentile_limits(draws)
        estimates_D.append(estimate)
        replicates_D.append(draws)
        found.append(
            {
                "statistic": "gain",
                "dose": int(dose),
                "estimate": estimate,
                "low": float(low),
                "high": float(high),
            }
            | {"n": int(sizes[treated].sum()), "n_control": int(sizes[control].sum())}
            | {"method": name + (f"; {alone} items of strata without controls left out" if alone else "")}
        )
    if not found:
        return []
    band = simultaneous_band(np.array(estimates_D), np.stack(replicates_D, axis=1))
    bands = [
        row | {"statistic": "gain_band", "low": float(low), "high": float(high), "method": "max-t over doses"}
        for row, low, high in zip(found, band.low, band.high, strict=True)
    ]
    return found + bands


def _areas(
    counts_NB: Counts,
    once_N1: Counts,
    value_N: Floats,
    family_N: NDArray[np.object_],
    dose_N: NDArray[np.int32],
    name: str,
) -> list[dict[str, object]]:
    known = np.isfinite(value_N)
    total: dict[int, tuple[Floats, float, int, int]] = {}
    for family in np.unique(family_N):
        here = np.flatnonzero(known & (family_N == family))
        own, score = dose_N[here], value_N[here]
        controls = int(np.sum(own == 0))
        if not controls or not (own > 0).any():
            continue
        replicated, sample = (bootstrap_auc(w[here], score, own, 0) for w in (counts_NB, once_N1))
        for k, dose in enumerate(np.unique(own[own > 0])):
            members = int(np.sum(own == dose))
            area = np.append(replicated[k], sample[k])
            before, weight, n, m = total.get(int(dose), (np.zeros(area.size), 0.0, 0, 0))
            total[int(dose)] = (before + members * area, weight + members, n + members, m + controls)
    out: list[dict[str, object]] = []
    for dose, (summed, weight, members, controls) in sorted(total.items()):
        area = summed / weight
        low, high = percentile_limits(area[:-1])
        out.append(
            {
                "statistic": "auc",
                "dose": dose,
                "estimate": float(area[-1]),
                "low": float(low),
                "high": float(high),
            }
            | {"n": members, "n_control": controls, "method": name + ", within families"}
        )
    return out
