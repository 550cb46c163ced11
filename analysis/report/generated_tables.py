"""Tables of generated text."""

from __future__ import annotations

import polars as pl

from palimpsest.analysis.metrics.generated import FORMULAS, NEAR
from palimpsest.analysis.report.answer import interval
from palimpsest.analysis.report.generated import Generated
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.question_tables import question_tables
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import PAIRED

ASKED = (
    "generated_verbatim",
    "generated_prefix_match",
    "generated_word_recall",
    "generated_semantic_similarity",
    "sampled_any_verbatim",
    "sampled_np_discoverable",
)
"""Measures in the tables of questions; ``generated.csv`` has all."""


def whole_table(inputs: ReportInputs, generated: Generated) -> Table:
    """Continuations of the items' own texts, by context and dose."""
    here = generated.whole.filter((pl.col("step") == generated.step) & (pl.col("family") == "all"))
    columns = {
        "verbatim": "generated_verbatim",
        "near-verbatim": "generated_near_verbatim",
        "edit similarity": "generated_edit_similarity",
        "ROUGE-L": "generated_rouge_l",
        "semantic similarity": "generated_semantic_similarity",
        f"{inputs.parameters.queries} samples (n,p)": "sampled_np_discoverable",
        "any of the drawn": "sampled_any_verbatim",
    }
    columns = {name: metric for name, metric in columns.items() if (here["metric"] == metric).any()}
    compared = PAIRED if (here["run"] == PAIRED).any() else "perturbed"

    def cell(metric: str, run: str, statistic: str, question: str, dose: int) -> str:
        rows = here.filter(
            (pl.col("metric") == metric)
            & (pl.col("run") == run)
            & (pl.col("statistic") == statistic)
            & (pl.col("question") == question)
            & (pl.col("dose") == dose)
            & pl.col("estimate").is_not_null()
        )
        return interval(rows.row(0, named=True), signed=statistic == "gain") if rows.height else "–"

    counts = here.filter(
        (pl.col("metric") == "generated_verbatim")
        & (pl.col("run") == "perturbed")
        & (pl.col("statistic") == "mean")
    )
    body = [
        [
            question.split()[1],
            str(dose),
            f"{n:,}",
            *(cell(metric, "perturbed", "mean", question, dose) for metric in columns.values()),
            cell("generated_edit_similarity", compared, "gain", question, dose),
        ]
        for question, dose, n in counts.select("question", "dose", "n").sort(_number, "dose").iter_rows()
    ]
    of = "perturbed − twin" if compared == PAIRED else "perturbed"
    return Table(
        ["after tokens", "dose", "n", *columns, f"gain in edit similarity over dose 0 ({of})"],
        body,
        f"Continuations of items by the perturbed run at step {generated.step:,}, greedy where nothing else is said; "
        "95 % intervals over items. Unrelated texts are alike to some degree, too: dose 0 shows how much.",
        frozenset({0}),
        frozenset({3 + len(columns)}),
        f"Near-verbatim: edit similarity of {NEAR} or more. (n,p): expected share of items that so many samples hold "
        f"verbatim, by the probability of the item's own continuation{_drawn(inputs)}.",
    )


_number = pl.col("question").str.extract(r"(\d+)").cast(pl.Int64)


def _drawn(inputs: ReportInputs) -> str:
    """The sampling scheme, in words."""
    settings = inputs.generation
    if not settings:
        return ""
    parts = [f"temperature {settings['temperature']:g}"]
    parts += [
        f"{name.replace('_', '-')} {settings[name]:g}"
        for name in ("top_k", "top_p")
        if settings[name] is not None
    ]
    samples = f"; {settings['samples']} drawn of each prompt" if settings["samples"] else ""
    return f" when drawn at {', '.join(parts)}{samples}"


def asked_tables(inputs: ReportInputs, generated: Generated) -> list[Table]:
    """Continuations of prompts, one table a family."""
    return question_tables(inputs, generated.asked, generated.step, ASKED)


def measures_table() -> Table:
    """Every metric of generated text, by formula."""
    body = [[name, formula] for name, formula in FORMULAS.items()]
    return Table(["measure", "formula"], body, "All are shares, 0 to 1.", frozenset({0, 1}))
