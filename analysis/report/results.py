"""Numbers of a report: metric rows and the estimates from them, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.attacks.values import attack_rows
from palimpsest.analysis.metrics import METRICS, compute, defaults
from palimpsest.analysis.report.generated import Generated, generated_estimates
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.questions import question_estimates
from palimpsest.analysis.statistics import (
    ESTIMATE_SCHEMA,
    PAIRED,
    Ec50,
    auc,
    clustered_ec50,
    curve_ec50,
    difference_to_twin,
    gain_over_control,
    mean_by_dose,
    minimum_effective_dose,
    per_item,
    profile_ec50,
    split_controls,
)

ATTACKS = (
    "loglik_per_token",
    "zlib_ratio",
    "min_k_logprob",
    "min_k_plus_plus",
    "reference_difference",
    "negative_loss_ratio",
)
"""Metrics used as membership scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Metric rows of a run's checkpoints (of the perturbed run and the twin), and the estimates made from them."""

    rows: pl.DataFrame
    """Metric rows, including those without a value."""
    estimates: pl.DataFrame
    """Estimate rows of all runs, checkpoints and metrics, up to ``step``."""
    step: int
    """Step of the last checkpoint that all runs have; headline numbers refer to it."""
    last_steps: dict[str, int]
    """Run -> its own last checkpoint."""
    ec50: pl.DataFrame
    """EC50s at ``step`` (:func:`half_effects`)."""
    strata: pl.DataFrame
    """Gains within each stratum at ``step``, if families have several strata (:func:`strata_gains`)."""
    arms: pl.DataFrame
    """Gains by arm at ``step``, if arms differ in more than the dose (:func:`arm_gains`)."""
    attacks: pl.DataFrame
    """Metric rows at ``step`` of the membership scores: ``ATTACKS``, and those with passes of their own, if any."""
    questions: pl.DataFrame
    """Estimates by question (:func:`~analysis.report.questions.question_estimates`)."""
    generated: Generated | None = None
    """Estimates of generated text; None where none was generated."""

    @property
    def final(self) -> pl.DataFrame:
        """Estimates at ``step``."""
        return self.estimates.filter(pl.col("step") == self.step)

    def at(self, statistic: str, metric: str, run: str, family: str = "all") -> pl.DataFrame:
        """Estimates at ``step`` of one statistic, by dose."""
        return self.final.filter(
            (pl.col("statistic") == statistic)
            & (pl.col("metric") == metric)
            & (pl.col("run") == run)
            & (pl.col("family") == family)
        ).sort("dose")


def analyse(inputs: ReportInputs) -> Results:
    """Compute every metric and its estimates at every checkpoint; p-values and the negative control only at the
    last.
    """
    steps = inputs.scores.select("run", "step").unique()
    last_steps = {
        str(run): int(step)
        for run, step in steps.group_by("run").agg(pl.col("step").max()).sort("run").iter_rows()
    }
    shared = steps.group_by("step").len().filter(pl.col("len") == len(last_steps))["step"].to_list()
    step = int(max(shared)) if shared else last_steps["perturbed"]
    names = list(dict.fromkeys([*defaults(), inputs.primary, *inputs.metrics]))
    rows = compute(inputs.items, inputs.probes, inputs.scores, names, inputs.parameters)
    used = rows.filter(pl.col("step") <= step)
    frames = [pl.DataFrame(schema=ESTIMATE_SCHEMA)]
    for name in (name for name in names if not METRICS[name].by_question):
        frames += _of_metric(used.filter(pl.col("metric") == name), name, step, inputs)
    final = inputs.scores.filter(pl.col("step") == step)
    attacks = compute(inputs.items, inputs.probes, final, ATTACKS, inputs.parameters)
    if inputs.attacked is not None:
        own = inputs.attacked.filter(pl.col("step") == step)
        attacks = pl.concat([attacks, attack_rows(inputs.items, inputs.probes, own)])
    at_end = rows.filter(pl.col("step") == step)
    return Results(
        rows=rows,
        ec50=half_effects(at_end, inputs),
        strata=strata_gains(at_end, inputs),
        estimates=pl.concat(frames),
        step=step,
        last_steps=last_steps,
        arms=arm_gains(at_end, inputs),
        attacks=attacks,
        questions=question_estimates(rows, step, inputs),
        generated=generated_estimates(inputs),
    )


