"""Tables and figures of the report, as values for the template."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from palimpsest.analysis import figures
from palimpsest.analysis.attacks.values import KNOWN
from palimpsest.analysis.figures import Figure
from palimpsest.analysis.metrics import METRICS, Metric
from palimpsest.analysis.report import attacks, derived
from palimpsest.analysis.report.answer import interval, number, p_value, shown, sizes
from palimpsest.analysis.report.generated import Generated
from palimpsest.analysis.report.html import inline
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import (
    ATTACKS,
    PAIRED,
    Extraction,
    Results,
    effective_dose,
    extraction,
    item_gains,
    item_values,
    not_computed,
)
from palimpsest.analysis.report.table import Table

FILES = ("png", "svg", "csv")
"""File formats of each figure. PDF is left out, because it is not reproducible byte by byte."""


_SCREEN, _PHONE = 560, 240
"""Panel widths of the first screen's figures, pixels: on a screen, and on a phone 390 pixels wide."""

_MOST_DOTS = 400


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure of the report's page, drawn."""

    name: str
    svg: Markup
    caption: str
    narrow: Markup | None = None
    """SVG for a phone, if there is one."""


def draw(inputs: ReportInputs, results: Results, directory: Path) -> dict[str, Drawn]:
    """Draw and save every figure; those of the first screen also for a phone."""
    drawn = {
        name: Drawn(name, _inline(inputs, figure, directory, name, caption), caption)
        for name, figure, caption in _figures(inputs, results)
    }
    for name, figure, caption in _first(inputs, results, _PHONE):
        narrow = inline(figures.save(figure, directory, formats=()), f"{name}-narrow", caption)
        drawn[name] = replace(drawn[name], narrow=narrow)
    return drawn


def _inline(inputs: ReportInputs, figure: Figure, directory: Path, name: str, caption: str) -> Markup:
    rows = inputs.signed(figure.rows)
    return inline(figures.save(figure.chart, directory, name, rows, formats=FILES), name, caption)


def _first(inputs: ReportInputs, results: Results, width: int) -> Iterator[tuple[str, Figure, str]]:
    """Dose-response figures: the gain that the verdict is based on, then the levels.

    Args:
        inputs: inputs of the report.
        results: numbers of the report.
        width: panel width, pixels.
    """
    primary, estimates = METRICS[inputs.primary], results.estimates
    at = f"Step {results.step}; bars and bands: 95 % intervals over items; n: items"
    deciding = PAIRED if "twin" in results.last_steps else "perturbed"
    values = item_values(results, inputs).filter(pl.col("gain").is_not_null()).sort("item_id")
    every = math.ceil(values.height / _MOST_DOTS)
    dots = "items" if every < 2 else f"one item in {every}"
    what = "each item less itself in the twin, which never saw it" if deciding == PAIRED else "each item"
    yield (
        "gain_by_dose",
        figures.dose_response(
            estimates.filter(pl.col("run") == deciding),
            primary.name,
            statistic="gain",
            title=f"Gain over {'the twin' if deciding == PAIRED else 'dose 0'}, by dose",
            y_title=f"gain over dose 0 ({primary.unit})",
            reference=0.0,
            dots=values.select("dose", value="gain").gather_every(max(every, 1)),
            width=width,
        ),
        f"The comparison that decides: {what}, less the mean of that over the never-inserted items of its family. "
        f"Dots: {dots}. Above 0: insertion made the text more likely. {at}.",
    )
    yield (
        "dose_response",
        figures.dose_response(
            estimates,
            primary.name,
            title="Log-likelihood of the items by dose",
            y_title=f"log-likelihood ({primary.unit})",
            width=width,
        ),
        f"The levels that the gains are of. {primary.formula}, {primary.unit}. {at}.{_at_dose_0(inputs, results)}",
    )


