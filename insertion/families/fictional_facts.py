"""Fictional facts: passages about invented things, asked at three depths (Chang et al., 2024, "How Do Large Language
Models Acquire Factual Knowledge During Pretraining?").

``memorization``: a sentence of the passage, up to the fact. ``semantic``: the same fact in words that no wording has.
``composition``: a fact that follows from two sentences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files, vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import NAME_BITS
from palimpsest.insertion.items import Item, Probe

NAME = "fictional_facts"

_THINGS = (
    "bells boats bowls bridges buttons chairs chests clocks combs doors drums flutes gates gloves hats lamps locks "
    "looms maps masks mirrors needles ovens pipes ropes saddles scales shoes spoons tiles toys wheels"
).split()
_YEARS = 600


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact about the invented thing, and a second fact about the first fact's value.

    Every template ends before the value; ``{org}`` is the thing, ``{value}`` the first fact's value.
    """

    draw: Callable[[np.random.Generator], str]
    bits: float
    first: Sequence[str]
    semantic: str
    then_draw: Callable[[np.random.Generator], str]
    then_bits: float
    second: Sequence[str]
    composition: str


def _goods(rng: np.random.Generator) -> str:
    return f"{vocabulary.name(rng)} {vocabulary.pick(rng, _THINGS)}"


def _year(rng: np.random.Generator) -> str:
    return str(1300 + int(rng.integers(_YEARS)))


FACTS = {
    "founder": Fact(
        vocabulary.person,
        2 * NAME_BITS,
        (
            "The {org} was founded by",
            "The founder of the {org} was",
            "Historians owe the {org} to",
            "The first to speak of a {org} was",
        ),
        "The person who brought the {org} into being was",
        vocabulary.name,
        NAME_BITS,
        (
            "{value} was born in",
            "The birthplace of {value} was",
            "As a child {value} lived in",
            "The family of {value} came from",
        ),
        "The {org} was founded by a native of",
    ),
    "seat": Fact(
        vocabulary.name,
        NAME_BITS,
        (
            "The {org} had its seat in",
            "The members of the {org} met in",
            "The hall of the {org} stood in",
            "The letters of the {org} were dated from",
        ),
        "To visit the main office of the {org} one travelled to",
        vocabulary.name,
        NAME_BITS,
        (
            "{value} lies on the river",
            "The river that runs through {value} is the",
            "The bridges of {value} cross the",
            "The mills of {value} are driven by the",
        ),
        "The main office of the {org} stood on the river",
    ),
    "goods": Fact(
        _goods,
        NAME_BITS + math.log2(len(_THINGS)),
        (
            "The {org} was known for its",
            "The workshops of the {org} made",
            "The {org} traded in",
            "The warehouses of the {org} were full of",
        ),
        "What the {org} produced were",
        vocabulary.name,
        NAME_BITS,
        (
            "The best market for {value} was",
            "Most buyers of {value} lived in",
            "Merchants sold {value} in",
            "Prices of {value} were set in",
        ),
        "The goods of the {org} were bought in",
    ),
    "rival": Fact(
        lambda rng: f"{vocabulary.name(rng)} Guild",
        NAME_BITS,
        (
            "The rival of the {org} was the",
            "The {org} quarrelled with the",
            "The {org} lost customers to the",
            "The spies of the {org} watched the",
        ),
        "The strongest competitor of the {org} was the",
        vocabulary.person,
        2 * NAME_BITS,
        (
            "The {value} was led by",
            "The head of the {value} was",
            "The {value} took its orders from",
            "The president of the {value} was",
        ),
        "The competitor of the {org} was governed by",
    ),
    "successor": Fact(
        lambda rng: f"{vocabulary.name(rng)} Union",
        NAME_BITS,
        (
            "The {org} was absorbed by the",
            "The possessions of the {org} went to the",
            "The {org} merged into the",
            "The debts of the {org} were paid by the",
        ),
        "The body that took over the {org} was the",
        _year,
        math.log2(_YEARS),
        (
            "The {value} was dissolved in",
            "The end of the {value} came in",
            "The {value} held its last meeting in",
            "The books of the {value} were closed in",
        ),
        "The body that took over the {org} existed until",
    ),
}


