"""Topologies rehearsed without a GPU: their memory and messages against closed forms, an allocator and a prototype."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from multiprocessing.context import SpawnProcess

import pytest
import torch

from palimpsest.data.errors import UserError
from palimpsest.pretrain import preflight, rehearsal
from palimpsest.pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from palimpsest.pretrain.meter import BLOCK
from palimpsest.pretrain.settings import Settings
from tests.conftest import REPO
from tests.pretrain.test_presets import preset

GIB = 2**30
VOCABULARY = 1024
MODEL = ModelConfig(name="m", layers=4, hidden=64, heads=4, ffn=128, tied_embeddings=False)
MIXTURE = replace(MODEL, experts=4, ffn=64)
TRAIN = TrainConfig(
    steps=100,
    global_batch_size=32,
    micro_batch_size=2,
    sequence_length=128,
    seed=1,
    precision="bf16",
    checkpoint_every=100,
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=10)
TOKENS = TRAIN.micro_batch_size * TRAIN.sequence_length
STREAM = TOKENS * MODEL.hidden * 2
"""Bytes of a micro-batch's residual stream."""


def settings(model=MODEL, **changes):
    train = {key: changes.pop(key) for key in list(changes) if key in TrainConfig.__dataclass_fields__}
    return Settings(
        model=model,
        optimizer=OPTIMIZER,
        train=replace(TRAIN, **train),
        parallel=ParallelConfig(**changes),
    )


@cache
def rehearsed(given, ranks):
    """The stages, after checks that hold for every topology."""
    found = preflight.stages(given, VOCABULARY, ranks)
    assert [one.stage for one in found] == list(range(given.parallel.pipeline))
    for one in found:
        blocks = 100 * BLOCK  # small tensors take a block each
        assert one.peak["weights"] == pytest.approx(2 * one.parameters, abs=blocks)
        assert one.peak["gradients"] == pytest.approx(4 * one.parameters, rel=0.01)
        assert one.peak["activations"] > 0
        assert one.total == sum(one.peak.values())
    return found


def sent(stage, axis):
    return {collective: size for (group, collective), size in stage.sent.items() if group == axis}


def share(stage):
    """Bytes of Adam's state and the float32 copy a weight of this rank, at a moment of the forward or backward pass."""
    assert stage.when == "forward and backward pass"
    return stage.peak["optimizer"] / stage.parameters


def test_dense():
    (alone,) = rehearsed(settings(), 1)
    assert alone.parameters == MODEL.parameters(VOCABULARY, TRAIN.sequence_length)
    assert share(alone) == pytest.approx(12, rel=0.02)
    assert not alone.sent


def test_tensor_parallel():
    (alone,), (two,) = rehearsed(settings(), 1), rehearsed(settings(tensor=2), 2)
    replicated = (2 * MODEL.layers + 1) * MODEL.hidden  # the norms
    assert 2 * two.parameters == alone.parameters + replicated
    assert two.peak["activations"] < alone.peak["activations"]
    # Forwards and backwards two all-reduces a layer, one for the embedding, one for the output layer, three float32
    # for each token's loss. With two ranks each sends as much as the tensor has.
    messages = 16 * (STREAM * (4 * MODEL.layers + 2) + 3 * 4 * TOKENS)
    assert sent(two, "tensor")["all-reduce"] == pytest.approx(messages, rel=1e-3)


def test_sequence_parallel_divides_what_tensor_parallel_replicates():
    (plain,), (divided,) = rehearsed(settings(tensor=2), 2), rehearsed(settings(tensor=2, sequence=True), 2)
    assert divided.peak["activations"] < 0.9 * plain.peak["activations"]
    assert {"all-gather", "reduce-scatter"} <= sent(divided, "tensor").keys()


def test_pipeline():
    first, last = rehearsed(settings(pipeline=2), 2)
    assert first.parameters + last.parameters == MODEL.parameters(VOCABULARY, TRAIN.sequence_length)
    assert (
        first.peak["activations"] > 1.5 * last.peak["activations"]
    )  # two micro-batches in flight instead of one
    assert first.peak["loss"] == 0 < last.peak["loss"]
    assert sent(first, "pipeline") == sent(last, "pipeline") == {"send": 16 * STREAM}


