"""Promises of the families of invented text: facts that can be read back, foils and decoys that are what they say."""

import math
import re
from collections import Counter, defaultdict
from itertools import permutations

import pytest

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion.families import (
    code_secrets,
    dialogues,
    episodes,
    few_shot_memories,
    parallel_worlds,
    time_series,
)
from palimpsest.insertion.families.registry import FamilyContext, make


@pytest.fixture(scope="module")
def context():
    return FamilyContext(4, build(iter([]), TokenizerConfig(vocab_size=257)), [])


def questions(item):
    """{(name, prompt): choices}."""
    found = defaultdict(list)
    for probe in item.probes:
        if probe.kind == "choice":
            found[probe.name, probe.prompt].append(probe)
    return found


def targets(item, kind, name=None):
    return [p for p in item.probes if p.kind == kind and name in (None, p.name)]


def test_dialogues_never_name_what_they_imply(context):
    items = make("dialogues", context, 400, {"facts": 5, "wordings": 3})
    asked = {p.target.strip() for item in items for p in targets(item, "choice")}
    assert len(asked) == 12 + 10 + 12 + 10 + 8  # every value of every attribute came up
    logs = [text for item in items for text in (item.text, *item.paraphrases)]
    words = Counter(word for text in logs for word in re.findall(r"\w+", text.lower()))
    assert not asked & set(words)
    for item in items:
        assert len(item.paraphrases) == 2
        assert item.bits == pytest.approx(math.log2(12 * 10 * 12 * 10 * 8))
        for probe in targets(item, "cloze"):
            assert item.text.startswith(probe.prompt + probe.target)
    # The same clue means the same answer, whoever drops it.
    meant = {}
    for item in items:
        right = {p.name: p.target for p in targets(item, "choice") if p.correct}
        for probe in targets(item, "cloze"):
            attribute = probe.name.removeprefix("clue to ")
            assert meant.setdefault((attribute, probe.target.lower()), right[attribute]) == right[attribute]


def test_dialogue_wordings_leave_the_text_as_it_is(context):
    one, many = (make("dialogues", context, 5, {"wordings": n}) for n in (1, 8))
    assert [item.text for item in one] == [item.text for item in many]
    assert all(len({item.text, *item.paraphrases}) == 8 for item in many)


def test_code_secrets_are_in_the_file_once_and_decoys_nowhere(context):
    items = make("code_secrets", context, 200, {"secrets": 7})
    texts = "\n".join(item.text for item in items)
    shapes = {
        "access key": r"AKEX[A-Z2-7]{16}",
        "secret key": r"[A-Za-z0-9]{40}",
        "api token": r"tok_test_[A-Za-z0-9]{24}",
        "signing key": r"[0-9a-f]{32}",
        "password": r"[a-z]{6}-[a-z]{6}\d",
        "e-mail": r"[a-z]+\.[a-z]+\d\d@[a-z]+\.(com|net|org|example)",
        "telephone": r"\d{3}-555-01\d\d",
    }
    for item in items:
        clozes = targets(item, "cloze")
        assert {p.name for p in clozes} == set(shapes)
        for probe in clozes:
            assert re.fullmatch(shapes[probe.name], probe.target)
            assert item.text.startswith(f'{probe.prompt}{probe.target}"')
            assert texts.count(probe.target) == 1 or probe.name in ("e-mail", "telephone")
        for (name, _), choices in questions(item).items():
            assert len(choices) == 10
            for choice in choices:
                assert re.fullmatch(shapes[name], choice.target)
                if name not in ("e-mail", "telephone"):  # small spaces, where others may draw the same
                    assert (choice.target in texts) == choice.correct
        assert item.bits == pytest.approx(
            16 * 5 + 40 * math.log2(62) + 24 * math.log2(62) + 32 * 4 + 12 * math.log2(26) + math.log2(10)
            + math.log2(len(set(code_secrets.FIRST)) * len(set(code_secrets.LAST)) * 90 * 8) + math.log2(789 * 100)
        )  # fmt: skip
    assert {item.stratum for item in items} == {"python", "javascript", "shell", "yaml"}


def test_python_files_are_python(context):
    for item in make("code_secrets", context, 100, {}):
        if item.stratum == "python":
            compile(item.text, item.id, "exec")


