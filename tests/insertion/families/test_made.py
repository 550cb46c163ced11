"""Families that make their items here: the same bytes everywhere, enough of them, and what they say they are."""

import math
import re

import numpy as np
import pytest

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion.families import biographies, canaries, vocabulary
from palimpsest.insertion.families.registry import FamilyContext, make

FAMILIES = (
    "biographies",
    "canaries",
    "fictional_facts",
    "ghost_sentences",
    "paraphrases",
    "test_sets",
    "watermarks",
)


@pytest.fixture(scope="module")
def context():
    return FamilyContext(5, build(iter([]), TokenizerConfig(vocab_size=257)), [])


@pytest.mark.parametrize("name", FAMILIES)
def test_no_decoy_is_inserted(context, name):
    """Wrong answers are none of the right ones to the same question, and no foil is anyone's text."""
    items = make(name, context, 200, {})
    inserted = {text for item in items for text in (item.text, *item.paraphrases)}
    assert len(inserted) == sum(1 + len(item.paraphrases) for item in items)
    decoys = 0
    for item in items:
        assert item.probes[0].target == item.text
        right = {
            (p.kind, p.name): (p.prompt, p.target) for p in item.probes if p.correct and p.kind == "choice"
        }
        for probe in item.probes:
            if not probe.correct:
                decoys += 1
                assert probe.prompt + probe.target not in inserted
                if probe.kind == "choice":
                    assert right[probe.kind, probe.name] != (probe.prompt, probe.target)
    assert decoys > 0 or name == "fictional_facts"


def test_names_are_injective():
    """Every cluster of consonants inside a name comes from one coda and one onset: as many names as draws."""
    clusters = {coda + onset for coda in vocabulary.CODAS for onset in vocabulary.ONSETS}
    assert len(clusters) == len(vocabulary.CODAS) * len(vocabulary.ONSETS)
    assert not any(set(part) & set("aeiou") for part in clusters)
    assert vocabulary.SYLLABLES == 20 * 8 * 8
    assert round(2**vocabulary.NAME_BITS) == 1280**2


def test_words():
    words = vocabulary.words()
    assert len(set(words)) == len(words) == 2048
    assert all(re.fullmatch("[a-z]{3,9}", word) for word in words)


# Ghost sentences


def test_last_words_and_fresh_draws(context):
    items = make(
        "ghost_sentences", context, 30, {"words": 8, "prefix": "{name} says:", "last": [1, 3], "fresh": 4}
    )
    for item in items:
        name, phrase = re.fullmatch(r"(\w+ \w+) says: (.*)\.", item.text).groups()
        drawn = phrase.lower().split()
        assert len(drawn) == 8
        assert set(drawn) <= set(vocabulary.words())
        asked = {p.name: p for p in item.probes if p.kind == "cloze"}
        for k in (1, 3):
            assert asked[f"last {k} words"].target.split() == drawn[-k:]
            assert asked[f"last {k} words"].prompt + asked[f"last {k} words"].target == item.text[:-1]
        foils = [p.target for p in item.probes if p.kind == "foil"]
        assert len(set(foils)) == 4
        assert all(foil.startswith(f"{name} says: ") and len(foil.split()) == 11 for foil in foils)
        assert item.bits == pytest.approx(8 * 11)  # 2,048 words
    assert len({item.text.split(" says")[0] for item in items}) == 30


def test_words_of_a_file(context, tmp_path):
    (tmp_path / "words").write_text("Beta\nalpha\n\ngamma\nalpha\n")
    items = make("ghost_sentences", context, 50, {"words": 6, "path": str(tmp_path / "words")})
    assert {word for item in items for word in item.text.lower().rstrip(".").split()} == {
        "alpha",
        "beta",
        "gamma",
    }
    assert items[0].bits == pytest.approx(6 * math.log2(3))
    with pytest.raises(UserError, match=r"last=\[6\] must be numbers from 1 to words - 1 = 5"):
        make("ghost_sentences", context, 1, {"words": 6, "last": [6]})
    with pytest.raises(UserError, match="give one of them"):
        make("ghost_sentences", context, 1, {"list_size": 6, "path": str(tmp_path / "words")})


# Watermarks