def _of_metric(rows: pl.DataFrame, name: str, step: int, inputs: ReportInputs) -> list[pl.DataFrame]:
    bounds = METRICS[name].bounds
    limits = [pl.col(limit).clip(*bounds) for limit in ("low", "high")]
    frames = [mean_by_dose(rows, bounds=bounds).with_columns(limits)]
    if rows["item_id"].null_count() == rows.height:
        return frames
    both = pl.concat([rows, difference_to_twin(rows)])
    earlier, final = both.filter(pl.col("step") < step), both.filter(pl.col("step") == step)
    frames.append(mean_by_dose(final.filter(pl.col("run") == PAIRED), bounds=bounds))
    frames.append(gain_over_control(earlier, bounds=bounds))
    frames.append(gain_over_control(final, bounds=bounds, permutations=inputs.permutations, seed=inputs.seed))
    frames.append(split_controls(final, bounds=bounds, seed=inputs.seed))
    if name in (inputs.primary, *inputs.metrics):
        frames.append(auc(rows))
    return frames


def effective_dose(results: Results, metric: str, family: str = "all", alpha: float = 0.05) -> int | None:
    """Minimum effective dose at the last checkpoint: the lowest that is significant together with all higher ones, by
    :func:`~analysis.statistics.dose_response.minimum_effective_dose`; None if not even the highest is.

    The test uses the items' differences from the twin if there is one, because these are not affected by differences in
    difficulty between items.
    """
    paired = results.at("gain", metric, PAIRED, family)
    gains = paired if paired.height else results.at("gain", metric, "perturbed", family)
    return minimum_effective_dose(gains, alpha=alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """Verbatim reproduction of the perturbed run at the last checkpoint, among items long enough to test."""

    dose: int
    """The highest dose tested."""
    extracted: int
    tested: int
    above_control: bool
    """True if significantly more is reproduced than at dose 0, by the closed test (:func:`effective_dose`)."""
    extracted_inserted: int
    tested_inserted: int
    """Number of items tested, of all doses above 0 together; ``extracted_inserted`` of these were reproduced."""
    anywhere: bool
    """True if any item, of any dose and in either run, was extracted."""
    limit: float
    """Upper 95 % confidence limit of the share extracted at ``dose``."""
    limit_inserted: float
    """Upper 95 % confidence limit of the share extracted, for all doses above 0 together."""


def extraction(results: Results, alpha: float = 0.05) -> Extraction | None:
    """Verbatim extraction of inserted items; None if no inserted item was long enough to test.

    Args:
        results: numbers of the report.
        alpha: significance level of the closed test.
    """
    rates = results.at("mean", "extracted", "perturbed").with_columns(hits=pl.col("estimate") * pl.col("n"))
    inserted = rates.filter((pl.col("dose") > 0) & pl.col("estimate").is_not_null()).sort("dose")
    if inserted.is_empty():
        return None
    row = inserted.row(-1, named=True)
    ours = results.rows.filter(
        (pl.col("metric") == "extracted")
        & (pl.col("run") == "perturbed")
        & (pl.col("step") == results.step)
        & (pl.col("dose") > 0)
    )
    together = mean_by_dose(ours.with_columns(dose=pl.lit(1, pl.Int32)), bounds=(0.0, 1.0)).filter(
        pl.col("family") == "all"
    )
    twin = results.at("mean", "extracted", "twin")
    return Extraction(
        dose=row["dose"],
        extracted=round(row["hits"]),
        tested=row["n"],
        above_control=effective_dose(results, "extracted", alpha=alpha) is not None,
        extracted_inserted=round(inserted["hits"].sum()),
        tested_inserted=int(inserted["n"].sum()),
        anywhere=bool((pl.concat([rates["estimate"], twin["estimate"]]) > 0).any()),
        limit=row["high"],
        limit_inserted=float(together["high"][0]),
    )


def arm_gains(rows: pl.DataFrame, inputs: ReportInputs) -> pl.DataFrame:
    """Gain of each arm: mean of its items' values minus that of the items of dose 0, over all families.

    A value is the primary metric's difference between the perturbed run and its twin or, without a twin, its value in
    the perturbed run.

    Args:
        rows: metric rows of both runs (``METRIC_SCHEMA``).
        inputs: gives the items' arms, the primary metric and the settings of the statistics.

    Returns:
        Rows of ``ESTIMATE_SCHEMA`` with the column ``arm``; none if arms differ in the dose alone, for these are the
        gains by dose.
    """
    arms = inputs.items.filter(pl.col("dose") > 0).select("arm", "dose").unique().sort("dose", "arm")
    rows = rows.filter((pl.col("metric") == inputs.primary) & pl.col("dose").is_not_null())
    if (rows["run"] == "twin").any():
        rows = difference_to_twin(rows)
    rows = rows.filter(pl.col("run") != "twin")
    if arms.height == arms["dose"].n_unique() or rows.is_empty():
        return pl.DataFrame(schema={"arm": pl.String, **ESTIMATE_SCHEMA})
    # The statistics group by dose: number the arms in its place.
    arms = arms.with_columns(number=pl.int_range(1, pl.len() + 1, dtype=pl.Int32))
    of_item = inputs.items.select("item_id", "arm").join(arms.select("arm", "number"), on="arm", how="left")
    numbered = rows.join(of_item.select("item_id", "number"), on="item_id").with_columns(
        dose=pl.col("number").fill_null(0)
    )
    gains = gain_over_control(
        numbered.select(rows.columns),
        bounds=METRICS[inputs.primary].bounds,
        permutations=inputs.permutations,
        seed=inputs.seed,
    ).filter(pl.col("family") == "all")
    named = gains.rename({"dose": "number"}).join(arms, on="number", how="left").sort("number")
    return named.select("arm", *ESTIMATE_SCHEMA)


EC50_SCHEMA = {
    "metric": pl.String,
    "run": pl.String,
    "ec50": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "slope": pl.Float64,
    "shown": pl.String,
    "method": pl.String,
}
"""Columns of the EC50 table, one row per metric and run: the EC50, its 95 % limits (null if it is not reached or there
is no such limit), the slope per doubling, the printed text, and the method or the reason why it was not computed."""


def half_effects(rows: pl.DataFrame, inputs: ReportInputs) -> pl.DataFrame:
    """EC50 of the primary metric and of verbatim extraction, by run, and of the differences from the twin.

    Args:
        rows: metric rows at the last checkpoint.
        inputs: inputs of the report.

    Returns:
        Rows of ``EC50_SCHEMA``. The twin has no exposures, so that its EC50 should not be reached.
    """
    table = []
    for metric in dict.fromkeys((inputs.primary, "extracted")):
        own = rows.filter((pl.col("metric") == metric) & pl.col("dose").is_not_null())
        both = own if METRICS[metric].rate else pl.concat([own, difference_to_twin(own)])
        for run in (PAIRED, "perturbed", "twin"):
            items = per_item(both.filter(pl.col("run") == run))
            if items.height:
                table.append(
                    {"metric": metric, "run": run} | _half(items, METRICS[metric].rate, inputs.alpha)
                )
    return pl.DataFrame(table, schema=EC50_SCHEMA)


def _half(items: pl.DataFrame, rate: bool, alpha: float) -> dict[str, object]:
    value, dose, stratum, cluster = (
        items[name].to_numpy() for name in ("value", "dose", "stratum", "cluster")
    )
    levels = np.unique(dose)
    least = 3 if rate else 4
    try:
        if levels.size < least:
            raise ValueError(f"{least} or more doses are needed, not {levels.size}")
        if rate:
            table = items.group_by("dose").agg(pl.col("value").sum(), n=pl.len()).sort("dose")
            fit = profile_ec50(levels, table["value"].to_numpy(), table["n"].to_numpy(), alpha=alpha)
            if items["cluster"].n_unique() < items.height:
                fit = _of_clusters(items, levels, fit)
        else:
            fit = curve_ec50(value, dose, stratum, cluster, alpha=alpha)
    except ValueError as error:
        reason = f"not computed because {error}"
        return {"ec50": None, "low": None, "high": None, "slope": None, "shown": "–", "method": reason}
    numbers = {"ec50": fit.estimate, "low": fit.low, "high": fit.high, "slope": fit.slope}
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()} | {
        "shown": fit.text,
        "method": fit.method,
    }


