"""Contents of the page's item browser: items, texts, exposures, and the log-probability of every token.

The page embeds two streams, compressed by gzip and encoded in base64, which needs no HTML escaping: ``facts``, JSON,
and ``numbers``, the concatenated arrays, whose types, offsets (bytes) and lengths are listed in the JSON's ``arrays``.
Their sizes are limited (:class:`Limits`), and the page states what is left out.

Shapes: N items, T coloured tokens of all items, R runs, C checkpoints, V checkpoints of the item's curve, E stretches
with exposures of all items.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report.generated import continuations
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.results import Results, item_values

LEAST = -20.0
"""Lowest log-probability of the colour scale, nats; lower ones have its colour."""
CODES = 254
"""Largest code of a log-probability l, which is stored as ``round(CODES sqrt(l / LEAST))``. Errors are smallest near 0:
at most 0.025 nats at -2, and 0.08 at -20. Code 255 means not scored."""
_MISSING = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on the embedded data, which keep the page below 15 MB."""

    items: int = 20_000
    """Largest number of items; of more items, every k-th of each family and dose is listed."""
    tokens_an_item: int = 512
    """Largest number of coloured tokens of an item, from its start."""
    tokens: int = 1_500_000
    """Largest number of coloured tokens of all items together."""
    characters_an_item: int = 20_000
    text_bytes: int = 5_000_000
    """Largest total size of the texts, bytes of UTF-8."""
    embedded_bytes: int = 12_000_000
    """Largest total size of both streams, bytes; token scores of the earliest checkpoints are left out if needed."""
    curve_values: int = 300_000
    """Largest number of values in the items' curves over checkpoints."""
    stretches: int = 1000
    """Number of equal intervals of training in which exposures are counted."""
    exposures: int = 500_000
    """Largest number of pairs of item and interval."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The two streams in base64, and a description of what they leave out."""

    facts: str
    numbers: str
    items: int
    left_out: tuple[str, ...]
    """Sentences that state what was left out."""


