"""A released model by path, with a file of items: scored as transformers itself scores it."""

import json

import numpy as np
import polars as pl
import pytest
import tokenizers
import torch

from palimpsest.analysis.scoring import released
from palimpsest.data.errors import UserError

transformers = pytest.importorskip("transformers")
ITEMS = [
    {"id": "a", "text": "the cat sat on the mat"},
    {"id": "q", "prompt": "the cat sat on the", "choices": [" mat", " dog", " dog cat"]},
    {"prompt": "the dog sat", "target": " on the cat"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A GPT-NeoX model and its tokenizer, as Pythia's are released."""
    place = tmp_path_factory.mktemp("released")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([line.get("text", line.get("prompt")) for line in ITEMS] * 3, trainer)
    words.save(str(place / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=words.get_vocab_size() + 7,  # padded, as released ones are
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(place)
    (place / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return place


def test_scores_are_those_of_transformers(place, tmp_path):
    cpu = torch.device("cpu")
    assert released.score(str(place), place / "items.jsonl", tmp_path, device=cpu) == 1
    assert released.score(str(place), place / "items.jsonl", tmp_path, device=cpu) == 0
    probes = pl.read_parquet(tmp_path / "probes.parquet")
    found = pl.read_parquet(tmp_path / "step_00000000" / "scores.parquet")
    assert probes["kind"].to_list() == ["verbatim", "choice", "choice", "choice", "cloze"]
    assert probes["item_id"].to_list() == ["a", "q", "q", "q", "3"]
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    words = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    for row, text in enumerate(probes["text"]):
        ids = words.encode(text).ids
        assert probes["tokens"][row].to_list() == ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[0, *ids]])).logits[0, :-1]
        wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        np.testing.assert_allclose(found["logprob"][row].to_numpy(), wanted, atol=1e-4)
    start = probes["target_start"].to_list()
    assert [words.decode(probes["tokens"][k].to_list()[start[k] :]) for k in (1, 2, 3)] == [
        " mat",
        " dog",
        " dog cat",
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("not json", "line 1 is not JSON"),
        ('{"prompt": "x"}', "line 1 has neither text, nor prompt and target"),
        ("", "has no items"),
    ],
)
def test_items_that_are_none(place, tmp_path, line, told):
    (tmp_path / "items.jsonl").write_text(line)
    with pytest.raises(UserError, match=told):
        released.score(str(place), tmp_path / "items.jsonl", tmp_path, device=torch.device("cpu"))


def test_a_model_that_is_none(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"text": "x"}')
    with pytest.raises(UserError, match="transformers cannot open"):
        released.score(str(tmp_path), tmp_path / "items.jsonl", tmp_path, device=torch.device("cpu"))