def test_interleaved_pipeline():
    plain, interleaved = (
        rehearsed(settings(pipeline=2), 2),
        rehearsed(settings(pipeline=2, virtual_pipeline=2), 2),
    )
    assert [one.parameters for one in plain] == [one.parameters for one in interleaved]
    assert (
        sent(interleaved[0], "pipeline")["send"] == 3 * 16 * STREAM
    )  # of four ends of pieces one is the loss
    assert interleaved[0].peak["activations"] > plain[0].peak["activations"]


def test_context_parallel():
    (alone,), (two,) = rehearsed(settings(), 1), rehearsed(settings(context=2), 2)
    assert two.parameters == alone.parameters
    assert two.peak["activations"] < 0.9 * alone.peak["activations"]
    keys = STREAM  # of the whole window, keys and values each; their gradients are as many
    assert sum(sent(two, "context").values()) == pytest.approx(16 * MODEL.layers * 4 * keys / 2, rel=1e-3)
    assert share(two) == pytest.approx(6, rel=0.02)  # context-parallel ranks share the optimizer's state, too


def test_mixture_of_experts():
    (alone,) = rehearsed(settings(MIXTURE), 1)
    assert alone.parameters == MIXTURE.parameters(VOCABULARY, TRAIN.sequence_length)


def test_expert_parallel():
    (alone,), (two,) = rehearsed(settings(MIXTURE), 1), rehearsed(settings(MIXTURE, expert=2), 2)
    experts = MIXTURE.layers * 4 * 3 * MIXTURE.hidden * MIXTURE.ffn
    assert two.parameters == alone.parameters - experts // 2
    # Half of each token's two choices go to the other rank and come back, forwards and backwards: 8 micro-batches a
    # rank. With them go float32 or bf16 probabilities.
    tokens = 8 * MIXTURE.layers * 4 * 2 * STREAM / 2
    assert tokens < sent(two, "expert")["all-to-all"] < 1.1 * tokens


def test_experts_with_tensor_and_sequence_parallel():
    (found,) = rehearsed(settings(MIXTURE, tensor=2, sequence=True, expert=2), 4)
    assert sent(found, "expert")["all-to-all"] > 0


def test_recomputation():
    (kept,), (again,) = rehearsed(settings(), 1), rehearsed(settings(recompute=True), 1)
    assert again.peak["activations"] < 0.6 * kept.peak["activations"]
    assert again.peak["weights"] == kept.peak["weights"]


@pytest.mark.parametrize("overlap", [False, True])
def test_distributed_optimizer(overlap):
    (whole,) = rehearsed(settings(distributed_optimizer=False), 2)
    (shared,) = rehearsed(settings(overlap=overlap), 2)
    assert share(whole) == pytest.approx(12, rel=0.02)
    assert share(shared) == pytest.approx(6, rel=0.02)
    assert sent(whole, "data and context")["all-reduce"] == pytest.approx(4 * whole.parameters, rel=0.02)
    told = sent(shared, "data and context")
    assert told["reduce-scatter"] == pytest.approx(4 * shared.parameters / 2, rel=0.02)
    assert told["all-gather"] == pytest.approx(2 * shared.parameters / 2, rel=0.02)


GPT2 = {
    "norm": "layer",
    "activation": "gelu_tanh",
    "biases": True,
    "positions": "learned",
    "tied_embeddings": True,
}
NEOX = {
    "norm": "layer",
    "activation": "gelu",
    "biases": True,
    "parallel_residual": True,
    "rotary_fraction": 0.25,
}
OLMO = {"norm": "layer_plain", "qk_norm": False, "kv_heads": 2}


@pytest.mark.parametrize(
    "shape", [GPT2, NEOX, OLMO, {"qk_norm": True}], ids=["gpt2", "neox", "olmo", "qk_norm"]
)
def test_shapes(shape):
    model = replace(MODEL, **shape)
    (found,) = rehearsed(settings(model), 1)
    assert found.parameters == model.parameters(VOCABULARY, TRAIN.sequence_length)


