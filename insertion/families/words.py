"""Words that several families draw from: names invented from syllables, and names that look real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_ONSETS = "b br c cl d dr f fl g gr h j k l m n p pl qu r s st t th tr v w z".split()
_VOWELS = "a e i o u ai ea io ou".split()
_CODAS = "l lm n nd r rk rn s st sk th x".split()
SYLLABLES = len(_ONSETS) * len(_VOWELS) * len(_CODAS)
"""Number of syllables that ``invented`` draws from."""

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
"""Towns that exist."""


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


def picks(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """``count`` different ones of the options, in random order."""
    return [options[k] for k in rng.permutation(len(options))[:count].tolist()]


def invented(rng: np.random.Generator, syllables: int = 2) -> str:
    """A capitalised name of ``syllables`` syllables, drawn uniformly: ``SYLLABLES ** syllables`` draws, a few of
    which are spelt alike."""
    drawn = rng.integers(SYLLABLES, size=syllables).tolist()
    parts = []
    for number in drawn:
        number, coda = divmod(number, len(_CODAS))
        onset, vowel = divmod(number, len(_VOWELS))
        parts.append(_ONSETS[onset] + _VOWELS[vowel] + _CODAS[coda])
    return "".join(parts).capitalize()


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
