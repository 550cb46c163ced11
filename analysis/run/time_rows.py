"""Rows of figures that follow items over training: phases, wordings, profiles, acquisition and retention of facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from palimpsest.data.errors import UserError

if TYPE_CHECKING:
    from palimpsest.analysis.run.files import RunFiles
    from palimpsest.analysis.statistics import Net


def phases(run: RunFiles) -> pl.DataFrame:
    """Gain over dose 0 by phase, dose and checkpoint: ``phase``, ``start``, ``end``, ``step``, ``dose``, estimate.

    Gains are of the differences from the twin or, without a twin, of the perturbed run; ``start`` and ``end`` are the
    first and the last step with an exposure of that phase.

    Raises:
        UserError: if the arms differ in no phase.
    """
    at = run.exposures.join(_levels(run, "phase"), on="item_id").group_by("level")
    spans = at.agg(start=pl.col("step").min(), end=pl.col("step").max())
    estimates = _by_level(run, "phase", final=False).join(spans, left_on="phase", right_on="level")
    return estimates.select("phase", "start", "end", "step", "dose", "estimate", "low", "high", "n")


def wordings(run: RunFiles) -> pl.DataFrame:
    """Gain over dose 0 by wording policy and dose at the last checkpoint: ``wording``, ``dose``, estimate.

    Raises:
        UserError: if the arms differ in no wording.
    """
    return _by_level(run, "wording", final=True).select("wording", "dose", "estimate", "low", "high", "n")


def _levels(run: RunFiles, factor: str) -> pl.DataFrame:
    """``item_id`` and ``level``, the item's level of a factor that varies."""
    level = pl.col("arm").str.extract(rf"(?:^|, ){factor} (.*?)(?:, [a-z]+ |$)")
    levels = run.plan.items.select("item_id", level=level).filter(pl.col("level").is_not_null())
    if levels.is_empty():
        raise UserError(
            f"all arms of {run.name} have the same {factor}, and this figure compares several; draw it of a run with "
            f"two or more in insertion.{factor}"
        )
    return levels


def _values(run: RunFiles, metric: str, steps: list[int] | None = None) -> pl.DataFrame:
    """Metric rows: differences from the twin or, without a twin, those of the perturbed run."""
    from palimpsest.analysis.statistics import difference_to_twin

    rows = run.metrics(metric, steps=steps).filter(pl.col("dose").is_not_null())
    both = difference_to_twin(rows)
    return both if both.height else rows.filter(pl.col("run") == "perturbed")


def _by_level(run: RunFiles, factor: str, *, final: bool) -> pl.DataFrame:
    """Gains over dose 0 at each level of a factor, by dose and step."""
    from palimpsest.analysis.statistics import gain_over_control

    levels = _levels(run, factor)
    rows = _values(run, "loglik_per_byte", [run.last_step] if final else None)
    frames = []
    for (level,), part in levels.group_by("level", maintain_order=True):
        here = rows.filter((pl.col("dose") == 0) | pl.col("item_id").is_in(part["item_id"].implode()))
        gains = gain_over_control(here).filter(pl.col("family") == "all")
        frames.append(gains.with_columns(pl.lit(level).alias(factor)))
    return pl.concat(frames).sort(factor, "dose", "step")


def profile(run: RunFiles) -> pl.DataFrame:
    """Effect of one exposure by cohort (``cohort``) and checkpoint (``step``), of items of dose 1.

    A cohort is the first checkpoint after the exposure. The estimate is a difference in differences (Lesci et al.
    2024): the change of a cohort's log-likelihood since the last checkpoint before its exposure, minus that of the
    never-inserted items of the same families, in nats/byte, with 95 % limits over clusters of both.

    Raises:
        UserError: if no two clusters of dose 1 share a cohort.
    """
    from palimpsest.analysis.statistics import per_item

    values = per_item(_values(run, "loglik_per_byte"))
    steps = values["step"].unique().sort()
    exposed = run.exposures.group_by(unit="item_id").agg(exposed=pl.col("step").min())
    # A checkpoint at step s has finished the steps 0 ... s - 1.
    cohorts = exposed.select("unit", g=steps.search_sorted(exposed["exposed"] + 1))
    controls = values.filter(pl.col("dose") == 0)
    once = values.filter(pl.col("dose") == 1).join(cohorts, on="unit")
    effects = []
    for g in once["g"].unique().sort():
        if not 1 <= g < len(steps):
            continue
        treated = once.filter(pl.col("g") == g)
        for step in steps:
            net = change_over_controls(treated, controls, steps[g - 1], step)
            if net is not None and net.clusters > 1:
                low, high = net.limits()
                effects.append((steps[g], step, float(net.estimate[0]), low, high, net.n))
    if not effects:
        raise UserError(
            f"{run.name}: this figure needs two clusters of dose 1 inserted between the same two scored checkpoints, "
            "and two clusters of dose 0 in their family; insert more items, or raise train.checkpoint_every"
        )
    return pl.DataFrame(effects, schema=["cohort", "step", "estimate", "low", "high", "n"], orient="row")


