"""Presets have the published number of weights, by formula, in ``transformers`` and in megatron-core."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.data.errors import UserError
from palimpsest.launch.compose import CONF, build
from palimpsest.pretrain.config import ModelConfig

PUBLISHED = {
    # Biderman et al. (2023), table 1; embeddings and output layer included.
    "pythia_160m": (50_304, 2048, 162_322_944),
    "neox_405m": (50_304, 2048, 405_334_016),  # the same table, Pythia-410M
    # OpenAI's release, the checkpoint's tensors.
    "gpt2_small": (50_257, 1024, 124_439_808),
    # Faysse et al. (2024): "1.3B"; the released checkpoint's tensors.
    "croissant_1b": (32_000, 2048, 1_345_423_360),
    # Groeneveld et al. (2024): "1.18B" and "6.9B"; the released checkpoints' tensors.
    "olmo_1b": (50_304, 2048, 1_176_764_416),
    "olmo_7b": (50_304, 2048, 6_888_095_744),
    # Team OLMo (2025); the released checkpoint's tensors.
    "olmo2_1b": (100_352, 4096, 1_484_916_736),
    # Hubble's training configurations (16 x 2048 and 36 x 4096, 8 key/value heads, untied), counted by hand:
    # layers * (2 D D + 2 D K H + 3 D F + 2 D) + 2 V D + D.
    "hubble_1b": (
        50_304,
        2048,
        16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 4096) + 50_304 * 4096 + 2048,
    ),
    "hubble_8b": (
        50_304,
        2048,
        36 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 8192) + 50_304 * 8192 + 4096,
    ),
    "nano": (4096, 256, 1_377_408),
    "tiny": (4096, 256, 4_834_144),
}


def preset(name) -> ModelConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", ["+experiment=quickstart", f"model={name}"])).model


def test_all_are_listed():
    assert set(PUBLISHED) <= {path.stem for path in (CONF / "model").glob("*.yaml")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_count(name):
    vocabulary, length, published = PUBLISHED[name]
    assert preset(name).parameters(vocabulary, length) == published


@pytest.mark.parametrize("name", PUBLISHED)
def test_count_in_transformers(name):
    """The class that an export of it has holds as many, on the meta device."""
    pytest.importorskip("transformers")
    from palimpsest.pretrain.huggingface import shapes

    vocabulary, length, published = PUBLISHED[name]
    model = preset(name)
    settings = shapes.settings(model, vocabulary, sequence_length=length, eod=0, dtype=torch.float32)
    with torch.device("meta"):
        gpt = shapes.architecture(model).classes[1](settings)
    assert sum(p.numel() for p in gpt.parameters()) == published  # shared ones once


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rotary_fraction": 0.3}, "model.rotary_fraction=0.3"),
        ({"experts": 2, "experts_per_token": 3}, "model.experts_per_token=3 must be at most model.experts=2"),
        ({"experts": 2, "biases": True}, "model.experts cannot be combined"),
        (
            {"experts": 2, "experts_per_token": 1},
            "model.experts_per_token=1 needs model.normalise_experts=false",
        ),
    ],
)
def test_impossible_shapes(change, told):
    with pytest.raises(UserError, match=told):
        ModelConfig(name="m", layers=2, hidden=64, heads=4, ffn=64, **change)


def test_a_mixture_holds_more_than_it_uses():
    """Worked: two matrices of gelu, 4 experts of which 1 is used, and a router of 4 x 8."""
    model = ModelConfig(
        name="m",
        layers=1,
        hidden=8,
        heads=2,
        ffn=16,
        activation="gelu",
        experts=4,
        experts_per_token=1,
        normalise_experts=False,
    )
    rest = 4 * 8 * 8 + 2 * 8 + 8 + 4 * 8 + 100 * 8
    assert model.parameters(100, 32) == rest + 4 * 2 * 8 * 16
    assert model.parameters(100, 32, active=True) == rest + 2 * 8 * 16


SMALL = {"layers": 2, "hidden": 64, "heads": 4, "ffn": 96}
SHAPES = {
    "Llama": {"kv_heads": 2, "tied_embeddings": False},
    "Qwen3": {"qk_norm": True},
    "Olmo": {"norm": "layer_plain"},
    "GPTNeoX": {
        "norm": "layer",
        "activation": "gelu",
        "biases": True,
        "parallel_residual": True,
        "rotary_fraction": 0.25,
        "tied_embeddings": False,
    },
    "GPT2": {"norm": "layer", "activation": "gelu_tanh", "biases": True, "positions": "learned"},
    "mixture": {"experts": 4, "balance_loss": 0.3},
    "Qwen3Moe": {"qk_norm": True, "experts": 4, "experts_per_token": 1, "normalise_experts": False},
}

EVERY_SHAPE = """
import json, sys
from dataclasses import asdict, replace
from pathlib import Path
import torch
from palimpsest.pretrain import checkpoint, model, parallel
from palimpsest.pretrain.config import ModelConfig, ParallelConfig, RuntimeConfig, TrainConfig
from palimpsest.pretrain.huggingface import export

