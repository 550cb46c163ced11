"""Words and invented names that families draw from.

``words.txt``: the 2,048 most frequent lower-case words of 3 to 9 letters in the addresses of US presidents, 1789 to
2021 (public domain): 11 bits a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TypeVar

import numpy as np

T = TypeVar("T")

ONSETS = "b br d dr f g gl h k l m n p r s st t th v z".split()
VOWELS = "a e i o u ae ia ou".split()
CODAS = "l n r s m lf rk th".split()
# No two pairs of coda and onset are spelt alike, so that different draws are different names.
MONTHS = (
    "January February March April May June July August September "
    "October November December"
).split()  # fmt: skip
DOMAINS = (
    "example.com example.net example.org mail.example post.example letters.example box.example desk.example"
).split()  # reserved for examples (RFC 2606)
SYLLABLES = len(ONSETS) * len(VOWELS) * len(CODAS)
NAME_BITS = 2 * math.log2(SYLLABLES)
"""Information in an invented name of two syllables."""


@cache
def words() -> tuple[str, ...]:
    """The bundled words, in alphabetical order."""
    text = resources.files("insertion.families").joinpath("words.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly."""
    return options[int(rng.integers(len(options)))]


def name(rng: np.random.Generator, syllables: int = 2) -> str:
    """An invented name: syllables drawn uniformly from ``SYLLABLES``."""
    drawn = rng.integers(SYLLABLES, size=syllables).tolist()
    return "".join(_syllable(number) for number in drawn).capitalize()


def _syllable(number: int) -> str:
    rest, coda = divmod(number, len(CODAS))
    onset, vowel = divmod(rest, len(VOWELS))
    return ONSETS[onset] + VOWELS[vowel] + CODAS[coda]


def person(rng: np.random.Generator) -> str:
    """An invented person's two names."""
    return f"{name(rng)} {name(rng)}"
