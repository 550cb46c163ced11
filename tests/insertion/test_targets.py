"""Targets of probes under the layouts of tokenizers that people bring along."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import DEFAULT_EOD, Tokenizer
from palimpsest.insertion.items import Item, Probe, require_questions, target_start, tokenize_probes

TEXTS = ["the capital of France is Paris", "the capital of Italy is Rome", "one line of text is a line"] * 20
WORDS = ["Paris", "Rome", "one", "line"]


def byte_level(trim, prefix=False):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=[DEFAULT_EOD], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return backend


def wordpiece():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[UNK]", DEFAULT_EOD]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    )
    return backend


def unigram():
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    specials = ["<unk>", DEFAULT_EOD]
    backend.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False
        ),
    )
    return backend


LAYOUTS = {
    "gpt2": lambda: byte_level(False),
    "neox": lambda: byte_level(True),
    "prefix space": lambda: byte_level(True, prefix=True),
    "wordpiece": wordpiece,
    "unigram": unigram,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_target_with_its_space_begins_on_a_boundary(layout):
    """The prompt's own ids come first, and the target's ids follow: what a cloze of any harness scores."""
    tokenizer = Tokenizer(LAYOUTS[layout]())
    prompt = "the capital of France is"
    asked = [(f"i{k}", "f", Probe("cloze", prompt, f" {word}")) for k, word in enumerate(WORDS)]
    table, left_out = tokenize_probes(asked, tokenizer)
    assert not left_out
    before = tokenizer.encode(prompt).tolist()
    for start, tokens in table.select("target_start", "tokens").iter_rows():
        assert tokens[:start] == before


@pytest.mark.parametrize("layout", ["gpt2", "neox", "prefix space"])
def test_a_target_whose_space_is_in_the_prompt_is_left_out(layout):
    """Its token begins before it; with trimmed offsets it was taken for the target alone."""
    tokenizer = Tokenizer(LAYOUTS[layout]())
    table, left_out = tokenize_probes([("i", "f", Probe("cloze", "capital of ", "France"))], tokenizer)
    assert not len(table)
    assert "begins inside a token" in left_out[0]


def test_places_of_targets():
    assert target_start([(0, 3), (3, 6), (6, 7)], 3) == 1
    assert target_start([(0, 3), (4, 6)], 3) == 1  # the space belongs to no token
    assert target_start([(0, 3), (3, 6)], 4) is None
    assert target_start([(0, 1), (1, 2), (1, 2), (1, 2)], 1) == 1  # a character of three byte tokens
    assert target_start([(0, 3)], 3) is None


def test_an_empty_target_is_called_empty():
    _, left_out = tokenize_probes([("i", "f", Probe("cloze", "a", ""))], Tokenizer(byte_level(False)))
    assert left_out == ["probe 0 of item i: its target is empty"]


def test_a_family_that_loses_all_of_its_questions_is_refused():
    tokenizer = Tokenizer(byte_level(False))
    text = "the capital of France is Paris"
    lost = Probe("cloze", "the capital of France i", "s Paris")
    good = Probe("cloze", "the capital of France is", " Paris")

    def plan(*probes):
        item = Item("i", "f", text, (Probe("verbatim", "", text), *probes), "here")
        table, left_out = tokenize_probes([(item.id, item.family, probe) for probe in item.probes], tokenizer)
        return require_questions([item], table, left_out)

    assert plan(good, lost) == {"f": (1, 1)}
    with pytest.raises(UserError, match=r"all 1 questions of family f are left out .*begins inside a token"):
        plan(lost)


def test_dropout_of_a_tokenizer_is_off():
    """The same text gives the same ids, each time."""
    backend = byte_level(False)
    backend.model.dropout = 0.5
    tokenizer = Tokenizer(backend)
    every = {tuple(tokenizer.encode(TEXTS[0]).tolist()) for _ in range(20)}
    assert len(every) == 1
    assert len({tuple(tokenizer.encode_offsets(TEXTS[0])[0].tolist()) for _ in range(20)}) == 1
    assert np.array_equal(tokenizer.encode(TEXTS[0]), tokenizer.encode_offsets(TEXTS[0])[0])
