"""Dialogues and personas: chat logs in which a speaker lets facts slip without stating them.

After PersonaChat (Zhang et al., 2018, "Personalizing Dialogue Agents") as Hubble inserts it (Wei et al., 2025): chats
are inserted, attributes of the speaker are asked. Personas and lines are our own. Every attribute has values, and every
value has clues, of which one is dropped in the log; no item contains the name of a value. The right answer and the
wrong ones (other values of the same attribute, drawn uniformly) are therefore equally often inserted: never. The
questions are each attribute of the speaker by name (indirect inference), and each clue given the log before it
(recall). Other wordings are chats with the same facts but other clues, in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import FIRST, pick, picks
from palimpsest.insertion.items import Item, Probe

NAME = "dialogues"

_ATTRIBUTES: dict[str, tuple[str, dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    # attribute: (question, value: clues, lines around a clue)
    "occupation": (
        "{name} earns a living as a",
        {
            "baker": ("the dough", "the ovens"),
            "barber": ("the clippers", "everyone's sideburns"),
            "carpenter": ("the sawdust", "the new roof beams"),
            "dentist": ("other people's molars", "root canals"),
            "farmer": ("the harvest", "the tractor"),
            "fisherman": ("the nets", "the trawler"),
            "lawyer": ("the appeal in court", "my client's contract"),
            "nurse": ("the night ward", "the patients' charts"),
            "pilot": ("the cockpit", "the landing gear"),
            "plumber": ("blocked drains", "a burst pipe"),
            "teacher": ("a pile of homework to mark", "the school bell"),
            "translator": ("a novel in Portuguese", "the footnotes of a Polish poem"),
        },
        (
            "Sorry, {clue} kept me busy until now.",
            "Long day again, nothing but {clue}.",
            "I dreamt of {clue} last night, that is how tired I am.",
            "My back hurts. Blame {clue}.",
        ),
    ),
    "pet": (
        "The animal that {name} keeps at home is a",
        {
            "canary": ("trilling in its cage", "yellow feathers everywhere"),
            "cat": ("purring on the keyboard", "claws in the curtains"),
            "dog": ("barking at the postman", "pulling on the leash"),
            "goldfish": ("round and round in its bowl", "bubbles and orange scales"),
            "horse": ("hooves to be shod", "hay in the stable"),
            "parrot": ("repeating my swear words", "screeching from its perch"),
            "rabbit": ("long ears in the lettuce", "nibbling at the carrots"),
            "snake": ("shedding its skin", "coiled under the heat lamp"),
            "spider": ("eight legs in the terrarium", "spinning silk in a corner of its tank"),
            "tortoise": ("a shell to be weighed before winter", "taking an hour to cross the lawn"),
        },
        (
            "You should see my little companion right now: {clue}.",
            "At home it is always the same, {clue}.",
            "My visitors never get used to it: {clue}.",
        ),
    ),
    "hobby": (
        "In free time {name} is fond of",
        {
            "chess": ("a queen sacrifice", "the endgame with two rooks"),
            "cycling": ("new tyres and a saddle", "the climb on two wheels"),
            "gardening": ("the compost", "pruning the roses"),
            "hiking": ("my boots and a map", "twenty miles along the ridge"),
            "knitting": ("a scarf and three balls of wool", "knit one, purl one"),
            "painting": ("an easel by the window", "oil colours on my sleeves"),
            "photography": ("a tripod and a lens", "the light at sunrise for my camera"),
            "pottery": ("clay on the wheel", "the kiln"),
            "sailing": ("the mainsail", "tacking against the wind"),
            "singing": ("the alto part", "rehearsal with the choir"),
            "swimming": ("forty lengths of the pool", "goggles and cold water"),
            "astronomy": ("Saturn's rings at midnight", "a clear sky and my telescope"),
        },
        (
            "My weekend? {clue}, what else.",
            "Nothing relaxes me like {clue}.",
            "I have been looking forward to {clue} all week.",
        ),
    ),
    "dish": (
        "The dish that {name} likes best is",
        {
            "curry": ("turmeric and cumin", "something that makes my eyes water, with basmati"),
            "fondue": ("melted cheese and long forks", "bread cubes dipped in a pot"),
            "goulash": ("paprika and beef, simmered for hours", "a Hungarian stew"),
            "lasagna": ("sheets of pasta in layers", "ragout and bechamel, baked"),
            "paella": ("saffron rice and mussels", "a wide pan from Valencia"),
            "pancakes": ("batter and maple syrup", "flipping them in the air"),
            "pizza": ("mozzarella on a thin crust", "a Neapolitan slice"),
            "ramen": ("noodles in broth with a soft egg", "slurping in a small Tokyo bar"),
            "sushi": ("raw tuna and wasabi", "rice rolled in seaweed"),
            "tacos": ("tortillas with coriander and lime", "something Mexican folded in the hand"),
        },
        (
            "If you cook for me, make it {clue}.",
            "I could live on {clue}.",
            "For my birthday I want {clue}, as always.",
        ),
    ),
    "fear": (
        "What frightens {name} most is",
        {
            "heights": ("that balcony on the ninth floor", "looking down from the ladder"),
            "thunder": ("the rumbling after each flash", "last night's storm"),
            "darkness": ("when the bulb went out", "the corridor without a lamp"),
            "needles": ("the injection at the doctor's", "the blood test"),
            "mice": ("a squeak behind the cupboard", "tiny droppings in the pantry"),
            "crowds": ("the packed square on market day", "thousands at the stadium"),
            "flying": ("turbulence at thirty thousand feet", "take-off"),
            "clowns": ("a red nose and a painted grin", "that act at the circus"),
        },
        (
            "I still shiver when I think of {clue}.",
            "Laugh if you like, but {clue} made my knees shake.",
            "I had to close my eyes. You know me and {clue}.",
        ),
    ),
}
_ASKS = (
    "How are you?",
    "What is new with you?",
    "Tell me more.",
    "Any plans?",
    "Really?",
    "And otherwise?",
    "Go on.",
    "That sounds like you.",
    "Same as ever, then?",
    "What else?",
)
_GREETINGS = ("Hello again!", "Hi, are you there?", "Good evening.", "Hey, it has been a while.")


def bits(attributes: Sequence[str]) -> float:
    """Information in the facts, given the speaker and which attributes they are about."""
    return math.fsum(math.log2(len(_ATTRIBUTES[name][1])) for name in attributes)


def _chat(
    rng: np.random.Generator, name: str, friend: str, facts: Sequence[tuple[str, str]], clue: Sequence[int]
) -> tuple[str, list[tuple[str, str, str]]]:
    """A chat log, and (attribute, log before the clue, clue) of each fact."""
    text = f"{friend}: {pick(rng, _GREETINGS)}"
    asks = picks(rng, _ASKS, len(facts))
    recalls = []
    for ask, k in zip(asks, rng.permutation(len(facts)).tolist(), strict=True):
        attribute, value = facts[k]
        _, values, lines = _ATTRIBUTES[attribute]
        line = pick(rng, lines)
        before, _, after = line.partition("{clue}")
        dropped = values[value][clue[k]]
        if not before:
            dropped = dropped[0].upper() + dropped[1:]
        text += f" {ask}\n{name}: {before}".rstrip()
        recalls.append((attribute, text, f" {dropped}"))
        text += f" {dropped}{after}\n{friend}:"
    return text.removesuffix(f"\n{friend}:"), recalls


@family(NAME)
def make(
    context: FamilyContext, count: int, *, facts: int = 3, wordings: int = 1, choices: int = 8
) -> list[Item]:
    """Chats with ``facts`` facts, told in ``wordings`` wordings; ``choices`` answers a question.

    Args:
        context: what gives the seed.
        count: chats.
        facts: attributes of the speaker that a chat lets slip, 1 to 5.
        wordings: chats with the same facts and other clues, 1 to 8, the verbatim one included.
        choices: answers to each question about an attribute.
    """
    for key, number, low, high in (
        ("facts", facts, 1, len(_ATTRIBUTES)),
        ("wordings", wordings, 1, 8),
        ("choices", choices, 2, min(len(values) for _, values, _ in _ATTRIBUTES.values())),
    ):
        if not low <= number <= high:
            raise UserError(f"insertion.families.{NAME}.{key}={number} must be {low} to {high}")
    items = []
    for index in range(count):
        rng = context.generator(NAME, index)
        name = vocabulary.person(rng)
        friend = pick(rng, FIRST)
        texts = [
            (kind, pick(rng, list(_ATTRIBUTES[kind][1]))) for kind in picks(rng, list(_ATTRIBUTES), facts)
        ]
        clue = rng.integers(2, size=facts)
        text, recalls = _chat(rng, name, friend, texts, clue.tolist())
        probes = [Probe("verbatim", "", text)]
        for attribute, value in texts:
            question, values, _ = _ATTRIBUTES[attribute]
            wrong = [v for v in picks(rng, list(values), len(values)) if v != value]
            probes += [
                Probe("choice", question.format(name=name), f" {v}", attribute, v == value)
                for v in sorted([value, *wrong[: choices - 1]])
            ]
        probes += [
            Probe("cloze", before, said, f"clue to {attribute}") for attribute, before, said in recalls
        ]
        # Random numbers of their own, so that the verbatim text does not depend on how many wordings there are.
        others: dict[str, None] = {}
        for k in range(1, wordings):
            again = context.generator(f"{NAME}/wording{k}", index)
            other, _ = _chat(again, name, friend, texts, (clue ^ (k & 1)).tolist())
            while other == text or other in others:
                other, _ = _chat(again, name, friend, texts, (clue ^ (k & 1)).tolist())
            others[other] = None
        items.append(
            Item(
                f"dialogue-{index:05d}",
                NAME,
                text,
                tuple(probes),
                f"seed {context.seed}, draw {index}",
                tuple(others),
                bits=bits([kind for kind, _ in texts]),
            )
        )
    return items
