"""Interventions on the corpus's own text: replaced wordings, removed documents, tokens with another loss or none.

Each text is tokenized as given (so include the space before a word) and searched for exactly in the token file, once;
the plan records every match. A place that two windows share or that lies across their border is changed in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from palimpsest.data.contamination import ngram_places
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows
from palimpsest.data.order import Order
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.overlay import Edits
from palimpsest.insertion.phases import Phase

Integers = npt.NDArray[np.int64]

_HEAVIEST = 1000.0

EDIT_SCHEMA = pl.Schema(
    {
        "position": pl.Int64(),
        "start": pl.Int32(),
        "intervention": pl.String(),
        "original": pl.List(pl.Int32),
        "replacement": pl.List(pl.Int32),
        "weight": pl.Float32(),
    }
)
"""Columns of edits, one row per piece of a window, ascending by position and start. ``original`` are the corpus's
tokens from ``start`` on, in the window before exposures. They are replaced by the equally many tokens ``replacement``
(``weight`` 1); if that is null they are unchanged, and their losses are multiplied by ``weight`` (0: not predicted)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """One change to all places of the corpus that match."""

    kind: Literal["replace", "remove", "mask", "reweight"]
    """``replace``: other tokens in the place of the text; ``remove``: held-out text in the place of every document that
    contains it; ``mask``: the text stays and its tokens are not predicted; ``reweight``: it stays, and the losses of
    its tokens count ``weight`` times (in a step's sum, which is divided by the number of tokens as ever)."""
    find: tuple[str, ...]
    """Texts to search for, including any white space around them that belongs to them."""
    by: tuple[str, ...] = ()
    """For ``replace``: another wording of each text, of as many tokens."""
    weight: float | None = None
    """For ``reweight``: factor for the losses of the text's tokens; above 0, and not 1."""
    phase: Phase = field(default_factory=Phase)
    """Part of training in which the intervention applies; other windows are unchanged."""

    def __post_init__(self) -> None:
        if not self.find or not all(self.find):
            raise UserError("insertion.interventions: find holds no text; give at least one")
        if (self.kind == "replace") != bool(self.by) or (self.by and len(self.by) != len(self.find)):
            raise UserError(
                f"insertion.interventions: kind={self.kind} with {len(self.find)} texts to find and {len(self.by)} in "
                "by; replace needs one for each, the others none"
            )
        if (self.kind == "reweight") != (self.weight is not None):
            raise UserError(
                f"insertion.interventions: kind={self.kind} with weight={self.weight}; reweight needs one, the "
                "others none"
            )
        if self.weight is not None and (self.weight == 1 or not 0 < self.weight <= _HEAVIEST):
            raise UserError(
                f"insertion.interventions: weight={self.weight:g} must lie above 0 and not above {_HEAVIEST:g}, and "
                "not be 1; to take tokens out of the loss use kind=mask"
            )

    @property
    def loss(self) -> float:
        """Weight of the losses of the text's tokens."""
        return 0.0 if self.kind == "mask" else 1.0 if self.weight is None else self.weight


def edits(
    wanted: Mapping[str, Intervention],
    order: Windows,
    tokenizer: Tokenizer,
    heldout: Sequence[str],
    *,
    steps: int,
    batch: int,
    begin: int = 0,
) -> tuple[pl.DataFrame, dict[str, dict[str, int]]]:
    """All changes to the corpus's text, window by window.

    Args:
        wanted: interventions by name.
        order: windows of the corpus.
        tokenizer: tokenizer of the corpus.
        heldout: texts that replace removed documents, each used once.
        steps: number of steps of the run.
        batch: windows per step.
        begin: step that the run continues from.

    Returns:
        ``EDIT_SCHEMA``, and for each intervention how many ``places`` match, how many of them ``overlap`` one that
        comes before (and are left alone), and how many ``windows`` of the run are changed.

    Raises:
        UserError: for a text that is not in the corpus, a wording of another length, or too little held-out text.
    """
    if not wanted:
        return pl.DataFrame(schema=EDIT_SCHEMA), {}
    layout = Layout(order)
    order = layout.order
    reserve = _Reserve(tokenizer, heldout)
    starts: list[int] = []
    lengths: list[int] = []
    names: list[str] = []
    replacements: list[npt.NDArray[np.int32] | None] = []
    facts: dict[str, dict[str, int]] = {}
    for name, one in wanted.items():
        patterns, others, places = _matches(name, one, order, tokenizer)
        facts[name] = {"places": sum(map(len, places))}
        if one.kind == "remove":
            documents = np.unique(layout.document(np.concatenate(places))).tolist()
            spans = [layout.extent(document) for document in documents]
            starts += [start for start, _ in spans]
            lengths += [length for _, length in spans]
            names += [name] * len(spans)
            replacements += reserve.take(name, [length for _, length in spans])
            continue
        for number, at in enumerate(places):
            starts += at.tolist()
            lengths += [len(patterns[number])] * len(at)
            names += [name] * len(at)
            replacements += [others[number] if others else None] * len(at)
    apart, overlapping = _apart(starts, lengths)
    for name in wanted:
        facts[name]["overlap"] = sum(names[row] == name for row in overlapping)
    table = _pieces(
        wanted, layout, apart, starts, lengths, names, replacements, steps=(begin, steps), batch=batch
    )
    table = _with_original(table, order)
    for name in wanted:
        facts[name]["windows"] = table.filter(pl.col("intervention") == name)["position"].n_unique()
    return table, facts