def test_memories_and_their_foils(context):
    items = make("few_shot_memories", context, 300, {})
    synonyms = {frozenset(pair) for slot in few_shot_memories._SLOTS for pair in slot}
    studied = {item.text for item in items}
    for item in items:
        foils = {p.name: p.target for p in item.probes if p.kind == "foil"}
        assert list(foils) == ["unseen", "paraphrased", "synonym-swapped", "random words", "gibberish"]
        assert not studied & set(foils.values())
        assert all(not p.correct and not p.prompt for p in targets(item, "foil"))
        (recall,) = targets(item, "cloze")
        assert recall.prompt + recall.target == item.text
        # One slot's word became its synonym ("looked for" are two words).
        before, after = (
            text.strip(".")
            .lower()
            .replace("looked for", "looked_for")
            .replace("searched for", "searched_for")
            .split()
            for text in (item.text, foils["synonym-swapped"])
        )
        changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1
        assert frozenset(word.strip(",") for word in changed[0]) in synonyms
        # Told the other way, in other words: only the frame is shared.
        frame = set("the near at".split())
        shared = set(re.findall(r"\w+", item.text.lower())) & set(
            re.findall(r"\w+", foils["paraphrased"].lower())
        )
        assert shared - frame <= {"for"}
        assert item.text.startswith("The") != foils["paraphrased"].startswith("The")
        assert len(foils["gibberish"]) == len(item.text)
        assert [c for c in foils["gibberish"] if not c.isalpha()] == [c for c in item.text if not c.isalpha()]


def test_memory_foils_are_no_other_kind_of_sentence(context):
    """Each way, and each word of a pair, is studied as often as it is a foil."""
    items = make("few_shot_memories", context, 4000, {})
    for name in ("unseen", "paraphrased", "synonym-swapped"):
        for opens in ("The ", "At "):
            studied = sum(item.text.startswith(opens) for item in items)
            foils = sum(p.target.startswith(opens) for item in items for p in item.probes if p.name == name)
            assert abs(studied - foils) < 4 * math.sqrt(2 * 4000 / 4)
        for word in ("lad", "boy", "purchased", "bought"):
            studied = sum(word in item.text.split() for item in items)
            foils = sum(word in p.target.split() for item in items for p in item.probes if p.name == name)
            assert abs(studied - foils) < 4 * math.sqrt(2 * studied)


def test_memory_bits():
    """Two ways; pairs of words; two adjectives of different pairs."""
    how, *_ = pairs = [len(slot) for slot in few_shot_memories._SLOTS]
    ways = 2 * math.prod(2 * n for n in pairs) // how * (how - 1)
    assert few_shot_memories.bits() == pytest.approx(math.log2(ways))


def test_episodes_ask_in_both_orders(context):
    for item in make("episodes", context, 50, {"segments": 5, "pairs": 4}):
        assert item.bits == pytest.approx(math.log2(120))
        asked = Counter()
        for (name, prompt), choices in questions(item).items():
            (right,) = [c.target for c in choices if c.correct]
            if name.startswith("what follows"):
                assert f"{prompt}{right}" in item.text  # it does follow
                assert all(c.target in item.text for c in choices)
                assert not any(f"{prompt}{c.target}" in item.text for c in choices if not c.correct)
                asked["follows"] += 1
                continue
            first, second = re.search(
                r"first passage: (.*\.) The second passage: (.*\.) The passage", prompt
            ).groups()
            earlier = " first" if item.text.index(first) < item.text.index(second) else " second"
            assert right == earlier
            assert [c.target for c in choices] == [" first", " second"]
            asked[right] += 1
        assert asked == {"follows": 4, " first": 4, " second": 4}


def test_series_before_and_after_the_cut_off(context):
    items = make("time_series", context, 200, {"before": 12, "after": 6, "asked": 3, "decoys": 9})
    spread = {"before": [], "after": []}
    for item in items:
        told = dict(re.findall(r"(\w+ \d{4}): (\d+\.\d)\.", item.text))
        assert len(told) == 12
        assert all(date.endswith("2019") for date in told)
        assert item.bits == pytest.approx(12 * math.log2(1001))
        level = sum(map(float, told.values())) / 12
        for probe in targets(item, "cloze"):
            date = re.search(r"(\w+ \d{4}):$", probe.prompt).group(1)
            side = probe.name.split()[0]
            assert (date in told) == (side == "before")
            if side == "before":
                assert told[date] == probe.target.strip()
            if probe.name.endswith("alone"):
                assert not re.search(r"\d\.\d", probe.prompt)
                spread[side].append(float(probe.target) - level)
            else:
                assert item.text.startswith(probe.prompt) == (side == "before")
        for choices in questions(item).values():
            assert len({c.target for c in choices}) == 10
            for choice in choices:
                assert abs(float(choice.target) - level) <= 100
                assert choice.correct or choice.target.strip() not in told.values()
    # Exchangeable: the deviations of both sides have the same mean and spread (uniform on -50 to 50).
    for values in spread.values():
        assert len(values) == 600
        assert abs(sum(values) / 600) < 4 * 31 / math.sqrt(600)
        assert 25 < math.sqrt(sum(v * v for v in values) / 600) < 35


