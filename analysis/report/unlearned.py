"""Estimates of how far post-trained models are from the leave-out twin, which never saw the forget set.

Values are log-likelihoods a byte of whole texts, in nats. An item's distance is the absolute difference between a model
and the leave-out twin: forgetting too little and forgetting too much are both distances.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from palimpsest.analysis.metrics import compute
from palimpsest.analysis.metrics.unlearning import forget_quality
from palimpsest.analysis.report.inputs import DECLARED
from palimpsest.analysis.statistics import auc, mean_by_dose
from palimpsest.analysis.statistics.clusters import resampled_weights
from palimpsest.analysis.statistics.rows import cluster_of
from palimpsest.insertion.plan import Plan

BEFORE, LEAVE_OUT = "perturbed", "leave_out"
FORGET, OTHERS, NEVER, HELD_OUT = "forget set", "other inserted items", "never inserted", "held-out text"
LOGLIK, EXTRACTION, TRUTH = DECLARED, "extraction_strength", "minus_log_truth_ratio"
MEASURES = (LOGLIK, "heldout_loglik_per_byte", EXTRACTION, TRUTH)
"""The first two are the same measure, of items and of held-out documents."""
REPLICATES = 1000
ESTIMATES = pl.Schema(
    {
        "run": pl.String(),
        "step": pl.Int64(),
        "group": pl.String(),
        "dose": pl.Int64(),
        "statistic": pl.String(),
        "estimate": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "n": pl.UInt32(),
    }
)
"""One row a post-trained run, checkpoint (steps of the method), group of texts and dose (null: all doses). Limits:
95 %, over clusters of items. Statistics, of all groups: ``distance``, mean absolute difference from the leave-out twin;
``shift``, mean difference from it (above 0: likelier than it should be); ``change``, mean difference from the model
before; ``nearer``, mean decrease of the distance since before.

Of the forget set: ``auc`` against never-inserted items, ``leak``, that AUC minus the leave-out twin's (from -1 to 1; 0
is right, and membership shows on either side); ``extraction``, mean extraction strength, and ``extraction_distance``
from the twin's; ``truth_distance``, Kolmogorov-Smirnov distance of truth ratios from the twin's, and its ``truth_p``;
``divergence``, a lower bound of the mean KL divergence of the twin's next-token distribution from the model's, nats a
token; ``half_back``, of runs that relearn: steps until half of what was forgotten is back."""


def value_rows(plan: Plan, scores: pl.DataFrame, forgotten: Sequence[str]) -> pl.DataFrame:
    """Metric rows (:data:`MEASURES`) with their ``group``; beside each ``value`` those of the model ``before`` and of
    the leave-out ``twin``.

    Args:
        plan: items and probes.
        scores: of :data:`BEFORE`, :data:`LEAVE_OUT` (the last checkpoint of either) and the post-trained runs.
        forgotten: ids of the forget set.
    """
    rows = compute(plan.items, plan.probes, scores, MEASURES).filter(pl.col("value").is_not_null())
    group = (
        pl.when(pl.col("item_id").is_null())
        .then(pl.lit(HELD_OUT))
        .when(pl.col("item_id").is_in(list(forgotten)))
        .then(pl.lit(FORGET))
        .when(pl.col("dose") == 0)
        .then(pl.lit(NEVER))
        .otherwise(pl.lit(OTHERS))
    )
    rows = rows.with_columns(
        pl.col("metric").replace("heldout_loglik_per_byte", LOGLIK),
        pl.col("cluster").fill_null(""),
        group=group,
    )
    for run, name in ((BEFORE, "before"), (LEAVE_OUT, "twin")):
        one = rows.filter(pl.col("run") == run).select("metric", "probe_id", pl.col("value").alias(name))
        rows = rows.join(one, on=["metric", "probe_id"], how="left", maintain_order="left")
    return rows


def estimates(rows: pl.DataFrame, scores: pl.DataFrame, relearning: Sequence[str] = ()) -> pl.DataFrame:
    """Estimates (:data:`ESTIMATES`).

    Args:
        rows: of :func:`value_rows`.
        scores: of the same runs, with the log-probabilities of tokens.
        relearning: runs that train on the forget set again.
    """
    of_texts = rows.filter(pl.col("metric") == LOGLIK)
    shift, before = pl.col("value") - pl.col("twin"), pl.col("before") - pl.col("twin")
    statistics = {
        "distance": shift.abs(),
        "shift": shift,
        "change": pl.col("value") - pl.col("before"),
        "nearer": before.abs() - shift.abs(),
    }
    compared = of_texts.filter(pl.col("run") != LEAVE_OUT)
    tables = [
        _means(own.with_columns(value=value), str(group), statistic, by_dose=group in (FORGET, OTHERS))
        for (group,), own in compared.partition_by("group", as_dict=True, maintain_order=True).items()
        for statistic, value in statistics.items()
    ]
    forget = rows.filter(pl.col("group") == FORGET)
    extraction = forget.filter(pl.col("metric") == EXTRACTION)
    tables += [
        _means(extraction, FORGET, "extraction", by_dose=True),
        _means(extraction.with_columns(value=shift.abs()), FORGET, "extraction_distance"),
        _means(divergences(of_texts.filter(pl.col("group") == FORGET), scores), FORGET, "divergence"),
        _areas(of_texts),
        leaks(of_texts),
        truth(forget.filter(pl.col("metric") == TRUTH)),
        half_back(of_texts.filter(pl.col("group") == FORGET), relearning),
    ]
    return pl.concat(tables).sort("run", "step", "group", "statistic", "dose")


def divergences(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Metric rows with the mean over a text's tokens of the KL divergence from the leave-out twin, from below.

    With q and p the probabilities of the text's next token under the twin and under the model, it is
    ``q ln(q/p) + (1-q) ln((1-q)/(1-p))``: all other tokens are taken as one. The divergence of the whole distributions,
    which are not stored, is at least that (data-processing inequality).

    Args:
        rows: the texts, at each checkpoint of each run.
        scores: ``logprob`` of their tokens, ln p.
    """
    texts = rows["probe_id"].unique().implode()
    tokens = scores.filter(pl.col("probe_id").is_in(texts)).select("run", "step", "probe_id", "logprob")
    twin = tokens.filter(pl.col("run") == LEAVE_OUT).select("probe_id", twin="logprob")
    each = tokens.join(twin, on="probe_id").explode("logprob", "twin").drop_nulls()
    ln_p, ln_q = (pl.col(name).cast(pl.Float64).clip(upper_bound=-1e-9) for name in ("logprob", "twin"))
    p, q = ln_p.exp(), ln_q.exp()
    kl = q * (ln_q - ln_p) + (1 - q) * ((1 - q).log() - (1 - p).log())
    means = each.group_by("run", "step", "probe_id").agg(value=kl.mean().clip(0))
    return rows.drop("value").join(means, on=["run", "step", "probe_id"], maintain_order="left")


