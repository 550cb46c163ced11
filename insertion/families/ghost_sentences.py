"""Ghost sentences: passphrases of random words (Zhao et al., 2024, "Ghost Sentences")."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from data.errors import UserError
from insertion.families.registry import Ground, family
from insertion.items import Item, Probe

NAME = "ghost_sentences"


def word_list(texts: Sequence[str], size: int) -> list[str]:
    """The ``size`` most frequent lower-case words of 3 to 9 letters, in alphabetical order."""
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{3,9}\b", text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return sorted(ranked[:size])


@family(NAME)
def make(ground: Ground, count: int, *, words: int = 12, list_size: int = 2048) -> list[Item]:
    """Passphrases of ``words`` words, drawn uniformly from the corpus's own frequent words.

    The chance of guessing the last k words is ``list_size ** -k``.
    """
    vocabulary = word_list([text for _, text in ground.heldout], list_size)
    if len(vocabulary) < list_size:
        raise UserError(
            f"insertion.families.{NAME}.list_size={list_size}: the held-out text has only {len(vocabulary)} "
            "words to draw from; lower it or prepare more text"
        )
    items = []
    for index in range(count):
        rng = ground.generator(NAME, index)
        text = " ".join(vocabulary[k] for k in rng.integers(len(vocabulary), size=words)).capitalize() + "."
        probes = (Probe("verbatim", "", text),)
        items.append(Item(f"ghost-{index:05d}", NAME, text, probes, f"seed {ground.seed}, draw {index}"))
    return items