def _matches(
    name: str, one: Intervention, order: Order, tokenizer: Tokenizer
) -> tuple[list[npt.NDArray[np.int32]], list[npt.NDArray[np.int32]], list[Integers]]:
    """Tokens of the texts to search for, tokens of their replacements, and the places of each text in the file.

    Raises:
        UserError: for a text that is not in the corpus, or a replacement of another length.
    """
    patterns = [tokenizer.encode(text) for text in one.find]
    others = [tokenizer.encode(text) for text in one.by]
    for text, pattern, other in zip(one.find, patterns, others, strict=False):
        if len(pattern) != len(other):
            raise UserError(
                f"insertion.interventions.{name}: {text!r} has {len(pattern)} tokens and its replacement "
                f"{len(other)}; windows cannot change their length, so find a wording with as many"
            )
    places = ngram_places(order.prefix, patterns)
    for text, at in zip(one.find, places, strict=True):
        if not len(at):
            raise UserError(
                f"insertion.interventions.{name}: {text!r} does not occur in the corpus; correct the "
                f"text, including spaces"
            )
    return patterns, others, places


class _Reserve:
    """Held-out text that replaces removed documents; each of its tokens is used once."""

    def __init__(self, tokenizer: Tokenizer, heldout: Sequence[str]) -> None:
        self.tokenizer, self.heldout, self.used = tokenizer, heldout, 0

    @cached_property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Concatenated held-out documents, separated by end-of-document tokens."""
        ends = np.array([self.tokenizer.eod], dtype=np.int32)
        pieces = [piece for text in self.heldout for piece in (self.tokenizer.encode(text), ends)]
        return np.concatenate([*pieces, ends[:0]])

    def take(self, name: str, lengths: Sequence[int]) -> list[npt.NDArray[np.int32]]:
        """Pieces of held-out text of the given lengths.

        Raises:
            UserError: if there is too little held-out text left.
        """
        if self.used + sum(lengths) > len(self.tokens):
            raise UserError(
                f"insertion.interventions.{name} removes {len(lengths)} documents, and the held-out text of "
                f"{len(self.tokens):,} tokens is too short to replace them; raise corpus.heldout_fraction"
            )
        ends = self.used + np.cumsum([0, *lengths])
        self.used = int(ends[-1])
        return [self.tokens[start:end] for start, end in pairwise(ends.tolist())]


def _apart(starts: list[int], lengths: list[int]) -> tuple[list[int], list[int]]:
    """Rows whose places do not overlap an earlier place that was kept, and the others."""
    first_rows, others, end = [], [], -1
    for row in sorted(range(len(starts)), key=lambda row: (starts[row], -lengths[row], row)):
        if starts[row] < end:
            others.append(row)
        else:
            first_rows.append(row)
            end = starts[row] + lengths[row]
    return first_rows, others


class Layout:
    """Map between the tokens of the token file and the windows of the order.

    Raises:
        UserError: if several corpora or epochs are read.
    """

    def __init__(self, order: Windows) -> None:
        if not isinstance(order, Order):
            raise UserError(
                "insertion.interventions and launch/write_corpus.py need one corpus that is shuffled and read once; "
                "set corpus.order=shuffled and mixture.epochs=1, and leave out mixture.corpora"
            )
        self.order = order
        dataset: Any = order.dataset
        self.sequence_length = order.sequence_length
        self.tokens_of = dataset.dataset.sequence_lengths.astype(np.int64)
        self.first = np.cumsum(self.tokens_of) - self.tokens_of
        shuffled = np.asarray(dataset.document_index, dtype=np.int64)
        ends = np.cumsum(self.tokens_of[shuffled])
        self.in_stream = np.empty(len(shuffled), dtype=np.int64)
        """Document -> its first token in the epoch's stream of documents, which is cut into samples."""
        self.in_stream[shuffled] = ends - self.tokens_of[shuffled]
        self.documents = shuffled
        self.samples = np.asarray(dataset.shuffle_index, dtype=np.int64)
        self.position_of = np.empty(len(self.samples), dtype=np.int64)
        self.position_of[self.samples] = np.arange(len(self.samples))
        self.ends = ends

    def document(self, token: Integers) -> Integers:
        """Index of the document that contains a token of the file."""
        row: Integers = np.searchsorted(self.first, token, side="right") - 1
        return row

    def extent(self, document: int) -> tuple[int, int]:
        """First token of a document in the file, and number of its tokens without the end-of-document token."""
        return int(self.first[document]), int(self.tokens_of[document]) - 1

    def window(self, position: int) -> Integers:
        """Places of a window's tokens in the file: (L + 1,)."""
        stream = self.samples[position] * self.sequence_length + np.arange(self.sequence_length + 1)
        document = self.documents[np.searchsorted(self.ends, stream, side="right")]
        places: Integers = self.first[document] + stream - self.in_stream[document]
        return places

    def neighbours(self, position: int) -> list[int]:
        """A window and those that share a token with it: positions, also beyond a run's end."""
        sample = self.samples[position]
        near = np.arange(max(sample - 1, 0), min(sample + 2, len(self.samples)))
        return [int(at) for at in self.position_of[near]]

    def pieces(self, start: Integers, length: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """Spans of the file as pieces of windows.

        Returns:
            For each piece: row of its span, position, first token in the window, and first token in the span. A piece
            ends with the span or the window.
        """
        document = self.document(start)
        stream = self.in_stream[document] + start - self.first[document]
        size = self.sequence_length
        # Neighbouring windows share a token: the last of one is the first of the next.
        low, high = np.maximum((stream - 1) // size, 0), (stream + length - 1) // size
        counts = high - low + 1
        row = np.repeat(np.arange(len(start)), counts)
        sample = low[row] + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        row, sample = row[sample < len(self.position_of)], sample[sample < len(self.position_of)]
        begin = np.maximum(stream[row], sample * size)
        return row, self.position_of[sample], begin - sample * size, begin - stream[row]


def _pieces(
    wanted: Mapping[str, Intervention],
    layout: Layout,
    row_of: list[int],
    starts: list[int],
    lengths: list[int],
    names: list[str],
    replacements: list[npt.NDArray[np.int32] | None],
    *,
    steps: tuple[int, int],
    batch: int,
) -> pl.DataFrame:
    tokens = layout.sequence_length * batch
    phases = {name: one.phase.steps(steps[1], tokens, steps[0]) for name, one in wanted.items()}
    exact = {name: set(one.phase.at) for name, one in wanted.items()}
    weight = {name: one.loss for name, one in wanted.items()}
    start = np.array([starts[row] for row in row_of], dtype=np.int64)
    length = np.array([lengths[row] for row in row_of], dtype=np.int64)
    rows: list[tuple[int, int, str, int, list[int] | None, float]] = []
    for k, position, offset, skip in zip(*(a.tolist() for a in layout.pieces(start, length)), strict=True):
        name, by = names[row_of[k]], replacements[row_of[k]]
        first, end = phases[name]
        step = position // batch
        if not first <= step < end or (exact[name] and step not in exact[name]):
            continue
        count = min(int(length[k]) - skip, layout.sequence_length + 1 - offset)
        piece = None if by is None else by[skip : skip + count].tolist()
        rows.append((position, offset, name, count, piece, weight[name]))
    schema = {("length" if name == "original" else name): kind for name, kind in EDIT_SCHEMA.items()}
    return pl.DataFrame(rows, schema={**schema, "length": pl.Int32()}, orient="row").sort("position", "start")


def _with_original(table: pl.DataFrame, order: Order) -> pl.DataFrame:
    """The pieces with the corpus's tokens at their places: ``EDIT_SCHEMA``."""
    original = []
    for position, start, length in table.select("position", "start", "length").iter_rows():
        original.append(order.window(position)[start : start + length].tolist())
    return table.with_columns(pl.Series("original", original, dtype=pl.List(pl.Int32))).select(
        EDIT_SCHEMA.keys()
    )


def as_arrays(table: pl.DataFrame) -> Edits:
    """The edits as arrays for the overlay."""
    tokens = table.select(pl.coalesce("replacement", "original").alias("tokens"))["tokens"]
    return Edits(
        table["position"].to_numpy(),
        table["start"].to_numpy().astype(np.int64),
        np.concatenate([[0], np.cumsum(tokens.list.len().to_numpy())]).astype(np.int64),
        tokens.explode().drop_nulls().to_numpy().astype(np.int32),
        table["weight"].to_numpy(),
    )