def _figures(inputs: ReportInputs, results: Results) -> Iterator[tuple[str, Figure, str]]:
    primary, unit = METRICS[inputs.primary], METRICS[inputs.primary].unit
    estimates = results.estimates
    at = f"Step {results.step}; bars and bands: 95 % intervals over items; n: items"
    yield from _first(inputs, results, _SCREEN)
    yield (
        "controls",
        figures.controls(estimates, primary.name, unit=unit),
        "Negative control: never-inserted items, half against half; should hold 0. Positive control: the "
        f"highest dose; should be above 0 in the perturbed run, and 0 in the twin. {at}.",
    )
    yield from _other_measures(inputs, results, at)
    dated = inputs.exposures.height > 0
    ticks = "Ticks beneath are steps with exposures, darker where there are more; the" if dated else "The"
    ticks += " step axis is logarithmic beyond 1."
    over = (
        ("over_training", "gain", "Gain over dose 0, over training", f"gain ({unit})"),
        ("levels", "mean", "Level at each dose, over training", f"log-likelihood ({unit})"),
    )
    for name, statistic, title, what in over if dated or estimates["step"].n_unique() > 1 else ():
        chart = figures.over_training(
            estimates, primary.name, inputs.exposures, statistic=statistic, title=title, y_title=what
        )
        bands = "Bands: 95 % intervals of the lowest and highest dose drawn; the CSV has all."
        yield name, chart, f"{title}. {bands} {ticks}"
    if inputs.training.is_empty():
        return
    yield (
        "training",
        figures.training_curves(inputs.training, estimates),
        "What insertion cost: training loss (the perturbed run's includes the inserted text), and text "
        "that neither run trains on, with 95 % intervals over passages.",
    )


def _other_measures(inputs: ReportInputs, results: Results, at: str) -> Iterator[tuple[str, Figure, str]]:
    estimates, primary = results.estimates, METRICS[inputs.primary]
    k, m = inputs.parameters.prefix, inputs.parameters.suffix
    families = sorted(inputs.items["family"].unique())
    if len(families) > 1:
        yield (
            "by_family",
            figures.dose_response(
                estimates,
                primary.name,
                title="Log-likelihood by dose, by family",
                y_title=f"log-likelihood ({primary.unit})",
                families=families,
                width=250,
                height=210,
            ),
            f"As above within each family. {at}.",
        )
    extracted = extraction(results, inputs.alpha)
    if extracted is not None and extracted.anywhere:
        yield (
            "verbatim",
            figures.dose_response(
                estimates,
                "extracted",
                title="Verbatim extraction by dose",
                y_title="share of items extracted",
                height=240,
            ),
            f"Share of items of which greedy decoding continues the first {k} tokens with exactly the next "
            f"{m}; exact mid-P intervals. {at}.",
        )
        yield (
            "prefixes",
            figures.extraction_rate(attacks.rates_by_prefix(inputs, results), width=560, height=240),
            f"Share of the perturbed run's items of which {m} tokens are reproduced, by tokens of context; "
            f"exact mid-P intervals. {at}.",
        )
    if results.generated is not None:
        yield _of_generated(results.generated)
    yield from derived.drawn(inputs)
    for name, chosen in (("roc", ATTACKS), ("roc_of_passes", tuple(KNOWN))):
        scores = attacks.roc_rows(inputs, results, chosen)
        if scores.height:
            yield (
                name,
                figures.roc(scores),
                "Membership attacks on the highest dose, perturbed run: each score less the mean of its family's "
                f"controls. {at}.",
            )
    yield (
        "recognition",
        figures.dose_response(
            estimates,
            primary.name,
            statistic="auc",
            title="Recognition by dose",
            y_title="AUC against never-inserted controls",
            reference=0.5,
            height=240,
        ),
        "Probability that an inserted item scores higher than a control of its family; 0.5 (dashed) is "
        f"chance. {at}.",
    )
    if "cloze_loglik_per_byte" in estimates["metric"]:
        yield (
            "cloze",
            figures.dose_response(
                estimates,
                "cloze_loglik_per_byte",
                title="Cloze probes by dose",
                y_title="log-likelihood of the target (nats/byte)",
                height=240,
            ),
            f"{METRICS['cloze_loglik_per_byte'].formula}, mean over an item's probes. {at}.",
        )