def _of_clusters(items: pl.DataFrame, levels: NDArray[np.float64], fit: Ec50) -> Ec50:
    """EC50 of a rate, with limits over clusters."""
    if np.isinf(fit.estimate):
        return fit
    own = items.group_by("cluster", "dose").agg(pl.col("value").sum(), n=pl.len()).sort("cluster", "dose")
    row = own["cluster"].rank("dense").to_numpy().astype(np.int64) - 1
    column = np.searchsorted(levels, own["dose"].to_numpy())
    hits, trials = np.zeros((2, row.max() + 1, levels.size))
    hits[row, column], trials[row, column] = own["value"].to_numpy(), own["n"].to_numpy()
    robust = clustered_ec50(levels, hits, trials)
    return fit._replace(
        low=float(robust.low), high=float(robust.high), method="maximum likelihood, sandwich over clusters"
    )


def strata_gains(rows: pl.DataFrame, inputs: ReportInputs) -> pl.DataFrame:
    """Gain of every dose over dose 0 within each stratum, for families with several strata.

    Returns:
        Estimate rows of the primary metric with the stratum as ``family``, for the differences from the twin or,
        without a twin, the perturbed run. The p-values are not corrected for the number of strata.
    """
    own = rows.filter((pl.col("metric") == inputs.primary) & pl.col("dose").is_not_null())
    if (own["run"] == "twin").any():
        own = difference_to_twin(own)
    several = own.group_by("family").agg(pl.col("stratum").n_unique()).filter(pl.col("stratum") > 1)["family"]
    own = own.filter((pl.col("run") != "twin") & pl.col("family").is_in(several.to_list()))
    if own.is_empty():
        return pl.DataFrame(schema=ESTIMATE_SCHEMA)
    gains = gain_over_control(own.with_columns(family="stratum"), bounds=METRICS[inputs.primary].bounds)
    return gains.filter((pl.col("family") != "all") & pl.col("estimate").is_not_null())


