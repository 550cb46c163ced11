"""Tables of the design: items by dose, covariate balance, detectable effects, and exposures over training."""

from __future__ import annotations

import itertools
from typing import Any

import polars as pl

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report.answer import number, p_value
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import Results, item_values
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import effect_shown

_PARTS = 10
"""Number of equal intervals of training in the table of exposures."""


def design_table(inputs: ReportInputs) -> Table:
    """Table of the numbers of items by family and dose."""
    doses = sorted(inputs.items["dose"].unique())
    counts = {(f, d): n for f, d, n in inputs.items.group_by("family", "dose").len().iter_rows()}
    body = [
        [f, *(str(counts.get((f, d), 0)) for d in doses), str(sum(counts.get((f, d), 0) for d in doses))]
        for f in sorted(inputs.items["family"].unique())
    ]
    body.append(
        [
            "all",
            *(str(sum(n for (_, d2), n in counts.items() if d2 == d)) for d in doses),
            str(inputs.items.height),
        ]
    )
    strata = inputs.items["stratum"].n_unique()
    caption = f"Items by family and dose, randomised within {strata} strata."
    if inputs.released is not None:
        caption = (
            f"Items by family and dose, as declared; {strata} strata. Who got which is the authors' word."
        )
    return Table(["family", *(f"dose {d}" for d in doses), "all"], body, caption)


def balance_table(inputs: ReportInputs) -> Table:
    """Covariate balance table of the plan."""
    keys = list(dict.fromkeys(key for row in inputs.balance for key in row))
    body = [[_balance_cell(key, row.get(key)) for key in keys] for row in inputs.balance]
    what = "randomisation between arms" if inputs.released is None else "doses as declared"
    return Table([key.replace("_", " ") for key in keys], body, f"Balance of the {what}.")


def _balance_cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return p_value(value) if key == "p" else number(value)


def power_table(inputs: ReportInputs, results: Results) -> Table:
    """Smallest gain detectable at each dose, given the spread of the never-inserted items."""
    counts = _units(inputs.items)
    controls = counts.pop(0)
    never = item_values(results, inputs).filter(pl.col("dose") == 0)
    centred = {
        name: (value - value.mean().over("family"))
        for name, value in (
            ("own", pl.col("perturbed")),
            ("paired", pl.col("perturbed") - pl.col("twin")),
        )
    }
    freedom = max(1, never.height - never["family"].n_unique())
    own, paired = (
        # Families differ in level; items are compared within them.
        (float(never.select(value.pow(2).sum()).item() or 0) / freedom) ** 0.5
        for value in centred.values()
    )
    twin = "twin" in results.last_steps
    body = []
    effects = {n: effect_shown(n, controls, alpha=inputs.alpha) for n in set(counts.values())}
    for dose, items in counts.items():
        effect = effects[items]
        row = [str(dose), str(items), str(controls), number(effect, 2), number(effect * own, 3)]
        body.append([*row, number(effect * paired, 3)] if twin else row)
    unit = METRICS[inputs.primary].unit
    head = ["dose", "n", "controls", "standard deviations", "within the perturbed run"]
    return Table(
        [*head, "against the twin"] if twin else head,
        body,
        f"Power: the smallest gain over dose 0 that this report's test (one-sided, level {inputs.alpha:g}) shows with "
        f"probability 0.8, n being items or, where there are any, clusters; in standard "
        f"deviations of a never-inserted item's {inputs.primary} within its family, and in {unit}.",
        frozenset(),
    )


def _units(items: pl.DataFrame) -> dict[int, int]:
    """Number of independent units at each dose: clusters, and items without a cluster."""
    own = pl.col("item_id")
    if "cluster" in items.columns:
        own = pl.when(pl.col("cluster") != "").then(pl.concat_str("family", "cluster")).otherwise(own)
    return dict(items.group_by("dose").agg(own.n_unique()).sort("dose").iter_rows())


def exposures_table(inputs: ReportInputs) -> Table:
    """Table of the exposures of each dose by tenths of training."""
    steps = 1 + inputs.last_step
    parts = min(_PARTS, steps)
    counts = (
        inputs.exposures.select("item_id", part=pl.col("step") * parts // steps)
        .join(inputs.items.select("item_id", "dose"), on="item_id")
        .group_by("dose", "part")
        .len()
    )
    counts_by_part = {(dose, part): n for dose, part, n in counts.iter_rows()}
    doses = sorted({dose for dose, _ in counts_by_part})
    starts = [-(-part * steps // parts) for part in range(parts + 1)]
    body = [
        [str(dose), *(f"{n:,}" for n in (*each, sum(each)))]
        for dose in doses
        for each in [[counts_by_part.get((dose, part), 0) for part in range(parts)]]
    ]
    return Table(
        ["dose", *(f"{first}–{after - 1}" for first, after in itertools.pairwise(starts)), "all"],
        body,
        "Exposures by dose and steps of training, as planned; the audit says whether each happened.",
        frozenset(),
    )
