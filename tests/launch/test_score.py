"""Scores of real checkpoints: against the model written down again in float64, and the work shared by tasks."""

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax

from palimpsest.data import artifact
from palimpsest.data.prepare import SCHEMA_VERSION

SIZES = {"layers": 2, "heads": 4, "epsilon": 1e-5, "base": 10_000}


@pytest.fixture(scope="module")
def trained(prepared):
    prepared.ok("plan", "name=score")
    prepared.ok("train", "name=score")
    return prepared.directory("score")


def forward(weights, ids):
    """Log-probabilities of the next token after each of ``ids``: RMSNorm, rotary attention, SwiGLU, tied output."""

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + SIZES["epsilon"]) * weight

    def rotate(x):
        half = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * SIZES["base"] ** (-np.arange(half) / half)
        a, b = x[:, :half], x[:, half:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1
        )

    def layer(name, number):
        return weights[f"decoder.layers.{name}"][number]

    embedding = weights["embedding.word_embeddings.weight"]
    x = embedding[ids]
    for number in range(SIZES["layers"]):
        h = norm(x, layer("self_attention.linear_qkv.layer_norm_weight", number))
        mixed = (h @ layer("self_attention.linear_qkv.weight", number).T).reshape(
            len(ids), SIZES["heads"], 3, -1
        )
        heads = []
        for head in range(SIZES["heads"]):
            q, k, v = rotate(mixed[:, head, 0]), rotate(mixed[:, head, 1]), mixed[:, head, 2]
            z = q @ k.T / np.sqrt(q.shape[1])
            z[np.triu_indices(len(ids), 1)] = -np.inf
            p = np.exp(z - z.max(1, keepdims=True))
            heads.append(p / p.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(heads, 1) @ layer("self_attention.linear_proj.weight", number).T
        h = norm(x, layer("mlp.linear_fc1.layer_norm_weight", number))
        gate, up = np.split(h @ layer("mlp.linear_fc1.weight", number).T, 2, axis=1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer("mlp.linear_fc2.weight", number).T
    return norm(x, weights["decoder.final_layernorm.weight"]) @ embedding.T


def test_scores_are_the_models(trained, prepared):
    from palimpsest.pretrain import checkpoint

    prepared.ok("score", "name=score", "shard=0/2")
    place = trained / "perturbed" / "checkpoints" / "step_00000020"
    weights = {name: tensor.double().numpy() for name, tensor in checkpoint.tensors(place).items()}
    vocabulary = artifact.read(prepared.corpus("score"), kind="corpus", schema_version=SCHEMA_VERSION).facts
    probes = pl.read_parquet(trained / "plan" / "probes.parquet")
    steps = sorted(path.name for path in (trained / "scores" / "perturbed").glob("step_*"))
    made = sorted(path.name for path in (trained / "perturbed" / "checkpoints").glob("step_*"))
    assert steps == made[::2]  # the other half is the other task's
    prepared.ok("score", "name=score")
    assert sorted(path.name for path in (trained / "scores" / "perturbed").glob("step_*")) == made
    found = pl.read_parquet(trained / "scores" / "perturbed" / "step_00000020" / "scores.parquet")
    assert found["probe_id"].to_list() == probes["probe_id"].to_list()
    for row in range(0, len(probes), 7):
        tokens = probes["tokens"][row].to_numpy()
        logits = forward(weights, np.append(vocabulary["eod"], tokens[:-1]))[:, : vocabulary["vocab_size"]]
        logprob = log_softmax(logits, -1)
        line = np.arange(len(tokens))
        np.testing.assert_allclose(found["logprob"][row].to_numpy(), logprob[line, tokens], atol=1e-4)
        entropy = -(np.exp(logprob) * logprob).sum(-1)
        np.testing.assert_allclose(found["entropy"][row].to_numpy(), entropy, rtol=3e-4, atol=1e-4)


def test_prompts_that_follow_nothing(trained, prepared):
    """As lm_eval reads clozes where the tokenizer begins no text; the report is made of their targets alone."""
    done = prepared.ok("score", "name=score", "score.bos=auto")
    assert "texts begin with '<|endoftext|>' (id 0); prompts do not" in done.out
    probes = pl.read_parquet(trained / "plan" / "probes.parquet")
    place = trained / "scores" / "perturbed" / "step_00000020" / "scores.parquet"
    found = probes.join(pl.read_parquet(place), on="probe_id").with_columns(
        first=pl.col("logprob").list.first(), rest=pl.col("logprob").list.slice(1).list.sum()
    )
    prompted = found.filter(pl.col("target_start") > 0)
    assert len(prompted)
    assert prompted["first"].is_nan().all()
    assert prompted["rest"].is_finite().all()
    assert found.filter(pl.col("target_start") == 0)["first"].is_finite().all()
    assert "all scores were there" in prepared.ok("score", "name=score", "score.bos=never").out
