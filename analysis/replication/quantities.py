"""Quantities that a claim is about: functions from a run and a cell of its design to a number and its error.

A cell names items and a measure of them: ``metric``, and optionally ``family``, ``question`` (of probes that ask
several things), ``dose``, ``arm`` (levels such as ``dose 64, phase 0.75-1``, all of which the item's arm must have),
``step`` (the last scored checkpoint by default), ``prefix`` and ``suffix`` (tokens, of verbatim extraction). Values are
differences from the twin where the run has one, except in ``mean``, ``auc`` and ``ec50``. Of a post-trained run the
cell names ``group`` and ``statistic`` instead of a metric.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats
from sklearn.isotonic import isotonic_regression

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.run import Run
from palimpsest.analysis.statistics import decided_ec50, difference_to_twin, per_item, staircase_ec50
from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.contrasts import parts

CELL = (
    *("run", "metric", "family", "question", "dose", "arm", "step", "prefix", "suffix"),
    *("level", "since", "group", "statistic"),
)
"""Fields of a cell. ``run`` names one of the replication's runs; ``level`` belongs to ``threshold`` and ``ec50``,
``since`` to ``retained``, ``group`` and ``statistic`` to ``unlearned``."""
_WIDTH = 2 * float(stats.norm.ppf(0.975))
"""Standard errors in a 95 % interval."""


class Estimate(NamedTuple):
    """A quantity in one run."""

    value: float
    """NaN if it does not exist there."""
    error: float = float("nan")
    """Standard error over the run's items (clusters where the plan has them); NaN if it is not known."""
    reason: str = ""
    """Reason for a NaN."""


class Posttrained(Run):
    """A post-trained run: the run that it starts from, and its comparison with the leave-out twin.

    Args:
        directory: of the run that it starts from.
        report: directory of the comparison.
        method: name of the post-trained run in it.
    """

    def __init__(self, directory: Path, report: Path, method: str) -> None:
        super().__init__(directory)
        self.report = report
        self.method = method

    def comparison(self, step: int | None = None) -> pl.DataFrame:
        """Rows of ``estimates.csv`` (``analysis.report.unlearned.ESTIMATES``) at a checkpoint, the last one if None."""
        table = pl.read_csv(self.report / "estimates.csv", infer_schema_length=None)
        own = table.filter(pl.col("run") == self.method)
        return own.filter(pl.col("step") == (own["step"].max() if step is None else step))


Quantity = Callable[[Run, Mapping[str, Any]], Estimate]
QUANTITIES: dict[str, Quantity] = {}
"""Name -> function."""


def quantity(function: Quantity) -> Quantity:
    """Register a quantity under the function's name."""
    QUANTITIES[function.__name__] = function
    return function


def items(run: Run, cell: Mapping[str, Any], *, paired: bool = True) -> pl.DataFrame:
    """Values of the cell's metric for every item of its family, whatever the arm.

    Args:
        run: which.
        cell: of which ``metric``, ``family``, ``step``, ``prefix`` and ``suffix`` are read.
        paired: differences from the twin if it is scored; else values of the perturbed run.

    Returns:
        unit, cluster, family, dose, arm, value.

    Raises:
        UserError: for a metric, family or step that the run does not have.
    """
    if cell["metric"] not in METRICS:
        raise UserError(f"metric={cell['metric']} is unknown{nearest(cell['metric'], METRICS)}")
    settings = {key: cell[key] for key in ("prefix", "suffix") if cell.get(key) is not None}
    rows = run.metrics(cell["metric"], steps=[cell.get("step") or run.last_step], **settings)
    twinned = paired and (rows["run"] == "twin").any()
    rows = difference_to_twin(rows) if twinned else rows.filter(pl.col("run") == "perturbed")
    rows = rows.filter(pl.col("item_id").is_not_null())
    if family := cell.get("family"):
        known = rows["family"].unique().to_list()
        if family not in known:
            raise UserError(f"family={family} is not in {run.name}{nearest(family, known)}")
        rows = rows.filter(pl.col("family") == family)
    if question := cell.get("question"):
        known = rows["question"].drop_nulls().unique().to_list()
        if question not in known:
            raise UserError(f"question={question} is not asked in {run.name}{nearest(question, known)}")
        rows = rows.filter(pl.col("question") == question)
    arms = run.plan.items.select(unit="item_id", arm="arm")
    return per_item(rows).join(arms, on="unit").select("unit", "cluster", "family", "dose", "arm", "value")


