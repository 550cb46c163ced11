"""Metrics of generated continuations: functions of the store ``generated.parquet``, as tidy rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from palimpsest.analysis.metrics.extraction import extraction_probability
from palimpsest.analysis.metrics.personal import prefix_match, word_recall
from palimpsest.analysis.metrics.registry import Parameters
from palimpsest.analysis.metrics.scored import ROW_SCHEMA
from palimpsest.analysis.metrics.similarity import edit_similarity, rouge_l
from palimpsest.data.errors import UserError

NEAR = 0.8
"""Edit similarity from which on a continuation is near-verbatim."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of one continuation; every value is in [0, 1]."""

    formula: str
    compute: Callable[[Sequence[int], Sequence[int], str, str], float]
    """Of tokens and reference (ids), and the text of each."""


OF_ONE: Mapping[str, Measure] = {
    "verbatim": Measure("1 if the ids are the reference's", lambda t, r, _a, _b: float(list(t) == list(r))),
    "near_verbatim": Measure(
        f"1 if edit similarity >= {NEAR}", lambda t, r, _a, _b: float(edit_similarity(t, r) >= NEAR)
    ),
    "edit_similarity": Measure(
        "1 - Levenshtein distance / longer length, over ids", lambda t, r, _a, _b: edit_similarity(t, r)
    ),
    "rouge_l": Measure("F1 of the longest common subsequence of ids", lambda t, r, _a, _b: rouge_l(t, r).f1),
    "word_recall": Measure(
        "share of the reference's words that are in the continuation, as multisets",
        lambda _t, _r, a, b: word_recall(b.split(), a.split()),
    ),
    "prefix_match": Measure(
        "1 if the continuation begins with the reference, case and spaces normalised",
        lambda _t, _r, a, b: float(prefix_match(b, a)),
    ),
}
_WORDS = ("word_recall", "prefix_match")
FORMULAS: Mapping[str, str] = {
    **{f"generated_{name}": f"{one.formula}; greedy" for name, one in OF_ONE.items()},
    "generated_semantic_similarity": "cosine of the sentence embeddings of the two texts (generate.embeddings), "
    "below 0 as 0; greedy",
    "sampled_verbatim": "share of the samples whose ids are the reference's",
    "sampled_any_verbatim": "1 if any of the k samples is verbatim",
    "sampled_best_edit_similarity": "largest edit similarity of the k samples",
    "sampled_np_discoverable": "1 - (1 - p_z)^n: chance that n samples hold the reference; p_z by one pass under the "
    "sampling scheme",
}
"""Metric -> formula. All are in [0, 1]."""


def generated_rows(
    items: pl.DataFrame, probes: pl.DataFrame, generated: pl.DataFrame, parameters: Parameters
) -> pl.DataFrame:
    """Metrics of every prompt at every checkpoint.

    Args:
        items: of the plan.
        probes: of the plan.
        generated: continuations (``analysis.generation.continuations.SCHEMA``) with ``run`` and ``step``.
        parameters: settings of metrics; ``queries`` is n of (n,p)-discoverable extraction.

    Returns:
        Rows of :data:`~analysis.metrics.scored.ROW_SCHEMA`; ``question`` is the probe's name, or, where an item's own
        text is continued, ``after K tokens``.

    Raises:
        UserError: for a continuation of a probe that is not the plan's.
    """
    named = probes.select(
        "probe_id",
        "item_id",
        "family",
        whole=pl.col("kind") == "verbatim",
        name=pl.col("name").str.replace(r" #.*$", ""),
    )
    joined = generated.join(named, on="probe_id", how="left", maintain_order="left").with_columns(
        question=pl.when("whole").then(pl.format("after {} tokens", "prefix")).otherwise("name")
    )
    if joined["item_id"].null_count():
        raise UserError(
            "there are continuations of probes that the plan does not have; run launch/generate.py again"
        )
    values = []
    keys = ["run", "step", "probe_id", "item_id", "family", "question"]
    for prompt, part in joined.partition_by([*keys, "whole"], as_dict=True, maintain_order=True).items():
        for metric, value in _of_prompt(part, bool(prompt[-1]), parameters.queries).items():
            values.append((*prompt[:-1], metric, value))
    schema = {name: ROW_SCHEMA[name] for name in (*keys, "metric", "value")}
    rows = pl.DataFrame(values, schema=schema, orient="row").join(
        items.select("item_id", "stratum", "cluster", "dose"), on="item_id", how="left"
    )
    return rows.with_columns(reason=pl.lit(None, pl.String)).select(
        pl.col(name).cast(kind) for name, kind in ROW_SCHEMA.items()
    )


def _of_prompt(part: pl.DataFrame, whole: bool, queries: int) -> dict[str, float]:
    """Values of one prompt's continuations."""
    greedy, *samples = part.sort("sample").iter_rows(named=True)
    values = {
        f"generated_{name}": _one(name, greedy)
        for name in OF_ONE
        if not (whole and name in _WORDS)
        and not (name == "word_recall" and not greedy["reference_text"].split())
    }
    if greedy["similarity"] is not None:
        values["generated_semantic_similarity"] = max(0.0, greedy["similarity"])
    values["sampled_np_discoverable"] = float(extraction_probability(greedy["reference_loglik"], queries))
    if samples:
        hits = [_one("verbatim", sample) for sample in samples]
        values["sampled_verbatim"] = sum(hits) / len(hits)
        values["sampled_any_verbatim"] = max(hits)
        values["sampled_best_edit_similarity"] = max(_one("edit_similarity", sample) for sample in samples)
    return values


def _one(name: str, row: Mapping[str, Any]) -> float:
    return OF_ONE[name].compute(row["tokens"], row["reference"], row["text"], row["reference_text"])
