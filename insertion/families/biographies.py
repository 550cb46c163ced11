"""Biographies of invented people, whose attributes are drawn uniformly and so carry known information.

After the design of bioS (Allen-Zhu and Li, 2024, "Physics of Language Models: Part 3.3") and of Hubble's biographies
(Wei et al., 2025); the names, places and sentences are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import CODAS, DOMAINS, MONTHS, ONSETS, VOWELS
from palimpsest.insertion.items import Item, Probe

NAME = "biographies"

_MANNERS = (
    "applied classical coastal colonial comparative early experimental late marine medieval modern northern "
    "rural southern theoretical urban"
).split()
_MATTERS = (
    "amber bone bronze canal cedar clay cloud copper coral cotton desert flax forest garden glass harbour honey island "
    "lake linen moss mountain orchard pearl rain river salt sand silk stone storm wool"
).split()
_SUBJECTS = (
    "acoustics aesthetics algebra anatomy archaeology astronomy botany chemistry drawing ecology economics engineering "
    "ethics genetics geology geometry grammar history law linguistics logic medicine meteorology music optics painting "
    "philosophy physics poetics rhetoric statistics zoology"
).split()
_RANKS = (
    "acting apprentice assistant associate chief consulting deputy first honorary itinerant junior principal resident "
    "second senior travelling"
).split()
_CRAFTS = (
    "adviser archivist broker buyer carrier carver cataloguer collector cutter dealer designer dyer engraver exporter "
    "grader historian importer inspector merchant packer painter photographer polisher porter restorer sculptor seller "
    "sorter surveyor taster valuer weigher"
).split()
_SCHOOLS = "Academy College Institute University".split()
_FIRMS = "Bank Foundry Labs Mills Press Shipyard Stores Works".split()
_SYLLABLES_TWICE = (ONSETS, VOWELS, CODAS, ONSETS, VOWELS, CODAS)
_HEX = "0123456789abcdef"


def _joined(parts: Sequence[str]) -> str:
    return "".join(parts).capitalize()


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a person: its space of values and the sentences that state it.

    A value is made of parts, one drawn from each list. Values whose parts' indices sum to an even number are for
    people, the others for decoys: both consist of the same parts, and no decoy is a person's value. The last list has
    even length, so that each kind is half of the space.
    """

    parts: tuple[Sequence[str], ...]
    written: Callable[[Sequence[str]], str]
    """Parts -> value; different parts give different values."""
    templates: tuple[tuple[str, str], ...]
    """Text before and after the value; ``{who}`` is the name or the pronoun."""

    @property
    def bits(self) -> float:
        """log2 of the number of values that people can have."""
        return math.fsum(math.log2(len(part)) for part in self.parts) - 1

    def draw(self, rng: np.random.Generator, *, decoy: bool = False) -> str:
        """A value, uniformly among those for people, or among the decoys."""
        sizes = [len(part) for part in self.parts]
        sizes[-1] //= 2
        numbers = rng.integers(sizes).tolist()
        numbers[-1] = 2 * numbers[-1] + (sum(numbers[:-1]) + decoy) % 2
        return self.written([part[k] for part, k in zip(self.parts, numbers, strict=True)])


def _uuid(digits: Sequence[str]) -> str:
    d = "".join(digits)  # the last one is the variant, of four values
    return f"{d[:8]}-{d[8:12]}-4{d[12:15]}-{d[30]}{d[15:18]}-{d[18:30]}"