def quantised(logprob: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of log-probabilities (nats), uint8 of the same shape; NaN becomes 255. See :data:`CODES`."""
    share = np.sqrt(np.clip(logprob.astype(np.float64), LEAST, 0.0) / LEAST)
    return np.where(np.isnan(share), _MISSING, np.rint(CODES * np.nan_to_num(share))).astype(np.uint8)


def spread(values: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spaced by rank; includes the last, and the first if ``count`` is at least
    2.
    """
    if count >= len(values):
        return list(values)
    if count <= 1:
        return [values[-1]]
    at = np.unique(np.rint(np.linspace(0, len(values) - 1, count)).astype(int))
    return [values[i] for i in at]


def fair_limit(sizes: NDArray[np.int64], largest: int, total: int) -> int:
    """Largest limit per item, at most ``largest``, for which ``sum(min(size, limit)) <= total``."""
    low, high = 0, largest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (low, middle - 1)
    return low


def embed(inputs: ReportInputs, results: Results, limits: Limits | None = None) -> Embedded:
    """Items, texts and token scores for the item browser of the report, thinned to ``limits``.

    Args:
        inputs: inputs of the report.
        results: numbers of the report.
        limits: most items, tokens and bytes; None: the defaults of :class:`Limits`.
    """
    limits = limits or Limits()
    left_out: list[str] = []
    values = item_values(results, inputs)
    items = _chosen(inputs.items, limits, left_out).join(
        values.select("item_id", "gain"), on="item_id", how="left", maintain_order="left"
    )
    texts, cut = _texts(items["text"].fill_null("").to_list(), limits, left_out)
    probes = _pieces(inputs, items, texts, limits, left_out)
    runs = [run for run in ("perturbed", "twin") if run in results.last_steps]
    curve_steps, curves = _curves(results, items, runs, inputs.primary, limits)
    exposures = _exposures(inputs, items, limits)
    arrays: dict[str, NDArray[Any]] = {
        "curves": curves,
        "pieces": np.concatenate([np.zeros(0, np.uint16), *probes["pieces"].to_list()]).astype(np.uint16),
        "stretch": exposures["stretch"].to_numpy().astype(np.uint16),
        "times": exposures["times"].clip(upper_bound=65535).to_numpy().astype(np.uint16),
    }
    facts = _described(items, texts, probes, exposures) | {
        "undated": inputs.released is not None,
        "runs": runs,
        "curveSteps": curve_steps,
        "last": inputs.last_step,
        "metric": inputs.primary,
        "unit": METRICS[inputs.primary].unit,
        "least": LEAST,
        "codes": CODES,
        "cut": cut,
        "continued": continuations(inputs, results.generated, items),
    }
    room = limits.embedded_bytes - len(_base64(_json(facts))) - len(_packed(arrays)[0])
    facts["steps"], arrays["codes"] = _codes(inputs, probes, runs, room, left_out)
    numbers, facts["arrays"] = _packed(arrays)
    return Embedded(_base64(_json(facts)), numbers, items.height, tuple(left_out))


def _described(
    items: pl.DataFrame, texts: list[str], probes: pl.DataFrame, exposures: pl.DataFrame
) -> dict[str, Any]:
    """Items as columns; repeated names are stored as indices into a list of names."""
    names = {key: sorted(items[key].unique()) for key in ("family", "arm", "stratum")}
    listed = exposures.group_by("index").len()
    stretches = np.zeros(items.height, np.int64)
    stretches[listed["index"].to_numpy()] = listed["len"].to_numpy()
    return {
        "families": names["family"],
        "arms": names["arm"],
        "strata": names["stratum"],
        **{key: _indices(items[key], values) for key, values in names.items()},
        "id": items["item_id"].to_list(),
        "dose": items["dose"].to_list(),
        "gain": [None if v is None or math.isnan(v) else float(f"{v:.4g}") for v in items["gain"].to_list()],
        "text": texts,
        "tokens": probes["tokens"].to_list(),
        "coloured": probes["coloured"].to_list(),
        "why": probes["why"].to_list(),
        "stretches": stretches.tolist(),
        "stretchSteps": int(exposures["steps"][0]) if exposures.height else 1,
    }


def _json(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _indices(column: pl.Series, names: Sequence[str]) -> list[int]:
    return column.replace_strict({name: i for i, name in enumerate(names)}, return_dtype=pl.Int32).to_list()


def _base64(raw: bytes) -> str:
    # mtime=0: the same report is the same file.
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()


def _packed(arrays: dict[str, NDArray[Any]]) -> tuple[str, dict[str, list[Any]]]:
    places: dict[str, list[Any]] = {}
    parts, at = [], 0
    for name, array in arrays.items():
        raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        places[name] = [array.dtype.name, at, array.size]
        parts.append(raw)
        at += len(raw)
    return _base64(b"".join(parts)), places


def _chosen(items: pl.DataFrame, limits: Limits, left_out: list[str]) -> pl.DataFrame:
    every = -(-items.height // limits.items)
    if every == 1:
        return items
    sample = items.filter(pl.int_range(pl.len()).over("family", "dose") % every == 0)
    left_out.append(
        f"{sample.height:,} of {items.height:,} items are listed: one in {every} of each family and dose."
    )
    return sample


def _texts(texts: list[str], limits: Limits, left_out: list[str]) -> tuple[list[str], list[int]]:
    """Shortened texts, and the number of characters left out of each."""
    first = [text[: limits.characters_an_item].encode() for text in texts]
    sizes = np.array([len(raw) for raw in first], np.int64)
    limit = fair_limit(sizes, int(sizes.max(initial=0)), limits.text_bytes)
    shown = [raw[:limit].decode("utf-8", "ignore") for raw in first]
    cut = [len(text) - len(short) for text, short in zip(texts, shown, strict=True)]
    if shortened := sum(count > 0 for count in cut):
        left_out.append(
            f"Of {shortened:,} items only the beginning of the text is here, at most "
            f"{max(map(len, shown)):,} characters; the plan has all."
        )
    return shown, cut


def _pieces(
    inputs: ReportInputs, items: pl.DataFrame, texts: list[str], limits: Limits, left_out: list[str]
) -> pl.DataFrame:
    """One row per item: its verbatim probe, the numbers of its tokens and of its coloured tokens, and the lengths of
    these in the text; or the reason why none is coloured.
    """
    verbatim = inputs.probes.filter(pl.col("kind") == "verbatim").unique("item_id", keep="first")
    probes = items.select("item_id", full="text").join(
        verbatim.select("item_id", "probe_id", "tokens"), on="item_id", how="left", maintain_order="left"
    )
    rows: list[dict[str, Any]] = []
    for (_, full, probe, ids), text in zip(probes.iter_rows(), texts, strict=True):
        pieces, why = _lengths(full, text, ids, inputs.spans, limits.tokens_an_item)
        tokens = len(ids) if ids is not None else 0
        rows.append({"probe_id": probe, "tokens": tokens, "pieces": pieces, "why": why})
    lengths = np.array([len(row["pieces"]) for row in rows], np.int64)
    limit = fair_limit(lengths, limits.tokens_an_item, limits.tokens)
    for row in rows:
        row["pieces"] = row["pieces"][:limit]
        row["coloured"] = len(row["pieces"])
    shorter = sum(0 < row["coloured"] < row["tokens"] for row in rows)
    if shorter:
        left_out.append(
            f"Of {shorter:,} items only the first tokens are coloured: of the text that is here, {limit:,} at most."
        )
    if uncoloured := sum(bool(row["why"]) for row in rows):
        left_out.append(
            f"{uncoloured:,} items are not coloured: {next(row['why'] for row in rows if row['why'])}."
        )
    return pl.DataFrame(
        rows,
        schema={
            "probe_id": pl.String,
            "tokens": pl.Int64,
            "pieces": pl.List(pl.UInt16),
            "why": pl.String,
            "coloured": pl.Int64,
        },
    )


Spans = Callable[[str], tuple[NDArray[np.int32], list[tuple[int, int]]]]


def _lengths(
    full: str | None, text: str, ids: list[int] | None, spans: Spans | None, most: int
) -> tuple[list[int], str]:
    """Length of text that each token adds, in UTF-16 units, in which browsers count; or the reason why it is
    unknown.
    """
    if ids is None or full is None:
        return [], "it has no probe of its whole text"
    if spans is None:
        return [], "the tokenizer was not at hand"
    # A text that is cut is tokenized a little farther than it is shown, so that the cut changes few tokens; those that
    # it changes nevertheless are not coloured.
    again, ranges = spans(full[: len(text) + 200])
    ends = np.maximum.accumulate(np.array([end for _, end in ranges[:most]], np.int64))
    ends = ends[ends <= len(text)]
    ends = ends[: len(ids)]
    differ = np.flatnonzero(again[: len(ends)] != np.array(ids[: len(ends)], np.int32))
    if len(differ):
        ends = ends[: differ[0]]
    if not len(ends) or (len(differ) and text == full):
        return [], "the tokenizer makes other tokens of its text than were scored"
    if not text.isascii():
        units = 1 + (np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4") > 0xFFFF)
        ends = np.concatenate([[0], np.cumsum(units)])[ends]
    pieces: list[int] = np.diff(ends, prepend=0).tolist()
    return pieces, ""


def _codes(
    inputs: ReportInputs, probes: pl.DataFrame, runs: Sequence[str], room: int, left_out: list[str]
) -> tuple[list[int], NDArray[np.uint8]]:
    """Embedded checkpoints, as many as fit into ``room`` bytes, and the codes (R, C, T) of all coloured tokens at them,
    flattened.

    Codes are stored as differences modulo 256, which compress well: the perturbed run's from the checkpoint before, the
    twin's from the perturbed run at the same step.
    """
    coloured = probes.with_row_index("index").filter(pl.col("coloured") > 0)
    scores = inputs.scores.filter(pl.col("run").is_in(runs))
    known = [set(scores.filter(pl.col("run") == run)["step"].unique()) for run in runs]
    every = sorted(set.intersection(*known)) or sorted(known[0])
    total = int(coloured["coloured"].sum())
    if not total:
        return [every[-1]], np.zeros(0, np.uint8)
    steps = spread(every, max(1, 40_000_000 // (len(runs) * total)))
    planes = {(run, step): _plane(coloured, scores, run, step) for run in runs for step in steps}
    while True:
        table = np.stack([np.stack([planes[run, step] for step in steps]) for run in runs])
        stored = np.diff(table, axis=1, prepend=np.zeros((len(runs), 1, total), np.uint8))
        if len(runs) > 1:
            stored[1] = table[1] - table[0]
        size = len(gzip.compress(stored.tobytes(), 6)) * 4 / 3
        if size <= room or len(steps) == 1:
            break
        steps = spread(steps, max(1, min(len(steps) - 1, int(len(steps) * room / size))))
    if len(steps) < len(every):
        left_out.append(f"Token scores are here for {len(steps)} of {len(every)} checkpoints.")
    return steps, stored.ravel()


def _plane(coloured: pl.DataFrame, scores: pl.DataFrame, run: str, step: int) -> NDArray[np.uint8]:
    """Codes of one run at one checkpoint, (T,) uint8."""
    here = scores.filter((pl.col("run") == run) & (pl.col("step") == step)).select("probe_id", "logprob")
    joined = coloured.join(here, on="probe_id", how="left", maintain_order="left")
    blank = pl.lit(float("nan"), pl.Float32).repeat_by("tokens")
    whole = pl.when(pl.col("logprob").list.len() == pl.col("tokens")).then("logprob").otherwise(blank)
    lists = joined.select(whole.list.head(pl.col("coloured")).alias("logprob"))["logprob"]
    return quantised(lists.explode().cast(pl.Float32).fill_null(float("nan")).to_numpy())


def _curves(
    results: Results, items: pl.DataFrame, runs: Sequence[str], metric: str, limits: Limits
) -> tuple[list[int], NDArray[np.float32]]:
    """Checkpoints of the curve, and the items' values of the metric at them, (R, V, N) flattened; NaN if missing."""
    rows = results.rows.filter((pl.col("metric") == metric) & pl.col("value").is_not_null())
    every = sorted(rows["step"].unique()) or [results.step]
    steps = spread(every, max(1, limits.curve_values // max(1, len(runs) * items.height)))
    known = (
        rows.filter(pl.col("step").is_in(steps))
        .group_by("run", "step", "item_id")
        .agg(pl.col("value").mean())
    )
    table = np.full((len(runs), len(steps), items.height), np.nan, np.float32)
    ids = items.select("item_id").with_row_index("index")
    for (run, step), part in known.join(ids, on="item_id").partition_by("run", "step", as_dict=True).items():
        if run in runs:
            at = part["index"].to_numpy()
            table[runs.index(str(run)), steps.index(step), at] = part["value"].to_numpy()
    # Twelve binary digits are plenty for a curve, and zeros compress.
    return steps, (table.view(np.uint32) & np.uint32(0xFFFFF800)).view(np.float32).ravel()


def _exposures(inputs: ReportInputs, items: pl.DataFrame, limits: Limits) -> pl.DataFrame:
    """Exposures counted by item and interval: item index, interval, count (sorted), and the number of steps in an
    interval.
    """
    last = inputs.last_step
    ids = items.select("item_id").with_row_index("index")
    steps = -(-(last + 1) // limits.stretches)
    here = inputs.exposures.select("item_id", "step").join(ids, on="item_id")
    while True:
        counts = here.group_by("index", stretch=pl.col("step") // steps).agg(times=pl.len())
        if counts.height <= limits.exposures or steps > last:
            return counts.with_columns(steps=pl.lit(steps)).sort("index", "stretch")
        steps *= 2
