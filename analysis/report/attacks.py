"""Tables of attacks: membership by several scores, and extraction after prompts of several lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import polars as pl

from palimpsest.analysis.attacks.values import KNOWN
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.metrics.scored import gather
from palimpsest.analysis.report.answer import interval, number, p_value
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import ATTACKS, Results
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import auc, gain_over_control, mean_by_dose, per_item, tpr_at_fpr

_FPR = 0.05
_PREFIXES = (0, 4, 8, 16, 32, 64, 128, 256)
_NAMES: Mapping[str, str] = {
    "loglik_per_token": "loss",
    "zlib_ratio": "loss / zlib",
    "min_k_logprob": "Min-K",
    "min_k_plus_plus": "Min-K++",
    "reference_difference": "loss − twin's",
    "negative_loss_ratio": "loss / twin's",
    **{name: attack.label for name, attack in KNOWN.items()},
}


def membership_table(inputs: ReportInputs, results: Results) -> Table:
    """AUC of each attack at each dose, its true positive rate at a low false positive rate, and its test of all items
    of the highest dose as a set (dataset inference; Maini et al. 2021, 2024).
    """
    estimates = auc(results.attacks)
    highest = int(inputs.items["dose"].max())  # type: ignore[arg-type]
    doses = sorted(set(inputs.items["dose"]) - {0})
    areas = {
        (row["run"], row["metric"], row["dose"]): row
        for row in estimates.filter((pl.col("family") == "all") & pl.col("estimate").is_not_null()).iter_rows(
            named=True
        )
    }
    body, lacking = [], []
    asked = [name for name in KNOWN if (results.attacks["metric"] == name).any()]
    sets = _sets(inputs, results, highest)
    for name in (*ATTACKS, *asked):
        if ("perturbed", name, highest) not in areas:
            lacking.append(_NAMES[name])
            continue
        cells = [
            interval(areas[key]) if (key := ("perturbed", name, dose)) in areas else "–" for dose in doses
        ]
        twin = areas.get(("twin", name, highest))
        chance = p_value(sets[name]) if name in sets else "–"
        body.append(
            [_NAMES[name], *cells, interval(twin) if twin else "–", _tpr(results, name, highest), chance]
        )
    note = f" Not computed: {', '.join(lacking)}; “Not computed” says why." if lacking else ""
    if not asked:
        note += f" “palimpsest attack” adds {', '.join(attack.label for attack in KNOWN.values())}."
    return Table(
        [
            *("score", *(f"dose {dose}" for dose in doses), f"twin, dose {highest}"),
            *("true positives, %", "as a set: p"),
        ],
        body,
        "Membership attacks: AUC within families at each dose, and in the twin, which saw no item (0.5 is "
        f"chance). True positives: share of the dose-{highest} items called at a false positive rate of at most "
        f"{100 * _FPR:g} % in each family, with 95 % limits given that threshold (in brackets, what scores "
        f"without information would call). As a set: p, by permutation within strata, that all items of dose {highest} "
        "score no higher than never-inserted ones." + note,
    )


def _sets(inputs: ReportInputs, results: Results, dose: int) -> dict[str, float]:
    """Attack -> one-sided p that the items of a dose score higher than never-inserted ones, in the perturbed run."""
    rows = results.attacks.filter((pl.col("run") == "perturbed") & pl.col("dose").is_in([0, dose]))
    tested = gain_over_control(rows, permutations=inputs.permutations, seed=inputs.seed)
    own = tested.filter((pl.col("family") == "all") & (pl.col("dose") == dose) & pl.col("p").is_not_null())
    return dict(own.select("metric", "p").iter_rows())


def _tpr(results: Results, name: str, dose: int) -> str:
    """True positive rate: share of the members above the threshold set by their family's controls, with limits given
    the threshold.
    """
    rows = per_item(results.attacks.filter((pl.col("metric") == name) & (pl.col("run") == "perturbed")))
    called, chance = [], 0.0
    for _, part in rows.group_by("family", maintain_order=True):
        members, controls = part.filter(pl.col("dose") == dose), part.filter(pl.col("dose") == 0)
        if members.height and controls.height:
            rate = tpr_at_fpr(members["value"].to_numpy(), controls["value"].to_numpy(), _FPR)
            called.append(members.with_columns(value=(pl.col("value") >= rate.threshold).cast(pl.Float64)))
            chance += rate.chance_mean * members.height
    if not called:
        return "–"
    both = pl.concat(called)
    named = both.with_columns(item_id="unit", probe_id="unit")
    row = mean_by_dose(named, bounds=(0.0, 1.0)).filter(pl.col("family") == "all")
    low, high = 100 * row["low"][0], 100 * row["high"][0]
    return (
        f"{number(100 * row['estimate'][0], 0)} [{number(low, 0)}, {number(high, 0)}] "
        f"({number(100 * chance / both.height, 0)})"
    )


def roc_rows(inputs: ReportInputs, results: Results, names: Sequence[str] = ATTACKS) -> pl.DataFrame:
    """Rows of the ROC curves of the attacks ``names``: run (the attack), family, cluster, score, member.

    Members are items of the highest dose, controls those of dose 0, in the perturbed run. Each score is reduced by the
    mean of its family's controls, because families differ even without insertion.
    """
    highest = int(inputs.items["dose"].max())  # type: ignore[arg-type]
    rows = per_item(
        results.attacks.filter((pl.col("run") == "perturbed") & pl.col("metric").is_in(list(names)))
    )
    control = pl.col("dose") == 0
    return (
        rows.filter(control | (pl.col("dose") == highest))
        .with_columns(
            run=pl.col("metric").replace_strict(dict(_NAMES), return_dtype=pl.String),
            score=pl.col("value") - pl.col("value").filter(control).mean().over("metric", "family"),
            member=~control,
        )
        .filter(pl.col("score").is_not_null())
        .filter((pl.col("member").sum() > 1).over("run"), ((~pl.col("member")).sum() > 1).over("run"))
        .select("run", "family", "cluster", "score", "member")
    )


def rates_by_prefix(inputs: ReportInputs, results: Results) -> pl.DataFrame:
    """Rows of :func:`prefix_rows` with a figure's columns: against, x, run (the dose), estimate, low, high, n."""
    return prefix_rows(inputs, results).select(
        pl.lit("prefix").alias("against"),
        pl.col("prefix").alias("x"),
        pl.format("dose {}", "dose").alias("run"),
        "estimate",
        "low",
        "high",
        "n",
    )