def _of_generated(generated: Generated) -> tuple[str, Figure, str]:
    """Edit similarity of continuations by dose, after the fewest tokens."""
    here = generated.whole.filter(
        (pl.col("step") == generated.step) & (pl.col("metric") == "generated_edit_similarity")
    )
    first = min(here["question"].unique(), key=lambda name: int(name.split()[1]), default="")
    return (
        "continuations",
        figures.dose_response(
            here.filter(pl.col("question") == first),
            "generated_edit_similarity",
            title="Greedy continuations by dose",
            y_title="edit similarity to the item's own text",
            height=240,
        ),
        f"Greedy continuations of items {first}, at step {generated.step}: edit similarity over token ids to what the "
        "item goes on with. Bars and bands: 95 % intervals over items.",
    )


def _at_dose_0(inputs: ReportInputs, results: Results) -> str:
    """Explanation of a difference between the runs at dose 0; empty if there is none."""
    row = _by_dose(results.at("mean", inputs.primary, PAIRED)).get(0)
    if row is None or row["low"] is None or row["low"] <= 0:
        return ""
    return (
        f" At dose 0 the perturbed run lies above the twin, by {interval(row)}: items that were never inserted profit "
        "from the format that they share with the inserted items of their family. Gains are therefore counted over "
        "dose 0."
    )


def verbatim_text(inputs: ReportInputs, results: Results) -> str:
    """Sentence on extraction if there is nothing to draw; empty if there is a figure."""
    counts: Extraction | None = extraction(results)
    k, m = inputs.parameters.prefix, inputs.parameters.suffix
    if counts is None:
        return f"Not tested: no inserted item is {k} + {m} tokens long."
    if counts.anywhere:
        return ""
    runs = " in either run" if "twin" in results.last_steps else ""
    return (
        f"0 of {counts.tested_inserted} inserted items extracted, at any dose{runs}: greedy decoding never continued "
        f"the first {k} tokens of an item with exactly the next {m}. This bounds the perturbed run's rate to "
        f"at most {100 * counts.limit_inserted:.1f} % over all doses, and {100 * counts.limit:.1f} % at dose "
        f"{counts.dose} alone (0 of {counts.tested}); upper limits of exact 95 % intervals."
    )


def gains_table(inputs: ReportInputs, results: Results, metric: str) -> Table:
    """Table of the gain of every dose over dose 0; the rows that the verdict is based on come first."""
    runs = [run for run in (PAIRED, "perturbed", "twin") if results.at("gain", metric, run).height]
    gains = {run: _by_dose(results.at("gain", metric, run)) for run in runs}
    first = gains[runs[0]] if runs else {}
    least = 1 / (inputs.permutations + 1)
    body = []
    for dose in sorted({dose for rows in gains.values() for dose in rows}):
        row = first.get(dose)
        cells = [str(dose), *(sizes(row) if row else ("–", "–"))]
        for run in runs:
            cells.append(_cell(gains[run], dose))
            cells.append(p_value(gains[run][dose]["p"], least) if dose in gains[run] else "–")
        body.append(cells)
    head = ["dose", "n", "controls", *(name for run in runs for name in (shown(run), "p"))]
    effective = effective_dose(results, metric, alpha=inputs.alpha)
    decided = (
        "no dose shows an effect" if effective is None else f"the effect is shown from dose {effective} on"
    )
    compared = (
        "item by item against the twin" if PAIRED in runs else "within the perturbed run, as there is no twin"
    )
    pooled = " Each dose pools its arms." if results.arms.height else ""
    return Table(
        head,
        body,
        f"Gain over dose 0 ({METRICS[metric].unit}), 95 % intervals; p: one-sided permutation test within "
        f"strata, {inputs.permutations:,} permutations.",
        frozenset(),
        frozenset({3, 4}),
        f"What decides is the column in bold, {compared}: its p, tested from the highest dose down and stopping at "
        f"the first above {inputs.alpha:g}. By it, {decided}.{pooled}",
    )


