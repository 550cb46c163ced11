"""All numbers of a report: metric rows, then estimates, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from analysis.metrics import METRICS, compute, defaults
from analysis.report.inputs import ReportInputs
from analysis.statistics import (
    ESTIMATE_SCHEMA,
    PAIRED,
    Method,
    auc,
    difference_to_twin,
    gain_over_control,
    mean_by_dose,
    minimum_effective_dose,
    split_controls,
)


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Metric rows and the estimates from them."""

    rows: pl.DataFrame
    """Metric rows, including those that were not computed."""
    estimates: pl.DataFrame
    """Estimate rows of all runs, checkpoints and metrics, up to ``step``."""
    step: int
    """The last checkpoint that all runs have: what headline numbers refer to."""
    last_steps: dict[str, int]
    """Run -> its own last checkpoint."""

    @property
    def final(self) -> pl.DataFrame:
        """Estimates at ``step``."""
        return self.estimates.filter(pl.col("step") == self.step)

    def at(self, statistic: str, metric: str, run: str, family: str = "all") -> pl.DataFrame:
        """Final estimates of one kind, by dose."""
        return self.final.filter(
            (pl.col("statistic") == statistic)
            & (pl.col("metric") == metric)
            & (pl.col("run") == run)
            & (pl.col("family") == family)
        ).sort("dose")


def analyse(inputs: ReportInputs) -> Results:
    """Every metric at every checkpoint; permutation p-values and controls at the last."""
    steps = inputs.scores.select("run", "step").unique()
    last_steps = {
        str(run): int(step)
        for run, step in steps.group_by("run").agg(pl.col("step").max()).sort("run").iter_rows()
    }
    shared = steps.group_by("step").len().filter(pl.col("len") == len(last_steps))["step"].to_list()
    step = int(max(shared)) if shared else last_steps["perturbed"]
    names = list(dict.fromkeys([*defaults(), inputs.primary]))
    rows = compute(inputs.items, inputs.probes, inputs.scores, names, inputs.parameters)
    used = rows.filter(pl.col("step") <= step)
    frames = [pl.DataFrame(schema=ESTIMATE_SCHEMA)]
    for name in names:
        frames += _of_metric(used.filter(pl.col("metric") == name), name, step, inputs)
    return Results(rows=rows, estimates=pl.concat(frames), step=step, last_steps=last_steps)


def _of_metric(rows: pl.DataFrame, name: str, step: int, inputs: ReportInputs) -> list[pl.DataFrame]:
    rate = METRICS[name].rate
    method: Method = "rate" if rate else "t"
    limits = [pl.col(limit).clip(*METRICS[name].bounds) for limit in ("low", "high")]
    frames = [mean_by_dose(rows, method=method).with_columns(limits)]
    if rows["item_id"].null_count() == rows.height:
        return frames
    # A difference of two 0/1 values is no rate, and a t interval of it can have width 0 wrongly.
    both = rows if rate else pl.concat([rows, difference_to_twin(rows)])
    earlier, final = both.filter(pl.col("step") < step), both.filter(pl.col("step") == step)
    frames.append(gain_over_control(earlier, method=method))
    frames.append(gain_over_control(final, method=method, permutations=inputs.permutations, seed=inputs.seed))
    frames.append(split_controls(final, method=method, seed=inputs.seed))
    if name == inputs.primary:
        frames.append(auc(rows))
    return frames


def effective_dose(results: Results, metric: str, family: str = "all", alpha: float = 0.05) -> int | None:
    """Minimum effective dose at the last checkpoint.

    Judged on the differences from the twin, item by item, where there is one: they differ in the insertions alone,
    while the items of one run also differ in how hard they are.
    """
    paired = results.at("gain", metric, PAIRED, family)
    gains = paired if paired.height else results.at("gain", metric, "perturbed", family)
    return minimum_effective_dose(gains, alpha=alpha)


def not_computed(results: Results) -> pl.DataFrame:
    """What has no value and why: metric, family, reason, probes, checkpoints (over all runs)."""
    missing = results.rows.filter(pl.col("value").is_null())
    probes = missing.group_by("metric", "family", "reason").agg(
        probes=pl.col("probe_id").n_unique(), checkpoints=pl.struct("run", "step").n_unique()
    )
    estimates = results.final.filter(pl.col("low").is_null() & (pl.col("family") != "all"))
    groups = estimates.group_by(
        pl.format("{} ({})", "metric", "statistic").alias("metric"),
        "family",
        pl.col("method").str.strip_prefix("not computed because ").alias("reason"),
    ).agg(probes=pl.lit(None, pl.UInt32), checkpoints=pl.len())
    return pl.concat([probes, groups], how="vertical_relaxed").sort("metric", "family", "reason")


def item_gains(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """Inserted items by what they gained over the twin (or, without one, by their value), highest first."""
    primary = results.rows.filter(
        (pl.col("metric") == inputs.primary)
        & (pl.col("step") == results.step)
        & pl.col("value").is_not_null()
    )
    wide = primary.filter(pl.col("run") == "perturbed").select("item_id", "dose", "family", perturbed="value")
    twin = primary.filter(pl.col("run") == "twin").select("item_id", twin="value")
    return (
        wide.filter(pl.col("dose") > 0)
        .join(twin, on="item_id", how="left")
        .with_columns(gain=pl.col("perturbed") - pl.col("twin"))
        .join(inputs.items.select("item_id", "text"), on="item_id", how="left")
        .sort(pl.coalesce("gain", "perturbed"), "item_id", descending=[True, False])
    )


__all__ = ["PAIRED", "Results", "analyse", "effective_dose", "item_gains", "not_computed"]