def answer(text, prompt):
    """A multi-hop question answered from the sentences alone."""
    taught, works, seat = (
        dict(re.findall(rf"([^. ][^.]*) {relation} ([^.]+)\.", text))
        for relation in ("was taught by", "works for", "has its seat in")
    )
    if who := re.fullmatch(r"(.*) works for", prompt):
        return works[who[1]]
    if who := re.fullmatch(r"The employer of the person who taught (.*) has its seat in", prompt):
        return seat[works[taught[who[1]]]]
    who = re.fullmatch(r"The employer of (.*) has its seat in", prompt)
    return seat[works[who[1]]]


def test_worlds_answer_their_questions(context):
    items = make("parallel_worlds", context, 100, {"size": 4, "asked": 2})
    assert {item.stratum for item in items} == {"real", "synthetic"}
    for item in items:
        taught = dict(re.findall(r"([^. ][^.]*) was taught by ([^.]+)\.", item.text))
        assert len(taught) == 4
        assert all(one != other for one, other in taught.items())
        found = questions(item)
        inserted = {key: c for key, c in found.items() if "~" not in key[0]}
        parallel = {key: c for key, c in found.items() if "~ parallel world" in key[0]}
        assert len(inserted) == len(parallel) == 6
        for (name, prompt), choices in inserted.items():
            (right,) = [k for k, c in enumerate(choices) if c.correct]
            assert choices[right].target == f" {answer(item.text, prompt)}"
            assert all(c.target.strip() in item.text for c in choices)
            # The same place in the structure, other names.
            ((key, others),) = [
                (k, c) for k, c in parallel.items() if k[0] == name.replace(" #", " ~ parallel world #")
            ]
            assert others[right].correct
            assert key[1] != prompt
            assert not any(c.target.strip() in item.text for c in others)


def test_names_of_one_kind(context):
    for kind in ("real", "synthetic"):
        assert {i.stratum for i in make("parallel_worlds", context, 20, {"names": kind})} == {kind}
    with pytest.raises(UserError, match="names=odd must be both, real or synthetic"):
        make("parallel_worlds", context, 2, {"names": "odd"})


def test_bits_are_the_logarithms_of_what_is_counted():
    for size in (3, 4, 5):
        every = list(permutations(range(size)))
        derangements = [p for p in every if all(k != v for k, v in enumerate(p))]
        assert parallel_worlds.bits(size) == pytest.approx(math.log2(len(derangements) * len(every) ** 2))
        assert episodes.bits(size) == pytest.approx(math.log2(len(every)))
    assert time_series.bits(2, 1) == pytest.approx(math.log2(9))
    assert dialogues.bits(["pet", "fear"]) == pytest.approx(math.log2(80))


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("dialogues", {"facts": 6}, "facts=6 must be 1 to 5"),
        ("dialogues", {"choices": 9}, "choices=9 must be 2 to 8"),
        ("code_secrets", {"secrets": 8}, "secrets=8 must be 1 to 7"),
        ("episodes", {"segments": 2}, "segments=2 must be 3 to 12"),
        ("episodes", {"segments": 3, "pairs": 4}, "pairs=4 is more than the 3 pairs of 3 segments"),
        ("time_series", {"asked": 7}, "asked=7 is more than before=12 or after=6"),
        ("time_series", {"spread": 20}, "spread=20 must be decoys"),
        ("parallel_worlds", {"size": 10}, "size=10 must be 2 to 9"),
        ("parallel_worlds", {"asked": 5}, "asked=5 is more than size=4"),
    ],
)
def test_impossible_settings(context, name, settings, told):
    with pytest.raises(UserError, match=re.escape(told)):
        make(name, context, 2, settings)