def prefix_rows(inputs: ReportInputs, results: Results) -> pl.DataFrame:
    """Extraction of the perturbed run's items at the last checkpoint, by length of context (tokens).

    Returns:
        Columns prefix, dose, extracted, n, estimate, low, high; ``n`` excludes items shorter than prefix plus suffix.
    """
    final = inputs.scores.filter((pl.col("run") == "perturbed") & (pl.col("step") == results.step))
    scored, _ = gather(inputs.items, inputs.probes, final, METRICS["extracted"].needs)
    frames = []
    for prefix in sorted({*_PREFIXES, inputs.parameters.prefix}):
        values = METRICS["extracted"].compute(scored, dataclasses.replace(inputs.parameters, prefix=prefix))
        rows = scored.rows.with_columns(
            metric=pl.lit("extracted"), value=pl.Series(values.value, dtype=pl.Float64)
        )
        rates = mean_by_dose(rows.filter(pl.Series(values.valid, dtype=pl.Boolean)), bounds=(0.0, 1.0))
        frames.append(
            rates.filter(pl.col("family") == "all").select(
                pl.lit(prefix, pl.Int64).alias("prefix"),
                "dose",
                (pl.col("estimate") * pl.col("n")).round().cast(pl.Int64).alias("extracted"),
                "n",
                "estimate",
                "low",
                "high",
            )
        )
    return pl.concat(frames).sort("prefix", "dose")


def prefixes_table(inputs: ReportInputs, results: Results) -> Table:
    """Table of extraction by context length and dose."""
    rows = prefix_rows(inputs, results)
    doses = sorted(inputs.items["dose"].unique())
    cells = {
        (row["prefix"], row["dose"]): f"{row['extracted']} / {row['n']}" for row in rows.iter_rows(named=True)
    }
    body = [
        [str(prefix), *(cells.get((prefix, dose), "–") for dose in doses)]
        for prefix in rows["prefix"].unique().sort()
    ]
    return Table(
        ["context", *(f"dose {dose}" for dose in doses)],
        body,
        f"Extracted items of the perturbed run by tokens of context, {inputs.parameters.suffix} tokens reproduced; of "
        "the items that are long enough.",
        frozenset(),
    )