def _means(rows: pl.DataFrame, group: str, statistic: str, *, by_dose: bool = False) -> pl.DataFrame:
    """Means over all texts, and by dose if asked for."""
    wanted = rows.with_columns(cluster=cluster_of(rows)).with_columns(
        metric=pl.lit(statistic), family=pl.lit("texts"), stratum=pl.lit("texts")
    )
    whole = wanted.with_columns(dose=pl.lit(-1, pl.Int64))
    tables = []
    for part in (whole, wanted) if by_dose else (whole,):
        means = mean_by_dose(part).filter(pl.col("family") == "all")
        if statistic in ("distance", "extraction", "extraction_distance", "divergence"):
            means = means.with_columns(pl.col("low").clip(0))
        tables.append(_shaped(means, group, statistic))
    return pl.concat(tables)


def _areas(rows: pl.DataFrame) -> pl.DataFrame:
    """AUC of the forget set against never-inserted items within families, of every model."""
    both = rows.filter(pl.col("group").is_in([FORGET, NEVER]))
    member = both.with_columns(dose=(pl.col("group") == FORGET).cast(pl.Int64))
    areas = auc(member).filter((pl.col("family") == "all") & pl.col("estimate").is_not_null())
    return _shaped(areas.with_columns(dose=pl.lit(-1, pl.Int64)), FORGET, "auc")


def leaks(rows: pl.DataFrame) -> pl.DataFrame:
    """Each post-trained model's AUC of the forget set against never-inserted items, minus the leave-out twin's (the run
    trained without the forget set). Above 0: the model still gives the set away. Items are ranked by ``value``.

    Limits are 95 % bootstrap percentiles. Clusters of items are drawn with replacement, and both models are judged on
    the items drawn.
    """
    rng = np.random.default_rng(0)
    table = []
    for (run, step), own in rows.partition_by(["run", "step"], as_dict=True, maintain_order=True).items():
        if run == LEAVE_OUT:
            continue
        total, weight = np.zeros(REPLICATES + 1), 0
        for family in own.with_columns(cluster=cluster_of(own)).partition_by("family", maintain_order=True):
            members, others = (
                family.filter(pl.col("group") == group).select("value", "twin", "cluster").drop_nulls()
                for group in (FORGET, NEVER)
            )
            if min(members["cluster"].n_unique(), others["cluster"].n_unique()) < 2:
                continue
            now, twin = (
                _wins(members[name].to_numpy(), others[name].to_numpy()) for name in ("value", "twin")
            )
            weights = [
                resampled_weights(side["cluster"].to_numpy(), REPLICATES, rng) for side in (members, others)
            ]
            total += len(members) * np.einsum("ri,ij,rj->r", weights[0], now - twin, weights[1])
            weight += len(members)
        if weight:
            low, high = np.quantile(total[1:] / weight, [0.025, 0.975])
            table.append((run, step, total[0] / weight, low, high, weight))
    return _listed(table, "leak")


