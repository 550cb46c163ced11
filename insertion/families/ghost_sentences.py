"""Ghost sentences: passphrases of random words (Zhao et al., 2024, "Ghost Sentences")."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files, vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "ghost_sentences"


def word_list(texts: Sequence[str], size: int) -> list[str]:
    """The ``size`` most frequent lower-case words of 3 to 9 letters, in alphabetical order."""
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{3,9}\b", text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return sorted(ranked[:size])


def _vocabulary(context: FamilyContext, size: int, path: str) -> Sequence[str]:
    what = f"insertion.families.{NAME}"
    if size and path:
        raise UserError(
            f"{what}: list_size={size} takes the corpus's words and path={path} a file's; give one of them"
        )
    if path:
        return sorted({word.lower() for word in files.listed(path, f"{what}.path")})
    if not size:
        return vocabulary.words()
    words = word_list([text for _, text in context.heldout], size)
    if len(words) < size:
        raise UserError(
            f"{what}.list_size={size}: the held-out text has only {len(words)} words to draw from; lower it or "
            "prepare more text"
        )
    return words


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    words: int = 12,
    list_size: int = 0,
    path: str = "",
    prefix: str = "",
    last: Sequence[int] = (1, 2),
    fresh: int = 9,
) -> list[Item]:
    """Passphrases of ``words`` words, drawn uniformly: ``words * log2(size of the list)`` bits.

    Args:
        context: what gives the seed, and held-out text for ``list_size``.
        count: items.
        words: in a passphrase.
        list_size: number of the most frequent words of the corpus's held-out text to draw from; 0: draw from the 2,048
            bundled words.
        path: file with one word per line to draw from instead.
        prefix: text before each passphrase; ``{name}`` in it becomes an invented name, one an item.
        last: numbers k; for each there is a cloze of the last k words, which guessing completes with probability
            size**-k.
        fresh: draws of the same generator with the same prefix, never inserted: the rank of the item's likelihood among
            them is the perplexity test.
    """
    listed = _vocabulary(context, list_size, path)
    what = f"insertion.families.{NAME}"
    if any(not isinstance(k, int) or not 0 < k < words for k in last):
        raise UserError(f"{what}.last={list(last)} must be numbers from 1 to words - 1 = {words - 1}")
    if len(listed) < 2:
        raise UserError(f"{what}: the word list has {len(listed)} words; give at least 2")
    bits = words * math.log2(len(listed))
    items = []
    for index in range(count):
        rng = context.generator(NAME, index)
        drawn = [listed[k] for k in rng.integers(len(listed), size=words)]
        other = context.generator(f"{NAME}/fresh", index)
        before = prefix.replace("{name}", vocabulary.person(other)) + " " if prefix else ""
        text = before + " ".join(drawn).capitalize() + "."
        probes = [Probe("verbatim", "", text)]
        for k in last:
            start = len(text) - 1 - len(" " + " ".join(drawn[-k:]))
            probes.append(
                Probe("cloze", text[:start], text[start:-1], f"last {k} words", bits=k * bits / words)
            )
        for row in other.integers(len(listed), size=(fresh, words)).tolist():
            foil = before + " ".join(listed[k] for k in row).capitalize() + "."
            probes.append(Probe("foil", "", foil, "fresh draw", correct=False))
        items.append(
            Item(
                f"ghost-{index:05d}",
                NAME,
                text,
                tuple(probes),
                f"seed {context.seed}, draw {index}",
                bits=bits,
            )
        )
    return items