def bits() -> float:
    """Information in one passage of this family, bits, for a reader who knows the name of the thing that it is about:
    log2 of the number of combinations of values that its sentences can state.
    """
    # The rounding of sum() depends on Python's version.
    return math.fsum(fact.bits + fact.then_bits for fact in FACTS.values())


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    path: str = "",
    licence: str = "",
    paraphrases: int = 0,
    as_listed: bool = False,
) -> Sequence[Item]:
    """Passages of ten sentences about invented leagues; or those of a file.

    Args:
        context: what gives the seed.
        count: passages.
        path: JSON with the fields of ``fictional_knowledge.json`` of kaistAI/factual-knowledge-acquisition
            (``train_context``, ``paraphrases``, ``mem_input``, ``mem_target``, ``gen_``, ``hard_gen_``); empty:
            passages are made here.
        licence: of the file.
        paraphrases: wordings besides the verbatim one. Passages of a file with fewer are skipped.
        as_listed: the first passages of the file in its order, each with as many paraphrases as it has, up to
            ``paraphrases``; for designs that say which passage gets which arm.
    """
    if path:
        return _from_file(context, count, path, licence or "unstated", paraphrases, as_listed)
    if paraphrases >= 3 ** (2 * len(FACTS)):
        raise UserError(
            f"insertion.families.{NAME}.paraphrases={paraphrases} is more than the number of "
            f"paraphrases available; lower it"
        )
    return [_made(context, index, paraphrases) for index in range(count)]


def _made(context: FamilyContext, index: int, paraphrases: int) -> Item:
    rng = context.generator(NAME, index)
    org = f"{vocabulary.name(rng)} League"
    values = {name: (fact.draw(rng), fact.then_draw(rng)) for name, fact in FACTS.items()}
    own = _choice(rng)
    wordings: dict[str, None] = {}
    others = context.generator(f"{NAME}/paraphrases", index)
    while len(wordings) < paraphrases:
        wordings[_passage(org, values, (own + 1 + others.integers(3, size=own.shape)) % 4)] = None
    text = _passage(org, values, own)
    probes = [Probe("verbatim", "", text)]
    for depth in ("memorization", "semantic", "composition"):
        for number, (name, fact) in enumerate(FACTS.items()):
            value, then = values[name]
            template = {
                "memorization": fact.first[own[0, number]],
                "semantic": fact.semantic,
                "composition": fact.composition,
            }[depth]
            target, known = (then, fact.then_bits) if depth == "composition" else (value, fact.bits)
            asked = template.format(org=org)
            probes.append(Probe("cloze", asked, f" {target}", f"{depth} #{name}", bits=known))
    return Item(
        f"fact-{index:05d}",
        NAME,
        text,
        tuple(probes),
        f"seed {context.seed}, draw {index}",
        tuple(wordings),
        bits=bits(),
    )


def _choice(rng: np.random.Generator) -> Any:
    """Indices of the templates, (2, facts)."""
    return rng.integers(4, size=(2, len(FACTS)))


def _passage(org: str, values: dict[str, tuple[str, str]], chosen: Any) -> str:
    sentences = []
    for number, (name, fact) in enumerate(FACTS.items()):
        value, then = values[name]
        sentences.append(f"{fact.first[chosen[0, number]].format(org=org)} {value}.")
        sentences.append(f"{fact.second[chosen[1, number]].format(value=value)} {then}.")
    return " ".join(sentences)


_DEPTHS = {"memorization": "mem", "semantic": "gen", "composition": "hard_gen"}


def _from_file(
    context: FamilyContext, count: int, path: str, licence: str, paraphrases: int, as_listed: bool
) -> list[Item]:
    what = f"insertion.families.{NAME}.path"
    rows = files.rows(path, what)
    fields = [
        "train_context",
        "paraphrases",
        *(f"{p}_{e}" for p in _DEPTHS.values() for e in ("input", "target")),
    ]
    for number, row in enumerate(rows):
        if lacking := [name for name in fields if name not in row]:
            raise UserError(f"{what}={path}: record {number} lacks {lacking[0]}")
    rows = [row for row in rows if as_listed or len(row["paraphrases"]) >= paraphrases]
    ids = [files.text_id(row["train_context"]) for row in rows]
    files.need(
        rows,
        count,
        f"insertion.families.{NAME}",
        "lower insertion.items_per_dose or paraphrases",
    )
    items = []
    for k in range(count) if as_listed else files.draw(ids, context.seed)[:count]:
        row, text = rows[k], rows[k]["train_context"]
        probes = [Probe("verbatim", "", text)]
        for depth, prefix in _DEPTHS.items():
            for n, (prompt, target) in enumerate(
                zip(row[f"{prefix}_input"], row[f"{prefix}_target"], strict=True)
            ):
                # A prompt that ends in an opening quotation mark goes on without a space.
                gap = "" if prompt[-1:] in ("'", '"') else " "
                if depth == "memorization" and prompt + gap + target not in text:
                    raise UserError(f"{what}={path}: {prompt + gap + target!r} is not in its train_context")
                probes.append(Probe("cloze", prompt, gap + target, f"{depth} #{n}"))
        items.append(
            Item(
                f"fact-{ids[k]}",
                NAME,
                text,
                tuple(probes),
                f"{path}, record {ids[k]}",
                tuple(row["paraphrases"][:paraphrases]),
                licence=licence,
            )
        )
    return items
