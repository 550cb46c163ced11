"""Every family: deterministic, stable when items are added, probes where they say they are."""

import pytest
from omegaconf import OmegaConf

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion.families import ghost_sentences
from palimpsest.insertion.families.registry import FamilyContext, check, make
from palimpsest.insertion.items import Item, Probe, tokenize_items, tokenize_probes
from tests.conftest import NOUNS, REPO
from tests.insertion.every_family import SHIPPED

TEXTS = [
    f"document number {k} speaks of a {NOUNS[k % 30]} that has a {NOUNS[(k * 7 + 3) % 30]} and a "
    f"{NOUNS[(k * 11 + 5) % 30]} of its own"
    for k in range(200)
]
FAMILIES = {
    "passages": {"tokens": 8},
    "ghost_sentences": {"words": 6, "list_size": 30},
}


@pytest.fixture(scope="module")
def context():
    tokenizer = build(iter(TEXTS), TokenizerConfig(vocab_size=400))
    return FamilyContext(5, tokenizer, [(f"{k:04d}", text) for k, text in enumerate(TEXTS)])


@pytest.mark.parametrize("name", FAMILIES)
def test_deterministic_and_stable(context, name):
    few, many = (make(name, context, count, FAMILIES[name]) for count in (10, 40))
    assert list(many[:10]) == list(few)  # more items leave the first ones as they were
    assert len({item.id for item in many}) == len({item.text for item in many}) == 40
    other = FamilyContext(6, context.tokenizer, context.heldout)
    if name != "passages":  # passages are what the corpus holds, in the order of its digests
        assert not {i.text for i in make(name, other, 10, FAMILIES[name])} & {i.text for i in few}


@pytest.mark.parametrize("name", FAMILIES)
def test_probes_are_in_the_text(context, name):
    for item in make(name, context, 10, FAMILIES[name]):
        assert item.probes[0] == Probe("verbatim", "", item.text)
        for probe in item.probes:
            assert item.text.startswith(probe.prompt + probe.target) or not probe.correct


def test_passages_survive_tokenization(context):
    for item in make("passages", context, 10, {"tokens": 8}):
        assert len(context.tokenizer.encode(item.text)) == 8


def test_ghost_words_come_from_the_list(context):
    words = ghost_sentences.word_list([text for _, text in context.heldout], 30)
    assert words == sorted(words)
    assert len(words) == 30
    for item in make("ghost_sentences", context, 10, FAMILIES["ghost_sentences"]):
        drawn = item.text.rstrip(".").lower().split()
        assert len(drawn) == 6
        assert set(drawn) <= set(words)


def test_unknown_family_and_setting(context):
    with pytest.raises(UserError, match="no family 'pasages'; did you mean 'passages'"):
        make("pasages", context, 3, {})
    with pytest.raises(UserError, match=r"passages\.token: no such setting; did you mean 'tokens'"):
        make("passages", context, 3, {"token": 4})


def test_too_few_documents(context):
    with pytest.raises(UserError, match="300 passages of tokens=8 are needed"):
        make("passages", context, 300, {"tokens": 8})


def test_passages_that_the_corpus_contains_are_passed_over(context):
    few = make("passages", context, 10, {"tokens": 8})

    def occurrences(spans):
        return [int(context.tokenizer.decode(span) in {item.text for item in few[:3]}) for span in spans]

    clean = FamilyContext(context.seed, context.tokenizer, context.heldout, occurrences)
    assert list(make("passages", clean, 7, {"tokens": 8})) == list(few[3:])


def test_repeated_and_empty_items_are_named(context):
    items = [Item("a", "f", "same", (), ""), Item("b", "f", "same", (), "")]
    with pytest.raises(UserError, match="items a and b have the same text"):
        tokenize_items(items, context.tokenizer)
    with pytest.raises(UserError, match="item c of family f has no text"):
        tokenize_items([Item("c", "f", "  ", (), "")], context.tokenizer)
    twice = [Item("a", "f", "one", (), ""), Item("a", "f", "two", (), "")]
    with pytest.raises(UserError, match="item id a occurs more than once"):
        tokenize_items(twice, context.tokenizer)


def test_a_target_inside_a_token_is_reported(context):
    word = next(text.split()[0] for text in TEXTS if len(context.tokenizer.encode(text.split()[0])) == 1)
    table, left_out = tokenize_probes(
        [
            ("x", "f", Probe("cloze", word[:2], word[2:])),
            ("x", "f", Probe("cloze", word, " number")),
        ],
        context.tokenizer,
    )
    assert len(left_out) == 1
    assert "begins inside a token" in left_out[0]
    assert table["target_start"].to_list() == [1]
    assert table["target_bytes"].to_list() == [len(" number")]


def test_probe_ids_and_broken_choices(context):
    """Ids do not depend on other items; a question that lost an answer is left out whole."""
    word = next(text.split()[0] for text in TEXTS if len(context.tokenizer.encode(text.split()[0])) == 1)
    whole = ("x", "f", Probe("choice", word, " number", "q"))
    broken = ("x", "f", Probe("choice", word[:2], word[2:], "r"))
    mate = ("x", "f", Probe("choice", word, " document", "r", correct=False))
    other = ("w", "f", Probe("verbatim", "", word))
    table, left_out = tokenize_probes([other, whole, broken, mate], context.tokenizer)
    assert len(left_out) == 2
    assert table["probe_id"].to_list() == ["w/verbatim/0", "x/choice/0"]
    assert table["target_char"].to_list() == [0, len(word)]
    assert table["probe_id"][1] == tokenize_probes([whole], context.tokenizer)[0]["probe_id"][0]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_family_has_its_configuration(name):
    """The configuration lists every setting of a family, each with the default of the function."""
    file = OmegaConf.load(REPO / "conf" / "insertion" / f"{name}.yaml")
    given = OmegaConf.to_container(file)["families"][name]
    defaults = check(name, given).__kwdefaults__ or {}
    assert given.keys() <= defaults.keys()
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()} == defaults
