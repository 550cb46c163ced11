"""Text of the report about released models: their identity, and facts that are unknown for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import Results


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """Facts about a released model for its report."""

    models: tuple[tuple[str, str], ...]
    """Pairs of run and name of the model."""
    at: str
    """Revision, or step, of the numbers."""
    declared: int
    """Number of exposures that the authors declare."""
    unknown: tuple[str, ...]
    """Facts that are unknown, one line each."""


def described(inputs: ReportInputs, results: Results) -> Described:
    """Known and unknown facts about the released models of a report."""
    released: Mapping[str, Any] = inputs.released or {}
    revision = released["revisions"].get(str(results.step))
    at = f"step {results.step:,}" if results.step else "step unknown"
    unknown = [
        "whether each text was read as often as declared, and in which wording: there is no ledger",
        "when: the steps of the exposures, so nothing is said of forgetting, spacing or order",
        "where: position in the window, neighbours, and what gave way to it",
        "whether doses were assigned at random; see the balance, which tests lengths alone",
        "the training itself: no losses, and no text that was held out",
    ]
    if "twin" in released["models"]:
        unknown.append(
            "whether the two models differ in the insertions alone (same data, order, seed, initial weights): that is "
            "their authors' word, and what the comparison rests on"
        )
    else:
        unknown.append(
            "what the same model without the insertions would have made of the texts: there is no pair"
        )
    return Described(
        models=tuple(released["models"].items()),
        at=f"revision {revision} ({at})" if revision else at,
        declared=int(released["declared"]),
        unknown=tuple(unknown),
    )
