"""Estimates of generated text by dose, and each item's continuations for the browser of items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from palimpsest.analysis.metrics.extraction import log10_queries, queries_needed
from palimpsest.analysis.metrics.generated import generated_rows
from palimpsest.analysis.metrics.similarity import edit_similarity
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.questions import QUESTION_SCHEMA
from palimpsest.analysis.statistics import PAIRED, difference_to_twin, gain_over_control, mean_by_dose

_SHARES = (0.0, 1.0)
_CHARACTERS = 600
"""Characters of a continuation in the browser of items, at most."""
_ALL_CHARACTERS = 2_000_000


class Generated(NamedTuple):
    """Estimates of generated text."""

    whole: pl.DataFrame
    """Of items' own texts continued; ``question`` says after how many tokens, ``family`` is ``all`` for all."""
    asked: pl.DataFrame
    """Of prompts continued, by family and question."""
    step: int
    """The last checkpoint that was continued."""


def generated_estimates(inputs: ReportInputs) -> Generated | None:
    """Means by dose and gains over dose 0 of every metric of continuations; None if there are none.

    At the last checkpoint that was continued the comparison that decides is tested: item by item with the twin, or,
    without one, within the perturbed run.
    """
    generated = inputs.generated
    if generated is None or not (generated["run"] == "perturbed").any():
        return None
    rows = generated_rows(inputs.items, inputs.probes, generated, inputs.parameters)
    step = int(rows.filter(pl.col("run") == "perturbed")["step"].max())  # type: ignore[arg-type]
    asked = pl.col("probe_id").is_in(inputs.probes.filter(pl.col("kind") == "cloze")["probe_id"].implode())
    # The statistics group by metric: what is continued is made part of its name.
    named = pl.concat_str(
        "metric", "question", pl.when(asked).then("family").otherwise(pl.lit("")), separator="\0"
    )
    rows = rows.with_columns(metric=named)
    both = pl.concat([rows, difference_to_twin(rows)])
    paired = (both.filter(pl.col("step") == step)["run"] == PAIRED).any()
    decides = (pl.col("run") == (PAIRED if paired else "perturbed")) & (pl.col("step") == step)
    statistics = pl.concat(
        [
            mean_by_dose(both, bounds=_SHARES),
            gain_over_control(
                both.filter(decides), bounds=_SHARES, permutations=inputs.permutations, seed=inputs.seed
            ),
            gain_over_control(both.filter(~decides), bounds=_SHARES),
        ]
    ).with_columns(pl.col("metric").str.split("\0").alias("parts"))
    of = pl.col("parts").list.get(2)
    by_question = statistics.filter((of == "") | (pl.col("family") == "all")).with_columns(
        metric=pl.col("parts").list.get(0),
        question=pl.col("parts").list.get(1),
        family=pl.when(of == "").then("family").otherwise(of),
        chance=pl.lit(None, pl.Float64),
    )
    whole, others = (
        by_question.filter(group)
        .select(pl.col(name).cast(kind) for name, kind in QUESTION_SCHEMA.items())
        .sort("family", "question", "metric", "statistic", "run", "step", "dose")
        for group in (of == "", of != "")
    )
    return Generated(whole, others, step)


def continuations(inputs: ReportInputs, estimates: Generated | None, items: pl.DataFrame) -> dict[str, Any]:
    """Continuations of each listed item's first tokens by the runs, for the browser of items.

    Args:
        inputs: of the report.
        estimates: as :func:`generated_estimates` gives it.
        items: those that are listed, with ``item_id``.

    Returns:
        ``step``, ``prefix`` (tokens of context: the fewest), ``runs``, and one entry an item: None, or the reference's
        text and, of each run, the greedy text and its edit similarity (null where there is none), and the number of
        verbatim samples of the perturbed run and of all, and how many samples hold the reference with probability 1/2;
        empty without continuations.
    """
    if estimates is None or inputs.generated is None:
        return {}
    whole = inputs.probes.filter(pl.col("kind") == "verbatim").select("probe_id", "item_id")
    here = (
        inputs.generated.filter(pl.col("step") == estimates.step)
        .join(whole, on="probe_id")
        .join(items.select("item_id"), on="item_id", how="semi")
    )
    if here.is_empty():
        return {}
    prefix = int(here["prefix"].min())  # type: ignore[arg-type]
    here = here.filter(pl.col("prefix") == prefix)
    runs = [run for run in ("perturbed", "twin") if (here["run"] == run).any()]
    most = min(_CHARACTERS, _ALL_CHARACTERS // (here["item_id"].n_unique() * (1 + len(runs))))
    entries: dict[str, list[Any]] = {}
    for (item,), part in here.partition_by(["item_id"], as_dict=True, maintain_order=True).items():
        greedy = {row["run"]: row for row in part.filter(pl.col("sample") == 0).iter_rows(named=True)}
        samples = part.filter((pl.col("run") == "perturbed") & (pl.col("sample") > 0))
        hits = sum(row["tokens"] == row["reference"] for row in samples.iter_rows(named=True))
        by_run = [
            [_shown(row["text"], most), round(edit_similarity(row["tokens"], row["reference"]), 3)]
            if (row := greedy.get(run))
            else None
            for run in runs
        ]
        reference = _shown(part["reference_text"][0], most)
        entries[str(item)] = [reference, by_run, hits, samples.height, _needed(greedy.get("perturbed"))]
    listed = [entries.get(item) for item in items["item_id"].to_list()]
    return {"step": estimates.step, "prefix": prefix, "runs": runs, "items": listed}


def _needed(row: Mapping[str, Any] | None) -> str:
    """Samples that hold the reference with probability 1/2; empty where it can never be drawn."""
    if row is None or row["reference_loglik"] == -math.inf:
        return ""
    digits = float(log10_queries(row["reference_loglik"], 0.5))
    return f"{queries_needed(row['reference_loglik'], 0.5):,}" if digits < 9 else f"10^{digits:.0f}"


def _shown(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} …"