def chosen(values: pl.DataFrame, cell: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of :func:`items` of the cell's dose and arm.

    Raises:
        UserError: if there are none.
    """
    rows = values
    if cell.get("dose") is not None:
        rows = rows.filter(pl.col("dose") == cell["dose"])
    if wanted := cell.get("arm"):
        names = [arm for arm in rows["arm"].unique() if parts(wanted) <= parts(arm)]
        rows = rows.filter(pl.col("arm").is_in(names))
    if rows.is_empty():
        asked = ", ".join(
            f"{key}={cell[key]}" for key in ("family", "dose", "arm") if cell.get(key) is not None
        )
        raise UserError(
            f"no item has {asked} with a value of {cell['metric']}{nearest(str(cell.get('arm')), values['arm'])}"
        )
    return rows


@quantity
def mean(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """Mean of the metric over the cell's items in the perturbed run."""
    rows = chosen(items(run, cell, paired=False), cell)
    average, variance = _average(rows, _is_share(cell))
    return Estimate(average, float(np.sqrt(variance)))


@quantity
def gain(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """Mean of the metric over the cell's items minus that over the never-inserted items of the same family.

    Values are differences from the twin where the run has one. Several families are averaged, weighted by their numbers
    of the cell's items.
    """
    return _gain(run.name, items(run, cell), cell)


def _gain(name: str, values: pl.DataFrame, cell: Mapping[str, Any]) -> Estimate:
    """The gain of a cell, given the values of all items."""
    rows = chosen(values, cell)
    total, variance = 0.0, 0.0
    for (family,), part in rows.group_by("family", maintain_order=True):
        controls = values.filter((pl.col("family") == family) & (pl.col("dose") == 0))
        if controls.is_empty():
            raise UserError(f"{name} has no never-inserted items of {family}, which a gain is over")
        weight = part.height / rows.height
        (above, above_variance), (below, below_variance) = (
            _average(side, _is_share(cell)) for side in (part, controls)
        )
        total += weight * (above - below)
        variance += weight**2 * (above_variance + below_variance)
    return Estimate(total, float(np.sqrt(variance)))


@quantity
def threshold(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """log2 of the dose at which the mean gain reaches ``level``: a number, or ``half`` of the gain at the highest dose.

    The gains of the run's doses are made monotone (isotonic regression) and joined by straight lines in log2(dose);
    dose 0 stands at half the lowest dose.
    """
    values = items(run, cell)
    doses = sorted(dose for dose in chosen(values, cell)["dose"].unique() if dose > 0)
    gains = np.array([_gain(run.name, values, {**cell, "dose": dose}).value for dose in doses])
    level = gains[-1] / 2 if cell.get("level", "half") == "half" else float(cell["level"])
    return crossing(np.array(doses, np.float64), gains, level)


def crossing(dose_D: NDArray[np.float64], gain_D: NDArray[np.float64], level: float) -> Estimate:
    """log2 of the dose at which a monotone curve through the gains reaches a level above 0.

    Args:
        dose_D: doses above 0, ascending.
        gain_D: gain at each.
        level: to be reached.
    """
    if level <= 0:
        return Estimate(float("nan"), reason="nothing is gained at the highest dose")
    x = np.concatenate(([np.log2(dose_D[0]) - 1], np.log2(dose_D)))
    y = np.concatenate(([0.0], np.maximum(isotonic_regression(gain_D), 0.0)))
    if y[-1] < level:
        return Estimate(
            float("nan"),
            reason=f"{level:.3g} is not reached: {y[-1]:.3g} at the highest dose, {dose_D[-1]:g}",
        )
    first = int(np.argmax(y >= level))
    return Estimate(float(np.interp(level, y[first - 1 : first + 1], x[first - 1 : first + 1])))


@quantity
def ec50(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """log2 of the dose at which half of the items are remembered.

    Remembered is an item whose value of the cell's metric in the perturbed run is at least ``cell["level"]`` above the
    mean of the never-inserted items. In an adaptive run the dose is estimated from the policy's decisions to insert an
    item again; with fixed doses a logistic curve is fitted to which items are remembered.
    """
    path = run.directory / "adaptive" / "decisions.json"
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["threshold"] != float(cell["level"]):
            raise UserError(f"cell.level={cell['level']}: {run.name} decided at {record['threshold']:g}")
        found = decided_ec50(record["decisions"], record["policy"], record["threshold"])
    else:
        rows = items(run, cell, paired=False)
        never = rows.filter(pl.col("dose") == 0)["value"].to_numpy().mean()
        inserted = chosen(rows, cell).filter(pl.col("dose") > 0)
        hits = inserted["value"].to_numpy() - never >= float(cell["level"])
        found = staircase_ec50(inserted["dose"].to_numpy(), hits) if hits.any() and not hits.all() else None
    if found is None:
        return Estimate(float("nan"), reason="all items are remembered, or none")
    bounded = found.low > 0 and np.isfinite(found.high)
    error = float(np.log2(found.high / found.low)) / _WIDTH if bounded else float("nan")
    return Estimate(float(np.log2(found.estimate)), error)


@quantity
def unlearned(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """A ``statistic`` of a ``group`` of texts (``analysis.report.unlearned.ESTIMATES``) in a post-trained run.

    Raises:
        UserError: if the run is not post-trained, or its comparison has no such number.
    """
    if not isinstance(run, Posttrained):
        raise UserError(
            f"{run.name} is no post-trained run; in the replication, begin this run's list under runs with posttrain, "
            "as in npo: [posttrain, posttrain=npo], or name another one in cell.run"
        )
    rows = run.comparison(cell.get("step"))
    dose = pl.col("dose").is_null() if cell.get("dose") is None else pl.col("dose") == cell["dose"]
    one = rows.filter(dose, pl.col("group") == cell["group"], pl.col("statistic") == cell["statistic"])
    if one.is_empty():
        wanted = f"{cell['group']}: {cell['statistic']}"
        known = sorted(
            f"{group}: {name}" for group, name in rows.select("group", "statistic").unique().rows()
        )
        raise UserError(
            f"group={cell['group']}, statistic={cell['statistic']}: the comparison of {run.method} has no such row"
            f"{nearest(wanted, known)}"
        )
    value, low, high = one.select("estimate", "low", "high").row(0)
    if value is None:
        return Estimate(float("nan"), reason=f"{cell['statistic']} is not reached in {rows['step'][0]} steps")
    return Estimate(value, float("nan") if low is None or high is None else (high - low) / _WIDTH)


@quantity
def auc(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """Area under the ROC curve of the cell's items against the never-inserted items of the same family, in the
    perturbed run; families count by their items.
    """
    values = items(run, cell, paired=False)
    rows = chosen(values, cell)
    area, variance = 0.0, 0.0
    for (family,), part in rows.group_by("family", maintain_order=True):
        controls = values.filter((pl.col("family") == family) & (pl.col("dose") == 0))["value"].to_numpy()
        members = part["value"].to_numpy()
        won_MC = np.sign(members[:, None] - controls[None, :]) / 2 + 0.5
        weight = part.height / rows.height
        area += weight * float(won_MC.mean())
        spreads = [
            won_MC.mean(axis).var(ddof=1) / won_MC.shape[1 - axis] for axis in (0, 1) if min(won_MC.shape) > 1
        ]
        least = 0.25 / (members.size + controls.size)  # perfect separation is no proof of an area of 1
        variance += weight**2 * max(float(sum(spreads)), least**2)
    return Estimate(area, float(np.sqrt(variance)))


@quantity
def retained(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """Share of the gain at the checkpoint ``since`` that is left at ``step``."""
    before, after = gain(run, {**cell, "step": cell["since"]}), gain(run, cell)
    if before.value < 2 * before.error:
        return Estimate(
            float("nan"), reason=f"nothing is gained at step {cell['since']}, so nothing can be retained"
        )
    return Estimate(after.value / before.value)


@quantity
def order(run: Run, cell: Mapping[str, Any]) -> Estimate:
    """Spearman's correlation between the position of an item's last exposure in training and its value, over the
    cell's items.
    """
    last = run.exposures.group_by("item_id").agg(pl.col("position").max())
    rows = chosen(items(run, cell), cell).join(last, left_on="unit", right_on="item_id")
    rho = float(stats.spearmanr(rows["position"].to_numpy(), rows["value"].to_numpy()).statistic)
    return Estimate(rho, float(np.sqrt((1 + rho**2 / 2) / max(1, rows.height - 3))))


def _is_share(cell: Mapping[str, Any]) -> bool:
    return METRICS[cell["metric"]].bounds == (0.0, 1.0)


def _average(rows: pl.DataFrame, share: bool) -> tuple[float, float]:
    """Mean over items, and its variance over clusters; a share of 0 or 1 has the variance of one that is less certain
    (Agresti and Coull, 1998).
    """
    average = float(rows["value"].mean() or 0.0)  # type: ignore[arg-type]
    sums = (
        rows.group_by("cluster")
        .agg(residual=(pl.col("value") - average).sum(), count=pl.len())["residual"]
        .to_numpy()
    )
    clusters = len(sums)
    variance = float((sums**2).sum()) / rows.height**2 * clusters / max(1, clusters - 1)
    if share and variance == 0:
        likely = (abs(average) * clusters + 2) / (clusters + 4)
        variance = likely * (1 - likely) / (clusters + 4)
    return average, variance if clusters > 1 or share else float("nan")