def not_computed(results: Results) -> pl.DataFrame:
    """Counts of missing values: metric, family, reason, probes, checkpoints (over all runs)."""
    # The twin is no reference to itself, which needs no saying.
    attacks = results.attacks.filter(
        ~pl.col("metric").is_in(results.rows["metric"].unique().to_list())
        & ~(
            (pl.col("run") == "twin")
            & pl.col("metric").is_in(["reference_difference", "negative_loss_ratio"])
        )
    )
    missing = pl.concat([results.rows, attacks]).filter(pl.col("value").is_null())
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


def item_values(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """Value of the primary metric for each item at the last checkpoint: item_id, dose, family, perturbed, twin, gain.

    ``twin`` is null without a twin. ``gain`` is perturbed - twin (or, without a twin, perturbed), minus the mean of
    that over the family's items of dose 0. These were never inserted: what they gained, the model learned of the
    family's format. ``gain`` is null in families without items of dose 0.
    """
    own = (pl.col("metric") == inputs.primary) & (pl.col("step") == results.step)
    return values_of(results.rows.filter(own))


def values_of(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns of :func:`item_values` from metric rows of one metric and checkpoint."""
    values = (
        rows.filter(pl.col("value").is_not_null())
        .group_by("run", "item_id", "dose", "family")
        .agg(pl.col("value").mean())
    )
    ours = values.filter(pl.col("run") == "perturbed").select("item_id", "dose", "family", perturbed="value")
    twin = values.filter(pl.col("run") == "twin").select("item_id", twin="value")
    base = pl.col("perturbed") - pl.col("twin") if twin.height else pl.col("perturbed")
    never = base.filter(pl.col("dose") == 0).mean().over("family")
    return ours.join(twin, on="item_id", how="left").with_columns(gain=base - never)


def item_gains(results: Results, inputs: ReportInputs) -> pl.DataFrame:
    """Inserted items with their texts, sorted by ``gain`` (defined at :func:`item_values`), highest first."""
    return (
        item_values(results, inputs)
        .filter(pl.col("dose") > 0)
        .join(inputs.items.select("item_id", "text"), on="item_id", how="left")
        .sort("gain", "item_id", descending=[True, False], nulls_last=True)
    )


__all__ = [
    "PAIRED",
    "Extraction",
    "Results",
    "analyse",
    "arm_gains",
    "effective_dose",
    "extraction",
    "item_gains",
    "item_values",
    "not_computed",
    "values_of",
]
