"""Recognition: can scores tell inserted items from never-inserted ones?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.analysis.checks import numbers
from palimpsest.analysis.statistics.power import auc_error
from palimpsest.analysis.statistics.rows import BY, estimates, per_item


class Auc(NamedTuple):
    """Area under the ROC curve with its variance."""

    auc: float
    """P(member > control) + P(equal)/2."""
    variance: float
    """DeLong; where that is 0 (AUC 0 or 1, or all scores equal) Hanley-McNeil, at the edges half a pair away."""
    pairs: int
    """min(members, controls): how many disjoint pairs there are."""


def delong(members: ArrayLike, controls: ArrayLike) -> Auc:
    """AUC and its variance from placement values (DeLong, DeLong & Clarke-Pearson 1988).

    ``var = S_members / m + S_controls / n``, S the sample variances of the placements. Higher scores mean
    member.

    Args:
        members: at least 2 scores, none NaN.
        controls: at least 2 scores, none NaN.
    """
    x = numbers(members, "members of an AUC with an interval", 2)
    y = numbers(controls, "controls of an AUC with an interval", 2)
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    area = float(wins.mean())
    variance = wins.mean(axis=1).var(ddof=1) / len(x) + wins.mean(axis=0).var(ddof=1) / len(y)
    if area in (0.0, 1.0):
        variance = auc_error((area * len(x) * len(y) + 0.5) / (len(x) * len(y) + 1), len(x), len(y)) ** 2
    elif variance == 0:
        variance = auc_error(area, len(x), len(y)) ** 2
    return Auc(area, float(variance), min(len(x), len(y)))


def logit_interval(area: float, variance: float, pairs: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUC, symmetric on the logit scale, so that it stays within 0 and 1.

    An AUC of exactly 1 (or 0) has no logit. Then every one of ``pairs`` disjoint member-control pairs, which
    are independent, is ordered right, and Clopper-Pearson bounds their rate: ``[((1 - level)/2)^(1/pairs),
    1]``.
    """
    if area in (0.0, 1.0):
        bound = ((1 - level) / 2) ** (1 / pairs)
        return (bound, 1.0) if area == 1.0 else (0.0, 1 - bound)
    centre = np.log(area / (1 - area))
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt(variance) / (area * (1 - area))
    return float(1 / (1 + np.exp(half - centre))), float(1 / (1 + np.exp(-half - centre)))


def auc(rows: pl.DataFrame) -> pl.DataFrame:
    """Recognition AUC of each dose against dose 0 (``statistic = auc``); 0.5 is chance.

    Computed within families and averaged with the treated items as weights: across families, differences
    between kinds of text would pass for memory. Because items were randomised, members and controls are
    exchangeable but for the insertions. Families with fewer than two items in either arm are left out and
    counted in ``method``.

    Args:
        rows: metric rows, one metric or several.
    """
    out: list[dict[str, object]] = []
    items = per_item(rows).filter(pl.col("dose").is_not_null())
    for (run, step, metric), group in items.partition_by(BY, as_dict=True, maintain_order=True).items():
        values = {
            key: part["value"].to_numpy()
            for key, part in group.partition_by(["family", "dose"], as_dict=True).items()
        }
        families = sorted({str(family) for family, _ in values})
        for dose in sorted({int(dose) for _, dose in values} - {0}):
            arms = {
                f: (values.get((f, dose), np.zeros(0)), values.get((f, 0), np.zeros(0))) for f in families
            }
            for family, members in [("all", families), *((f, [f]) for f in families)]:
                chosen = {f: arms[f] for f in members if len(arms[f][0])}
                if chosen:
                    out.append(
                        {"run": run, "step": step, "metric": metric, "family": family, "dose": dose}
                        | _pooled(chosen)
                    )
    return estimates(pl.DataFrame(out).with_columns(statistic=pl.lit("auc")) if out else pl.DataFrame())


def _pooled(arms: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, object]:
    usable = {f: pair for f, pair in arms.items() if min(len(pair[0]), len(pair[1])) >= 2}
    left_out = sum(len(members) for f, (members, _) in arms.items() if f not in usable)
    if not usable:
        return {
            "estimate": None,
            "low": None,
            "high": None,
            "n": 0,
            "n_control": 0,
            "method": "not computed because no family has two items in both arms",
        }
    weights = np.array([len(members) for members, _ in usable.values()], float)
    weights /= weights.sum()
    parts = [delong(*pair) for pair in usable.values()]
    # A weighted mean of ones can miss 1 by rounding, and 1 is a case of its own.
    area = parts[0].auc if len({p.auc for p in parts}) == 1 else float(weights @ [p.auc for p in parts])
    low, high = logit_interval(
        area, float(weights**2 @ [p.variance for p in parts]), sum(p.pairs for p in parts)
    )
    method = (
        "DeLong within families, logit" if area not in (0.0, 1.0) else "Clopper-Pearson on disjoint pairs"
    )
    return {
        "estimate": area,
        "low": low,
        "high": high,
        "n": sum(len(members) for members, _ in usable.values()),
        "n_control": sum(len(controls) for _, controls in usable.values()),
        "method": method + (f"; {left_out} items of families with too few left out" if left_out else ""),
    }
