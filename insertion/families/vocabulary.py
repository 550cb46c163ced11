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
FIRST = (
    "Ada Agnes Alan Alice Amir Anna Anton Arthur Bella Bruno Carla Carl Clara Daniel David Diana Edith Elena Emil Emma "
    "Erik Esther Eva Felix Fiona Frank Frida George Grace Greta Hanna Harold Hector Helen Henry Hugo Ida Igor Ines "
    "Irene Ivan Jack Jane Jasper John Julia Karen Karl Kate Laura Leo Lena Lewis Linda Louis Lucy Marco Maria Mark "
    "Martha Martin Mary Max Maya Miriam Nadia Nina Noah Nora Olga Oliver Omar Oscar Paul Paula Peter Petra Philip "
    "Rachel Ralph Rita Robert Rosa Ruth Sam Sara Simon Sofia Stella Susan Teresa Thomas Tina Tom Vera Victor Walter "
    "Wanda William Yusuf Zoe"
).split()
"""Common first names."""

LAST = (
    "Adams Baker Barnes Becker Bell Berg Blake Brandt Brooks Carter Castro Clark Cole Cooper Costa Cruz Dixon Duarte "
    "Dubois Duncan Ellis Evans Fischer Fleming Foster Garcia Gibson Graham Grant Hansen Harper Hoffman Holmes Hughes "
    "Hunter Ito Jansen Jensen Keller Kelly Khan Klein Koch Kumar Lambert Larsen Lopez Marino Marsh Martin Meyer Miller "
    "Moreau Morris Murphy Nielsen Novak Olsen Palmer Parker Pereira Petrov Porter Quinn Reed Reyes Rossi Russo Sato "
    "Schmidt Silva Simmons Spencer Stone Torres Turner Vogel Wagner Walsh Weber Wood Young"
).split()
"""Common family names."""

TOWNS = (
    "Aachen Athens Austin Basel Belfast Bergen Berlin Bilbao Bologna Boston Bremen Bristol Cairo Calgary Cardiff "
    "Chicago Cologne Cork Dallas Denver Dresden Dublin Durban Florence Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi "
    "Helsinki Houston Kyoto Leeds Leipzig Lima Lisbon London Lyon Madrid Malaga Manila Milan Munich Nairobi Naples "
    "Osaka Oslo Ottawa Oxford Paris Perth Porto Prague Quito Riga Rome Seville Seoul Sofia Tampa Tokyo Toronto Tunis "
    "Turin Utrecht Vienna Vilnius Warsaw York Zagreb Zurich"
).split()
"""Names of real towns."""


@cache
def words() -> tuple[str, ...]:
    """The bundled words, in alphabetical order."""
    text = resources.files("palimpsest.insertion.families").joinpath("words.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One option, drawn uniformly."""
    return options[int(rng.integers(len(options)))]


def picks(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """``count`` distinct options, drawn uniformly, in random order."""
    return [options[k] for k in rng.permutation(len(options))[:count].tolist()]


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


def listed(parts: Sequence[str]) -> str:
    """Words joined as ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