def test_muon_with_attention_by_documents():
    given = settings(document_attention=True)
    (found,) = rehearsed(replace(given, optimizer=replace(OPTIMIZER, kind="muon")), 2)
    assert share(found) < 12  # Muon has one moment, Adam two; ranks share neither


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_attention_within_documents_keeps_masks_in_fp32_alone(precision):
    """There in every layer for each pair of tokens of a window; in bf16 the flash kernel needs none."""
    (plain,), (masked,) = (
        preflight.stages(settings(precision=precision, document_attention=inside), VOCABULARY, 1)
        for inside in (False, True)
    )
    pairs = MODEL.layers * 4 * TRAIN.micro_batch_size * TRAIN.sequence_length**2
    kept = masked.peak["activations"] - plain.peak["activations"]
    assert kept == pytest.approx(pairs, rel=0.3) if precision == "fp32" else kept <= 0


def test_a_step_of_few_micro_batches_is_as_full_as_the_whole(monkeypatch):
    given = settings(pipeline=2, virtual_pipeline=2)
    few = rehearsed(given, 2)
    monkeypatch.setattr(rehearsal, "few_micro_batches", lambda _settings, _data: 16)
    whole = preflight.stages(given, VOCABULARY, 2)
    for some, all_of_them in zip(few, whole, strict=True):
        # ``itertools.tee`` lets go of batches by blocks of 57, which in a model so small is to be seen.
        assert some.total == pytest.approx(all_of_them.total, rel=0.03)
        assert some.sent == pytest.approx(all_of_them.sent, rel=0.01)


def test_topologies_that_do_not_divide():
    with pytest.raises(UserError, match=r"parallel\.tensor=8 must divide model\.heads=4"):
        preflight.stages(settings(tensor=8), VOCABULARY, 8)
    with pytest.raises(UserError, match="does not divide the world size 3"):
        list(preflight.summary(settings(tensor=2), VOCABULARY, 3, 80))
    with pytest.raises(UserError, match="preflight=0 must be above 0"):
        list(preflight.summary(settings(), VOCABULARY, 0, 80))
    with pytest.raises(UserError, match=r"train\.precision=fp8"):
        list(preflight.summary(settings(precision="fp8"), VOCABULARY, 1, 80))


def test_a_mismatch_of_shapes_is_told_in_a_line(monkeypatch):
    right = rehearsal._batches

    def wrong(given):
        for batch in right(given):
            yield replace(batch, labels=batch.labels[:, 1:])

    monkeypatch.setattr(rehearsal, "_batches", wrong)
    with pytest.raises(
        preflight.Refused, match=r"preflight: stage 0 fails as it would on the cluster: .*\.py:\d+"
    ) as told:
        preflight.stages(settings(), VOCABULARY, 1)
    assert "\n" not in str(told.value)