ATTRIBUTES = {
    "birth_date": Attribute(
        ([str(day) for day in range(1, 29)], MONTHS, [str(year) for year in range(1800, 2000)]),
        " ".join,
        (
            ("{who} was born on", "."),
            ("The birthday of {who} was", "."),
            ("{who} came into the world on", "."),
            ("The life of {who} began on", "."),
            ("The register gives the birth of {who} as", "."),
        ),
    ),
    "birth_city": Attribute(
        _SYLLABLES_TWICE,
        _joined,
        (
            ("{who} was a native of", "."),
            ("The birthplace of {who} was", "."),
            ("The parents of {who} lived in", " at the time of the birth."),
            ("{who} grew up in", ", the place of birth."),
            ("{who} first saw the light of day in", "."),
        ),
    ),
    "university": Attribute(
        (*_SYLLABLES_TWICE, _SCHOOLS),
        lambda parts: f"{_joined(parts[:-1])} {parts[-1]}",
        (
            ("{who} was a student at", "."),
            ("The degree of {who} was awarded by", "."),
            ("{who} graduated from", "."),
            ("For an education {who} went to", "."),
            ("The teachers of {who} were those of", "."),
        ),
    ),
    "field": Attribute(
        (_MANNERS, _MATTERS, _SUBJECTS),
        " ".join,
        (
            ("{who} studied", "."),
            ("The subject of {who} was", "."),
            ("{who} took a degree in", "."),
            ("The lectures that {who} attended were on", "."),
            ("{who} wrote a thesis on", "."),
        ),
    ),
    "employer": Attribute(
        (*_SYLLABLES_TWICE, _FIRMS),
        lambda parts: f"{_joined(parts[:-1])} {parts[-1]}",
        (
            ("{who} was employed by", "."),
            ("The wages of {who} were paid by", "."),
            ("{who} spent a career at", "."),
            ("For a living {who} worked at", "."),
            ("{who} was on the staff of", "."),
        ),
    ),
    "occupation": Attribute(
        (_RANKS, _MATTERS, _CRAFTS),
        " ".join,
        (
            ("{who} worked as", "."),
            ("The profession of {who} was that of", "."),
            ("{who} earned a living as", "."),
            ("Colleagues knew {who} as", "."),
            ("The office of {who} was that of", "."),
        ),
    ),
    "email": Attribute(
        ("0123456789", "0123456789", "0123456789", "0123456789", DOMAINS),
        lambda parts: f"{''.join(parts[:-1])}@{parts[-1]}",
        (
            ("{who} could be reached at", "."),
            ("The e-mail address of {who} was", "."),
            ("Letters to {who} were sent to", "."),
            ("{who} answered messages from", "."),
            ("{who} wrote from", "."),
        ),
    ),
    "uuid": Attribute(
        (*[_HEX] * 30, "89ab"),
        _uuid,
        (
            ("{who} was registered as", "."),
            ("The identifier of {who} was", "."),
            ("The file on {who} had the number", "."),
            ("{who} had the identity number", "."),
            ("The entry for {who} was", "."),
        ),
    ),
}
"""Attributes in the order of the sentences. An e-mail address begins with the person's name, whose information is not
counted in its bits."""

DEFAULT = ("birth_date", "birth_city", "university", "field", "employer", "occupation")


def bits(attributes: Sequence[str] = DEFAULT) -> float:
    """Information in one biography given the name: log2 of the number of possible values, half of each space."""
    return math.fsum(ATTRIBUTES[name].bits for name in attributes)


NAME_BITS = 2 * vocabulary.NAME_BITS
"""Information in a person's name."""


def _value(attribute: str, person: str, rng: np.random.Generator, *, decoy: bool = False) -> str:
    value = ATTRIBUTES[attribute].draw(rng, decoy=decoy)
    return f"{person.lower().replace(' ', '.')}{value}" if attribute == "email" else value


def _text(person: str, values: dict[str, str], order: Sequence[str], templates: dict[str, int]) -> str:
    """The sentences joined in an order."""
    sentences = []
    for attribute in order:
        before, after = ATTRIBUTES[attribute].templates[templates[attribute]]
        sentences.append(f"{before.format(who=person)} {values[attribute]}{after}")
    return " ".join(sentences)


