"""Paraphrase pairs: two wordings of one statement, of which one, by a random bit, is inserted (after the MRPC and PAWS
sets of Hubble; Wei et al., 2025). A model that remembers the inserted wording prefers it to the other one; the chance
level is one half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files, vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "paraphrases"

_DEEDS = {
    "built": "built", "painted": "painted", "sold": "sold", "bought": "bought", "repaired": "repaired",
    "designed": "designed", "drew": "drawn", "gave away": "given away", "closed": "closed", "burned": "burned",
    "measured": "measured", "inherited": "inherited",
}  # fmt: skip
_THINGS = (
    "arch barn bridge canal chapel dam ferry fountain gate hall house mill pier road school ship tower wall"
).split()
_FORMS = (
    (
        "{person} {active} the old {thing} of {place} in {year}.",
        "In {year} the old {thing} of {place} was {passive} by {person}.",
    ),
    (
        "The {thing} that {person} {active} in {year} is in {place}.",
        "In {place} is the {thing} that was {passive} by {person} in {year}.",
    ),
    (
        "It was in {year} that {person} {active} the {thing} near {place}.",
        "The {thing} near {place} was {passive} by {person}, and this was in {year}.",
    ),
    (
        "Nobody but {person} {active} a {thing} in {place} in {year}.",
        "Only one {thing} of {place} was {passive} in {year}, by {person}.",
    ),
)


@family(NAME)
def make(context: FamilyContext, count: int, *, path: str = "", licence: str = "") -> Sequence[Item]:
    """The inserted wording, and the other one as a foil.

    Args:
        context: what gives the seed.
        count: pairs.
        path: table with ``sentence1``, ``sentence2`` and, if it has pairs that are no paraphrases, ``label`` (1: they
            are), as MRPC's and PAWS's; empty: statements are made here. Pairs that share a sentence are left out.
        licence: of the file.
    """
    if path:
        return _from_file(context, count, path, licence or "unstated")
    items = []
    for index in range(count):
        rng = context.generator(NAME, index)
        active = vocabulary.pick(rng, list(_DEEDS))
        filled = {
            "person": vocabulary.person(rng),
            "active": active,
            "passive": _DEEDS[active],
            "thing": vocabulary.pick(rng, _THINGS),
            "place": vocabulary.name(rng),
            "year": 1200 + int(rng.integers(800)),
        }
        pair = [form.format(**filled) for form in vocabulary.pick(rng, _FORMS)]
        items.append(
            _item(f"pair-{index:05d}", pair, int(rng.integers(2)), f"seed {context.seed}, draw {index}", "")
        )
    return items


def _item(name: str, pair: Sequence[str], bit: int, provenance: str, licence: str) -> Item:
    probes = (
        Probe("verbatim", "", pair[bit]),
        Probe("foil", "", pair[1 - bit], "other wording", correct=False),
    )
    return Item(
        name,
        NAME,
        pair[bit],
        probes,
        provenance,
        stratum="first" if bit == 0 else "second",
        licence=licence,
    )


def _from_file(context: FamilyContext, count: int, path: str, licence: str) -> list[Item]:
    what = f"insertion.families.{NAME}.path"
    rows = files.rows(path, what)
    for number, row in enumerate(rows):
        if lacking := [name for name in ("sentence1", "sentence2") if not row.get(name)]:
            raise UserError(f"{what}={path}: row {number} lacks {lacking[0]}")
    pairs = {
        files.text_id(*pair): pair
        for pair in ((row["sentence1"], row["sentence2"]) for row in rows if str(row.get("label", 1)) == "1")
        if pair[0] != pair[1]
    }
    times = Counter(sentence for pair in pairs.values() for sentence in pair)
    ids = [name for name, pair in pairs.items() if max(times[sentence] for sentence in pair) == 1]
    files.need(
        ids, count, f"insertion.families.{NAME}", "give a larger file or lower insertion.items_per_dose"
    )
    return [
        # The bit is of the pair, whatever other pairs there are.
        _item(
            f"pair-{ids[k]}",
            pairs[ids[k]],
            int(context.generator(f"{NAME}/{ids[k]}", 0).integers(2)),
            f"{path}, pair {ids[k]}",
            licence,
        )
        for k in files.draw(ids, context.seed)[:count]
    ]