def test_beside_a_gpu_nothing_is_forked_and_the_gpu_is_hidden(monkeypatch):
    """CUDA, which megatron-core's import starts, does not outlive a fork."""
    expected = preflight.stages(settings(), VOCABULARY, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    started, launch = [], SpawnProcess._Popen

    def noted(process):
        started.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return launch(process)

    monkeypatch.setattr(SpawnProcess, "_Popen", staticmethod(noted))
    found = preflight.stages(settings(), VOCABULARY, 1)
    assert [replace(one, seconds=0) for one in found] == [replace(one, seconds=0) for one in expected]
    assert started == [""]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_the_nearest_setting_that_fits():
    """Nearly all is activations, of which half would fit."""
    given = settings(micro_batch_size=32, global_batch_size=64, sequence_length=4096)
    (whole,) = preflight.stages(given, 128, 1)
    limit = preflight.needed(whole) - 0.2 * whole.total / GIB
    with pytest.raises(UserError) as told:
        list(preflight.summary(given, 128, 1, limit))
    assert re.search(r"stage 0 needs .* most of it activations, and a GPU has gpu_gib=", str(told.value))
    assert "what fits: train.micro_batch_size=16 (" in str(told.value)
    with pytest.raises(UserError, match="raise preflight=RANKS"):
        list(preflight.summary(given, 128, 1, preflight.RUNTIME_GIB + 0.001))


def test_the_program(prepared):
    told = ("train.precision=bf16", "parallel.tensor=2", "parallel.pipeline=2", "preflight=4")
    lines = prepared.ok("train", *told).lines
    assert "on 4 GPUs of 80 GiB (gpu_gib): tensor 2, pipeline 2, data 1" in lines[0]
    assert re.match(r"vocabulary: 3\d\d \(of the prepared corpus\), padded to 512;", lines[1])
    assert [line.split()[0] for line in lines if line.split()[0].isdigit()] == ["0", "1"]
    assert any(line.startswith("stage 0 sends") and "pipeline send" in line for line in lines)
    assert lines[-1].startswith("fits: the fullest stage")
    done = prepared.run("train", *told, "gpu_gib=2.5001")
    assert done.status == 2
    assert done.lines[-1].startswith("palimpsest: stage")
    assert "Traceback" not in done.out
    for wrong in ("preflight=6", "preflight=many"):
        done = prepared.run("train", *told, wrong)
        assert (done.status, len(done.lines)) == (2, 1)


ALLOCATED = """
import json, sys
from palimpsest.pretrain import kernels, parallel, rehearsal
from palimpsest.pretrain.config import RuntimeConfig
from palimpsest.pretrain.meter import Meter
from tests.pretrain.test_preflight import NANO
from torch.profiler import profile
kernels.LOGITS["cpu"], kernels.PRODUCTS["cpu"] = kernels.LOGITS["cuda"], kernels.PRODUCTS["cuda"]
start = parallel.start(NANO.parallel, RuntimeConfig(device="cpu"))
with start as world, profile(profile_memory=True) as seen:
    trainer = rehearsal._trainer(NANO, world, 4096, Meter())
    for chunk in trainer.chunks:
        chunk.zero_grad_buffer()
    trainer.optimizer.zero_grad()
    trainer._forward_backward(1, forward_only=False)
    rehearsal._update(trainer)
seen.export_chrome_trace(sys.argv[1])
"""
NANO = settings(
    replace(preset("nano"), norm="layer"), micro_batch_size=8, sequence_length=256, precision="fp32"
)
"""LayerNorm, which CPUs compute by one kernel, as GPUs do; RMSNorm they do not."""


def test_memory_is_what_the_allocator_gives_a_real_training(tmp_path):
    """PyTorch's own count of what its allocator holds, over a real step of a nano model on the CPU."""
    trace, path = tmp_path / "trace.json", (os.environ.get("PYTHONPATH"), str(REPO))
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATED, str(trace)],
        # ``make test-engine`` names its engine there.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    events = json.loads(trace.read_text())["traceEvents"]
    allocated = max(one["args"]["Total Allocated"] for one in events if one["name"] == "[memory]")
    (found,) = preflight.stages(NANO, 4096, 1)
    assert found.total == pytest.approx(allocated, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks", "changes", "gib"),
    [
        ("hubble_1b", 1, {"micro_batch_size": 8}, [43.39]),
        ("hubble_8b", 64, {"tensor": 8, "pipeline": 2, "micro_batch_size": 4}, [17.73, 11.41]),
        ("hubble_8b", 64, {"tensor": 8, "pipeline": 4, "sequence": True, "micro_batch_size": 2}, [5.78]),
        (
            *("hubble_8b", 32),
            {"tensor": 4, "context": 4, "sequence": True, "micro_batch_size": 1, "sequence_length": 32_768},
            [26.37],
        ),
    ],
)
def test_figures_of_the_prototype(name, ranks, changes, gib):
    """Peaks that an independent rehearsal of the same engine gave.

    Its vocabulary was Hubble's, 50,280 tokens, padded to 50,304.
    """
    given = settings(preset(name), **{"global_batch_size": 1024, "sequence_length": 2048} | changes)
    found = preflight.stages(given, 50_280, ranks, range(len(gib)))
    assert [one.total / GIB for one in found] == pytest.approx(gib, rel=0.05)
