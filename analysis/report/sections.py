"""Tables and figures of the report, as values for the template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from analysis import figures
from analysis.figures import Figure
from analysis.metrics import METRICS
from analysis.report.answer import interval, number, p_value
from analysis.report.inputs import ReportInputs
from analysis.report.results import PAIRED, Results, effective_dose, item_gains, not_computed


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; the template escapes every cell."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: frozenset[int] = frozenset({0})
    """Columns aligned left; the others hold numbers."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure in the page."""

    name: str
    svg: Markup
    caption: str


def draw(inputs: ReportInputs, results: Results, directory: Path) -> dict[str, Drawn]:
    """Draw and save every figure."""
    return {
        name: Drawn(
            name, _inline(figures.save(figure.chart, directory, name, figure.rows), name, caption), caption
        )
        for name, figure, caption in _figures(inputs, results)
    }


def _figures(inputs: ReportInputs, results: Results) -> Iterator[tuple[str, Figure, str]]:
    primary, unit = METRICS[inputs.primary], METRICS[inputs.primary].unit
    found = results.estimates
    at = f"Step {results.step}; bars and bands: 95 % intervals over items; n: items"
    yield (
        "dose_response",
        figures.dose_response(
            found,
            primary.name,
            title="Log-likelihood of the items by dose",
            y_title=f"log-likelihood ({unit})",
        ),
        f"{primary.formula}, {unit}. {at}.",
    )
    yield (
        "controls",
        figures.controls(found, primary.name, unit=unit),
        "Negative control: never-inserted items, half against half; should hold 0. Positive control: the "
        f"highest dose; should be above 0 in the perturbed run alone. {at}.",
    )
    yield from _other_measures(inputs, results, at)
    ticks = (
        "Ticks beneath are steps with exposures, darker where there are more; the step axis is "
        "logarithmic beyond 1."
    )
    for name, statistic, title, what in (
        ("over_training", "gain", "Gain over dose 0, over training", f"gain ({unit})"),
        ("levels", "mean", "Level at each dose, over training", f"log-likelihood ({unit})"),
    ):
        chart = figures.over_training(
            found, primary.name, inputs.exposures, statistic=statistic, title=title, y_title=what
        )
        yield name, chart, f"{title}, by dose, with 95 % intervals. {ticks}"
    yield (
        "training",
        figures.training_curves(inputs.training, found),
        "What insertion cost: training loss (the perturbed run's includes the inserted text), and text "
        "that neither run trains on, with 95 % intervals over passages.",
    )


def _other_measures(inputs: ReportInputs, results: Results, at: str) -> Iterator[tuple[str, Figure, str]]:
    found, primary = results.estimates, METRICS[inputs.primary]
    k, m = inputs.parameters.prefix, inputs.parameters.suffix
    families = sorted(inputs.items["family"].unique())
    if len(families) > 1:
        yield (
            "by_family",
            figures.dose_response(
                found,
                primary.name,
                title="Log-likelihood by dose, by family",
                y_title=f"log-likelihood ({primary.unit})",
                families=families,
                width=250,
                height=210,
            ),
            f"As above within each family. {at}.",
        )
    yield (
        "verbatim",
        figures.dose_response(
            found,
            "verbatim",
            title="Verbatim extraction by dose",
            y_title="share of items extracted",
            height=240,
        ),
        f"Share of items of which greedy decoding continues the first {k} tokens with exactly the next "
        f"{m}; Clopper-Pearson intervals. {at}.",
    )
    yield (
        "recognition",
        figures.dose_response(
            found,
            primary.name,
            statistic="auc",
            title="Recognition by dose",
            y_title="AUC against never-inserted controls",
            reference=0.5,
            height=240,
        ),
        "Probability that an inserted item scores higher than a control of its family; 0.5 (dashed) is "
        f"chance; DeLong intervals. {at}.",
    )
    if "cloze_loglik_per_byte" in found["metric"]:
        yield (
            "cloze",
            figures.dose_response(
                found,
                "cloze_loglik_per_byte",
                title="Cloze probes by dose",
                y_title="log-likelihood of the target (nats/byte)",
                height=240,
            ),
            f"{METRICS['cloze_loglik_per_byte'].formula}, mean over an item's probes. {at}.",
        )