def change_over_controls(treated: pl.DataFrame, controls: pl.DataFrame, before: int, step: int) -> Net | None:
    """Difference in differences: change of the treated items from one checkpoint to another, minus that of their
    controls.

    Args:
        treated: rows of :func:`analysis.statistics.per_item`, of one metric and run.
        controls: rows of the same kind, of never-inserted items of the same families.
        before: step of the first checkpoint.
        step: step of the second checkpoint.

    Returns:
        The result of :func:`analysis.statistics.net_of_controls`; None if the error is unknown.
    """
    from palimpsest.analysis.statistics import net_of_controls

    changes = []
    for rows in (treated, controls):
        first = rows.filter(pl.col("step") == before).select("unit", first="value")
        now = rows.filter(pl.col("step") == step).join(first, on="unit")
        changes.append(now.with_columns(value=pl.col("value") - pl.col("first")))
    return net_of_controls(changes[0].with_columns(a0=1.0), changes[1], 1)


def _depths(run: RunFiles) -> pl.DataFrame:
    """Cloze rows with ``depth``, the probe's name without its number, such as ``semantic``."""
    named = run.probes.filter((pl.col("kind") == "cloze") & pl.col("item_id").is_not_null())
    depth = pl.col("name").str.replace(r" #.*$", "")
    rows = _values(run, "cloze_loglik_per_byte").join(
        named.select("probe_id", depth=depth).filter(pl.col("depth") != ""), on="probe_id"
    )
    if rows.is_empty():
        raise UserError(
            f"{run.name} has no clozes, which this figure needs; add a family that has them, such as fictional_facts"
        )
    return rows


def acquisition(run: RunFiles) -> pl.DataFrame:
    """Change of each depth's log-likelihood since the first checkpoint, of the inserted items.

    Returns:
        ``depth``, ``step``, ``estimate`` (nats/byte) with limits over clusters, ``n`` items, and ``injected``, true
        where steps since the checkpoint before had exposures.
    """
    from palimpsest.analysis.statistics import mean_by_dose

    rows = _depths(run).filter(pl.col("dose") > 0)
    before = rows.filter(pl.col("step") == pl.col("step").min()).select("probe_id", before="value")
    change = (
        rows.join(before, on="probe_id").with_columns(value=pl.col("value") - pl.col("before")).drop("before")
    )
    pooled = change.with_columns(dose=pl.lit(1, pl.Int32))
    frames = [
        mean_by_dose(part.drop("depth")).filter(pl.col("family") == "all").with_columns(depth=pl.lit(depth))
        for (depth,), part in pooled.group_by("depth", maintain_order=True)
    ]
    changes = pl.concat(frames).sort("depth", "step")
    steps = changes["step"].unique().sort()
    # Exposures before a checkpoint are marked at it.
    marked = steps.gather(steps.search_sorted(run.exposures["step"] + 1).clip(0, len(steps) - 1)).unique()
    return changes.select(
        "depth", "step", "estimate", "low", "high", "n", injected=pl.col("step").is_in(marked.implode())
    )


def retainability(run: RunFiles) -> pl.DataFrame:
    """Retained share of each depth's first gain ``since`` steps later, of the same facts, with Fieller's limits.

    Computed by the report's :func:`analysis.report.forgetting.retention` from the clozes of each depth.

    Raises:
        UserError: if fewer than two facts have two checkpoints after their last exposure, or fewer than two have dose
            0.
    """
    from palimpsest.analysis.report.forgetting import retention
    from palimpsest.analysis.statistics import per_item

    last = run.exposures.group_by(unit="item_id").agg(after=pl.col("step").max() + 1)
    frames = [
        retention(per_item(part.drop("depth")), last).with_columns(depth=pl.lit(depth))
        for (depth,), part in _depths(run).group_by("depth", maintain_order=True)
    ]
    shares = pl.concat(frames).filter(pl.col("retained").is_not_null())
    if shares.is_empty():
        raise UserError(
            f"{run.name}: this figure needs two or more facts with two checkpoints each after the last exposure, and "
            "two or more facts of dose 0; end insertion.phase earlier, or set train.checkpoint_after_last=[0,100]"
        )
    since = (pl.col("since_low") + pl.col("since_high")) / 2
    return shares.select("depth", "low", "high", "n", since=since, estimate="retained").sort("depth", "since")
