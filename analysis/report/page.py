"""Assembly and writing of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.figures.export import csv_of, write
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report import (
    attacks,
    contrasts,
    derived,
    design,
    forgetting,
    generated_tables,
    latent,
    released,
    sections,
)
from palimpsest.analysis.report.answer import answer, summary
from palimpsest.analysis.report.browser import embed
from palimpsest.analysis.report.facts import split_facts
from palimpsest.analysis.report.html import render
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.question_tables import question_tables
from palimpsest.analysis.report.results import Results, analyse
from palimpsest.analysis.report.table import Table
from palimpsest.data.artifact import write_json


def build(inputs: ReportInputs, directory: Path) -> dict[str, Any]:
    """Write the report into a directory.

    ``report.html`` is self-contained. Further files are the PNG, SVG and CSV of each figure, and ``estimates.csv``,
    ``ec50.csv``, ``forgetting.csv``, ``metrics.parquet``, ``summary.json`` and ``coverage.md``; also ``strata.csv`` if
    families have several strata, ``arms.csv`` and ``contrasts.csv`` if arms differ in more than the dose,
    ``questions.csv`` if items have questions besides their text, and ``generated.csv`` if checkpoints continued them.
    Every CSV has columns that identify the run.

    Args:
        inputs: inputs of the report.
        directory: directory to write to; created if it is missing. Call this within ``data.artifact.writing`` to get a
            manifest.

    Returns:
        The contents of ``summary.json``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    results = analyse(inputs)
    conclusion = answer(inputs, results)
    numbers = summary(inputs, results, conclusion)
    against = contrasts.arm_contrasts(results.rows.filter(pl.col("step") == results.step), inputs)
    retained = forgetting.retained(results, inputs)
    courses = forgetting.curves(results, inputs)
    returned = latent.latent(results, inputs)
    always = {"estimates": results.estimates, "ec50": results.ec50, "forgetting": retained}
    where_any = {
        "arms": results.arms,
        "contrasts": against,
        "strata": results.strata,
        "questions": results.questions,
        "forgetting_curves": courses,
        "latent": returned,
        "generated": _generated_rows(results),
    }
    for name, rows in (always | {name: rows for name, rows in where_any.items() if rows.height}).items():
        write(directory / f"{name}.csv", csv_of(inputs.signed(rows)).encode())
    inputs.signed(results.rows).write_parquet(directory / "metrics.parquet", compression="zstd")
    write_json(directory / "summary.json", numbers)
    write(directory / "coverage.md", (Path(__file__).parent / "coverage.md").read_bytes())
    page = render(
        "template.html",
        browser=embed(inputs, results),
        answer=conclusion,
        figures=sections.draw(inputs, results, directory),
        tables=_tables(inputs, results, retained)
        | {
            "contrasts": contrasts.contrasts_table(inputs, against),
            "curves": forgetting.curves_table(inputs, courses),
            "latent": latent.latent_table(returned),
        },
        **_generated(inputs, results),
        derived=derived.derived_table(inputs),
        texts=derived.texts_table(inputs),
        forgetting_text=forgetting.forgetting_text(inputs, retained),
        questions=question_tables(inputs, results.questions, results.step),
        named=[(name, sections.gains_table(inputs, results, name)) for name in _named(inputs)],
        **_context(inputs, results),
    )
    (directory / "report.html").write_text(page, encoding="utf-8")
    return numbers


def _tables(inputs: ReportInputs, results: Results, retained: pl.DataFrame) -> dict[str, Table]:
    return {
        "gains": sections.gains_table(inputs, results, inputs.primary),
        "arms": sections.arms_table(inputs, results),
        "ec50": sections.ec50_table(results),
        "strata": sections.strata_table(results),
        "families": sections.family_table(inputs, results),
        "verbatim": sections.verbatim_table(inputs, results),
        "recognition": sections.recognition_table(results, inputs.primary),
        "membership": attacks.membership_table(inputs, results),
        "prefixes": attacks.prefixes_table(inputs, results),
        "forgetting": forgetting.forgetting_table(inputs, retained),
        "design": design.design_table(inputs),
        "balance": design.balance_table(inputs),
        "power": design.power_table(inputs, results),
        "exposures": design.exposures_table(inputs),
        "items": sections.items_table(inputs, results),
        "missing": sections.missing_table(results),
        "measures": sections.measures_table(inputs),
    }


def _generated_rows(results: Results) -> pl.DataFrame:
    generated = results.generated
    return pl.DataFrame() if generated is None else pl.concat([generated.whole, generated.asked])


def _generated(inputs: ReportInputs, results: Results) -> dict[str, Any]:
    """The section on generated text; empty where there is none."""
    generated = results.generated
    if generated is None:
        return {"generated": None}
    return {
        "generated": generated_tables.whole_table(inputs, generated),
        "generated_asked": generated_tables.asked_tables(inputs, generated),
        "generated_measures": generated_tables.measures_table(),
    }


def _named(inputs: ReportInputs) -> list[str]:
    """Additional metrics of whole texts that the settings name."""
    return [
        name
        for name in dict.fromkeys(inputs.metrics)
        if name != inputs.primary and not METRICS[name].by_question
    ]


def _context(inputs: ReportInputs, results: Results) -> dict[str, Any]:
    facts, fact_tables = split_facts(inputs.facts)
    return {
        "inputs": inputs,
        "title": inputs.title,
        "step": results.step,
        "runs": list(results.last_steps),
        "released": released.described(inputs, results) if inputs.released is not None else None,
        "checks": [dict(check) for check in (inputs.audit or {}).get("checks", [])],
        "failures": [str(failure) for failure in (inputs.audit or {}).get("failures", [])],
        "facts": facts,
        "fact_tables": fact_tables,
        "verbatim_text": sections.verbatim_text(inputs, results),
        "provenance": {
            name: json.dumps(value, indent=2, ensure_ascii=False, default=str, sort_keys=True)
            for name, value in {"configuration": inputs.config, **inputs.manifests}.items()
            if value
        },
    }
