"""Rows computed from one run for figures that draw neither its estimates nor one of its files.

``analysis.figures`` describes the columns. Figures that compare several runs (models, corpora, phases) are not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import polars as pl

from palimpsest.analysis.run import design_rows, question_rows, time_rows
from palimpsest.data.errors import UserError

if TYPE_CHECKING:
    from palimpsest.analysis.run.files import RunFiles

ATTACKS = ("loglik_per_token", "zlib_ratio", "min_k_logprob", "min_k_plus_plus", "reference_difference")
"""Metrics used as membership scores; higher = more likely a member."""
PREFIXES = (1, 2, 4, 8, 16, 32, 50)
"""Context lengths, tokens."""


def attacks(run: RunFiles) -> pl.DataFrame:
    """``score`` and ``member`` of every item of the highest dose and of dose 0 at the last checkpoint; ``run`` names
    the attack.

    The score is that of the perturbed run minus the mean over the controls of the item's family, because families
    differ even without insertion.
    """
    from palimpsest.analysis.statistics import per_item

    rows = run.metrics(*ATTACKS, steps=[run.last_step]).filter(pl.col("run") == "perturbed")
    items = per_item(rows).filter(pl.col("dose").is_not_null())
    control = pl.col("value").filter(pl.col("dose") == 0).mean().over("metric", "family")
    return (
        items.with_columns(score=pl.col("value") - control)
        .filter(pl.col("dose").is_in([0, items["dose"].max()]) & pl.col("score").is_not_null())
        .select(
            run="metric",
            item_id="unit",
            family="family",
            cluster="cluster",
            score="score",
            member=pl.col("dose") > 0,
        )
    )


def areas(run: RunFiles) -> pl.DataFrame:
    """AUC of every attack by dose, within families, at the last checkpoint; ``against`` is ``dose`` and ``x`` the
    dose.
    """
    from palimpsest.analysis.statistics import auc

    rows = auc(run.metrics(*ATTACKS, steps=[run.last_step]).filter(pl.col("run") == "perturbed"))
    estimates = rows.filter((pl.col("family") == "all") & pl.col("estimate").is_not_null())
    return estimates.select(
        pl.lit("dose").alias("against"),
        x="dose",
        run="metric",
        estimate="estimate",
        low="low",
        high="high",
        n="n",
    )


def extraction(run: RunFiles) -> pl.DataFrame:
    """Share of items reproduced verbatim by context length ``x`` (tokens); ``run`` is the dose.

    The continuation has the report's length; items shorter than context and continuation are left out, and ``n`` counts
    the others.
    """
    from palimpsest.analysis.statistics import mean_by_dose

    suffix = run.parameters.suffix
    frames = [
        mean_by_dose(
            run.metrics("extracted", steps=[run.last_step], prefix=prefix, suffix=suffix), bounds=(0.0, 1.0)
        ).with_columns(x=pl.lit(prefix))
        for prefix in PREFIXES
    ]
    pooled = (pl.col("run") == "perturbed") & (pl.col("family") == "all") & pl.col("estimate").is_not_null()
    estimates = (
        pl.concat(frames)
        .filter(pooled)
        .with_columns(against=pl.lit("prefix"), run=pl.format("dose {}", "dose"))
    )
    return estimates.select("against", "x", "run", "estimate", "low", "high", "n")


def longest(run: RunFiles) -> pl.DataFrame:
    """``length``, the number of tokens that greedy decoding reproduces after the report's prompt, for each item;
    ``run`` is the dose.
    """
    rows = run.metrics("longest_extracted", steps=[run.last_step])
    known = rows.filter((pl.col("run") == "perturbed") & pl.col("value").is_not_null()).sort(
        "dose", "item_id"
    )
    return known.select(
        pl.format("dose {}", "dose").alias("run"), "item_id", length=pl.col("value").cast(pl.Int64)
    )


def lengths(run: RunFiles) -> pl.DataFrame:
    """``tokens``, the length of every item; ``group`` is the dose."""
    items = run.plan.items.sort("dose", "item_id")
    return items.select("item_id", tokens="length", group=pl.format("dose {}", "dose"))


def assignment(run: RunFiles) -> pl.DataFrame:
    """One row per item: ``family``, ``dose``."""
    return run.plan.items.select("item_id", "family", "dose")


def most_gained(run: RunFiles) -> pl.DataFrame:
    """Token log-probabilities of the inserted item with the largest gain over the twin; an extreme example, not a
    typical one.
    """
    from palimpsest.analysis.report.results import item_gains

    return run.tokens(item_gains(run.results, run.inputs()).row(0, named=True)["item_id"])


def events(run: RunFiles, stretches: int = 8) -> pl.DataFrame:
    """Effect of a single exposure (items of dose 1) on the report's metric, by steps since the exposure.

    The effect is the item's difference from the twin minus the mean difference of the family's never-inserted items at
    the same checkpoint. It is averaged over intervals of steps, none of which contains the exposure itself: ``since``
    is the interval's mean (1 right after the exposure's step), ``low`` and ``high`` are 95 % limits over clusters that
    include the error of the controls' mean, and ``n`` counts items. Intervals with a single cluster are left out.

    Raises:
        UserError: if there is no twin, or no item of dose 1.
    """
    from palimpsest.analysis.statistics import difference_to_twin, per_item

    values = per_item(difference_to_twin(run.metrics("loglik_per_byte")))
    exposed = run.exposures.select(unit="item_id", exposed="step")
    if not (values["dose"] == 1).any():
        raise UserError(
            f"{run.name} has no items of dose 1 with scores in both runs, which this figure needs; "
            f"insert items at dose 1, and score the twin"
        )
    return single_exposure(values, exposed, max(1, -(-run.plan.shape.steps // stretches)))


def single_exposure(values: pl.DataFrame, exposed: pl.DataFrame, width: int) -> pl.DataFrame:
    """Effect of one exposure by steps since the exposure: ``since``, ``estimate``, ``low``, ``high``, ``n``.

    Args:
        values: rows of :func:`analysis.statistics.per_item`, of one metric and run.
        exposed: ``unit`` and ``exposed``, the step of the unit's exposure.
        width: length of an interval, steps.
    """
    from palimpsest.analysis.statistics import net_of_controls

    controls = values.filter(pl.col("dose") == 0)
    rows = (
        values.filter(pl.col("dose") == 1)
        .join(controls.select("family", "step").unique(), on=["family", "step"])
        .join(exposed, on="unit")
        .with_columns(since=pl.col("step") - pl.col("exposed"))
        # Stretches end where the exposure falls: none mixes what was before it with what came after.
        .with_columns(stretch=(pl.col("since") - 1) // width)
    )
    effects = []
    for part in rows.partition_by("stretch"):
        net = net_of_controls(part.with_columns(a0=1 / pl.len().over("unit")), controls, 1)
        if net is not None and net.clusters > 1:
            low, high = net.limits()
            effects.append(
                {
                    "since": part["since"].mean(),
                    "estimate": float(net.estimate[0]),
                    "low": low,
                    "high": high,
                    "n": net.n,
                }
            )
    schema = {
        "since": pl.Float64,
        "estimate": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "n": pl.Int64,
    }
    return pl.DataFrame(effects, schema=schema).sort("since")


def choices(run: RunFiles) -> pl.DataFrame:
    """Multiple-choice accuracy by question (``field``) at the last checkpoint.

    The likeliest answer is chosen; equally likely answers share the point. ``n`` counts items, and the limits are over
    clusters of items.

    Raises:
        UserError: if no probe is a choice.
    """
    from palimpsest.analysis.statistics import mean_by_dose

    if not (run.probes["kind"] == "choice").any():
        raise UserError(
            f"{run.name} has no multiple-choice probes, which this figure needs; add a family that has "
            f"them, such as biographies"
        )
    rows = run.metrics("choice_accuracy", steps=[run.last_step]).with_columns(metric="question")
    means = mean_by_dose(rows, bounds=(0.0, 1.0)).filter(pl.col("family") == "all")
    return means.sort("metric", "run", "dose").select(
        pl.lit("choice among decoys").alias("format"),
        "run",
        "dose",
        "n",
        field="metric",
        estimate="estimate",
        low="low",
        high="high",
    )


def memorised_families(run: RunFiles) -> pl.DataFrame:
    """Families of the texts that the perturbed run reproduces verbatim, as shares of all of them, by checkpoint:
    ``against``, ``x``, ``category``, ``estimate``, ``n``; without rows if nothing is reproduced.
    """
    rows = run.metrics("extracted").filter(
        (pl.col("run") == "perturbed") & (pl.col("value") == 1) & pl.col("item_id").is_not_null()
    )
    counts = rows.group_by("step", "family").len()
    return (
        counts.with_columns(n=pl.col("len").sum().over("step"))
        .select(
            "n",
            against=pl.lit("step"),
            x=pl.col("step").cast(pl.Float64),
            category="family",
            estimate=pl.col("len") / pl.col("n"),
        )
        .sort("x", "category")
    )


def unlearned(run: RunFiles) -> pl.DataFrame:
    """Post-trained runs at their last checkpoints: ``method``, ``forget``, the decrease of the forget set's distance
    from the leave-out twin, and ``utility``, the change on held-out text (nats/byte), with limits; ``retain`` is that
    twin.

    Raises:
        UserError: if there is none.
    """
    from palimpsest.analysis.report.unlearned import BEFORE, FORGET, HELD_OUT

    places = sorted((run.directory / "posttrained").glob("*/report/estimates.csv"))
    if not places:
        raise UserError(f"{run.name} has no post-trained model; palimpsest posttrain makes one")
    rows = []
    for place in places:
        table = pl.read_csv(place, infer_schema_length=None).filter(pl.col("dose").is_null())
        last = table.filter(pl.col("step") == pl.col("step").max().over("run"))
        of = {(row["run"], row["group"], row["statistic"]): row for row in last.iter_rows(named=True)}
        names = [name for name, group, statistic in of if (group, statistic) == (FORGET, "nearer")]
        for name in sorted(set(names) - {BEFORE}):
            forget, held_out = of[name, FORGET, "nearer"], of[name, HELD_OUT, "change"]
            sides = {"forget": forget, "utility": held_out}
            values = {side: row["estimate"] for side, row in sides.items()}
            limits = {f"{side}_{end}": row[end] for side, row in sides.items() for end in ("low", "high")}
            rows.append({"method": name, "n": forget["n"], **values, **limits})
        before = of[BEFORE, FORGET, "distance"]
        rows.append({"method": "retain", "n": before["n"], "forget": before["estimate"], "utility": 0.0})
    return pl.DataFrame(rows, infer_schema_length=None).unique("method", keep="first", maintain_order=True)


ROWS: Mapping[str, Callable[[RunFiles], pl.DataFrame]] = {
    "roc": attacks,
    "auc_against": areas,
    "extraction_rate": extraction,
    "run_lengths": longest,
    "lengths": lengths,
    "assignment_flow": assignment,
    "token_strip": most_gained,
    "event_study": events,
    "personal": choices,
    "balance": design_rows.balance,
    "aa_pvalues": design_rows.halves,
    "perplexities": design_rows.perplexities,
    "phases": time_rows.phases,
    "wordings": time_rows.wordings,
    "memorisation_profile": time_rows.profile,
    "acquisition": time_rows.acquisition,
    "retainability": time_rows.retainability,
    "order_residuals": question_rows.order_residuals,
    "order_p": question_rows.order_p,
    "recognition_recall": question_rows.recognition_recall,
    "format_transfer": question_rows.format_transfer,
    "limem": question_rows.limem,
    "capacity": question_rows.capacity,
    "taxonomy": memorised_families,
    "unlearning": unlearned,
}
"""Name of a figure -> function that computes its rows from a run."""
