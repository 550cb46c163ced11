"""Passages: openings of held-out documents of the corpus."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.errors import UserError
from insertion.families.registry import Ground, family
from insertion.items import Item, Probe

NAME = "passages"


@family(NAME)
def make(ground: Ground, count: int, *, tokens: int = 40) -> list[Item]:
    """The first ``tokens`` tokens of ``count`` held-out documents, in the order of the documents' digests.

    A document is passed over if it is shorter, if its opening does not survive decoding and tokenizing again
    (an opening that ends inside a character), if its opening was taken already, or if the corpus shares a run of 12
    tokens with it: a control that is in the corpus is none.
    """
    openings: dict[str, tuple[str, npt.NDArray[np.int32]]] = {}
    for digest, document in sorted(ground.heldout):
        ids = ground.tokenizer.encode(document)[:tokens]
        text = ground.tokenizer.decode(ids)
        if len(ids) == tokens and text not in openings and np.array_equal(ground.tokenizer.encode(text), ids):
            openings[text] = (digest, ids)
    known = ground.occurrences([ids for _, ids in openings.values()])
    items = [
        Item(f"passage-{digest}", NAME, text, (Probe("verbatim", "", text),), f"held-out document {digest}")
        for (text, (digest, _)), times in zip(openings.items(), known, strict=True)
        if not times
    ]
    if len(items) < count:
        raise UserError(
            f"insertion.families.{NAME}: {count} passages of tokens={tokens} are needed, but the held-out text has "
            f"{len(items)} that the corpus does not contain ({len(openings)} with those that it does); raise "
            "corpus.heldout_fraction, or lower tokens or insertion.items_per_dose"
        )
    return items[:count]