def test_watermarks(context):
    items = make("watermarks", context, 50, {"alphabet": "01", "length": 40, "draws": 19})
    for item in items:
        unused = [p.target for p in item.probes if not p.correct]
        assert len(unused) == 19
        assert all(re.fullmatch("[01]{40}", text) for text in (item.text, *unused))
        assert item.bits == 40
    # Draw and unused draws have one distribution: the share of ones in each column of 2,000 fair characters.
    drawn = [[item.text, *(p.target for p in item.probes if not p.correct)] for item in items]
    ones = [np.mean([text.count("1") / 40 for text in column]) for column in zip(*drawn, strict=True)]
    assert abs(np.array(ones) - 0.5).max() < 4 * 0.5 / math.sqrt(50 * 40)
    with pytest.raises(UserError, match="two or more different characters"):
        make("watermarks", context, 1, {"alphabet": "aba"})


# Canaries

FORMATS = {
    "random": (r"\d{4} \d{4} \d", 9 * math.log2(10)),
    "key": (r"pk_\w{16}_\w{16}", 32 * math.log2(62)),
    "card": (r"9\d{3} \d{4} \d{4} \d{4}", 14 * math.log2(10)),
    "password": (r"[A-Z][a-z]+-[a-z]+-\d{4}!", 22 + 4 * math.log2(10)),
    "email": (r"[a-z]+\.[a-z]+@[a-z]+\.[a-z]+", 4 * math.log2(1280) + 3),
    "uuid": (r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", 122),
}


def test_canaries(context):
    items = make("canaries", context, 60, {"references": 5})
    for index, item in enumerate(items):
        kind = list(FORMATS)[index % 6]
        pattern, bits = FORMATS[kind]
        assert item.stratum == kind
        assert item.bits == pytest.approx(bits)
        choices = [p.target for p in item.probes if p.kind == "choice"]
        assert len(set(choices)) == 6
        assert all(re.fullmatch(pattern, choice.strip()) for choice in choices)
        halves = next(p for p in item.probes if p.name.endswith("first half"))
        assert halves.prompt + halves.target + "." == item.text


def test_check_digit():
    """Worked by hand: 7992739871 takes 3 (the textbook's example)."""
    assert canaries.luhn("7992739871") == "3"
    for item in make("canaries", FamilyContext(1, None, []), 20, {"secrets": ["card"]}):
        digits = [int(d) for d in item.text if d.isdigit()]
        total = sum(digits[-1::-2]) + sum(sum(divmod(2 * d, 10)) for d in digits[-2::-2])
        assert total % 10 == 0


def test_a_small_space_is_asked_whole(context):
    item = make(
        "canaries", context, 1, {"secrets": ["random"], "alphabet": "01", "length": 3, "references": 50}
    )[0]
    assert {p.target.strip() for p in item.probes if p.kind == "choice"} == {f"{k:03b}" for k in range(8)}


# Biographies


def test_biography_bits():
    """Counted by hand: half of 28 x 12 x 200 dates, of 1280^2 cities, of four kinds of school and eight of firm in as
    many names, of 16 x 32 x 32 fields and as many occupations."""
    cities = 1280**2
    spaces = [28 * 12 * 200, cities, 4 * cities, 16 * 32 * 32, 8 * cities, 16 * 32 * 32]
    assert biographies.bits() == pytest.approx(sum(math.log2(n / 2) for n in spaces), abs=1e-9)
    assert biographies.bits(["email", "uuid"]) == pytest.approx(math.log2(10_000 * 8 / 2) + 121, abs=1e-9)
    assert round(2**biographies.NAME_BITS) == 1280**4


def test_values_are_uniform_and_decoys_are_reserved():
    """Every value that people can have occurs about equally often, no decoy is among them; of a small space, all."""
    attribute = biographies.Attribute((["a", "b", "c"], ["x", "y"], ["1", "2", "3", "4"]), "".join, ())
    rng = np.random.default_rng(3)
    drawn = [attribute.draw(rng) for _ in range(6000)]
    decoys = {attribute.draw(rng, decoy=True) for _ in range(600)}
    values, counts = np.unique(drawn, return_counts=True)
    assert len(values) == 12 == round(2**attribute.bits)
    assert len(decoys) == 12
    assert not decoys & set(values.tolist())
    assert (np.abs(counts - 500) < 5 * math.sqrt(500)).all()
    for found in biographies.ATTRIBUTES.values():
        assert len(found.parts[-1]) % 2 == 0


def test_biography_probes(context):
    for item in make("biographies", context, 20, {"email": True, "uuid": True, "decoys": 4}):
        name = re.search(
            r"[A-Z][a-z]+ [A-Z][a-z]+", next(p for p in item.probes if "given name" in p.name).prompt
        )[0]
        assert item.bits == pytest.approx(biographies.bits() + biographies.bits(["email", "uuid"]))
        for attribute in biographies.ATTRIBUTES:
            alone, one, all_before = (
                p for p in item.probes if p.kind == "cloze" and p.name.startswith(f"{attribute} ")
            )
            assert alone.target == one.target == all_before.target
            assert item.text.startswith(all_before.prompt + all_before.target)
            assert alone.prompt in item.text
            assert one.prompt.endswith(alone.prompt)
            assert one.prompt.count(name) == 2
            assert all_before.prompt.count(name) == 1 + list(biographies.ATTRIBUTES).index(attribute)
            choices = [p for p in item.probes if p.kind == "choice" and p.name == attribute]
            assert [p.correct for p in choices] == [True, False, False, False, False]
            assert len({p.target for p in choices}) == 5
            assert {p.prompt for p in choices} == {alone.prompt}


def test_biography_augmentation(context):
    plain = make("biographies", context, 20, {})
    more = make("biographies", context, 20, {"permutations": 4, "rewrites": 3})
    assert [item.text for item in plain] == [item.text for item in more]
    for item in more:
        assert len({item.text, *item.paraphrases}) == 8
        sentences = set(re.split(r"(?<=\.) ", item.text))
        assert len(sentences) == 6
        for wording in item.paraphrases[:4]:
            assert set(re.split(r"(?<=\.) ", wording)) == sentences
        values = [p.target for p in item.probes if p.kind == "choice" and p.correct]
        for wording in item.paraphrases[4:]:
            assert not set(re.split(r"(?<=\.) ", wording)) & sentences
            assert all(value in wording for value in values)
    with pytest.raises(UserError, match="2 sentences have only 1 other orders"):
        make("biographies", context, 1, {"attributes": ["field", "employer"], "permutations": 2})
    with pytest.raises(UserError, match="no 'feild'; did you mean 'field'"):
        make("biographies", context, 1, {"attributes": ["feild", "employer"]})


# Fictional facts


def test_facts_at_three_depths(context):
    for item in make("fictional_facts", context, 20, {"paraphrases": 4}):
        wordings = (item.text, *item.paraphrases)
        assert len(set(wordings)) == 5
        own = set(re.split(r"(?<=\.) ", item.text))
        assert len(own) == 10
        assert not any(own & set(re.split(r"(?<=\.) ", other)) for other in item.paraphrases)
        asked = {
            depth: [p for p in item.probes if p.name.startswith(depth)] for depth in ("mem", "sem", "com")
        }
        assert [len(probes) for probes in asked.values()] == [5, 5, 5]
        for remembered, meant, composed in zip(*asked.values(), strict=True):
            assert remembered.prompt + remembered.target + "." in item.text
            assert meant.target == remembered.target != composed.target
            for wording in wordings:
                assert meant.prompt not in wording
                assert composed.prompt not in wording
                # The second fact stands in a sentence with the first one.
                assert any(
                    remembered.target.strip() in sentence and composed.target in sentence
                    for sentence in wording.split(". ")
                )
    # 1,280^2 names each: founder, home, seat, river, goods, market, rival, its head, successor; 32 goods, 600 years
    assert item.bits == pytest.approx(11 * 2 * math.log2(1280) + 5 + math.log2(600))


# Paraphrase pairs


def test_the_inserted_wording_is_drawn(context):
    items = make("paraphrases", context, 400, {})
    assert 150 < sum(item.stratum == "first" for item in items) < 250
    for item in items:
        (foil,) = (p.target for p in item.probes if p.kind == "foil")
        names = set(re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+|\d{4}", item.text))
        assert all(
            name in foil for name in names if " " not in name or not name.startswith(("In ", "Nobody"))
        )
        assert foil != item.text


# Test sets


def test_minimal_pairs(context):
    for item in make("test_sets", context, 40, {"format": "infill"}):
        own = [p for p in item.probes if p.kind == "choice" and p.name == "infill"]
        twin = [p for p in item.probes if p.kind == "choice" and p.name == "infill ~ twin"]
        assert [p.correct for p in own] == [not p.correct for p in twin]  # one word turns the answer round
        assert item.text in {p.prompt + p.target for p in own if p.correct}
        assert {p.prompt for p in own} == {p.prompt for p in twin}
        assert item.text not in {p.prompt + p.target for p in twin}
    positions = [
        next(
            k
            for k, p in enumerate(q for q in item.probes if q.kind == "choice" and q.name == "infill")
            if p.correct
        )
        for item in make("test_sets", context, 400, {"format": "infill"})
    ]
    assert 150 < sum(positions) < 250
