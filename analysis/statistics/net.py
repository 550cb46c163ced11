"""Means of treated items net of their family's controls at the same checkpoints, with the errors of both.

The values of inserted items are compared with the mean of never-inserted items at the same checkpoints. That mean is
itself an estimate, and the same few controls are subtracted from every item; 95 % intervals that ignore this have a
coverage of 50 to 85 %. Shape suffixes: K outcomes, C clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


class Net(NamedTuple):
    """Estimates of K outcomes, and their covariance in independent parts."""

    estimate: Floats
    parts: list[tuple[Floats, int]]
    """Covariance (K, K) and degrees of freedom of each part, one for each arm of each family."""
    n: int
    n_control: int
    clusters: int
    clusters_control: int

    @property
    def covariance(self) -> Floats:
        """Covariance of the estimates, (K, K)."""
        return np.asarray(sum(part for part, _ in self.parts), np.float64)

    def freedom(self, direction: ArrayLike) -> float:
        """Degrees of freedom (Satterthwaite 1946) of the variance of a combination of the outcomes."""
        d = np.asarray(direction, np.float64)
        v = np.array([d @ part @ d for part, _ in self.parts])
        df = np.array([df for _, df in self.parts], np.float64)
        spread = float((v**2 / df).sum())
        return float(v.sum() ** 2 / spread) if spread > 0 else float(df.sum())

    def limits(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval of the first outcome."""
        direction = np.eye(self.estimate.size)[0]
        half = float(stats.t.ppf((1 + level) / 2, self.freedom(direction)))
        half *= float(np.sqrt(self.covariance[0, 0]))
        return float(self.estimate[0]) - half, float(self.estimate[0]) + half


def net_of_controls(treated: pl.DataFrame, controls: pl.DataFrame, outcomes: int) -> Net | None:
    """``mean_i sum_s a_k,i(s) (y_i(s) - mean of the controls of i's family at s)`` for each outcome k. Errors are over
    clusters: of the treated items within families (across families if a family has a single cluster), and of the
    controls, which are weighted by the treated items' weights at each checkpoint.

    Args:
        treated: unit, cluster, family, step, value, and weights ``a0``, ``a1``, ... that add up to 1 over an item's
            rows.
        controls: unit, cluster, family, step, value.
        outcomes: K, the number of outcomes.

    Returns:
        The estimates; None if an arm has fewer than two clusters, so that its error is unknown.
    """
    weights = [f"a{k}" for k in range(outcomes)]
    here = ["family", "step"]
    controls = controls.sort("family", "cluster", "unit", "step")
    level = controls.group_by(here).agg(control=pl.col("value").mean(), count=pl.len())
    # Sorted, so that sums have the same last digits every time.
    order = ["family", "cluster", "unit", "step"]
    rows = treated.join(level, on=here).sort(order).with_columns(net=pl.col("value") - pl.col("control"))
    items = (
        rows.group_by("family", "cluster", "unit")
        .agg((pl.col(a) * pl.col("net")).sum() for a in weights)
        .sort("family", "cluster", "unit")
    )
    if items.is_empty():
        return None
    n = items.height
    alone = items.group_by("family").agg(pl.col("cluster").n_unique())["cluster"].min() == 1
    centre = pl.col(weights) - (pl.col(weights).mean() if alone else pl.col(weights).mean().over("family"))
    own = items.with_columns(centre / n)
    shares = rows.group_by(here).agg((pl.col(a).sum() / n) for a in weights)
    others = controls.join(shares, on=here).join(level, on=here).sort(order)
    influence = (pl.col("value") - pl.col("control")) / pl.col("count")
    theirs = others.with_columns((pl.col(a) * influence).alias(a) for a in weights)
    parts = [
        *_parts(own.with_columns(family=pl.lit("all")) if alone else own, weights),
        *_parts(theirs, weights),
    ]
    if any(df < 1 for _, df in parts):
        return None
    return Net(
        items.select(pl.col(weights).mean()).to_numpy()[0],
        parts,
        n,
        others.select("family", "unit").n_unique(),
        items.select("family", "cluster").n_unique(),
        others.select("family", "cluster").n_unique(),
    )


def _parts(rows: pl.DataFrame, weights: list[str]) -> list[tuple[Floats, int]]:
    """Covariance and degrees of freedom of each family, from the clusters' sums."""
    sums = rows.group_by("family", "cluster").agg(pl.col(weights).sum()).sort("family", "cluster")
    parts = []
    for part in sums.partition_by("family", maintain_order=True):
        sum_CK = part.select(weights).to_numpy()
        c = len(sum_CK)
        parts.append((sum_CK.T @ sum_CK * (c / max(1, c - 1)), c - 1))
    return parts
