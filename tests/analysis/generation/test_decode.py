"""Continuations of small models whose answers are known."""

import numpy as np
import polars as pl
import pytest
import torch

from palimpsest.analysis.generation.continuations import GenerateConfig, prompts
from palimpsest.analysis.metrics import Parameters
from palimpsest.analysis.metrics.extraction import extraction_probability
from palimpsest.analysis.metrics.generated import generated_rows
from palimpsest.data.errors import UserError

transformers = pytest.importorskip("transformers")
from palimpsest.analysis.generation import decode  # noqa: E402

EOD, VOCABULARY = 0, 40
TEXTS = [np.random.default_rng(k).integers(1, VOCABULARY, 9 + 3 * k).tolist() for k in range(6)]


def llama(rows=VOCABULARY):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def memorised():
    """A model that has read each text, with the token that ends it, until it knows it."""
    model = llama(VOCABULARY + 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    longest = max(map(len, TEXTS))
    ids = torch.tensor([[EOD, *text, EOD, *[-100] * (longest - len(text))] for text in TEXTS])
    for _ in range(150):
        optimizer.zero_grad()
        model(ids.clamp(min=0), labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def plan(texts=TEXTS):
    """Items, and their probes: the whole text, and a prompt of six tokens with an answer of two."""
    items = [
        {"item_id": f"i{k}", "stratum": "", "cluster": "", "dose": k % 2, "family": "f"}
        for k in range(len(texts))
    ]
    probes = [
        {
            "probe_id": f"i{k}/{kind}/0",
            "item_id": f"i{k}",
            "family": "f",
            "kind": kind,
            "name": "" if kind == "verbatim" else "last",
            "tokens": text if kind == "verbatim" else text[:8],
            "target_start": 0 if kind == "verbatim" else 6,
        }
        for k, text in enumerate(texts)
        for kind in ("verbatim", "cloze")
    ]
    return pl.DataFrame(items), pl.DataFrame(probes, schema_overrides={"tokens": pl.List(pl.Int32)})


def words(ids):
    return " ".join(map(str, ids))


def written(model, probes, config):
    asked = prompts(probes, config).with_columns(begun=pl.lit(True))
    return decode.continued(
        model, asked, config, beginning=EOD, ends=[EOD], vocab_size=VOCABULARY, decode=words
    )


@pytest.mark.parametrize("known", [True, False])
def test_what_was_memorised_is_verbatim_and_what_was_not_is_not(memorised, known):
    items, probes = plan()
    config = GenerateConfig(prefix_tokens=(3, 5), samples=2, temperature=0.05)
    found = written(memorised if known else llama(), probes, config)
    assert found.height == 3 * (2 * len(TEXTS) + len(TEXTS))
    rows = generated_rows(
        items, probes, found.with_columns(run=pl.lit("perturbed"), step=pl.lit(9)), Parameters()
    )
    means = dict(rows.group_by("metric").agg(pl.col("value").mean()).iter_rows())
    assert set(rows["question"]) == {"after 3 tokens", "after 5 tokens", "last"}
    for name in ("verbatim", "near_verbatim", "edit_similarity", "rouge_l", "word_recall", "prefix_match"):
        assert means[f"generated_{name}"] == pytest.approx(float(known), abs=0.2 * (not known)), name
    for name in ("sampled_verbatim", "sampled_any_verbatim", "sampled_np_discoverable"):
        assert means[name] == pytest.approx(float(known), abs=1e-3), name


def test_cached_batches_are_argmax_one_by_one(memorised):
    """Of a model that knows some of it: prompts of several lengths, and what no one wrote after them."""
    rng = np.random.default_rng(5)
    texts = [[*text[: len(text) // 2], *rng.integers(1, VOCABULARY, 12).tolist()] for text in TEXTS]
    probes = plan(texts)[1]
    found = written(memorised, probes, GenerateConfig(prefix_tokens=(2, 4, 7), max_tokens=11))
    tokens = dict(probes.select("probe_id", "tokens").iter_rows())
    for probe, prefix, made, reference in found.select(
        "probe_id", "prefix", "tokens", "reference"
    ).iter_rows():
        ids, alone = [EOD, *tokens[probe][:prefix]], []
        while len(alone) < len(reference):
            with torch.inference_mode():
                logits = memorised(torch.tensor([ids]), use_cache=False).logits[0, -1, :VOCABULARY]
            if int(logits.argmax()) == EOD:
                break
            alone.append(int(logits.argmax()))
            ids.append(alone[-1])
        assert made == alone
    assert found["tokens"].list.len().n_unique() > 1  # some texts end


@pytest.mark.parametrize(
    "scheme", [{}, {"temperature": 0.5}, {"temperature": 1.7, "top_k": 3}, {"temperature": 1.5, "top_p": 0.6}]
)
def test_samples_hold_the_reference_as_often_as_its_probability_says(memorised, scheme):
    """And the share of prompts whose n samples hold it at least once follows 1 - (1 - p_z)^n."""
    probes = plan()[1].filter(pl.col("kind") == "verbatim")
    config = GenerateConfig(prefix_tokens=(1, 2), questions=False, max_tokens=2, samples=1000, **scheme)
    found = written(memorised, probes, config).filter(pl.col("sample") > 0)
    n, blocks = 5, 200
    for _, part in found.partition_by(["probe_id", "prefix"], as_dict=True).items():
        hits = (part["tokens"] == part["reference"]).to_numpy()
        p = np.exp(part["reference_loglik"][0])
        assert hits.mean() == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / len(hits)) + 2e-3)
        expected = float(extraction_probability(np.log(p), n)) if p else 0.0
        once = hits.reshape(blocks, n).any(1).mean()
        assert once == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / blocks) + 1e-2)


def test_the_same_seed_writes_the_same(memorised):
    probes = plan()[1]
    one, again, other = (
        written(memorised, probes, GenerateConfig(samples=4, temperature=2.0, max_tokens=6, seed=seed))
        for seed in (3, 3, 4)
    )
    assert one.equals(again)
    drawn = pl.col("sample") > 0
    assert not one.filter(drawn)["tokens"].equals(other.filter(drawn)["tokens"])
    assert one.filter(~drawn).equals(other.filter(~drawn))


def test_too_few_positions_are_told():
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    with pytest.raises(UserError, match=r"take 13 positions, and the model has 12; set generate.max_tokens"):
        written(transformers.GPT2LMHeadModel(config).eval(), plan()[1], GenerateConfig(prefix_tokens=(4,)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prefix_tokens": (0,)}, "generate.prefix_tokens: 0 must be above 0"),
        ({"prefix_tokens": (4, 4)}, "names a number twice"),
        ({"prefix_tokens": (), "questions": False}, "leaves nothing to continue"),
        ({"max_tokens": 0}, "generate.max_tokens=0 must be 1 or above"),
        ({"samples": -1}, "generate.samples=-1 must be 0 or above"),
        ({"temperature": 0.0}, "generate.samples=0 is greedy decoding alone"),
        ({"top_k": 0}, "generate.top_k=0 must be above 0, or null"),
        ({"top_p": 1.5}, "generate.top_p=1.5 must be above 0 and at most 1"),
    ],
)
def test_settings_that_mean_nothing(settings, told):
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        GenerateConfig(**settings)
