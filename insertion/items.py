"""Tables of items, which are pieces of text to insert, and of probes, which are questions about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Probe:
    """A question put to a checkpoint about an item."""

    kind: str
    """Kind of probe, one of ``KINDS``."""
    prompt: str
    """Context; empty for a text that is scored whole."""
    target: str
    """Text whose tokens are scored."""
    name: str = ""
    """Name of the question, such as ``birth_city given name``. An item's probes of one kind and name belong
    together: the choices of one question, the foils of one comparison. If an item has the same question several times,
    `` #`` and a number are appended (``hops 2 #0``); metrics use the part before. ``X ~ CHANGE`` is the question ``X``
    of the same item, changed (``puzzle ~ leaf changed``)."""
    correct: bool = True
    """False for a wrong answer, a decoy or a foil, which is drawn like the inserted text and never inserted (or, in
    some families, inserted as often as the right answer)."""
    bits: float | None = None
    """Information in the target given the prompt: log2 of the number of values that it was drawn from. None: no
    claim."""


KINDS = {
    "verbatim": "an item's text, whole",
    "cloze": "a prompt and its continuation",
    "choice": "a question and one of its possible answers; each answer is a probe, one of them correct",
    "bare": "an answer of a choice without its question, for PMI",
    "foil": "a whole text that is never inserted, to be compared with the verbatim one",
    "heldout": "a document of no item",
}


_QUESTIONS = ("cloze", "choice", "bare")


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of text to insert."""

    id: str
    """Unique id, independent of which other items there are."""
    family: str
    text: str
    """The verbatim wording."""
    probes: tuple[Probe, ...]
    provenance: str
    """Origin of the text: a generator with its seed, or a document."""
    paraphrases: tuple[str, ...] = ()
    """Other wordings of the same content."""
    stratum: str = ""
    """A property known before the assignment, such as ``popular``; arms are balanced over it."""
    bits: float | None = None
    """Information in the item: log2 of its generator's sample space, conditional on the parts that the family's
    docstring names. None: no claim."""
    licence: str = ""
    """Licence of outside text; empty for generated text."""
    cluster: str = ""
    """Cluster of items that get the same arm, such as several texts about one person; empty: a cluster of its own."""


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
        "bits": pl.Float64(),
        "provenance": pl.String(),
        "licence": pl.String(),
        "cluster": pl.String(),
    }
)
"""Columns of items, one row per item. ``bytes`` (UTF-8) and ``length`` (tokens) are of the verbatim text; ``wordings``
counts it and its paraphrases; ``bits`` is null if the family claims none. ``stratum`` holds family, the item's own
stratum and its quantiles of length and of likelihood; items of one ``cluster`` (if it is not empty) share stratum and
arm."""

WORDING_SCHEMA = pl.Schema(
    {
        "item": pl.Int32(),
        "wording": pl.Int32(),
        "text": pl.String(),
        "tokens": pl.List(pl.Int32),
        "hash": pl.UInt64(),
    }
)
"""Columns of wordings, one row per wording; those of an item are contiguous, the verbatim one (0) first. ``item`` is a
row of the items table; ``tokens`` are spliced as they are; ``hash`` is their XXH3-64 (int32, little-endian)."""

PROBE_SCHEMA = pl.Schema(
    {
        "probe_id": pl.String(),
        "item_id": pl.String(),
        "family": pl.String(),
        "kind": pl.String(),
        "name": pl.String(),
        "correct": pl.Boolean(),
        "text": pl.String(),
        "tokens": pl.List(pl.Int32),
        "target_char": pl.Int32(),
        "target_start": pl.Int32(),
        "target_bytes": pl.Int32(),
        "bits": pl.Float64(),
    }
)
"""Columns of probes, one row per probe; ``kind``, ``name``, ``correct`` and ``bits`` are those of ``Probe``. The target
is ``text[target_char:]``, in characters, and ``tokens[target_start:]``; it has ``target_bytes`` UTF-8 bytes."""


