"""A released model by path, with a file of items: scored as transformers itself scores it."""

import json

import numpy as np
import pytest
import tokenizers
import torch

from palimpsest.analysis.scoring import hub
from palimpsest.data.errors import UserError
from tests.analysis.scoring.released_scores import score

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
    *_, done, found = score(place, tmp_path)
    assert done == 1
    assert score(place, tmp_path)[2] == 0
    assert found["kind"].to_list() == ["verbatim", "choice", "choice", "choice", "verbatim", "cloze"]
    assert found["item_id"].to_list()[:4] == ["a", "q", "q", "q"]
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    words = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    for row in found.iter_rows(named=True):
        ids = words.encode(row["text"]).ids
        assert row["tokens"] == ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[0, *ids]])).logits[0, :-1]
        wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        np.testing.assert_allclose(row["logprob"], wanted, atol=1e-4)
    targets = [words.decode(row["tokens"][row["target_start"] :]) for row in found[1:4].iter_rows(named=True)]
    assert targets == [" mat", " dog", " dog cat"]


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="transformers cannot open"):
        hub.locate(str(tmp_path), "")
