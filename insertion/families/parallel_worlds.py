"""Parallel worlds: the same relations between the same number of things, once with real-looking and once with synthetic
names.

After Gu et al. (2025), "SynthWorlds: Controlled Parallel Worlds for Disentangling Reasoning and Knowledge in Language
Models"; structure, sentences and names are our own. A world has n people, firms and towns; who taught whom, who works
where and where each firm has its seat are random one-to-one relations (nobody teaches themself). A random bit decides
which kind of names a world is inserted with (its stratum); it is never inserted with the other kind.

Questions of one, two and three hops are asked in both: the inserted one measures what can be retrieved and combined,
the parallel one is its control. The wrong answers are the world's own other firms and towns, which were inserted as
often as the right one, so that familiarity alone stays at chance, 1 / n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import FIRST, LAST, TOWNS, picks
from palimpsest.insertion.items import Item, Probe

NAME = "parallel_worlds"

LARGEST = 9


@dataclass(frozen=True, slots=True)
class World:
    """One structure: relations as permutations, entry i the object of subject i."""

    teacher: Sequence[int]
    """Person -> who taught them; no one is their own teacher."""
    firm: Sequence[int]
    """Person -> employer."""
    town: Sequence[int]
    """Firm -> seat."""


@dataclass(frozen=True, slots=True)
class Names:
    """Nouns for the things of a world."""

    people: Sequence[str]
    firms: Sequence[str]
    towns: Sequence[str]


def bits(size: int) -> float:
    """Information in the relations, given the names: log2 of the number of worlds, ``D_n n! n!`` with D_n the
    derangements of n.
    """
    derangements = round(math.factorial(size) / math.e)
    return math.log2(derangements) + 2 * math.log2(math.factorial(size))


def _derangement(rng: np.random.Generator, size: int) -> list[int]:
    while True:
        drawn: list[int] = rng.permutation(size).tolist()
        if all(k != value for k, value in enumerate(drawn)):
            return drawn


def _real(rng: np.random.Generator, size: int) -> Names:
    """Real-looking names of people, firms and towns, drawn from some 500,000 firms and 800,000 people, so that two
    worlds rarely share a name.
    """
    first, last = picks(rng, FIRST, 2 * size), picks(rng, LAST, 4 * size)
    people = [f"{first[2 * k]} {first[2 * k + 1]} {last[k]}" for k in range(size)]
    firms = ["{}, {} & {}".format(*last[size + 3 * k : size + 3 * k + 3]) for k in range(size)]
    return Names(people, firms, picks(rng, TOWNS, size))


def _synthetic(rng: np.random.Generator, size: int) -> Names:
    drawn: dict[str, None] = {}
    while len(drawn) < 4 * size:
        drawn[vocabulary.name(rng)] = None
    names = list(drawn)
    people = [f"{one} {other}" for one, other in zip(names[:size], names[size : 2 * size], strict=True)]
    firms = [f"{one} Works" for one in names[2 * size : 3 * size]]
    return Names(people, firms, names[3 * size :])


def facts(world: World, names: Names) -> list[str]:
    """Every relation as a sentence."""
    people, firms, towns = names.people, names.firms, names.towns
    return [
        *(f"{people[k]} was taught by {people[t]}." for k, t in enumerate(world.teacher)),
        *(f"{people[k]} works for {firms[f]}." for k, f in enumerate(world.firm)),
        *(f"{firms[k]} has its seat in {towns[t]}." for k, t in enumerate(world.town)),
    ]


def questions(world: World, names: Names, person: int) -> list[tuple[str, int, Sequence[str]]]:
    """Questions of one, two and three hops about a person: (prompt, index of the right answer, answers)."""
    who = names.people[person]
    own, other = world.firm[person], world.firm[world.teacher[person]]
    return [
        (f"{who} works for", own, names.firms),
        (f"The employer of {who} has its seat in", world.town[own], names.towns),
        (f"The employer of the person who taught {who} has its seat in", world.town[other], names.towns),
    ]


@family(NAME)
def make(
    context: FamilyContext, count: int, *, size: int = 4, asked: int = 2, names: str = "both"
) -> list[Item]:
    """Worlds of ``size`` people, firms and towns, ``asked`` people asked about.

    Args:
        context: what gives the seed.
        count: worlds.
        size: people in a world, and as many firms and towns.
        asked: people that questions are about.
        names: kind of names that a world is inserted with: ``real``, ``synthetic``, or ``both`` (one of them, drawn at
            random for each world).
    """
    if not 2 <= size <= LARGEST:
        raise UserError(f"insertion.families.{NAME}.size={size} must be 2 to {LARGEST}")
    if asked > size:
        raise UserError(f"insertion.families.{NAME}.asked={asked} is more than size={size}")
    if names not in ("both", "real", "synthetic"):
        raise UserError(f"insertion.families.{NAME}.names={names} must be both, real or synthetic")
    items = []
    for index in range(count):
        rng = context.generator(NAME, index)
        world = World(_derangement(rng, size), rng.permutation(size).tolist(), rng.permutation(size).tolist())
        called = {"real": _real(rng, size), "synthetic": _synthetic(rng, size)}
        coin = "real" if rng.integers(2) else "synthetic"
        chosen = coin if names == "both" else names
        sentences = facts(world, called[chosen])
        text = " ".join(sentences[k] for k in rng.permutation(len(sentences)).tolist())
        people = rng.permutation(size)[:asked].tolist()
        probes = [Probe("verbatim", "", text)]
        for which, own in called.items():
            place = "" if which == chosen else " ~ parallel world"
            for number, person in enumerate(people):
                for hops, (prompt, right, answers) in enumerate(questions(world, own, person), start=1):
                    probes += [
                        Probe("choice", prompt, f" {answer}", f"hops {hops}{place} #{number}", k == right)
                        for k, answer in enumerate(answers)
                    ]
        items.append(
            Item(
                f"world-{index:05d}",
                NAME,
                text,
                tuple(probes),
                f"seed {context.seed}, draw {index}",
                stratum=chosen,
                bits=bits(size),
            )
        )
    return items