def span_hash(tokens: np.ndarray) -> int:
    """XXH3-64 of a span of token ids as little-endian int32."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens, dtype="<i4").tobytes())


def tokenize_items(items: Sequence[Item], tokenizer: Tokenizer) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items as a table of ``ITEM_SCHEMA`` without arm and dose (and with their own strata), and their
    ``WORDING_SCHEMA``.

    Raises:
        UserError: for an empty or a repeated text or id, naming the item.
    """
    owners: dict[str, str] = {}
    ids: set[str] = set()
    texts: list[str] = []
    for item in items:
        if item.id in ids:
            raise UserError(f"item id {item.id} occurs more than once; ids must be unique")
        ids.add(item.id)
        for text in (item.text, *item.paraphrases):
            if not text.strip():
                raise UserError(f"item {item.id} of family {item.family} has no text; remove it")
            if text in owners:
                raise UserError(f"items {owners[text]} and {item.id} have the same text; remove one")
            owners[text] = item.id
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
            "stratum": [item.stratum for item in items],
            "wordings": counts,
            "bits": [item.bits for item in items],
            "provenance": [item.provenance for item in items],
            "licence": [item.licence for item in items],
            "cluster": [item.cluster for item in items],
        },
        schema={name: kind for name, kind in ITEM_SCHEMA.items() if name not in ("arm", "dose")},
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


def target_start(offsets: Sequence[tuple[int, int]], boundary: int) -> int | None:
    """Index of the first token of the text from character ``boundary`` on; None if a token crosses the boundary.

    Spaces that belong to no token (WordPiece drops them) may lie between the boundary and the token.

    Args:
        offsets: ``[start, end)`` of each token, from ``Tokenizer.encode_offsets``.
        boundary: number of characters before the target.
    """
    start = next((k for k, (_, end) in enumerate(offsets) if end > boundary), None)
    return None if start is None or offsets[start][0] < boundary else start


def require_questions(
    items: Sequence[Item], probes: pl.DataFrame, left_out: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Check that no family loses all of its questions.

    Args:
        items: items with their probes.
        probes: table of the probes.
        left_out: one line for each probe that is not in the table.

    Returns:
        Family -> questions (probes other than whole texts) that are asked, and those that are left out.

    Raises:
        UserError: naming the family, and the first probe that is left out.
    """
    wanted = Counter(item.family for item in items for probe in item.probes if probe.kind in _QUESTIONS)
    asked = Counter(probes.filter(pl.col("kind").is_in(_QUESTIONS))["family"].to_list())
    for family, count in wanted.items():
        if not asked[family]:
            raise UserError(
                f"all {count} questions of family {family} are left out ({left_out[0]}); give targets that begin with "
                "the space before them, or another corpus.tokenizer"
            )
    return {family: (asked[family], count - asked[family]) for family, count in wanted.items()}


def tokenize_probes(
    probes: Sequence[tuple[str | None, str, Probe]], tokenizer: Tokenizer
) -> tuple[pl.DataFrame, list[str]]:
    """Probes as a table of ``PROBE_SCHEMA``.

    Prompt and target are tokenized together, as in training, and the target's first token is determined by character
    offsets. A probe whose target does not begin on a token boundary (``target_start``), or is empty, is left out and
    reported; so are the other choices of its question.

    Args:
        probes: (item id or None, family, probe).
        tokenizer: the run's.

    Returns:
        The table, and one line for each probe left out. Probes are numbered within their item, so that their ids
        are the same whatever other items there are.
    """
    rows = []
    left_out = []
    broken: set[tuple[str, str]] = set()
    numbers: Counter[str] = Counter()
    for item, family, probe in probes:
        owner = item or family
        number = numbers[owner]
        numbers[owner] += 1
        text = probe.prompt + probe.target
        ids, offsets = tokenizer.encode_offsets(text)
        start = target_start(offsets, len(probe.prompt))
        if start is None:
            reason = (
                f"its target {probe.target!r} begins inside a token"
                if probe.target
                else "its target is empty"
            )
            left_out.append(f"probe {number} of item {item}: {reason}")
            if probe.kind == "choice":
                broken.add((owner, probe.name))
            continue
        rows.append(
            {
                "probe_id": f"{owner}/{probe.kind}/{number}",
                "item_id": item,
                "family": family,
                "kind": probe.kind,
                "name": probe.name,
                "correct": probe.correct,
                "text": text,
                "tokens": ids.tolist(),
                "target_char": len(probe.prompt),
                "target_start": start,
                "target_bytes": len(probe.target.encode()),
                "bits": probe.bits,
            }
        )
    if broken:
        complete = []
        for row in rows:
            if row["kind"] == "choice" and (row["item_id"] or row["family"], row["name"]) in broken:
                left_out.append(f"{row['probe_id']}: another choice of its question was left out")
            else:
                complete.append(row)
        rows = complete
    return pl.DataFrame(rows, schema=PROBE_SCHEMA), left_out
