"""Estimates for each question of the families besides the whole text."""

from __future__ import annotations

import polars as pl

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.metrics.watermark import combined_p
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.statistics import (
    ESTIMATE_SCHEMA,
    PAIRED,
    difference_to_twin,
    gain_over_control,
    mean_by_dose,
    per_item,
)

QUESTION_SCHEMA = {"question": pl.String, "chance": pl.Float64, **ESTIMATE_SCHEMA}
"""Estimate rows by family and question; ``chance`` is the value of guessing, null if unknown."""


def question_estimates(rows: pl.DataFrame, step: int, inputs: ReportInputs) -> pl.DataFrame:
    """Means by dose at every checkpoint up to ``step``; at ``step`` also gains over dose 0 and rank tests.

    Means are of each run, gains of each run and of the items' differences from the twin. Permutation tests are of the
    differences, or of the perturbed run if it has no twin. A ``rank_test`` row is of one run and dose: it combines the
    exact p-values of the items, each from the rank of its text among its foils, by Fisher's method, which is
    conservative for discrete p-values.

    Returns:
        Rows of ``QUESTION_SCHEMA``.
    """
    asked = [
        name for name, estimates in METRICS.items() if estimates.by_question or estimates.needs == ("cloze",)
    ]
    # The statistics group by metric: what is asked is made part of its name.
    keys = ["metric", "family", "question"]
    used = rows.filter(pl.col("metric").is_in(asked) & (pl.col("step") <= step)).with_columns(
        metric=pl.concat_str(keys, separator="\0")
    )
    frames = [pl.DataFrame(schema=ESTIMATE_SCHEMA), _rank_tests(used, step)]
    for bounds in sorted({METRICS[name].bounds for name in asked}):
        of_kind = [name for name in asked if METRICS[name].bounds == bounds]
        part = used.filter(pl.col("metric").str.split("\0").list.get(0).is_in(of_kind))
        if part.is_empty():
            continue
        final = part.filter(pl.col("step") == step)
        final = pl.concat([final, difference_to_twin(final)])
        # The permutation test is of the comparison that the tables show.
        decides = pl.col("run") == (PAIRED if (final["run"] == PAIRED).any() else "perturbed")
        tested, others = final.filter(decides), final.filter(~decides)
        frames += [
            mean_by_dose(part, bounds=bounds),
            gain_over_control(tested, bounds=bounds, permutations=inputs.permutations, seed=inputs.seed),
            gain_over_control(others, bounds=bounds),
        ]
    estimates = pl.concat(frames).filter(pl.col("family") == "all")
    parts = pl.col("metric").str.split("\0")
    with_reasons = estimates.with_columns(
        metric=parts.list.get(0), family=parts.list.get(1), question=parts.list.get(2)
    ).join(_chances(inputs.probes), on=keys, how="left")
    return (
        _bounded(with_reasons)
        .select([pl.col(name).cast(dtype) for name, dtype in QUESTION_SCHEMA.items()])
        .sort("family", "question", "metric", "statistic", "run", "step", "dose")
    )


def _rank_tests(used: pl.DataFrame, step: int) -> pl.DataFrame:
    items = per_item(
        used.filter((pl.col("step") == step) & pl.col("metric").str.starts_with("rank_test_bits\0"))
    )
    tests = [
        (
            *keys,
            "rank_test",
            "all",
            part["value"].mean(),
            part.height,
            combined_p(2.0 ** -part["value"].to_numpy()),
        )
        for keys, part in items.partition_by(
            ["run", "step", "metric", "dose"], as_dict=True, maintain_order=True
        ).items()
    ]
    names = ["run", "step", "metric", "dose", "statistic", "family", "estimate", "n", "p"]
    frame = pl.DataFrame(tests, schema={name: ESTIMATE_SCHEMA[name] for name in names}, orient="row")
    return frame.with_columns(
        pl.lit("Fisher's combination of exact rank tests").alias("method"),
        *(pl.lit(None, pl.Float64).alias(name) for name in ("low", "high")),
        *(pl.lit(None, pl.Int64).alias(name) for name in ("n_control", "clusters", "clusters_control")),
    ).select(list(ESTIMATE_SCHEMA))


def _chances(probes: pl.DataFrame) -> pl.DataFrame:
    """Expected score of guessing: 1 / number of choices, or 1/2 for foils."""
    question = pl.col("name").str.replace(r" #.*$", "")
    choices = (
        probes.filter(pl.col("kind") == "choice")
        .group_by("item_id", "family", "name")
        .agg(share=1 / pl.len())
        .group_by("family", question.alias("question"))
        .agg(chance=pl.col("share").mean())
    )
    foils = (
        probes.filter(pl.col("kind") == "foil")
        .select("family", question=question, chance=pl.lit(0.5))
        .unique()
    )
    measures = [name for name in METRICS if name.startswith("choice_") and name != "choice_exposure"]
    return pl.concat(
        [choices.with_columns(metric=pl.lit(name)) for name in measures]
        + [foils.with_columns(metric=pl.lit("recognition_2afc"))]
    )


def _bounded(estimates: pl.DataFrame) -> pl.DataFrame:
    """Interval limits clipped to the range of possible means."""
    for name, (low, high) in {name: METRICS[name].bounds for name in estimates["metric"].unique()}.items():
        here = (pl.col("metric") == name) & (pl.col("statistic") == "mean")
        estimates = estimates.with_columns(
            [pl.when(here).then(pl.col(limit).clip(low, high)).otherwise(limit) for limit in ("low", "high")]
        )
    return estimates