def gradient(gpt, router, ids):
    router.weight.grad = None
    gpt(ids, torch.arange(32).expand_as(ids), None, labels=ids).sum().backward()
    return router.weight.grad.clone()

def balance(gpt, config, ids):
    # The balancing loss's gradient in the last layer's router: what it is, and what equation 4 says.
    router, seen = gpt.train().decoder.layers[-1].mlp.router, []
    router.register_forward_hook(lambda _, given, routed: seen.append((given[0].detach(), routed[1])))
    with_loss = gradient(gpt, router, ids)
    gpt.config.moe_aux_loss_coeff = 0.0
    (x_TBH, routed), own = seen[0], with_loss - gradient(gpt, router, ids)
    tokens, windows, _ = x_TBH.shape
    weight = router.weight.detach().requires_grad_()
    probabilities_BE = (x_TBH @ weight.T).softmax(-1).mean(0)
    shares_BE = routed.view(tokens, windows, -1).float().mean(0) / config.experts_per_token
    # Summed over tokens, as the other loss is here.
    loss = tokens * config.balance_loss * config.experts * (shares_BE * probabilities_BE).sum()
    (told,) = torch.autograd.grad(loss, weight)
    return float((own - told).abs().max()), float(told.abs().max())

def passes(config, train, ids):
    # How often layers are computed in one step.
    gpt, counted = model.build(config, 200, ParallelConfig(), train), []
    for layer in gpt.decoder.layers:
        layer.register_forward_hook(lambda *_: counted.append(1))
    gpt(ids, torch.arange(32).expand_as(ids), None, labels=ids).sum().backward()
    return len(counted)

def main():
    place, found = Path(sys.argv[1]), {}
    train = TrainConfig(
        steps=4, global_batch_size=2, micro_batch_size=2, sequence_length=32, seed=1, checkpoint_every=4
    )
    with parallel.start(ParallelConfig(), RuntimeConfig(device="cpu")) as world:
        for name, shape in json.loads(sys.argv[2]).items():
            config = ModelConfig(name=name, **shape)
            gpt = model.build(config, 200, ParallelConfig(), train).eval()
            torch.manual_seed(2)
            for parameter in gpt.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            size = 256
            counts = [sum(p.numel() for p in gpt.parameters()), config.parameters(size, train.sequence_length)]
            ids = torch.randint(0, 200, (2, 32))
            with torch.no_grad():
                ours = gpt(ids, torch.arange(32).expand_as(ids), None)[..., :200]
                difference = None
                if name != "mixture":
                    settings = asdict(config)
                    del settings["name"]
                    checkpoint.save(
                        place / name, 0, {"model": gpt.sharded_state_dict()}, world,
                        config={"model": settings, "vocab_size": 200, "train": asdict(train)},
                        inputs={}, facts={},
                    )
                    theirs = export.load(place / name, 0, eod=0)
                    difference = float((theirs(ids).logits - ours).abs().max())
            if name == "Llama":
                found["passes"] = [passes(config, replace(train, recompute=again), ids) for again in (False, True)]
            if name == "mixture":
                found["balance"] = balance(gpt, config, ids)
            kind = None if difference is None else type(theirs).__name__
            found[name] = [counts, difference, float(ours.std()), kind]
    Path(place, "found.json").write_text(json.dumps(found))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def every_shape(tmp_path_factory):
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("shapes")
    (place / "every.py").write_text(EVERY_SHAPE)
    shapes = {name: {**SMALL, **shape} for name, shape in SHAPES.items()}
    subprocess.run(
        [sys.executable, str(place / "every.py"), str(place), json.dumps(shapes)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads((place / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_megatron_holds_what_the_formula_says(every_shape, name):
    held, counted = every_shape[name][0]
    assert held == counted


@pytest.mark.slow
def test_recomputing_passes_every_layer_twice(every_shape):
    assert every_shape["passes"] == [SMALL["layers"], 2 * SMALL["layers"]]


@pytest.mark.slow
def test_experts_are_balanced_as_the_paper_says(every_shape):
    """In micro-batches of two windows; megatron-core by itself would give half of it."""
    difference, size = every_shape["balance"]
    assert size > 0.01
    assert difference < 1e-3 * size


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "mixture"])
def test_every_architecture_has_the_same_logits_in_transformers(every_shape, name):
    """With weights, gains and biases all random, so that none can be misplaced unseen."""
    _, difference, spread, kind = every_shape[name]
    assert kind == f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    assert spread > 0.3
    assert difference < 1e-4
