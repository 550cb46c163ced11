"""Tables and figures of the order tests: which models were trained from this run's data, and which texts did they
write?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from palimpsest.analysis import figures
from palimpsest.analysis.figures import Figure
from palimpsest.analysis.report.answer import number, p_value
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.table import Table

_DRAWN = 4
"""Models of which a figure is drawn."""


def derived_table(inputs: ReportInputs) -> Table | None:
    """The order test of every model; None where none was tested."""
    if not inputs.derived:
        return None
    body = []
    for facts, _ in inputs.derived:
        shown = facts["low"] > 0 and facts["p_permutation"] <= inputs.alpha
        body.append(
            [
                facts["model"],
                facts["reference"] or "–",
                f"{facts['n']:,}",
                f"{number(facts['rho'], 3)} [{number(facts['low'], 3)}, {number(facts['high'], 3)}]",
                p_value(facts["p"]),
                p_value(facts["p_permutation"]),
                "shown" if shown else "not shown",
            ]
        )
    return Table(
        ["model", "less", "windows", "rho [95 %]", "p", "p by permutation", "trained from this run"],
        body,
        "Order test: rank correlation of a window's position in this run with its mean log-likelihood under a model, "
        "less that under another. Windows that the run read later are likelier under models that were trained from "
        "it; in a model that was not, the correlation is 0, because the order was drawn at random (Kuditipudi et al., "
        "2025).",
        deciding=frozenset({3, 6}),
        note="Shown: the correlation is above 0, by its interval and by permutation. Not shown does not mean that a "
        "model was trained on other data: one that read the same texts in another order looks like that, too.",
    )


def texts_table(inputs: ReportInputs) -> Table | None:
    """The order test of every text; None where none was tested."""
    if not inputs.reshuffled:
        return None
    body = [
        [
            facts["text"],
            f"{facts['tokens']:,}",
            number(facts["loglik"], 4),
            number(facts["excess"], 4, signed=True),
            str(facts["models"]),
            p_value(facts["p"]),
            p_value(facts["p_t"]),
            _verdict(facts, inputs.alpha),
        ]
        for facts in inputs.reshuffled
    ]
    return Table(
        [
            "text",
            "tokens",
            "nats/token",
            "excess",
            "models",
            "p by rank",
            "p by t",
            "written by a model of this run",
        ],
        body,
        "Order test of texts: mean log-likelihood under the run's last checkpoint, and its excess over the mean of "
        "models that read the run's last windows in other orders (Kuditipudi et al., 2025). A text that does not come "
        "from the run is as likely under the one as under the others.",
        deciding=frozenset({3, 7}),
        note="By rank: (1 + models under which the text is at least as likely) / (1 + models), which is exact and "
        "decides. By t: the place among the models' values, if these are normally distributed.",
    )


def _verdict(facts: Mapping[str, Any], alpha: float) -> str:
    """Verdict of a text's rank among the models."""
    if facts["p"] <= alpha:
        return "shown"
    return "too few models" if 1 / (1 + facts["models"]) > alpha else "not shown"


def drawn(inputs: ReportInputs) -> Iterator[tuple[str, Figure, str]]:
    """Name, figure and caption of the first models' tests."""
    for number_, (facts, rows) in enumerate(inputs.derived[:_DRAWN]):
        less = f", less that under {facts['reference']}" if facts["reference"] else ""
        yield (
            f"derived_{number_}",
            figures.order_residuals(rows.select(index="position", residual="residual"), height=220),
            f"{facts['model']}: mean log-likelihood of windows{less}, by their place in this run's training; "
            "bars: 95 % intervals over windows.",
        )
