"""Copyright traps: what is accepted, from a reference model that is a table of chances, and from a real one."""

import json
import math
import re

import numpy as np
import pytest

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion.families.registry import FamilyContext, make

WORDS = 400


class Table:
    """Tokens are numbers below 400, drawn independently: token k has the chance 2^-(1 + k // 20) / 20, renormalised."""

    def __init__(self):
        weights = np.repeat(2.0 ** -np.arange(WORDS // 20), 20)
        self.logp = np.log(weights / weights.sum())

    def sample(self, count, length, temperature, rng):
        chances = np.exp(self.logp / temperature)
        ids = rng.choice(WORDS, size=(count, length), p=chances / chances.sum())
        return [(" ".join(f"w{k}" for k in row), row, -self.logp[row].sum()) for row in ids]


@pytest.fixture(scope="module")
def context():
    tokenizer = build(iter([]), TokenizerConfig(vocab_size=257))
    return FamilyContext(5, tokenizer, [("d", "some other text")], reference=lambda path: Table())


SETTINGS = {"path": "x", "lengths": [12, 16], "low": 30, "high": 150, "buckets": 3, "context": 5}


def tokens(item):
    return [int(word[1:]) for word in item.text.split()]


def test_traps(context):
    items = make("traps", context, 24, SETTINGS)
    logp = Table().logp
    for index, item in enumerate(items):
        length, low = (12, 16)[index % 2], (30, 70, 110)[index // 2 % 3]
        assert item.stratum == f"tokens{length} perplexity{low}-{low + 40}"
        ids = tokens(item)
        assert len(ids) == length
        surprise = -logp[ids].sum()
        assert low <= math.exp(surprise / length) <= low + 40
        assert item.bits == pytest.approx(surprise / math.log(2))
        asked = item.probes[1]
        assert (asked.prompt, asked.target) == ("some \n", item.text)
    for one in items:
        for other in items:
            if one is not other:
                a, b = set(tokens(one)), set(tokens(other))
                assert len(a & b) / len(a | b) <= 0.2


def test_traps_do_not_depend_on_how_many(context):
    assert make("traps", context, 9, SETTINGS) == make("traps", context, 24, SETTINGS)[:9]


def test_temperatures_between_those_given_are_found(context):
    """200 tokens have perplexities below 46 at temperature 0.3 and above 250 at 3: what is between is sampled, too."""
    given = {"path": "x", "lengths": [200], "jaccard": 1.0, "context": 0}
    hot, cold = (
        [math.exp(lost / 200) for _, _, lost in Table().sample(200, 200, t, np.random.default_rng(0))]
        for t in (3.0, 0.3)
    )
    assert max(cold) < 60 < 100 < min(hot)
    found = make(
        "traps", context, 3, {**given, "temperatures": [0.3, 3.0], "low": 60, "high": 100, "buckets": 1}
    )
    for item in found:
        assert 0.3 < float(re.search(r"temperature ([\d.]+)", item.provenance)[1]) < 3
        assert 60 <= math.exp(item.bits * math.log(2) / 200) <= 100


def test_what_cannot_be_found_is_said(context, caplog):
    with pytest.raises(
        UserError, match=r"no trap of 12 tokens with a perplexity of 1 to 2 .*128 sampled, 0 accepted"
    ):
        make("traps", context, 3, {**SETTINGS, "lengths": [12], "low": 1, "high": 4, "max_batches": 2})
    with caplog.at_level("INFO"):
        make("traps", context, 6, SETTINGS)
    (first, _) = [r.message for r in caplog.records if "accepted" in r.message]
    sampled, accepted = map(
        int, re.match(r"traps of 12 tokens: (\d+) sampled, (\d+) accepted", first).groups()
    )
    assert accepted == 3
    parts = [int(n) for n in re.findall(r"(\d+) (?:accepted|outside|not|too|left)", first)]
    assert sum(parts) == sampled  # every candidate is accounted for
    for change, message in (
        ({"path": ""}, "path is empty"),
        ({"low": 5, "high": 4}, "the low one first"),
        ({"temperatures": [0]}, r"temperatures=0 must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            make("traps", context, 1, {**SETTINGS, **change})


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny Llama of random weights with a byte-pair tokenizer, as save_pretrained leaves it."""
    transformers = pytest.importorskip("transformers")
    import torch

    path = tmp_path_factory.mktemp("model")
    tokenizer = build(
        iter(["the cat sat on the mat and the rat sat on the cat " * 5]), TokenizerConfig(vocab_size=280)
    )
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=tokenizer.eod, eos_token_id=tokenizer.eod, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save(path / "tokenizer.json")
    return path, tokenizer


def test_a_reference_model(directory):
    """The sampled ids are what its text gives when tokenized, and -ln p is the model's own loss."""
    import torch
    import transformers

    from palimpsest.pretrain.reference import open_reference

    path, tokenizer = directory
    reference = open_reference(str(path), tokenizer)
    found = reference.sample(6, 10, 1.0, np.random.default_rng(0))
    assert 1 <= len(found) <= 6
    gpt = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    for text, ids, lost in found:
        assert tokenizer.encode(text).tolist() == ids.tolist()
        assert len(ids) == 10
        assert tokenizer.eod not in ids
        assert "\ufffd" not in text
        row = torch.tensor([[tokenizer.eod, *ids.tolist()]])
        with torch.inference_mode():
            assert 10 * gpt(row, labels=row).loss.item() == pytest.approx(lost, rel=1e-5)
    again = reference.sample(6, 10, 1.0, np.random.default_rng(0))
    assert [text for text, _, _ in again] == [text for text, _, _ in found]


def test_colder_is_likelier(directory):
    from palimpsest.pretrain.reference import open_reference

    reference = open_reference(str(directory[0]), directory[1])
    cold, hot = (
        np.mean([lost for _, _, lost in reference.sample(32, 10, t, np.random.default_rng(0))])
        for t in (0.3, 2.0)
    )
    assert cold < hot - 5


def test_no_reference_model(tmp_path, context):
    from palimpsest.pretrain.reference import open_reference

    with pytest.raises(UserError, match=r"there is no config\.json in it"):
        open_reference(str(tmp_path), context.tokenizer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_reference(str(tmp_path), context.tokenizer)
