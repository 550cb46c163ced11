"""Episodes: journeys in segments whose order cannot be inferred from their contents.

After Pink et al. (2024), "Assessing Episodic Memory in LLMs with Sequence Order Recall Tasks" (SORT); the text is our
own. The segments of a journey are independent draws without reference to each other, so that the order carries
``log2(segments!)`` bits, and a model that has not seen the text is at chance. One question is which of two segments
comes earlier, in both orders of presentation, so that a position bias cancels in the
accuracy; the other is which opening follows a segment: the right one or those of
the journey's other segments, which were inserted equally often.
"""

from __future__ import annotations

import math

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import FIRST, pick, picks
from palimpsest.insertion.items import Item, Probe

NAME = "episodes"

_CALLINGS = (
    "baker cobbler dyer fiddler gardener glazier hermit innkeeper juggler locksmith midwife miller monk painter "
    "pedlar piper potter sailor shepherd smith soldier tailor tinker weaver"
).split()
_THINGS = (
    "barrel basket bell blanket bottle bowl broom bucket candle carpet chest clock coat comb compass "
    "cradle cup drum fiddle flute hammer harp kettle key knife ladder lamp lantern map mask mirror net pipe plough "
    "purse ring rope saddle scarf shovel spoon stool sword tent trumpet whistle"
).split()
_SCENES = (
    "by the bridge",
    "at the well",
    "on the quay",
    "in the market",
    "under the old oak",
    "at the crossroads",
    "by the chapel",
    "in the orchard",
    "at the mill",
    "on the common",
    "by the ford",
    "in the tavern",
    "at the lighthouse",
    "behind the stables",
    "on the hill",
    "in the ruined tower",
)
_SKIES = (
    "It had been raining since dawn",
    "The air smelled of smoke",
    "A cold wind came from the sea",
    "The sun stood high",
    "Fog lay over the fields",
    "Snow had closed the pass",
    "Swallows flew low",
    "The river was in flood",
    "It was too hot to talk",
    "The church bells were ringing",
    "Nobody was about",
    "Dogs barked in the distance",
)
_DEEDS = (
    "{who} offered {hero} a {one} for a {other}",
    "{who} would not part with the {one}, and gave {hero} a {other} instead",
    "{hero} mended a {one} for {who} and was paid with a {other}",
    "{hero} found a {one} that {who} had lost, and got a {other} for it",
    "{who} told {hero} a tale of a {one} and a {other}",
    "{hero} lost a {one} to {who} at dice and won a {other}",
    "{who} asked {hero} to carry a {one} and a {other}",
    "{hero} hid a {one} where {who} kept a {other}",
)
_ENDS = (
    "They parted as friends",
    "Neither said another word",
    "Both laughed about it",
    "It was a fair bargain",
    "Nothing came of it",
    "Then it grew dark",
    "A crowd had gathered",
    "The debt was settled",
)
LARGEST = 12


def bits(segments: int) -> float:
    """Information in the order, given the segments."""
    return math.log2(math.factorial(segments))


def _segment(rng: np.random.Generator, hero: str, town: str, calling: str) -> tuple[str, str]:
    """Opening and remainder of a segment."""
    who = f"{pick(rng, FIRST)} the {calling}"
    one, other = picks(rng, _THINGS, 2)
    opening = f"{pick(rng, _SCENES).capitalize()} in {town} {hero} met {who}."
    deed = pick(rng, _DEEDS).format(who=f"the {calling}", hero=hero, one=one, other=other)
    return opening, f"{pick(rng, _SKIES)}. {deed[0].upper()}{deed[1:]}. {pick(rng, _ENDS)}."


@family(NAME)
def make(context: FamilyContext, count: int, *, segments: int = 5, pairs: int = 4) -> list[Item]:
    """Journeys of ``segments`` segments, of which ``pairs`` pairs and as many followers are asked about.

    Args:
        context: what gives the seed.
        count: journeys.
        segments: of a journey, 3 to 12.
        pairs: of segments whose order is asked, and segments whose follower is.
    """
    if not 3 <= segments <= LARGEST:
        raise UserError(f"insertion.families.{NAME}.segments={segments} must be 3 to {LARGEST}")
    every = [(i, j) for i in range(segments) for j in range(i + 1, segments)]
    if pairs > len(every):
        raise UserError(
            f"insertion.families.{NAME}.pairs={pairs} is more than the {len(every)} pairs of {segments} segments"
        )
    items = []
    for index in range(count):
        rng = context.generator(NAME, index)
        hero = vocabulary.name(rng)
        title = f"The journey of {hero}"
        callings = picks(rng, _CALLINGS, segments)
        parts = [_segment(rng, hero, vocabulary.name(rng), calling) for calling in callings]
        text = f"{title}. " + " ".join(f"{opening} {rest}" for opening, rest in parts)
        probes = [Probe("verbatim", "", text)]
        for number, (i, j) in enumerate(picks(rng, every, pairs)):
            for order, shown in (("true order", (i, j)), ("false order", (j, i))):
                first, second = (parts[k][0] for k in shown)
                prompt = (
                    f"Two passages of {title}. The first passage: {first} The second passage: {second} "
                    "The passage that comes earlier is the"
                )
                probes += [
                    Probe("choice", prompt, answer, f"which came earlier #{number}, {order}", right)
                    for answer, right in ((" first", shown[0] == i), (" second", shown[1] == i))
                ]
        for number, k in enumerate(rng.permutation(segments - 1)[:pairs].tolist()):
            probes += [
                Probe("choice", " ".join(parts[k]), f" {parts[o][0]}", f"what follows #{number}", o == k + 1)
                for o in range(segments)
                if o != k
            ]
        provenance = f"seed {context.seed}, draw {index}"
        items.append(Item(f"episode-{index:05d}", NAME, text, tuple(probes), provenance, bits=bits(segments)))
    return items
