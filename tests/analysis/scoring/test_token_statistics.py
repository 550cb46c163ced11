"""Six numbers a token: against float64, one text at a time, whatever is read together and whoever's model it is."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from palimpsest.analysis.scoring import huggingface, token_statistics
from palimpsest.analysis.scoring.models import Together
from palimpsest.data.errors import UserError

transformers = pytest.importorskip("transformers")
EOD, VOCABULARY = 0, 97


def llama(**settings):
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,  # far from uniform, so that ranks and margins differ
    }
    config = transformers.LlamaConfig(**shape | settings)
    return transformers.LlamaForCausalLM(config).eval()


def expected(logits, targets):
    """The numbers from first principles, in float64; ties go to the smaller id."""
    logits = np.asarray(logits, np.float64)
    logprob = log_softmax(logits, -1)
    p = np.exp(logprob)
    found = []
    for row, token in enumerate(targets):
        z = logits[row]
        others = np.delete(z, token)
        order = np.lexsort((np.arange(len(z)), -z))
        entropy = -(p[row] * logprob[row]).sum()
        found.append(
            {
                "logprob": logprob[row, token],
                "rank": int(np.flatnonzero(order == token)[0]),
                "entropy": entropy,
                "variance": (p[row] * (logprob[row] + entropy) ** 2).sum(),
                "margin": z[token] - others.max(),
                "argmax": int(order[0]),
            }
        )
    return {name: np.array([one[name] for one in found]) for name in token_statistics.NUMBERS}


def alone(model, text):
    """The numbers of one text, from the model's own logits."""
    ids = torch.tensor([[EOD, *text]])
    with torch.inference_mode():
        logits = model(input_ids=ids[:, :-1]).logits[0]
    return expected(logits, text)


def compare(found, wanted, tolerance=1e-4):
    for name in ("logprob", "entropy", "margin"):
        np.testing.assert_allclose(found[name], wanted[name], atol=tolerance, rtol=0, err_msg=name)
    np.testing.assert_allclose(found["variance"], wanted["variance"], atol=10 * tolerance, rtol=1e-4)
    sure = np.abs(wanted["margin"]) > tolerance
    np.testing.assert_array_equal((found["rank"] == 0)[sure], (wanted["rank"] == 0)[sure])
    np.testing.assert_array_equal(found["argmax"][sure], wanted["argmax"][sure])


def check(model, reference, texts):
    numbers = token_statistics.score_tokens(model, texts, eod=EOD, vocab_size=VOCABULARY)
    ends = np.cumsum([len(text) for text in texts])[:-1]
    split = {name: np.split(values, ends) for name, values in numbers.items()}
    for k, text in enumerate(texts):
        compare({name: values[k] for name, values in split.items()}, alone(reference, text))


