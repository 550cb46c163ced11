"""Models of transformers as they are loaded: refusals, bf16, devices, quantised weights, positions that end."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from palimpsest.analysis.scoring import huggingface, token_statistics
from palimpsest.analysis.scoring.models import Together
from palimpsest.data.errors import UserError

transformers = pytest.importorskip("transformers")
VOCABULARY, EOD = 97, 0
CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def made(kind, **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind.replace('LMHeadModel', '').replace('ForCausalLM', '')}Config")
    return getattr(transformers, kind)(config(**SHAPE | settings)).eval()


def gpt2():
    return made("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, max_position_embeddings=20)


def score(model, texts):
    numbers = token_statistics.score_tokens(model, texts, eod=EOD, vocab_size=VOCABULARY)["logprob"]
    return np.split(numbers, np.cumsum([len(text) for text in texts])[:-1])


def plain(model, ids):
    """Log-probabilities of all tokens but the first, from one pass."""
    ids = torch.from_numpy(np.asarray(ids))[None]
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.double()
    return logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0].numpy()


def some_texts():
    rng = np.random.default_rng(0)
    story = rng.integers(1, VOCABULARY, 50)
    return [story[:5], story[:30], story, rng.integers(1, VOCABULARY, 17)]


def test_encoder_decoders_are_refused_by_name(tmp_path):
    """Bart's decoder alone would open as a causal model, and score what its encoder never read."""
    made_of = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    made_of |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": VOCABULARY}
    transformers.BartForConditionalGeneration(transformers.BartConfig(**made_of)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="encoder-decoder \\(bart\\)"):
        huggingface.open_huggingface(tmp_path, CPU)


def test_models_that_read_ahead_are_refused_by_name():
    with pytest.raises(UserError, match=r"BertLMHeadModel is not a causal language model.*later tokens"):
        huggingface.of_huggingface(made("BertLMHeadModel"))


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM"])
def test_bf16_with_logits_of_forty(kind):
    """Rounding of bf16 is 0.25 there: a bound in nats would call the model unsupported, or not causal."""
    model = made(kind, num_key_value_heads=2, num_hidden_layers=6, head_dim=8, final_logit_softcapping=60.0)
    model.get_output_embeddings().weight.data *= 40 / logit_scale(model)
    model = model.to(torch.bfloat16)
    assert 30 < logit_scale(model) < 60
    opened = huggingface.of_huggingface(model)
    assert (opened.body is None) == (kind == "Gemma2ForCausalLM")
    assert opened.together(200) is Together.ANY
    for text, found in zip(some_texts(), score(opened, some_texts()), strict=True):
        assert np.abs(found - plain(model, [EOD, *text])).mean() < 0.5


def logit_scale(model):
    with torch.no_grad():
        return float(model(input_ids=huggingface.sample(200, VOCABULARY, CPU)[None]).logits.abs().max())


def test_what_is_wrong_is_found_in_bf16_too(monkeypatch):
    opened = huggingface.of_huggingface(made("LlamaForCausalLM").to(torch.bfloat16))
    states = opened.states
    monkeypatch.setattr(opened, "states", lambda ids: states(ids) * (1 + 0.1 * (ids.shape[1] > 60)))
    assert opened.together(90) is Together.SAME_LENGTH


def test_positions_that_end():
    """A text that is too long is refused by name; in pieces, its last tokens are those of left truncation."""
    reference = gpt2()
    model = huggingface.of_huggingface(reference)
    assert model.positions == 20
    probes = pl.DataFrame({"probe_id": ["short", "long"], "tokens": [[5, 6], list(range(1, 54))]})
    with pytest.raises(UserError, match=r"probe 'long' is too long.* 20 tokens, and 53 are read"):
        token_statistics.score(model, probes, eod=EOD, vocab_size=VOCABULARY)
    reading = token_statistics.Reading(truncate=True)
    found = token_statistics.score(model, probes, eod=EOD, vocab_size=VOCABULARY, reading=reading)
    whole = [EOD, *probes["tokens"][1]]
    long = found["logprob"][1].to_numpy()
    np.testing.assert_allclose(long[-20:], plain(reference, whole[-21:]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(long[:20], plain(reference, whole[:21]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(long[20:33], plain(reference, whole[20:34]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        found["logprob"][0].to_numpy(), plain(reference, [EOD, 5, 6]), rtol=0, atol=1e-4
    )


def test_what_a_model_cannot_read_is_an_error_of_the_user():
    with pytest.raises(UserError, match="MptForCausalLM cannot read a text of 50 tokens"):
        score(
            huggingface.of_huggingface(
                made("MptForCausalLM", d_model=32, n_heads=4, n_layers=1, max_seq_len=30)
            ),
            some_texts(),
        )


@pytest.mark.parametrize("tied", [True, False])
def test_modules_on_several_devices(tmp_path, tied):
    """As device_map lays out a model that is larger than a device: here the processor and the disk."""
    pytest.importorskip("accelerate")
    reference = made("LlamaForCausalLM", tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path / "model")
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
    }
    options = {
        "device_map": {**places, "model.rotary_emb": "cpu", "lm_head": "cpu" if tied else "disk"},
        "offload_folder": str(tmp_path / "disk"),
    }
    model = huggingface.open_huggingface(tmp_path / "model", CPU, options)
    assert model.model.hf_device_map["model.layers.1"] == "disk"
    for text, found in zip(some_texts(), score(model, some_texts()), strict=True):
        np.testing.assert_allclose(found, plain(reference, [EOD, *text]), rtol=0, atol=1e-4)


def test_precision_is_an_option(tmp_path):
    made("LlamaForCausalLM").save_pretrained(tmp_path)
    assert huggingface.open_huggingface(tmp_path, CPU).dtype == torch.float32
    assert huggingface.open_huggingface(tmp_path, CPU, {"dtype": "bfloat16"}).dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype='bfloat17' is unknown"):
        huggingface.open_huggingface(tmp_path, CPU, {"dtype": "bfloat17"})


def test_quantised_weights_as_transformers_loads_them(tmp_path):
    """Blocks of float8 with a scale each, as DeepSeek's are released; processors read them as bf16."""
    pytest.importorskip("accelerate")
    from safetensors.torch import load_file, save_file

    reference = made("LlamaForCausalLM", tie_word_embeddings=False)
    reference.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {}
    for name, weight in weights.items():
        kept[name] = weight
        if "proj" in name:
            blocks = weight.unflatten(0, (-1, 16)).unflatten(2, (-1, 16))
            scale = blocks.abs().amax((1, 3)) / 448
            kept[name] = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
            kept[f"{name}_scale_inv"] = scale
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [16, 16],
        "dequantize": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = huggingface.open_huggingface(tmp_path, CPU)
    for text, found in zip(some_texts(), score(model, some_texts()), strict=True):
        np.testing.assert_allclose(found, plain(model.model, [EOD, *text]), rtol=0, atol=0.1)
        assert 0 < np.abs(found - plain(reference, [EOD, *text])).mean() < 0.3
