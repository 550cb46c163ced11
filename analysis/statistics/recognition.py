"""Recognition: AUC of scores for distinguishing inserted from never-inserted items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from palimpsest.analysis.checks import numbers
from palimpsest.analysis.statistics.power import auc_error
from palimpsest.analysis.statistics.rows import BY, estimates, per_item

Floats = NDArray[np.float64]

_PRIOR = 2.0
"""Weight of the model variance relative to the sample's variance, in units of the variance of an area half a pair below
1."""
_METHOD = "DeLong over clusters within families, score limits"


class Auc(NamedTuple):
    """Area under the ROC curve with its variance."""

    auc: float
    """Area, ``P(member > control) + P(equal)/2``."""
    variance: float
    """DeLong's variance, over clusters; 0 if all placements are equal, as at an area of 0 or 1."""
    members: int
    """Number of clusters of members."""
    controls: int
    """Number of clusters of controls."""
    pairs: int
    """Number of pairs of a member and a control."""


def delong(
    members: ArrayLike,
    controls: ArrayLike,
    member_cluster: ArrayLike | None = None,
    control_cluster: ArrayLike | None = None,
) -> Auc:
    """AUC and its variance from placement values (DeLong, DeLong & Clarke-Pearson 1988; Obuchowski 1997).

    ``var = C/(C-1) sum_c (sum of c's deviations of placements)^2 / m^2`` over the clusters of the members, and likewise
    over those of the controls; with clusters of one item that is ``S_members / m + S_controls / n``, S the sample
    variances of the placements. Higher scores mean member.

    Args:
        members: scores of at least 2 clusters, none NaN.
        controls: scores of at least 2 clusters, none NaN.
        member_cluster: labels of the members' clusters; None: every member is its own cluster.
        control_cluster: labels of the controls' clusters; None: every control is its own cluster.
    """
    x = numbers(members, "members of an AUC with an interval", 2)
    y = numbers(controls, "controls of an AUC with an interval", 2)
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    area = float(wins.mean())
    first, m = _variance(wins.mean(axis=1) - area, member_cluster, "members")
    second, n = _variance(wins.mean(axis=0) - area, control_cluster, "controls")
    return Auc(area, first + second, m, n, wins.size)


def _variance(deviation: Floats, cluster: ArrayLike | None, which: str) -> tuple[float, int]:
    """Variance of a mean of placements, and the number of clusters."""
    labels = np.arange(deviation.size) if cluster is None else np.asarray(cluster)
    sums = np.bincount(np.unique(labels, return_inverse=True)[1], weights=deviation)
    if sums.size < 2:
        raise ValueError(
            f"{which} of an AUC with an interval: 2 or more clusters are needed, not {sums.size}"
        )
    return float((sums**2).sum() * sums.size / (sums.size - 1) / deviation.size**2), sums.size


def auc_limits(parts: Sequence[Auc], weights: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Limits of a weighted mean of areas: all A with ``(mean - A)^2 <= z^2 k V(A)``.

    V is the weighted Hanley-McNeil variance at an area A and the same numbers of clusters; ``k = (v + c) / (V(mean) +
    c)`` scales it to DeLong's variance v. The constant c matters only near an area of 0 or 1, where v falls to 0 and V
    does not: the limits then change little with a single pair, and the interval never has width 0 (cf. Newcombe 2006).

    Args:
        parts: areas, such as those of the families.
        weights: weight of each area.
        level: confidence.
    """
    w = np.asarray(weights, np.float64) / np.sum(weights)
    mean = float(w @ [part.auc for part in parts])
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2

    def model(area: float) -> float:
        errors = [auc_error(area, part.members, part.controls) for part in parts]
        return float(w**2 @ np.square(errors))

    edge = 0.5 / sum(part.pairs for part in parts)
    prior = _PRIOR * model(1 - edge)
    inside = min(max(mean, edge), 1 - edge)
    variance = float(w**2 @ [part.variance for part in parts])
    # All scores equal: what was seen does not vary, but that is no certainty.
    tied = variance == 0 and 0 < mean < 1
    scale = 1.0 if tied else (variance + prior) / (model(inside) + prior)

    def limit(end: float) -> float:
        near, far = mean, end
        for _ in range(50):
            middle = (near + far) / 2
            if (mean - middle) ** 2 <= z2 * scale * model(middle):
                near = middle
            else:
                far = middle
        return (near + far) / 2

    return (0.0 if mean == 0 else limit(0.0)), (1.0 if mean == 1 else limit(1.0))


def auc(rows: pl.DataFrame) -> pl.DataFrame:
    """Recognition AUC of each dose against dose 0 (``statistic = auc``); 0.5 is chance.

    The AUC is computed within families, because families differ even without insertion, and averaged with weights by
    treated items. Since items are randomised, members and controls differ only in the insertions. Families with fewer
    than two clusters in either arm are left out and counted in ``method``.

    Args:
        rows: metric rows, of any number of metrics.
    """
    out: list[dict[str, object]] = []
    items = per_item(rows).filter(pl.col("dose").is_not_null())
    for (run, step, metric), group in items.partition_by(BY, as_dict=True, maintain_order=True).items():
        arms = {
            key: (part["value"].to_numpy(), part["cluster"].to_numpy())
            for key, part in group.partition_by(["family", "dose"], as_dict=True).items()
        }
        families = sorted({str(family) for family, _ in arms})
        for dose in sorted({int(dose) for _, dose in arms} - {0}):
            there = [family for family in families if (family, dose) in arms]
            for family, chosen in [("all", there), *((f, [f]) for f in there)]:
                pairs = [(arms[f, dose], arms.get((f, 0), (np.zeros(0), np.zeros(0)))) for f in chosen]
                base = {"run": run, "step": step, "metric": metric, "family": family, "dose": dose}
                out.append(base | pooled_auc(pairs))
    return estimates(pl.DataFrame(out).with_columns(statistic=pl.lit("auc")) if out else pl.DataFrame())


Arm = tuple[NDArray[np.float64], NDArray[np.generic]]
"""Scores, and the cluster of each score."""


def pooled_auc(families: Sequence[tuple[Arm, Arm]]) -> dict[str, object]:
    """Mean of the families' AUCs, weighted by their numbers of members, as a dictionary: estimate, low, high, n,
    n_control, clusters, clusters_control, method.

    Args:
        families: members and controls of each family; a family with fewer than two clusters in an arm is left out.
    """
    usable = [pair for pair in families if all(np.unique(cluster).size >= 2 for _, cluster in pair)]
    n, lost = (sum(len(one[0][0]) for one in group) for group in (usable, families))
    if not usable:
        nothing = dict.fromkeys(("n", "n_control", "clusters", "clusters_control"), 0)
        method = "not computed because no family has two items or clusters in both arms"
        return {"estimate": None, "low": None, "high": None, **nothing, "method": method}
    parts = [delong(x, y, cx, cy) for (x, cx), (y, cy) in usable]
    weights = np.array([len(x) for (x, _), _ in usable], np.float64)
    # A weighted mean of ones can miss 1 by rounding.
    area = (
        parts[0].auc
        if len({p.auc for p in parts}) == 1
        else float(weights @ [p.auc for p in parts] / weights.sum())
    )
    low, high = auc_limits(parts, weights)
    return {
        "estimate": area,
        "low": low,
        "high": 1.0 if area == 1 else high,
        "n": n,
        "n_control": sum(len(y) for _, (y, _) in usable),
        "clusters": sum(part.members for part in parts),
        "clusters_control": sum(part.controls for part in parts),
        "method": _METHOD + (f"; {lost - n} items of families with too few left out" if lost > n else ""),
    }