def some_texts():
    """Texts of all lengths, questions with choices, clozes that go on, one text twice."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, VOCABULARY, length) for length in (1, 2, 3, 7, 20, 21, 40, 90)]
    for _ in range(3):
        question = rng.integers(1, VOCABULARY, 12)
        texts += [np.append(question, rng.integers(1, VOCABULARY, k)) for k in (1, 1, 2, 5)]
    story = rng.integers(1, VOCABULARY, 30)
    texts += [story[:k] for k in (8, 12, 20, 30)] + [story]
    rng.shuffle(texts)
    return texts


@given(st.integers(0, 10**6), st.sampled_from([1.0, 8.0, 40.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_statistics(seed, scale, ties):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((5, 30))).astype(np.float32)
    if ties:
        logits = np.round(logits / scale)
    targets = rng.integers(0, 30, 5)
    found = token_statistics.statistics(torch.from_numpy(logits.copy()), torch.from_numpy(targets))
    wanted = expected(logits, targets)
    np.testing.assert_array_equal(found["rank"], wanted["rank"])
    np.testing.assert_array_equal(found["argmax"], wanted["argmax"])
    for name in ("logprob", "entropy", "variance", "margin"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=2e-5, err_msg=name)


def test_variance_of_a_memorised_token_keeps_its_digits():
    logits = np.zeros((1, 50_000), np.float32)
    logits[0, 7] = 40.0
    found = token_statistics.statistics(torch.from_numpy(logits.copy()), torch.tensor([7]))
    wanted = expected(logits, [7])
    assert wanted["variance"][0] < 1e-9
    np.testing.assert_allclose(found["variance"], wanted["variance"], rtol=1e-4)
    np.testing.assert_allclose(found["entropy"], wanted["entropy"], rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_llama(tied):
    reference = llama(tie_word_embeddings=tied)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 2.0)
    check(huggingface.of_huggingface(reference), reference, some_texts())


@pytest.mark.parametrize("kind", ["GPTNeoX", "GPT2", "Qwen2"])
def test_other_models_of_transformers(kind):
    torch.manual_seed(0)
    settings = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "max_position_embeddings": 128}
    if kind == "GPT2":
        settings |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    else:
        settings |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        settings |= {"num_attention_heads": 4}
    if kind == "Qwen2":
        settings |= {"num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**settings)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    reference = getattr(transformers, name)(config).eval()
    check(huggingface.of_huggingface(reference), reference, some_texts())


def count_tokens(monkeypatch, model, texts):
    """Tokens that the model reads while the texts are scored, padding included."""
    sizes = []
    states, together = model.states, model.together(max(map(len, texts)))
    with monkeypatch.context() as patch:
        patch.setattr(model, "together", lambda length: together)
        patch.setattr(model, "states", lambda ids: sizes.append(tuple(ids.shape)) or states(ids))
        token_statistics.score_tokens(model, texts, eod=EOD, vocab_size=VOCABULARY)
    return sum(rows * tokens for rows, tokens in sizes), sizes


def test_sliding_windows(monkeypatch):
    """Attention that does not reach back to the beginning: texts are many times as long as the window."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.3,
    )
    reference = transformers.MistralForCausalLM(config).eval()
    model = huggingface.of_huggingface(reference)
    texts = some_texts()
    check(model, reference, texts)
    assert count_tokens(monkeypatch, model, [texts[0], texts[0]])[0] == len(texts[0])


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_of_the_text(monkeypatch, rope):
    """Neither padding nor a longer text may change them: only texts of one length are read together."""
    more = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4} if rope == "longrope" else {}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        max_position_embeddings=32,
        rope_parameters={
            "rope_type": rope,
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            **more,
        },
    )
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(config).eval()
    model = huggingface.of_huggingface(reference)
    texts = some_texts()
    for text in texts:  # one at a time, for transformers' dynamic frequencies remember the longest text
        check(model, copy.deepcopy(reference), [text])
    numbers = token_statistics.score_tokens(model, texts, eod=EOD, vocab_size=VOCABULARY)["logprob"]
    alone = [token_statistics.score_tokens(model, [text], eod=EOD, vocab_size=VOCABULARY) for text in texts]
    np.testing.assert_allclose(numbers, np.concatenate([one["logprob"] for one in alone]), rtol=0, atol=1e-4)
    _, sizes = count_tokens(monkeypatch, model, texts)
    assert sum(rows for rows, _ in sizes) == len(texts)
    assert {tokens for _, tokens in sizes} == {len(text) for text in texts}


@pytest.mark.parametrize(
    ("change", "together"),
    [
        (lambda found, ids: found, Together.ANY),
        (lambda found, ids: found + 0.01 * ids.shape[1], Together.SAME_LENGTH),
        (lambda found, ids: found + 0.01 * ids.shape[0], Together.NONE),
        # Padding alone, the rest of a longer text alone; each beyond the 40th token, as a window would have it.
        (lambda found, ids: found + 0.1 * (ids[:, 40:] == 0).any(1)[:, None, None], Together.SAME_LENGTH),
        (
            lambda found, ids: found + 0.1 * (ids.shape[1] > 60) * (ids[:, -1:] > 0)[..., None],
            Together.SAME_LENGTH,
        ),
    ],
)
def test_what_reading_together_would_change_is_found_by_trying(monkeypatch, change, together):
    """Whatever the reason: a model may depend on the length, on its neighbours, on padding or on later tokens."""
    model = huggingface.of_huggingface(llama())
    states = model.states
    monkeypatch.setattr(model, "states", lambda ids: change(states(ids), ids))
    assert model.together(90) is together


def test_table_keeps_the_order_of_the_probes():
    model = huggingface.of_huggingface(llama())
    texts = [text.tolist() for text in some_texts()]
    probes = pl.DataFrame(
        {"probe_id": [f"p{k}" for k in range(len(texts))], "tokens": texts},
        schema_overrides={"tokens": pl.List(pl.Int32)},
    )
    found = token_statistics.score(model, probes, eod=EOD, vocab_size=VOCABULARY)
    assert found.schema == token_statistics.SCORE_SCHEMA
    assert found["probe_id"].to_list() == probes["probe_id"].to_list()
    assert found["logprob"].list.len().to_list() == [len(text) for text in texts]
    wanted = alone(llama(), texts[5])
    np.testing.assert_allclose(found["logprob"][5].to_numpy(), wanted["logprob"], atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "told"), [([[3], []], "'p1' has no tokens"), ([[3], [5, 97]], "'p1' has token 97")]
)
def test_probes_that_cannot_be_scored(tokens, told):
    probes = pl.DataFrame(
        {"probe_id": ["p0", "p1"], "tokens": tokens}, schema_overrides={"tokens": pl.List(pl.Int32)}
    )
    with pytest.raises(UserError, match=told):
        token_statistics.score(huggingface.of_huggingface(llama()), probes, eod=EOD, vocab_size=VOCABULARY)
