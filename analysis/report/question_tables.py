"""Tables of the families' questions besides the whole text, one table per family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from palimpsest.analysis.report.answer import interval, number, p_value, shown
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import PAIRED

SHOWN = (
    "choice_accuracy",
    "choice_probability",
    "recognition_2afc",
    "rank_test_bits",
    "cloze_loglik_per_byte",
    "cloze_reproduced",
    "limem",
    "consistency",
)
"""Metrics in the page's tables; ``questions.csv`` has all metrics."""


def question_tables(
    inputs: ReportInputs, questions: pl.DataFrame, step: int, measures: Sequence[str] = SHOWN
) -> list[Table]:
    """One table per family that has questions besides the whole text.

    Args:
        inputs: of the report.
        questions: estimates (``QUESTION_SCHEMA``).
        step: checkpoint.
        measures: metrics that are shown, in their order.
    """
    highest = int(inputs.items["dose"].max())  # type: ignore[arg-type]
    asked = inputs.probes.filter(pl.col("item_id").is_not_null() & (pl.col("kind") != "verbatim"))
    order = {
        name: place
        for place, name in enumerate(dict.fromkeys(asked["name"].str.replace(r" #.*$", "").to_list()))
    }
    tables = []
    for (family,), part in (
        questions.filter(pl.col("step") == step)
        .partition_by(["family"], as_dict=True, maintain_order=True)
        .items()
    ):
        cells = sorted(
            {
                (order.get(question, len(order)), question, measures.index(metric))
                for question, metric in part.select("question", "metric").unique().iter_rows()
                if metric in measures
            }
        )
        body = [
            _row(part, question, measures[measure], highest, inputs.permutations)
            for _, question, measure in cells
        ]
        if body:
            head = [
                "question",
                "measure",
                "chance",
                "n",
                "dose 0",
                f"dose {highest}",
                "twin",
                "gain over dose 0",
                "p",
            ]
            tables.append(Table(head, body, str(family), frozenset({0, 1}), frozenset({7})))
    return tables


def _row(part: pl.DataFrame, question: str, metric: str, highest: int, permutations: int) -> list[str]:
    here = part.filter((pl.col("question") == question) & (pl.col("metric") == metric))

    def at(statistic: str, run: str, dose: int) -> dict[str, Any]:
        matching = here.filter(
            (pl.col("statistic") == statistic) & (pl.col("run") == run) & (pl.col("dose") == dose)
        )
        return matching.row(0, named=True) if matching.height else {}

    gain = at("gain", PAIRED, highest) or at("gain", "perturbed", highest)
    tested = at("rank_test", "perturbed", highest) or gain
    level = at("mean", "perturbed", highest)
    least = 0.0 if "rank_test" in tested.get("statistic", "") else 1 / (permutations + 1)
    of = f" ({shown(PAIRED)})" if gain.get("run") == PAIRED else ""
    return [
        question or "–",
        metric,
        number(next((c for c in here["chance"].to_list() if c is not None), None), 2),
        str(level.get("n") or 0),
        *(
            interval(row) if row else "–"
            for row in (at("mean", "perturbed", 0), level, at("mean", "twin", highest))
        ),
        interval(gain, signed=True) + of if gain.get("estimate") is not None else "–",
        p_value(tested.get("p"), least),
    ]
