"""The token that texts begin with: the tokenizer's word, lm_eval's convention, and prompts without it."""

import json

import numpy as np
import pytest
import tokenizers
import torch

from palimpsest.analysis.scoring import beginnings
from palimpsest.data import tokenizer as words
from palimpsest.data.errors import UserError
from tests.analysis.scoring.released_scores import score

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
TEXT = "the capital of France is Paris and of Italy is Rome while one line follows another and it goes on"
ITEMS = [
    {"id": "whole", "text": TEXT},
    {"id": "cloze", "prompt": "the capital of France is", "target": " Paris"},
    {"id": "choice", "prompt": "the capital of Italy is", "choices": [" Rome", " Paris and Rome"]},
]


def backend(*, adds):
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<end>", "<begin>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    found.train_from_iterator([TEXT] * 3, trainer)
    if adds:
        found.post_processor = tokenizers.processors.TemplateProcessing(
            single="<begin> $A", pair="<begin> $A $B", special_tokens=[("<begin>", 2)]
        )
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two Llamas: a tokenizer that puts its token before every text, and one that puts none there."""
    places = {}
    for adds in (True, False):
        place = places[adds] = tmp_path_factory.mktemp("adds" if adds else "bare")
        whole = backend(adds=adds)
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=whole.get_vocab_size(),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.3,
            bos_token_id=0,  # wrong: the tokenizer's word counts
        )
        transformers.LlamaForCausalLM(config).save_pretrained(place)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=whole, bos_token="<begin>" if adds else None, eos_token="<end>"
        ).save_pretrained(place)
        (place / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return places


def plain(place, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    ids = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.double()
    return logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0].numpy()


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("bos", ["always", "auto", "never"])
def test_every_prompt_begins_as_asked(places, tmp_path, adds, bos):
    """Of a tokenizer without a beginning of its own it is the end of the text before, never what config.json says."""
    first = 2 if adds else 1
    prompts = bos == "always" or (bos == "auto" and adds)
    beginning, reading, _, rows = score(places[adds], tmp_path, bos=bos)
    line = beginning.line(reading)
    assert f"texts begin with {'<begin>' if adds else '<end>'!r} (id {first})" in line
    assert ("prompts, too" in line) == prompts
    for row in rows.iter_rows(named=True):
        if prompts or row["kind"] == "verbatim":
            wanted = plain(places[adds], [first, *row["tokens"]])
        else:
            wanted = np.append(np.nan, plain(places[adds], row["tokens"]))
            assert (row["rank"][0], row["argmax"][0]) == (65_535, -1)
        np.testing.assert_allclose(row["logprob"], wanted, rtol=0, atol=1e-4)


def test_words_that_are_none(places, tmp_path):
    with pytest.raises(UserError, match="bos='sometimes' is unknown"):
        score(places[True], tmp_path, bos="sometimes")
    with pytest.raises(UserError, match="long_texts='cut' is unknown"):
        score(places[True], tmp_path, long_texts="cut")


@pytest.mark.parametrize("adds", [True, False])
def test_a_run_begins_its_texts_with_the_end_of_a_document(adds):
    beginning = beginnings.of_run(words.Tokenizer(backend(adds=adds), "<end>"))
    assert (beginning.id, beginning.text, beginning.added) == (1, "<end>", adds)
    assert beginning.reading("auto", "refuse").bos == adds


@pytest.mark.slow
@pytest.mark.parametrize("adds", [True, False])
def test_lm_eval_agrees(places, tmp_path, adds):
    """bos=auto is its convention; each request by itself, for its cache confuses requests that share a beginning."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(places[adds]), device="cpu", dtype="float32", batch_size=1)
    for row in score(places[adds], tmp_path, bos="auto")[-1].iter_rows(named=True):
        if adds and row["kind"] == "verbatim":
            continue  # lm_eval begins a whole text twice where the tokenizer begins it, too
        ours = sum(row["logprob"][row["target_start"] :])
        if row["kind"] == "verbatim":
            asked = Instance("loglikelihood_rolling", {}, (row["text"],), 0)
            (value,) = theirs.loglikelihood_rolling([asked], disable_tqdm=True)
        else:
            cut = row["target_char"]
            asked = Instance("loglikelihood", {}, (row["text"][:cut], row["text"][cut:]), 0)
            ((value, _),) = theirs.loglikelihood([asked], disable_tqdm=True)
        assert ours == pytest.approx(value, abs=1e-4)
