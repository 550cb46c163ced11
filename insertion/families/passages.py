"""Passages: stretches of documents, of given lengths (after the Gutenberg and Wikipedia sets of Hubble; Wei et al.,
2025). The verbatim probe answers for every prefix length: each token is scored after all that come before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "passages"


@dataclass(frozen=True, slots=True)
class _Passage:
    document: str
    text: str
    tokens: npt.NDArray[np.int32]
    stratum: str


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    tokens: int | Sequence[int] = (40,),
    window: str = "opening",
    path: str = "",
    licence: str = "",
    popular_path: str = "",
) -> list[Item]:
    """``tokens`` tokens of each of ``count`` documents.

    A document is skipped if it is shorter, if its stretch changes by decoding and tokenizing again (because it ends
    inside a character), if it was already used, or if the corpus shares a run of 12 tokens with it, because a control
    must not be in the corpus.

    Args:
        context: what gives the tokenizer, and held-out documents, which are taken in the order of their digests.
        count: passages.
        tokens: length; of several lengths, documents take turns.
        window: ``opening`` of the document, or a ``random`` stretch of it, drawn by seed and document.
        path: table with ``text`` and, optionally, ``id``, read in an order drawn by the seed; empty: the corpus's
            held-out documents.
        licence: of the file's texts.
        popular_path: file with an id (a digest, of held-out documents) a line. Half of the passages are then of
            documents in that list, half of others, and ``popular`` and ``unpopular`` are strata.
    """
    what = f"insertion.families.{NAME}"
    lengths = [tokens] if isinstance(tokens, int) else list(tokens)
    if not lengths or any(not isinstance(n, int) or isinstance(n, bool) or n < 2 for n in lengths):
        raise UserError(f"{what}.tokens={tokens} must be one or more numbers above 1")
    if window not in ("opening", "random"):
        raise UserError(f"{what}.window={window} must be opening or random")
    popular = files.listed(popular_path, f"{what}.popular_path") if popular_path else None
    documents = _documents(context, path, what)
    by_text: dict[str, _Passage] = {}
    for passage in _stretches(context, documents, lengths, window, popular):
        by_text.setdefault(passage.text, passage)
    known = context.occurrences([passage.tokens for passage in by_text.values()])
    fresh = [passage for passage, times in zip(by_text.values(), known, strict=True) if not times]
    chosen = fresh
    groups: dict[str, int] = {"": count}
    if popular is not None:
        groups = {"popular": count // 2, "unpopular": count - count // 2}
        quota = dict(groups)
        chosen = []
        for passage in fresh:
            group = passage.stratum.split(" ")[0]
            if quota[group]:
                quota[group] -= 1
                chosen.append(passage)
    if len(chosen) < count:
        group = f" ({', '.join(f'{n} {name}' for name, n in groups.items())})" if popular is not None else ""
        raise UserError(
            f"{what}: {count} passages of tokens={tokens} are needed{group}, but the "
            f"{'file' if path else 'held-out text'} has {len(chosen)} that the corpus does not contain ({len(by_text)} "
            f"with those that it does); {'give more documents' if path else 'raise corpus.heldout_fraction'}, or lower "
            "tokens or insertion.items_per_dose"
        )
    where = path or "held-out document"
    return [
        Item(
            f"passage-{passage.document}",
            NAME,
            passage.text,
            (Probe("verbatim", "", passage.text),),
            f"{where} {passage.document}",
            stratum=passage.stratum,
            licence=(licence or "unstated") if path else "of the corpus",
        )
        for passage in chosen[:count]
    ]


def _documents(context: FamilyContext, path: str, what: str) -> list[tuple[str, str]]:
    """(id, text) of the documents, in the order of use."""
    if not path:
        return sorted(context.heldout)
    documents: dict[str, str] = {}
    for number, row in enumerate(files.rows(path, f"{what}.path")):
        if not isinstance(row.get("text"), str):
            raise UserError(f"{what}.path={path}: row {number} has no text in the field text")
        name = str(row["id"]) if row.get("id") is not None else files.text_id(row["text"])
        if documents.setdefault(name, row["text"]) != row["text"]:
            raise UserError(f"{what}.path={path}: two documents have the id {name}")
    listed = list(documents.items())
    return [listed[k] for k in files.draw(documents, context.seed)]


def _stretches(
    context: FamilyContext,
    documents: Sequence[tuple[str, str]],
    lengths: Sequence[int],
    window: str,
    popular: set[str] | None,
) -> Iterator[_Passage]:
    turn = 0
    for document, text in documents:
        length = lengths[turn % len(lengths)]
        ids = context.tokenizer.encode(text)
        start = 0
        if window == "random" and len(ids) > length:
            start = int(context.generator(f"{NAME}/{document}", 0).integers(len(ids) - length + 1))
        ids = ids[start : start + length]
        part = context.tokenizer.decode(ids)
        if len(ids) < length or not np.array_equal(context.tokenizer.encode(part), ids):
            continue
        turn += 1
        labels = [] if popular is None else ["popular" if document in popular else "unpopular"]
        labels += [f"tokens{length}"] if len(lengths) > 1 else []
        yield _Passage(document, part, ids, " ".join(labels))
