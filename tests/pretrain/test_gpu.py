"""Which layers a GPU gets; and what needs one."""

import importlib.util
import os
from dataclasses import replace

import pytest
import torch

from palimpsest.data.errors import UserError
from palimpsest.pretrain import parallel
from palimpsest.pretrain.config import ModelConfig, RuntimeConfig, TrainConfig
from tests import warm

MODEL = ModelConfig(name="m", layers=2, hidden=32, heads=4, ffn=64)
TRAIN = {"steps": 20, "global_batch_size": 8, "micro_batch_size": 2, "sequence_length": 64, "seed": 1}


def pick(attention, device, precision="bf16", **shape):
    model = ModelConfig(**{"name": "m", "layers": 2, "hidden": 32, "heads": 4, "ffn": 64, **shape})
    train = TrainConfig(**TRAIN, checkpoint_every=7, precision=precision)
    return parallel.pick_attention(RuntimeConfig(attention=attention), model, train, torch.device(device))


@pytest.fixture
def engine(monkeypatch):
    """Function that makes Transformer Engine be there, or not, whatever this machine has."""

    def say(there):
        monkeypatch.setattr(parallel, "find_spec", lambda name: (there and name) or None)

    return say


def test_auto_takes_what_is_there(engine):
    engine(True)
    assert pick("auto", "cuda")[0] == "te"
    assert pick("auto", "cpu")[0] == "sdpa"
    assert pick("sdpa", "cuda")[0] == "sdpa"
    assert pick("auto", "cuda", norm="layer_plain")[0] == "sdpa"
    engine(False)
    choice, because = pick("auto", "cuda")
    assert choice == "sdpa"
    assert "transformer-engine is not installed" in because


def test_what_cannot_be_had_is_refused(engine):
    engine(False)
    with pytest.raises(
        UserError, match=r"runtime\.attention=te .* not installed .* use runtime\.attention=sdpa"
    ):
        pick("te", "cuda")
    with pytest.raises(UserError, match=r"runtime\.attention=te .* there is no GPU"):
        pick("te", "cpu")
    with pytest.raises(
        UserError, match=r"train\.precision=fp8 needs Transformer Engine, but there is no GPU; use"
    ):
        pick("auto", "cpu", precision="fp8")
    engine(True)
    with pytest.raises(
        UserError, match=r"train\.precision=fp8 needs Transformer Engine, but runtime\.attention=sdpa"
    ):
        pick("sdpa", "cuda", precision="fp8")
    assert pick("auto", "cuda", precision="fp8")[0] == "te"


def test_transformer_engine_fuses_what_it_computes_alike(monkeypatch):
    """megatron-core's fused GELU is the approximation by tanh: another function than the preset's."""
    from megatron.core.models.common.embeddings import rope_utils

    from palimpsest.pretrain import model

    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", lambda *_: None)
    train = TrainConfig(**TRAIN, checkpoint_every=7, precision="bf16")
    fusions = {
        name: model.transformer_config(replace(MODEL, **shape), parallel.ParallelConfig(), train, attention)
        for name, attention, shape in (
            ("llama", "te", {}),
            ("gpt2", "te", {"activation": "gelu", "positions": "learned"}),
            ("ours", "sdpa", {}),
        )
    }
    assert {name: (one.bias_activation_fusion, one.apply_rope_fusion) for name, one in fusions.items()} == {
        "llama": (True, True),
        "gpt2": (False, False),
        "ours": (False, False),
    }


def test_transformer_engine_adds_gradients_in_its_products():
    """Its modules read this attribute in each pass."""
    from palimpsest.pretrain import model

    layer = torch.nn.Linear(2, 2)
    layer.fuse_wgrad_accumulation = False
    model._accumulate_in_products(torch.nn.Sequential(layer, torch.nn.Linear(2, 2)))
    assert layer.fuse_wgrad_accumulation


def test_what_runs_on_a_gpu_is_no_fork(prepared, monkeypatch):
    """Megatron-core's import asks for CUDA, after which no fork may use it."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the tests below train on it")

    def fork(*_, **__):
        raise AssertionError("a fork")

    monkeypatch.setattr(warm, "run", fork)
    done = prepared.run("train", "runtime.device=cuda")
    assert done.status == 2
    assert "PyTorch sees no GPU" in done.lines[-1]


def test_forks_see_no_gpu(tmp_path, monkeypatch):
    """Training on a CPU in a fork would ask a GPU that is there, and fail."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch\nprint(os.environ['CUDA_VISIBLE_DEVICES'], torch.cuda.is_available())"
    )
    assert warm.run([str(script)], tmp_path) == (0, " False\n")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def losses(place, name):
    from tests.pretrain.test_training import records

    return [record["loss"] for record in records(place, name)]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none")
needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None,
    reason="needs Transformer Engine; it is not installed",
)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_as_a_cpu_and_the_same_again(prepared, precision):
    """Losses near those of the CPU; with train.deterministic the same weights to the last bit."""
    from palimpsest.pretrain import checkpoint

    found = {}
    for name, device in (("cpu", "cpu"), ("one", "cuda"), ("other", "cuda")):
        overrides = [f"name={precision}{name}", f"train.precision={precision}"]
        prepared.ok("plan", *overrides)
        more = [f"runtime.device={device}", "runtime.attention=sdpa", "train.deterministic=true"]
        prepared.ok("train", *overrides, *more)
        found[name] = losses(prepared, f"{precision}{name}")
    assert max(abs(a - b) for a, b in zip(found["cpu"], found["one"], strict=True)) < (
        1e-3 if precision == "fp32" else 0.05
    )
    one, other = (
        checkpoint.tensors(
            prepared.directory(f"{precision}{name}") / "perturbed" / "checkpoints" / "step_00000020"
        )
        for name in ("one", "other")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.gpu
@needs_gpu
@needs_engine
def test_transformer_engine_trains_as_our_layers(prepared):
    """The same weights at the start, and losses within the rounding of bf16."""
    found = {}
    for attention in ("te", "sdpa"):
        overrides = [f"name=by-{attention}", "train.precision=bf16"]
        prepared.ok("plan", *overrides)
        done = prepared.ok("train", *overrides, f"runtime.attention={attention}", "runtime.device=cuda")
        assert ("Transformer Engine" in done.out) == (attention == "te")
        found[attention] = losses(prepared, f"by-{attention}")
    assert max(abs(a - b) for a, b in zip(found["te"], found["sdpa"], strict=True)) < 0.05


@pytest.mark.gpu
@needs_gpu
@needs_engine
def test_eight_bits_train_nearly_as_sixteen(prepared):
    """Products in 8 bits: the losses of bf16, but for their coarser rounding."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that multiplies in 8 bits (compute capability 8.9)")
    found = {}
    for precision in ("bf16", "fp8"):
        overrides = [f"name=in-{precision}", f"train.precision={precision}"]
        prepared.ok("plan", *overrides)
        prepared.ok("train", *overrides, "runtime.attention=te", "runtime.device=cuda")
        found[precision] = losses(prepared, f"in-{precision}")
    assert max(abs(a - b) for a, b in zip(found["bf16"], found["fp8"], strict=True)) < 0.1
