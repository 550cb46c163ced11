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
from palimpsest.pretrain import estimate, memory
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


def test_summary():
    lines = list(estimate.summary(preset("hubble_1b"), 50_304, replace(TRAIN, steps=1000), ParallelConfig()))
    told = "\n".join(lines)
    assert "1,179,191,296" in told
    assert f"tokens: {1000 * 8 * 64:,}" in told
    assert "stage 1 of 1: about " in told
    assert "checkpoints: 21 a training" in told  # 0, ten powers of two, ten hundreds
    with pytest.raises(UserError, match="did you mean 'H100'"):
        list(estimate.summary(preset("nano"), 4096, TRAIN, ParallelConfig(), device="H10"))


BF16 = replace(TRAIN, global_batch_size=64, sequence_length=2048, precision="bf16")


@pytest.mark.parametrize(
    ("name", "train", "parallel", "world", "expected"),
    [
        ("hubble_1b", {"micro_batch_size": 8}, {}, 1, {0: 43.39}),
        ("hubble_8b", {"micro_batch_size": 4}, {"tensor": 8, "pipeline": 2}, 64, {0: 17.73, 1: 11.41}),
        ("hubble_8b", {}, {"tensor": 8, "pipeline": 4, "sequence": True}, 64, {0: 5.78}),
        (
            "hubble_8b",
            {"micro_batch_size": 1, "sequence_length": 32_768},
            {"tensor": 4, "context": 4, "sequence": True},
            32,
            {0: 26.37},
        ),
    ],
)
def test_memory_of_stages_is_that_of_megatron_core(name, train, parallel, world, expected):
    """GiB within 5 % of what megatron-core itself allocates under fake tensors (data parallel 1, 4, 2 and 2)."""
    stages = memory.per_stage(preset(name), 50_304, replace(BF16, **train), ParallelConfig(**parallel), world)
    for stage, size in expected.items():
        assert stages[stage].total / 2**30 == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("name", ["hubble_1b", "gpt2_small", "olmo_1b", "pythia_160m"])
@pytest.mark.parametrize("pipeline", [1, 4])
def test_weights_of_the_stages_are_those_of_the_model(name, pipeline):
    """Tied over several stages, the embedding is there twice."""
    model, parallel = preset(name), ParallelConfig(pipeline=pipeline)
    held = sum(
        sum(memory.stage_parameters(model, 50_304, BF16, parallel, stage)) for stage in range(pipeline)
    )
    twice = 50_304 * model.hidden if model.tied_embeddings and pipeline > 1 else 0
    assert held == model.parameters(50_304, 2048) + twice


def test_tensor_parallelism_divides_matrices_and_replicates_norms():
    """Worked: one layer, D = 8, F = 16, V = 128, two of eight ranks; experts are divided by both sizes."""
    model = ModelConfig(name="m", layers=1, hidden=8, heads=2, ffn=16, experts=4)
    dense, experts = memory.stage_parameters(
        model, 128, BF16, ParallelConfig(tensor=2, sequence=True, expert=2), 0
    )
    assert dense == (4 * 8 * 8) / 2 + 4 * 8 + 3 * 8 + 128 * 8 / 2
    assert experts == 4 * 3 * 8 * 16 / 4


def test_optimizer_state_is_divided_by_data_parallelism():
    """12 bytes a weight in bf16, over 4 ranks; never over data-parallel ranks with Muon."""
    model, four = preset("hubble_1b"), ParallelConfig()
    (shared,) = memory.per_stage(model, 50_304, BF16, four, 4)
    (whole,) = memory.per_stage(model, 50_304, BF16, four, 4, optimizer_sharded=False)
    assert whole.optimizer == 12 * 1_179_191_296 == 4 * shared.optimizer
    assert (whole.weights, whole.gradients) == (2 * 1_179_191_296, 4 * 1_179_191_296)


@pytest.mark.parametrize(
    ("parallel", "batches", "held"),
    [
        ({"pipeline": 4}, 8, [4, 3, 2, 1]),
        ({"pipeline": 4}, 2, [2, 2, 2, 1]),
        # Narayanan et al., 2021: warm-up passes 2 (p - k - 1) + (v - 1) p, each of 1 / v of a stage's layers.
        ({"pipeline": 4, "virtual_pipeline": 2}, 8, [11 / 2, 9 / 2, 7 / 2, 5 / 2]),
    ],
)
def test_micro_batches_in_flight(parallel, batches, held):
    config = ParallelConfig(**parallel)
    assert [memory.in_flight(config, batches, stage) for stage in range(config.pipeline)] == held


def test_recomputation_keeps_inputs_and_one_layer():
    """Worked: 3 layers, D = 8, F = 16, fp32, 10 tokens; 4 D + 3 D + 3 D + 3 F a token of a whole layer, D of others."""
    model = ModelConfig(name="m", layers=3, hidden=8, heads=2, ffn=16)
    train = replace(TRAIN, micro_batch_size=1, sequence_length=10)
    layer, working = 4 * 8 + 6 * 8 + 3 * 16, 2 * 8 + 3 * 16
    (whole,) = memory.per_stage(model, 128, train, ParallelConfig(), 1)
    (again,) = memory.per_stage(model, 128, replace(train, recompute=True), ParallelConfig(), 1)
    assert whole.activations == 10 * 4 * (3 * layer + working)
    assert again.activations == 10 * 4 * (3 * 8 + layer + working)


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


def test_dry_run_counts_with_the_vocabulary_of_the_model_s_tokenizer(tmp_path):
    """No corpus is prepared and no tokenizer is to be trained: it was said to have 990M parameters."""
    done = subprocess.run(
        [sys.executable, str(REPO / "launch" / "train.py"), "+experiment=hubble_1b", "dry_run=true"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "vocabulary: 50,280 (of model=hubble_1b), padded to 50,304" in done.stderr
    assert "parameters: 1,179,191,296 with" in done.stderr


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


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (48, "2.00 days"),
        (25, "1.04 days"),
        (5, "5 hours"),
        (0.5, "30 minutes"),
        (0.001, "under a minute each"),
    ],
)
def test_a_duration_has_a_unit_that_fits(hours, text):
    cost = estimate.Cost(gpus=1, training_hours=2 * hours, scoring_hours=0, scoring_jobs=1, stored=0)
    assert text in estimate.total([cost])
