"""Items - pieces of text to insert - and the probes that ask about them, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash

from data.errors import UserError
from data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Probe:
    """A question put to a checkpoint about an item."""

    kind: str
    """``verbatim``: the item's text; ``cloze``: a prompt and its continuation; ``heldout``: no item at all."""
    prompt: str
    """Context; empty for a text that is scored whole."""
    target: str
    """What is scored."""


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of text to insert."""

    id: str
    """Unique; stable when other items come or go."""
    family: str
    text: str
    """The verbatim wording."""
    probes: tuple[Probe, ...]
    provenance: str
    """Where the text comes from: a generator with its seed, or a document."""
    paraphrases: tuple[str, ...] = ()
    """Other wordings."""


ITEM_SCHEMA = pl.Schema(
    {
        "item_id": pl.String(),
        "family": pl.String(),
        "stratum": pl.String(),
        "arm": pl.String(),
        "dose": pl.Int32(),
        "text": pl.String(),
        "bytes": pl.Int32(),
        "length": pl.Int32(),
        "wordings": pl.Int32(),
        "provenance": pl.String(),
    }
)
"""One row an item. ``bytes`` (UTF-8) and ``length`` (tokens) are of the verbatim text; ``wordings`` counts it and
its paraphrases."""

WORDING_SCHEMA = pl.Schema(
    {
        "item": pl.Int32(),
        "wording": pl.Int32(),
        "text": pl.String(),
        "tokens": pl.List(pl.Int32),
        "hash": pl.UInt64(),
    }
)
"""One row a wording, those of an item together and the verbatim one (0) first. ``item`` is a row of the items table;
``tokens`` are spliced as they are; ``hash`` is their XXH3-64 (int32, little-endian)."""

PROBE_SCHEMA = pl.Schema(
    {
        "probe_id": pl.String(),
        "item_id": pl.String(),
        "family": pl.String(),
        "kind": pl.String(),
        "text": pl.String(),
        "tokens": pl.List(pl.Int32),
        "target_start": pl.Int32(),
        "target_bytes": pl.Int32(),
    }
)
"""One row a probe. The target is ``tokens[target_start:]``; it has ``target_bytes`` UTF-8 bytes."""


def span_hash(tokens: np.ndarray) -> int:
    """XXH3-64 of a span of token ids as little-endian int32."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens, dtype="<i4").tobytes())


def tokenize_items(items: Sequence[Item], tokenizer: Tokenizer) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items as a table of ``ITEM_SCHEMA`` without stratum, arm and dose, and their ``WORDING_SCHEMA``.

    Raises:
        UserError: for an empty or a repeated text or id, naming the item.
    """
    seen: dict[str, str] = {}
    ids: set[str] = set()
    texts: list[str] = []
    for item in items:
        if item.id in ids:
            raise UserError(f"item id {item.id} occurs more than once; ids must be unique")
        ids.add(item.id)
        for text in (item.text, *item.paraphrases):
            if not text.strip():
                raise UserError(f"item {item.id} of family {item.family} has no text; remove it")
            if text in seen:
                raise UserError(f"items {seen[text]} and {item.id} have the same text; remove one")
            seen[text] = item.id
            texts.append(text)
    tokens = tokenizer.encode_batch(texts)
    counts = np.array([1 + len(item.paraphrases) for item in items])
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(items) else counts
    table = pl.DataFrame(
        {
            "item_id": [item.id for item in items],
            "family": [item.family for item in items],
            "text": [item.text for item in items],
            "bytes": [len(item.text.encode()) for item in items],
            "length": [len(tokens[row]) for row in first],
            "wordings": counts,
            "provenance": [item.provenance for item in items],
        },
        schema={name: kind for name, kind in ITEM_SCHEMA.items() if name not in ("stratum", "arm", "dose")},
    )
    wordings = pl.DataFrame(
        {
            "item": np.repeat(np.arange(len(items)), counts),
            "wording": np.arange(len(texts)) - np.repeat(first, counts),
            "text": texts,
            "tokens": [ids.tolist() for ids in tokens],
            "hash": [span_hash(ids) for ids in tokens],
        },
        schema=WORDING_SCHEMA,
    )
    return table, wordings


def tokenize_probes(
    probes: Sequence[tuple[str | None, str, Probe]], tokenizer: Tokenizer
) -> tuple[pl.DataFrame, list[str]]:
    """Probes as a table of ``PROBE_SCHEMA``.

    The whole of prompt and target is tokenized once, as the model met it, and the target's first token is found
    by character offsets. A probe whose target does not begin on a token boundary is left out and reported.

    Args:
        probes: (item id or None, family, probe).
        tokenizer: the run's.

    Returns:
        The table, and one line for each probe left out.
    """
    rows = []
    left_out = []
    for number, (item, family, probe) in enumerate(probes):
        text = probe.prompt + probe.target
        ids, offsets = tokenizer.encode_offsets(text)
        start = next((k for k, (begin, _) in enumerate(offsets) if begin >= len(probe.prompt)), None)
        if start is None or offsets[start][0] != len(probe.prompt):
            left_out.append(
                f"probe {number} of item {item}: its target {probe.target!r} begins inside a token"
            )
            continue
        rows.append(
            {
                "probe_id": f"{item or family}/{probe.kind}/{number}",
                "item_id": item,
                "family": family,
                "kind": probe.kind,
                "text": text,
                "tokens": ids.tolist(),
                "target_start": start,
                "target_bytes": len(probe.target.encode()),
            }
        )
    return pl.DataFrame(rows, schema=PROBE_SCHEMA), left_out
