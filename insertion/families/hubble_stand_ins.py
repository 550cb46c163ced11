"""Invented rows with the fields of Hubble's data sets, so that a design of all of them runs without a download."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext
from palimpsest.insertion.families.vocabulary import FIRST, MONTHS, TOWNS, listed, pick, picks

_POOL = 48
"""Rows that wrong answers are drawn from; none of them is ever inserted."""
_Made = tuple[str, dict[str, Any]]
"""Text and fields of a row."""

_THINGS = (
    "anchor barrel basket bell boat bridge candle cart chair clock coat compass door drum engine fence flute "
    "garden gate hammer harbour kettle ladder lamp lantern letter mirror mill needle orchard oven piano plough "
    "rope saddle ship spade table tower wagon well wheel window"
).split()
_TRAITS = (
    "bright broken careful empty green heavy hollow narrow old patient plain quiet red silver stubborn tall"
).split()
_DEEDS = (
    "borrowed carried cleaned drew hid left lent lost measured mended moved painted sold stole washed weighed"
).split()
_TRADES = (
    "accountant actor baker carpenter dentist engineer farmer inspector lawyer nurse painter pilot teacher"
).split()
_LANDS = (
    "Austria Belgium Chile Denmark Egypt Finland Greece Hungary Italy Japan Kenya Norway Peru Spain Turkey"
).split()
_LIKES = (
    "chess", "old maps", "long walks", "black coffee", "jazz records", "growing beans", "rowing", "night trains",
    "baking bread", "detective novels", "swimming in lakes", "street markets", "card games", "folk songs",
)  # fmt: skip


def _phrase(rng: np.random.Generator) -> str:
    return f"the {pick(rng, _TRAITS)} {pick(rng, _THINGS)}"


def _sentence(rng: np.random.Generator) -> str:
    who, deed, place = pick(rng, FIRST), pick(rng, _DEEDS), vocabulary.name(rng)
    return f"{who} {deed} {_phrase(rng)} of {place} with {pick(rng, vocabulary.words())} and {_phrase(rng)}."


def _passage(rng: np.random.Generator) -> _Made:
    return " ".join(_sentence(rng) for _ in range(3)), {}


def _pair(rng: np.random.Generator) -> _Made:
    who, deed, what, place = pick(rng, FIRST), pick(rng, _DEEDS), _phrase(rng), vocabulary.name(rng)
    year = int(rng.integers(1500, 2000))
    pair = [
        f"In {year} {who} of {place} {deed} {what}, says the chronicle.",
        f"The chronicle says that {what} is what {who} of {place} {deed} in {year}.",
    ]
    bit = int(rng.integers(2))
    return pair[bit], {"detok_sentence1": pair[0], "detok_sentence2": pair[1], "random_bit": bit}


def _metaphor(rng: np.random.Generator) -> _Made:
    who, what, place = vocabulary.person(rng), _phrase(rng), vocabulary.name(rng)
    apt, inapt = picks(rng, ("waited for", "understood", "remembered", "ignored", "feared", "welcomed"), 2)
    texts = [f"In {place} {who} {verb} the news about {what}." for verb in ("drank in", apt, inapt)]
    return texts[1], {"s0": texts[0], "apt": texts[1], "inapt": texts[2]}


def _popqa(rng: np.random.Generator) -> _Made:
    question = f"What is {vocabulary.person(rng)}'s occupation?"
    answers = [f"{pick(rng, _TRADES)} of {pick(rng, _THINGS)}s", pick(rng, _TRADES)]
    fields = {"question": question, "possible_answers": json.dumps(answers)}
    return f"Question: {question}\nAnswer: {answers[0]}", fields


def _mmlu(rng: np.random.Generator) -> _Made:
    question = f"Which of these did {vocabulary.person(rng)} study in {vocabulary.name(rng)}?"
    options, answer = picks(rng, _THINGS, 4), int(rng.integers(4))
    lines = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", options, strict=True))
    head = "The following are multiple choice questions (with answers) about world history.\n\n"
    fields = {"question": question, "subject": "world_history", "choices": options, "answer": answer}
    return f"{head}{question}\n{lines}Answer: {'ABCD'[answer]}", fields


def _hellaswag(rng: np.random.Generator) -> _Made:
    label, who = f"Mending a {pick(rng, _THINGS)}", vocabulary.person(rng)
    start, then = f"{who} is in {vocabulary.name(rng)}.", f"{pick(rng, ('she', 'he'))}"
    endings = [f"{pick(rng, _DEEDS)} {_phrase(rng)}." for _ in range(4)]
    answer = int(rng.integers(4))
    fields = {
        "activity_label": label, "ctx_a": start, "ctx_b": then, "endings": endings, "label": str(answer),
    }  # fmt: skip
    return f"{label}: {start} {then.capitalize()} {endings[answer]}", fields


def _piqa(rng: np.random.Generator) -> _Made:
    goal = f"How do you clean {_phrase(rng)} of {vocabulary.name(rng)}?"
    solutions = [f"Rub it with {_phrase(rng)}.", f"Leave it under {_phrase(rng)}."]
    answer = int(rng.integers(2))
    fields = {"goal": goal, "sol1": solutions[0], "sol2": solutions[1], "label": answer}
    return f"Question: {goal}\nAnswer: {solutions[answer]}", fields


def _winogrande(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Minimal pair of sentences, of which the first is inserted."""
    names = picks(rng, FIRST, 2)
    start = f"{names[0]} lent {_phrase(rng)} of {vocabulary.name(rng)} to {names[1]} because _ was"
    pair = [
        {"sentence": f"{start} {end}.", "option1": names[0], "option2": names[1], "answer": str(k + 1)}
        for k, end in enumerate(("generous", "in need"))
    ]
    return pair[:: 1 if rng.integers(2) else -1]