def _wins(members: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where a member is likelier than a non-member, 0.5 where they tie; (members, others)."""
    apart = members[:, None] - others[None, :]
    return np.asarray((apart > 0) + 0.5 * (apart == 0), np.float64)


def truth(rows: pl.DataFrame) -> pl.DataFrame:
    """Distance of the truth ratios of a model from those of the leave-out twin, and the p of their being equal.

    Args:
        rows: metric rows of the forget set, ``value`` and ``twin`` the logarithms of truth ratios, at each checkpoint.
    """
    distances, chances = [], []
    for (run, step), own in rows.partition_by(["run", "step"], as_dict=True, maintain_order=True).items():
        known = own.select("value", "twin", cluster=cluster_of(own)).drop_nulls()
        if run == LEAVE_OUT or known.height < 2:
            continue
        quality = forget_quality(known["value"], known["twin"], known["cluster"])
        limits = (quality.low, quality.high) if known["cluster"].n_unique() > 1 else (None, None)
        distances.append((run, step, quality.distance, *limits, known.height))
        chances.append((run, step, quality.p, None, None, known.height))
    return pl.concat([_listed(distances, "truth_distance"), _listed(chances, "truth_p")])


def half_back(rows: pl.DataFrame, relearning: Sequence[str]) -> pl.DataFrame:
    """Steps until half of the mean log-likelihood that the forget set had lost is back, with 95 % bootstrap limits.

    Linear between checkpoints. Null if it is not back at the last one; 0 if nothing was lost. Clusters of items are
    drawn with replacement. With few of them the percentiles lie outside 2.5 and 97.5, so that the limits are about as
    wide as Student's t would make them (expanded percentiles; Hesterberg 2015).
    """
    rng = np.random.default_rng(0)
    table = []
    for run in relearning:
        own = rows.filter(pl.col("run") == run)
        wide = (
            own.with_columns(cluster=cluster_of(own))
            .pivot("step", index=["probe_id", "cluster", "before"], values="value", sort_columns=False)
            .drop_nulls()
        )
        steps = sorted(own["step"].unique())
        if len(steps) < 2 or not wide.height:
            continue
        weights = resampled_weights(wide["cluster"].to_numpy(), REPLICATES, rng)
        means, before = weights @ wide.select(map(str, steps)).to_numpy(), weights @ wide["before"].to_numpy()
        size = wide["cluster"].n_unique()
        times = [
            _crossing(np.array(steps, float), mean, float(was))
            for mean, was in zip(means, before, strict=True)
        ]
        low = high = np.nan
        if size > 1:
            outside = stats.norm.sf(stats.t.ppf(0.975, size - 1) * np.sqrt(size / (size - 1)))
            low, high = np.quantile(times[1:], [outside, 1 - outside], method="inverted_cdf")
        limits = [float(value) if np.isfinite(value) else None for value in (times[0], low, high)]
        table.append((run, steps[-1], *limits, wide.height))
    return _listed(table, "half_back")


def _crossing(steps: NDArray[np.float64], means: NDArray[np.float64], before: float) -> float:
    """Step at which means reach the middle between the first one and ``before``; inf if they do not."""
    goal = (means[0] + before) / 2
    if before <= means[0]:
        return 0.0
    above = np.flatnonzero(means >= goal)
    if not above.size:
        return float("inf")
    k = int(above[0])
    share = (goal - means[k - 1]) / (means[k] - means[k - 1])
    return float(steps[k - 1] + share * (steps[k] - steps[k - 1]))


def _listed(table: Sequence[tuple[object, ...]], statistic: str) -> pl.DataFrame:
    """Rows of run, step, estimate, limits and number of items as estimates of the forget set at all doses."""
    names = ("run", "step", "estimate", "low", "high", "n")
    frame = pl.DataFrame(table, schema={name: ESTIMATES[name] for name in names}, orient="row")
    return _shaped(frame.with_columns(dose=pl.lit(-1, pl.Int64)), FORGET, statistic)


def _shaped(found: pl.DataFrame, group: str, statistic: str) -> pl.DataFrame:
    dose = pl.when(pl.col("dose") < 0).then(None).otherwise(pl.col("dose"))
    table = found.with_columns(group=pl.lit(group), statistic=pl.lit(statistic), dose=dose)
    return table.select(ESTIMATES.names()).cast(ESTIMATES)