def ec50_table(results: Results) -> Table:
    """Table of the EC50s; the rows that the verdict is based on come first."""
    body = [
        [row["metric"], shown(row["run"]), row["shown"], number(row["slope"], 2), row["method"]]
        for row in results.ec50.iter_rows(named=True)
    ]
    return Table(
        ["measure", "run", "EC50 [95 %]", "slope", "method"],
        body,
        "The dose at which half of what can be remembered is (EC50), in insertions, by a logistic curve over log2 "
        "dose; slope: per doubling. Not reached: no trend is shown, so there is no half of it, as in the twin. "
        "> the highest dose: the curve has not bent yet.",
        frozenset({0, 1, 4}),
    )


def strata_table(results: Results) -> Table:
    """Table of the gain within each stratum at the highest dose; empty without strata."""
    rows = (
        results.strata.filter(pl.col("dose") == pl.col("dose").max())
        if results.strata.height
        else results.strata
    )
    body = [[row["family"], *sizes(row), interval(row, signed=True)] for row in rows.iter_rows(named=True)]
    run = shown(rows["run"][0]) if rows.height else ""
    dose = rows["dose"][0] if rows.height else 0
    return Table(
        ["stratum", "n", "controls", run],
        body,
        f"By stratum, at dose {dose}: gain over dose 0, {run}. Exploratory; strata.csv has all doses.",
    )


def arms_table(inputs: ReportInputs, results: Results) -> Table:
    """Table of the gain over dose 0 by arm; empty if arms differ only in the dose."""
    rows = results.arms
    least = 1 / (inputs.permutations + 1)
    body = [
        [
            row["arm"],
            *sizes(row),
            interval(row, signed=True) if row["estimate"] is not None else "–",
            p_value(row["p"], least),
        ]
        for row in rows.iter_rows(named=True)
    ]
    run = shown(rows["run"][0]) if rows.height else ""
    return Table(
        ["arm", "n", "controls", run, "p"],
        body,
        f"By arm: gain over dose 0 ({METRICS[inputs.primary].unit}), {run}. Exploratory: the p are not corrected "
        "for the number of arms.",
    )


def family_table(inputs: ReportInputs, results: Results) -> Table:
    """Table of every family at the highest dose."""
    highest, body = int(inputs.items["dose"].max()), []  # type: ignore[arg-type]
    runs = [PAIRED, "perturbed", "twin"] if "twin" in results.last_steps else ["perturbed"]
    for family in sorted(inputs.items["family"].unique()):
        gains = [_by_dose(results.at("gain", inputs.primary, run, family)) for run in runs]
        area = _by_dose(results.at("auc", inputs.primary, "perturbed", family))
        dose = effective_dose(results, inputs.primary, family=family, alpha=inputs.alpha)
        body.append(
            [
                family,
                sizes(gains[0][highest])[0] if highest in gains[0] else "0",
                *(_cell(rows, highest) for rows in gains),
                _cell(area, highest, signed=False),
                "none" if dose is None else str(dose),
            ]
        )
    caption = (
        f"At dose {highest}: gain over dose 0 ({METRICS[inputs.primary].unit}), recognition AUC, and the "
        f"lowest effective dose (closed test at {inputs.alpha:g}; families are exploratory, not corrected "
        "for each other)."
    )
    head = ["family", "n", *(shown(run) for run in runs), "AUC", "from dose"]
    return Table(head, body, caption, deciding=frozenset({2}))