def _inline(svg: str, name: str, caption: str) -> Markup:
    """An SVG for the page: ids made unique among the figures, and a name for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    label = Markup.escape(caption)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def gains_table(inputs: ReportInputs, results: Results, metric: str) -> Table:
    """Gain of every dose over dose 0, in both runs and between them."""
    ours, twin, paired = (_by_dose(results.at("gain", metric, run)) for run in ("perturbed", "twin", PAIRED))
    body = [
        [
            str(dose),
            str(row["n"]),
            str(row["n_control"]),
            interval(row, signed=True),
            p_value(row["p"]),
            _cell(twin, dose),
            _cell(paired, dose),
        ]
        for dose, row in ours.items()
    ]
    caption = (
        f"Gain over dose 0 ({METRICS[metric].unit}), 95 % intervals; p: one-sided permutation test within "
        f"strata, {inputs.permutations:,} permutations."
    )
    return Table(
        ["dose", "n", "controls", "perturbed", "p", "twin", "perturbed − twin"], body, caption, frozenset()
    )


def family_table(inputs: ReportInputs, results: Results) -> Table:
    """Each family at the highest dose."""
    highest, body = int(inputs.items["dose"].max()), []  # type: ignore[arg-type]
    for family in sorted(inputs.items["family"].unique()):
        ours, twin, paired = (
            _by_dose(results.at("gain", inputs.primary, run, family)) for run in ("perturbed", "twin", PAIRED)
        )
        area = _by_dose(results.at("auc", inputs.primary, "perturbed", family))
        dose = effective_dose(results, inputs.primary, family=family, alpha=inputs.alpha)
        n = str(ours[highest]["n"]) if highest in ours else "0"
        body.append(
            [
                family,
                n,
                _cell(ours, highest),
                _cell(twin, highest),
                _cell(paired, highest),
                _cell(area, highest, signed=False),
                "none" if dose is None else str(dose),
            ]
        )
    caption = (
        f"At dose {highest}: gain over dose 0 ({METRICS[inputs.primary].unit}), recognition AUC, and the "
        f"lowest effective dose (closed test at {inputs.alpha:g}; families are exploratory, not corrected "
        "for each other)."
    )
    return Table(["family", "n", "perturbed", "twin", "perturbed − twin", "AUC", "from dose"], body, caption)


def verbatim_table(inputs: ReportInputs, results: Results) -> Table:
    """Extraction counts, the exact-match share beside them."""
    rates, twin, exact = (
        _by_dose(results.at("mean", "verbatim", "perturbed")),
        _by_dose(results.at("mean", "verbatim", "twin")),
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
    """AUC by dose in both runs."""
    ours, twin = (_by_dose(results.at("auc", metric, run)) for run in ("perturbed", "twin"))
    body = [
        [
            str(dose),
            str(row["n"]),
            str(row["n_control"]),
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


def design_table(inputs: ReportInputs) -> Table:
    """Items by family and dose."""
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
    return Table(
        ["family", *(f"dose {d}" for d in doses), "all"],
        body,
        f"Items by family and dose, randomised within {inputs.items['stratum'].n_unique()} strata.",
    )


def balance_table(inputs: ReportInputs) -> Table:
    """The balance table as it came: columns are the keys."""
    keys = list(dict.fromkeys(key for row in inputs.balance for key in row))
    body = [
        [number(row[key]) if isinstance(row.get(key), float) else str(row.get(key, "–")) for key in keys]
        for row in inputs.balance
    ]
    return Table([key.replace("_", " ") for key in keys], body, "Balance of the randomisation between arms.")


def items_table(inputs: ReportInputs, results: Results, limit: int = 8) -> Table:
    """The inserted items that gained most."""
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
    caption = (
        f"The {len(body)} inserted items that gained most over the twin ({METRICS[inputs.primary].unit}). "
        "Chosen for being extreme: examples, not estimates."
    )
    return Table(
        ["item", "family", "text", "dose", "perturbed", "twin", "gain"], body, caption, frozenset({0, 1, 2})
    )


def missing_table(results: Results) -> Table:
    """What was not computed, and why."""
    body = [
        [row["metric"], row["family"], row["reason"], str(row["probes"] or "–"), str(row["checkpoints"])]
        for row in not_computed(results).iter_rows(named=True)
    ]
    return Table(
        ["measure", "family", "not computed because", "probes", "checkpoints"], body, "", frozenset({0, 1, 2})
    )


def measures_table() -> Table:
    """Every default metric by formula."""
    body = [[m.name, m.formula, m.unit, m.higher] for m in METRICS.values() if m.default]
    return Table(["measure", "formula", "unit", "higher means"], body, "", frozenset(range(4)))


def _shortened(text: str, limit: int = 110) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def _by_dose(rows: pl.DataFrame) -> dict[int, dict[str, Any]]:
    return {
        int(row["dose"]): row for row in rows.filter(pl.col("estimate").is_not_null()).iter_rows(named=True)
    }


def _cell(rows: dict[int, dict[str, Any]], dose: int, *, signed: bool = True) -> str:
    return interval(rows[dose], signed=signed) if dose in rows else "–"
