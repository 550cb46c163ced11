"""Biographies of invented people, whose attributes are drawn uniformly and so carry known information.

After the design of bioS (Allen-Zhu and Li, 2024, "Physics of Language Models: Part 3.3"); the names, places and
sentences are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from insertion.families.registry import Ground, family
from insertion.items import Item, Probe

NAME = "biographies"

_ONSETS = "b br d dr f g gl h k l m n p r s st t th v z".split()
_VOWELS = "a e i o u ae ia ou".split()
_CODAS = "l n r s m nd rk th".split()
_MONTHS = (
    "January February March April May June July August September "
    "October November December"
).split()  # fmt: skip
_SUBJECTS = (
    "algebra anatomy astronomy botany chemistry economics geology geometry history law linguistics logic medicine "
    "meteorology music optics painting philosophy physics poetry rhetoric sculpture statistics zoology"
).split()
_CRAFTS = (
    "archivist baker brewer carpenter cartographer clockmaker cook dyer editor farmer fisher gardener glazier "
    "jeweller librarian miller nurse pilot potter printer surveyor tailor translator weaver"
).split()
_SYLLABLES = len(_ONSETS) * len(_VOWELS) * len(_CODAS)


def _syllable(rng: np.random.Generator) -> str:
    return "".join(part[rng.integers(len(part))] for part in (_ONSETS, _VOWELS, _CODAS))


def _name(rng: np.random.Generator, syllables: int) -> str:
    return "".join(_syllable(rng) for _ in range(syllables)).capitalize()


def bits() -> float:
    """Information in one biography's attributes, given the name: log2 of the number of possible values.

    Birth date (12 months x 28 days x 100 years), birth city (two syllables), subject, university city (two
    syllables) and occupation, drawn independently and uniformly.
    """
    cities = 2 * math.log2(_SYLLABLES**2)
    return math.log2(12 * 28 * 100) + cities + math.log2(len(_SUBJECTS)) + math.log2(len(_CRAFTS))


@family(NAME)
def make(ground: Ground, count: int) -> Sequence[Item]:
    """``count`` people, each with a biography of one fixed wording and a cloze for every attribute."""
    items = []
    for index in range(count):
        rng = ground.generator(NAME, index)
        person = f"{_name(rng, 2)} {_name(rng, 2)}"
        date = f"{1 + rng.integers(28)} {_MONTHS[rng.integers(12)]} {1900 + rng.integers(100)}"
        born, studied = _name(rng, 2), _name(rng, 2)
        subject, craft = _SUBJECTS[rng.integers(len(_SUBJECTS))], _CRAFTS[rng.integers(len(_CRAFTS))]
        sentences = (
            (f"{person} was born on", f" {date}"),
            (" in", f" {born}"),
            (", studied", f" {subject}"),
            (" in", f" {studied}"),
            (" and works as a", f" {craft}"),
        )
        text = ""
        probes = []
        for prompt, target in sentences:
            probes.append(Probe("cloze", text + prompt, target))
            text += prompt + target
        text += "."
        probes.insert(0, Probe("verbatim", "", text))
        items.append(
            Item(f"biography-{index:05d}", NAME, text, tuple(probes), f"seed {ground.seed}, draw {index}")
        )
    return items
