"""Passages: openings of held-out documents of the corpus."""

from __future__ import annotations

from data.errors import UserError
from insertion.families.registry import Ground, family
from insertion.items import Item, Probe

NAME = "passages"


@family(NAME)
def make(ground: Ground, count: int, *, tokens: int = 40) -> list[Item]:
    """The first ``tokens`` tokens of ``count`` held-out documents, in the order of the documents' digests.

    A document is passed over if it is shorter, if its opening does not survive decoding and tokenizing again
    (an opening that ends inside a character), or if its opening was taken already.
    """
    items: dict[str, Item] = {}
    for digest, document in sorted(ground.heldout):
        if len(items) == count:
            break
        ids = ground.tokenizer.encode(document)[:tokens]
        text = ground.tokenizer.decode(ids)
        if len(ids) < tokens or text in items or ground.tokenizer.encode(text).tolist() != ids.tolist():
            continue
        probes = (Probe("verbatim", "", text),)
        items[text] = Item(f"passage-{digest}", NAME, text, probes, f"held-out document {digest}")
    if len(items) < count:
        raise UserError(
            f"insertion.families.{NAME}: {count} passages of tokens={tokens} are needed, but the held-out text has "
            f"{len(items)}; raise corpus.heldout_fraction, or lower tokens or the items per arm"
        )
    return list(items.values())
