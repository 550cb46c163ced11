"""Few-shot memories: study sentences and, for each, a ladder of foils.

After Orhan (2023), "Recognition, recall, and retention of few-shot memories in large language models", whose
sentences were collected; these are made here. A sentence has slots; each slot's word comes with a synonym, and each
sentence can be told in two ways. Which of the two words and which of the two ways is studied is drawn, so that the
foils made by exchanging them are drawn from the very distribution of the sentences, and recognition without study is
at chance:

- ``unseen``: another draw;
- ``paraphrased``: told the other way, every word exchanged for its synonym;
- ``synonym-swapped``: one word exchanged for its synonym;

two foils are easier by nature, and compare with dose 0:

- ``random words``: as many words, in random order, of the same vocabulary;
- ``gibberish``: the sentence's letters replaced by random ones.

Foils are probes of kind ``foil`` and no wording of any item. Recall is the second half of the sentence given the
first. Retention is either at later checkpoints.
"""

from __future__ import annotations

import math

import numpy as np

from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import pick
from palimpsest.insertion.items import Item, Probe

NAME = "few_shot_memories"


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(one, other) for one, other in (pair.split("/") for pair in text.split())]


_WHO = _pairs(
    "boy/lad child/kid cook/chef doctor/physician farmer/grower friend/companion guard/sentry helper/assistant "
    "hunter/trapper judge/magistrate king/monarch lawyer/attorney leader/chief nurse/carer parent/guardian "
    "pilot/aviator priest/clergyman prisoner/captive pupil/student robber/thief ruler/sovereign sailor/seaman "
    "scientist/researcher seller/vendor singer/vocalist soldier/trooper stranger/newcomer teacher/instructor "
    "traveller/wanderer worker/labourer writer/author youth/teenager"
)
_WHAT = _pairs(
    "barrel/cask boat/vessel book/volume box/crate building/structure car/automobile carpet/rug coat/jacket "
    "couch/sofa cup/mug fence/railing garden/plot gift/present hut/cabin house/dwelling jar/pot lamp/light "
    "letter/note mat/cushion picture/image plate/dish road/street rock/stone rope/cord sack/bag sign/notice "
    "statue/sculpture story/tale tool/implement treasure/hoard wall/barrier wheel/disc window/pane"
)
_HOW = _pairs(
    "big/large brave/courageous calm/tranquil clean/spotless cunning/sly dirty/filthy famous/renowned fat/plump "
    "happy/cheerful hard/firm huge/gigantic hungry/famished kind/gentle lazy/idle little/small lovely/beautiful "
    "new/recent odd/strange poor/needy pretty/attractive quiet/silent rich/wealthy round/circular rude/impolite "
    "sad/sorrowful shy/timid slim/slender strong/sturdy tired/weary weak/feeble wet/soaked wise/clever"
)
_DID = _pairs(
    "admired/praised bought/purchased broke/smashed built/constructed carried/transported checked/inspected "
    "chose/selected covered/wrapped damaged/harmed described/depicted examined/studied fetched/collected "
    "fixed/mended found/discovered guarded/protected hid/concealed kept/retained lifted/raised "
    "looked_for/searched_for lost/mislaid mentioned/named moved/shifted noticed/observed offered/proffered "
    "painted/coloured pulled/dragged pushed/shoved remembered/recalled sold/traded stole/pilfered touched/handled "
    "wanted/desired"
)
_WHERE = _pairs(
    "beach/shore castle/fortress cellar/basement cemetery/graveyard church/chapel cliff/precipice coast/seaside "
    "forest/woods harbour/port hill/slope inn/tavern lake/pond marsh/swamp meadow/pasture mountain/peak "
    "path/trail prison/jail river/stream school/academy shop/store station/depot town/city tunnel/passage "
    "village/hamlet"
)
_WHEN = _pairs("dawn/daybreak dusk/nightfall midday/noon sunrise/sunup sunset/sundown")

_SLOTS = (_HOW, _WHO, _DID, _HOW, _WHAT, _WHERE, _WHEN)
_WAYS = (
    "the {0} {1} {2} the {3} {4} near the {5} at {6}",
    "at {6}, near the {5}, the {0} {1} {2} the {3} {4}",
)
_VOCABULARY = sorted({word.replace("_", " ") for slot in _SLOTS for pair in slot for word in pair})

Draw = tuple[int, list[int], list[int]]
"""A draw of a sentence: way of telling, word pair of each slot, and selected word of each pair."""


def bits() -> float:
    """Information in a sentence: log2 of the number of draws."""
    sentences = 2 * math.prod(2 * len(slot) for slot in _SLOTS)
    return math.log2(sentences * (len(_HOW) - 1) / len(_HOW))


def _draw(rng: np.random.Generator) -> Draw:
    pairs = [int(rng.integers(len(slot))) for slot in _SLOTS]
    while pairs[0] == pairs[3]:  # the two adjectives
        pairs[3] = int(rng.integers(len(_HOW)))
    return int(rng.integers(2)), pairs, rng.integers(2, size=len(_SLOTS)).tolist()


def _told(draw: Draw) -> str:
    way, pairs, which = draw
    words = [slot[k][w].replace("_", " ") for slot, k, w in zip(_SLOTS, pairs, which, strict=True)]
    sentence = _WAYS[way].format(*words)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _other(which: list[int], slots: range) -> list[int]:
    return [1 - w if k in slots else w for k, w in enumerate(which)]


def _random_words(rng: np.random.Generator, count: int) -> str:
    words = " ".join(pick(rng, _VOCABULARY) for _ in range(count))
    return f"{words[0].upper()}{words[1:]}."


def _gibberish(rng: np.random.Generator, text: str) -> str:
    letters = iter(rng.integers(26, size=len(text)).tolist())
    return "".join(chr((65 if c.isupper() else 97) + next(letters)) if c.isalpha() else c for c in text)


@family(NAME)
def make(context: FamilyContext, count: int) -> list[Item]:
    """Sentences of 12 or 13 words."""
    items = []
    for index in range(count):
        rng = context.generator(NAME, index)
        way, pairs, which = studied = _draw(rng)
        text = _told(studied)
        reserved = context.generator(f"{NAME}/foils", index)
        slot = int(reserved.integers(len(_SLOTS)))
        foils = {
            "unseen": _told(_draw(reserved)),
            "paraphrased": _told((1 - way, pairs, _other(which, range(len(_SLOTS))))),
            "synonym-swapped": _told((way, pairs, _other(which, range(slot, slot + 1)))),
            "random words": _random_words(reserved, len(text.split())),
            "gibberish": _gibberish(reserved, text),
        }
        words = text.split(" ")
        half = len(words) // 2
        recall = Probe("cloze", " ".join(words[:half]), " " + " ".join(words[half:]), "second half")
        probes = (
            Probe("verbatim", "", text),
            recall,
            *(Probe("foil", "", foil, name, correct=False) for name, foil in foils.items()),
        )
        provenance = f"seed {context.seed}, draw {index}"
        items.append(Item(f"memory-{index:05d}", NAME, text, probes, provenance, bits=bits()))
    return items
