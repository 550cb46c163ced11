"""Data watermarks: one draw x* of a distribution is inserted, others never are (Wei et al., 2024, "Proving membership
in LLM pretraining data via data watermarks").

Under the null hypothesis that x* was not seen, it is exchangeable with the unused draws for every model, so that the
rank of its loss gives an exact p = (1 + number of unused draws with a loss as low) / (draws + 1).
"""

from __future__ import annotations

import math

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "watermarks"


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    alphabet: str = "abcdefghijklmnopqrstuvwxyz0123456789",
    length: int = 64,
    draws: int = 99,
) -> list[Item]:
    """Strings of ``length`` characters drawn uniformly from ``alphabet``: ``length * log2(size)`` bits each.

    Args:
        context: what gives the seed.
        count: watermarks.
        alphabet: different characters.
        length: characters.
        draws: unused ones of each watermark, m; the smallest p is 1 / (m + 1).
    """
    if len(set(alphabet)) < max(len(alphabet), 2):
        raise UserError(
            f"insertion.families.{NAME}.alphabet={alphabet!r} must be two or more different characters"
        )
    letters = np.array(list(alphabet))
    bits = length * math.log2(len(alphabet))
    items = []
    for index in range(count):
        numbers = context.generator(NAME, index).integers(len(alphabet), size=(draws + 1, length))
        text, *unused = letters[numbers].view(f"<U{length}")[:, 0].tolist()
        probes = [Probe("verbatim", "", text)]
        probes += [Probe("foil", "", draw, "unused draw", correct=False) for draw in unused]
        items.append(
            Item(
                f"watermark-{index:05d}",
                NAME,
                text,
                tuple(probes),
                f"seed {context.seed}, draw {index}",
                bits=bits,
            )
        )
    return items