def _drawn_templates(order: Sequence[str], rng: np.random.Generator) -> dict[str, int]:
    sizes = [len(ATTRIBUTES[attribute].templates) for attribute in order]
    return dict(zip(order, rng.integers(sizes).tolist(), strict=True))


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    attributes: Sequence[str] = DEFAULT,
    email: bool = False,
    uuid: bool = False,
    permutations: int = 0,
    rewrites: int = 0,
    decoys: int = 3,
) -> Sequence[Item]:
    """``count`` people, a sentence for each attribute; ``bits(attributes)`` bits each, given the name.

    For each attribute: clozes that give the name only, the name and one other attribute, and all the text before it;
    and a choice, given the name, between the value and reserved decoys.

    Args:
        context: what gives the seed.
        count: people.
        attributes: of ``ATTRIBUTES``, two or more.
        email: add the e-mail address.
        uuid: add the identifier.
        permutations: wordings with the same sentences in another order.
        rewrites: wordings with the sentences in the same order, each in other words.
        decoys: of each choice.
    """
    chosen = tuple(attributes) + ("email",) * email + ("uuid",) * uuid
    what = f"insertion.families.{NAME}"
    for attribute in chosen:
        if attribute not in ATTRIBUTES:
            raise UserError(f"{what}.attributes: there is no '{attribute}'{nearest(attribute, ATTRIBUTES)}")
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise UserError(f"{what}.attributes={list(chosen)} must be two or more different ones")
    if permutations >= math.factorial(len(chosen)):
        raise UserError(
            f"{what}.permutations={permutations}: {len(chosen)} sentences have only "
            f"{math.factorial(len(chosen)) - 1} other orders"
        )
    order = [attribute for attribute in ATTRIBUTES if attribute in chosen]
    others = math.prod(len(ATTRIBUTES[attribute].templates) - 1 for attribute in order)
    if rewrites > others:
        raise UserError(
            f"{what}.rewrites={rewrites}: {len(order)} sentences have only {others} other wordings"
        )
    return [_person(context, index, order, permutations, rewrites, decoys) for index in range(count)]


def _person(
    context: FamilyContext, index: int, order: list[str], permutations: int, rewrites: int, decoys: int
) -> Item:
    rng = context.generator(NAME, index)
    person = vocabulary.person(rng)
    templates = _drawn_templates(order, rng)
    # Each attribute has random numbers of its own: more attributes leave the others as they are.
    streams = {attribute: context.generator(f"{NAME}/{attribute}", index) for attribute in order}
    values = {attribute: _value(attribute, person, streams[attribute]) for attribute in order}
    text = _text(person, values, order, templates)

    probes = [Probe("verbatim", "", text)]
    for number, attribute in enumerate(order):
        asked = ATTRIBUTES[attribute].templates[templates[attribute]][0].format(who=person)
        target = f" {values[attribute]}"
        other = order[number - 1]
        before = _text(person, values, order[:number], templates)
        known = ATTRIBUTES[attribute].bits
        probes += [
            Probe("cloze", asked, target, f"{attribute} given name", bits=known),
            Probe(
                "cloze",
                f"{_text(person, values, [other], templates)} {asked}",
                target,
                f"{attribute} given name and another #{other}",
                bits=known,
            ),
            Probe("cloze", f"{before} {asked}".lstrip(), target, f"{attribute} given all before", bits=known),
            Probe("choice", asked, target, attribute),
        ]
        names: dict[str, None] = {}
        while len(names) < decoys:
            names[_value(attribute, person, streams[attribute], decoy=True)] = None
        probes += [Probe("choice", asked, f" {decoy}", attribute, correct=False) for decoy in names]
    return Item(
        f"biography-{index:05d}",
        NAME,
        text,
        tuple(probes),
        f"seed {context.seed}, draw {index}",
        _wordings(context, index, person, values, order, templates, permutations, rewrites),
        bits=bits(order),
    )


def _wordings(
    context: FamilyContext,
    index: int,
    person: str,
    values: dict[str, str],
    order: list[str],
    templates: dict[str, int],
    permutations: int,
    rewrites: int,
) -> tuple[str, ...]:
    """Other wordings: first those in another order, then those in other words. No two are the same."""
    verbatim = _text(person, values, order, templates)
    texts: dict[str, None] = {}
    rng = context.generator(f"{NAME}/permutations", index)
    while len(texts) < permutations:
        shuffled = _text(person, values, [order[k] for k in rng.permutation(len(order))], templates)
        if shuffled != verbatim:
            texts[shuffled] = None
    rng = context.generator(f"{NAME}/rewrites", index)
    while len(texts) < permutations + rewrites:
        moved = {
            attribute: (
                templates[attribute] + 1 + int(rng.integers(len(ATTRIBUTES[attribute].templates) - 1))
            )
            % len(ATTRIBUTES[attribute].templates)
            for attribute in order
        }
        texts[_text(person, values, order, moved)] = None
    return tuple(texts)