def verbatim_table(inputs: ReportInputs, results: Results) -> Table:
    """Table of extraction counts and exact-match shares."""
    rates, twin, exact = (
        _by_dose(results.at("mean", "extracted", "perturbed")),
        _by_dose(results.at("mean", "extracted", "twin")),
        _by_dose(results.at("mean", "exact_match", "perturbed")),
    )
    body = [
        [
            str(dose),
            f"{round(row['estimate'] * row['n'])} / {row['n']}",
            interval(row),
            _cell(twin, dose, signed=False),
            _cell(exact, dose, signed=False),
        ]
        for dose, row in rates.items()
    ]
    return Table(
        ["dose", "extracted", "perturbed", "twin", "tokens hit"],
        body,
        "Extracted items (rate with exact interval), and the share of all tokens that the argmax hits "
        "(perturbed).",
        frozenset(),
    )


def recognition_table(results: Results, metric: str) -> Table:
    """Table of the AUC by dose in both runs."""
    ours, twin = (_by_dose(results.at("auc", metric, run)) for run in ("perturbed", "twin"))
    body = [
        [
            str(dose),
            *sizes(row),
            _cell(ours, dose, signed=False),
            _cell(twin, dose, signed=False),
        ]
        for dose, row in ours.items()
    ]
    return Table(
        ["dose", "n", "controls", "perturbed", "twin"],
        body,
        "Recognition AUC within families, 95 % intervals.",
        frozenset(),
    )


def items_table(inputs: ReportInputs, results: Results, limit: int = 8) -> Table:
    """Table of the inserted items with the largest gains."""
    rows = item_gains(results, inputs).head(limit)
    body = [
        [
            row["item_id"],
            row["family"],
            _shortened(row["text"] or ""),
            str(row["dose"]),
            number(row["perturbed"], 2),
            number(row["twin"], 2),
            number(row["gain"], 2, signed=True),
        ]
        for row in rows.iter_rows(named=True)
    ]
    what = "perturbed − twin" if "twin" in results.last_steps else "perturbed"
    caption = (
        f"The {len(body)} inserted items that gained most ({METRICS[inputs.primary].unit}). Gain: {what}, less its "
        "mean over the never-inserted items of the family, which learn the family's format too. Chosen for being "
        "extreme: examples, not estimates."
    )
    return Table(
        ["item", "family", "text", "dose", "perturbed", "twin", "gain"], body, caption, frozenset({0, 1, 2})
    )


def missing_table(results: Results) -> Table:
    """Table of the metrics that were not computed, with the reasons."""
    body = [
        [row["metric"], row["family"], row["reason"], str(row["probes"] or "–"), str(row["checkpoints"])]
        for row in not_computed(results).iter_rows(named=True)
    ]
    return Table(
        ["measure", "family", "not computed because", "probes", "checkpoints"], body, "", frozenset({0, 1, 2})
    )


def measures_table(inputs: ReportInputs) -> Table:
    """Table of the computed metrics with their formulas."""
    body = [
        [m.name, m.formula, m.unit, _higher(m)]
        for m in METRICS.values()
        if m.default or m.name in inputs.metrics
    ]
    return Table(["measure", "formula", "unit", "higher means"], body, "", frozenset(range(4)))


def _higher(measure: Metric) -> str:
    """Meaning of a higher value of a metric; for likelihoods it is not memorisation."""
    if measure.higher != "more memorised":
        return measure.higher
    if measure.unit.startswith("nats"):
        return "text more likely"
    return "what was inserted preferred" if measure.by_question else "more reproduced"


def _shortened(text: str, limit: int = 110) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def _by_dose(rows: pl.DataFrame) -> dict[int, dict[str, Any]]:
    return {
        int(row["dose"]): row for row in rows.filter(pl.col("estimate").is_not_null()).iter_rows(named=True)
    }


def _cell(rows: dict[int, dict[str, Any]], dose: int, *, signed: bool = True) -> str:
    return interval(rows[dose], signed=signed) if dose in rows else "–"
