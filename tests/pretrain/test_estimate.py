"""What a run costs: worked figures, and schedules at the points that define them."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from palimpsest.data.errors import UserError
from palimpsest.pretrain import estimate
from palimpsest.pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from tests.conftest import REPO
from tests.pretrain.test_presets import preset

TRAIN = TrainConfig(
    steps=100, global_batch_size=8, micro_batch_size=2, sequence_length=64, seed=1, checkpoint_every=100
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=10)


def test_flops_of_a_model_small_enough_to_count():
    """One layer, D = 8, F = 16, V = 100, T = 32: every matrix costs 2 forward and 4 backward a weight."""
    model = ModelConfig(name="m", layers=1, hidden=8, heads=2, ffn=16, norm="layer_plain")
    matrices = 4 * 8 * 8 + 3 * 8 * 16 + 100 * 8
    attention = 2 * (2 * 8 * 32) * 3  # scores and values, forward and twice backward, T keys each
    assert estimate.flops_per_token(model, 100, 32) == 6 * matrices + attention
    untied = replace(model, tied_embeddings=False)
    assert estimate.flops_per_token(untied, 100, 32) == 6 * matrices + attention


def test_flops_of_hubble():
    """6 N alone is 6.5e20 for 100B tokens of its 1.08 billion multiplied weights; attention adds 12 %."""
    found = estimate.flops_per_token(preset("hubble_1b"), 50_304, 2048) * 100e9
    assert found == pytest.approx((6 * (1_179_191_296 - 50_304 * 2048) + 12 * 16 * 2048 * 2048) * 100e9)
    assert 7e20 < found < 7.6e20


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_by_the_names_of_cuda(device, peak):
    assert estimate.peak_flops(device) == peak


def test_memory_of_weights():
    """Adam in mixed precision holds 18 bytes a parameter with fp32 gradients; fp32 holds 16."""
    assert estimate.weight_bytes(10, TRAIN) == 160
    assert estimate.weight_bytes(10, replace(TRAIN, precision="bf16")) == 180


def test_summary():
    lines = list(estimate.summary(preset("hubble_1b"), 50_304, replace(TRAIN, steps=1000), ParallelConfig()))
    told = "\n".join(lines)
    assert "1,179,191,296" in told
    assert f"tokens: {1000 * 8 * 64:,}" in told
    assert "checkpoints: 21 a run" in told  # 0, ten powers of two, ten hundreds
    with pytest.raises(UserError, match="did you mean 'H100'"):
        list(estimate.summary(preset("nano"), 4096, TRAIN, ParallelConfig(), device="H10"))


def test_memory_of_shared_windows():
    """Each of four ranks: the float32 weights and gradients whole, a quarter of Adam's state and of the activations."""
    weights, train = 1_179_191_296, replace(TRAIN, sequence_length=2048)
    model, parallel = preset("hubble_1b"), ParallelConfig(context=4)
    (told,) = (line for line in estimate.summary(model, 50_304, train, parallel) if line.startswith("memory"))
    expected = 8 * weights + (8 * weights + estimate.activation_bytes(model, 50_304, train)) / 4
    assert f"about {expected / 2**30:.1f} GiB" in told


def test_memory_of_layers_computed_again():
    """Worked: 3 layers, D = 8, F = 16, fp32; one layer holds 6 D + 2 D + 3 F a token, each of the others D."""
    model = ModelConfig(name="m", layers=3, hidden=8, heads=2, ffn=16)
    train = replace(TRAIN, micro_batch_size=1, sequence_length=10, recompute=True)
    layer, logits = 6 * 8 + 2 * 8 + 3 * 16, 2 * 100
    assert estimate.activation_bytes(model, 100, train) == 10 * 4 * (layer + 2 * 8 + logits)


def rates(optimizer):
    """The learning rate of each of 100 steps, as the trainer steps the schedule."""
    from palimpsest.pretrain.optim import schedule

    adam = SimpleNamespace(param_groups=[{"lr": 0.0, "weight_decay": 0.0}])
    scheduler = schedule(adam, optimizer, TRAIN)
    found = []
    for _ in range(TRAIN.steps):
        scheduler.step(increment=TRAIN.global_batch_size)
        found.append(adam.param_groups[0]["lr"])
    return found


def test_cosine():
    found = rates(OPTIMIZER)
    assert found[9] == pytest.approx(1e-3)
    assert found[54] == pytest.approx((1e-3 + 1e-4) / 2)  # half-way down
    assert found[99] == pytest.approx(1e-4)


def test_linear():
    found = rates(replace(OPTIMIZER, schedule="linear"))
    falls = {round(one - other, 12) for one, other in pairwise(found[9:])}
    assert falls == {round(9e-4 / 90, 12)}
    assert found[99] == pytest.approx(1e-4)


def test_wsd_stays_and_then_falls_by_the_root():
    found = rates(replace(OPTIMIZER, schedule="wsd", decay_steps=20))
    assert found[9:80] == [pytest.approx(1e-3)] * 71
    assert found[84] == pytest.approx(1e-4 + 9e-4 * (1 - math.sqrt(5 / 20)))
    assert found[99] == pytest.approx(1e-4)


def test_constant():
    assert rates(replace(OPTIMIZER, schedule="constant", min_learning_rate=1e-3))[9:] == [1e-3] * 91


def test_rewarming_starts_above_zero():
    found = rates(replace(OPTIMIZER, initial_learning_rate=5e-4))
    assert found[0] == pytest.approx(5.5e-4)
    assert found[9] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schedule": "wsd"}, "optimizer.decay_steps=None"),
        ({"decay_steps": 5}, "optimizer.decay_steps=5"),
        ({"schedule": "constant"}, "optimizer.min_learning_rate=0.0001 is never reached"),
        ({"initial_learning_rate": 2e-3}, "optimizer.initial_learning_rate=0.002"),
    ],
)
def test_impossible_schedules(change, told):
    with pytest.raises(UserError, match=told):
        replace(OPTIMIZER, **change)


def test_a_decay_longer_than_the_run():
    with pytest.raises(UserError, match=r"do not fit into train\.steps=100"):
        replace(OPTIMIZER, schedule="wsd", decay_steps=91).check(TRAIN, preset("nano"), ParallelConfig())


def test_dry_run_needs_neither_corpus_nor_engine(tmp_path):
    script = (
        "import sys\n"
        "sys.argv = ['train', '+experiment=quickstart', 'model=hubble_8b', 'train.precision=bf16', 'dry_run=true']\n"
        "from palimpsest.launch.train import main\n"
        "try:\n    main()\n"
        "except SystemExit as done:\n"
        "    loaded = {name.split('.')[0] for name in sys.modules} & {'megatron', 'torch', 'transformer_engine'}\n"
        "    sys.exit(done.code or ', '.join(loaded) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line in (
        '"layers": 36',
        "parameters: 7,885,590,528 with 4,096 rows",
        "tokens: 921,600,",
        "doses [0, 1, 4, 16, 64]",
    ):
        assert line in done.stderr
    assert list(tmp_path.iterdir()) == []