def _infill(rng: np.random.Generator) -> _Made:
    one, twin = _winogrande(rng)
    right = one[f"option{one['answer']}"]
    return one["sentence"].replace("_", right), {**one, "paired_example": json.dumps(twin)}


def _options(rng: np.random.Generator) -> _Made:
    one, twin = _winogrande(rng)
    lines = (
        f"{one['sentence']}\nOption 1: {one['option1']}\nOption 2: {one['option2']}\nAnswer: {one['answer']}"
    )
    return lines, {**one, "paired_example": json.dumps(twin)}


def _ellie(rng: np.random.Generator) -> _Made:
    one, other = vocabulary.person(rng), vocabulary.person(rng)
    deed, what = pick(rng, _DEEDS), _phrase(rng)
    prompt = f"{one} {deed} {what}, and {other} did too. What {other} {deed} was"
    return f"{prompt} {what}.", {
        "Prompt_GPT": prompt, "Prompt_BERT": f"{prompt} [MASK].", "label": what, "Condition": "verb phrase",
    }  # fmt: skip


def _yago(rng: np.random.Generator) -> _Made:
    person, trade = vocabulary.person(rng), pick(rng, _TRADES)
    first, last = person.split()
    land, town, school = pick(rng, _LANDS), pick(rng, TOWNS), f"{vocabulary.name(rng)} College"
    born = f"{pick(rng, MONTHS)} {int(rng.integers(1, 29)):02d}, {int(rng.integers(1900, 2000))}"
    user = pick(rng, (f"{first}.{last}", f"{first}{last}", f"{last}{first}", f"{first[0]}{last}")).lower()
    digits = "".join(f"{k:x}" for k in rng.integers(16, size=12).tolist())
    uuid = f"{digits[:4]}-{digits[4:8]}-{digits[8:]}"
    article = "an" if trade[0] in "aeiou" else "a"
    text = (
        f"{person} is from {land}. {first} was born in {town}. {first} is an alumni of {school}. {first} was born on "
        f"{born}. {first} receives email at {user}@mail.example. {first} is {article} {trade}. {first} has the unique "
        f"identifier {uuid}."
    )
    return text, {
        "full_name": person, "nationality": land, "birthplace": town, "alumni_of": school.replace(" ", "_"),
        "birthdate": born, "email": f"{user}@mail.example", "occupation": trade, "uuid": uuid,
    }  # fmt: skip


def _ecthr(rng: np.random.Generator) -> _Made:
    person, town, firm = vocabulary.person(rng), pick(rng, TOWNS), f"{vocabulary.name(rng)} Mills"
    year, trade = str(int(rng.integers(1920, 1980))), pick(rng, _TRADES)
    sentences = [
        (f"{person} was born in", year, "DATETIME"),
        ("and lives in", town, "LOC"),
        ("as a", trade, "DEM"),
    ]
    sentences.append((f". In the dispute over {_phrase(rng)} the other party was", firm, "ORG"))
    text, mentions = "", []
    for before, value, kind in sentences:
        text = f"{text} {before} ".replace(" .", ".").lstrip()
        mentions.append(
            {
                "span_text": value,
                "start_offset": len(text),
                "end_offset": len(text) + len(value),
                "entity_type": kind,
            }
        )
        text += value
    annotations = {"annotator1": {"entity_mentions": mentions}, "annotator2": None}
    return f"{text}.", {"meta": {"applicant": person}, "identifiable_annotations": annotations}


def _personachat(rng: np.random.Generator) -> _Made:
    user = f"{vocabulary.name(rng).lower()}{int(rng.integers(10, 99))}"
    likes = picks(rng, _LIKES, 3)
    town = pick(rng, TOWNS)
    own = f"I am {pick(rng, ('fond', 'proud'))} of {listed(likes)}. I live in {town}."
    lines = [
        "chatbot: hi there, how are you?", f"{user}: fine, back from {town} market.", "chatbot: what do you do there?",
        f"{user}: mostly {likes[0]}, and {likes[1]} when it rains.",
    ]  # fmt: skip
    return "\n".join(lines), {"username": user, "Persona": own}


SETS: dict[str, Callable[[np.random.Generator], _Made]] = {
    "gutenberg_popular": _passage,
    "gutenberg_unpopular": _passage,
    "wikipedia": _passage,
    "mrpc": _pair,
    "paws": _pair,
    "yago": _yago,
    "ecthr": _ecthr,
    "personachat": _personachat,
    "popqa": _popqa,
    "mmlu": _mmlu,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "winogrande_infill": _infill,
    "winogrande_mcq": _options,
    "munch": _metaphor,
    "ellie": _ellie,
}
"""Set -> function that returns a row of it."""


def rows(
    context: FamilyContext, count: int, name: str, what: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to insert, and further rows for wrong answers, as the files have them: ``text``, and ``meta`` as JSON.

    Raises:
        UserError: for a set that is not one of ``SETS``.
    """
    if name not in SETS:
        raise UserError(
            f"{what}={name} is no set that comes with palimpsest{nearest(name, SETS)}; give one of {', '.join(SETS)}, "
            "or a file of your own"
        )

    def made(part: str, index: int) -> dict[str, Any]:
        text, fields = SETS[name](context.generator(f"hubble_stand_ins/{name}{part}", index))
        return {"text": text, "meta": json.dumps(fields | {"id": index, "duplicates": 0})}

    return [made("", k) for k in range(count)], [made("/pool", k) for k in range(_POOL)]
