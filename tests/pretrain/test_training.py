"""What a step does: the schedule, the guard against NaN, bf16."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from tests.conftest import REPO


def records(place, name):
    lines = (place.directory(name) / "perturbed" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_schedule_and_loss(prepared):
    """The first step has a rate above 0, the peak is reached after the warm-up, the last has the lowest."""
    overrides = ["optimizer.learning_rate=3e-3", "optimizer.min_learning_rate=1e-4"]
    prepared.ok("plan", "name=schedule", *overrides)
    prepared.ok("train", "name=schedule", *overrides)
    rates = [record["learning_rate"] for record in records(prepared, "schedule")]
    assert rates[:3] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert rates[-1] == pytest.approx(1e-4)
    assert all(later < earlier for earlier, later in pairwise(rates[2:]))
    losses = [record["loss"] for record in records(prepared, "schedule")]
    assert losses[0] == pytest.approx(np.log(400), abs=0.3)  # about uniform over the vocabulary
    assert losses[-1] < losses[0] - 0.7


def test_a_weight_scales_the_gradient_of_its_token_alone():
    """Of four tokens one counts thrice and one not at all; what is told of the losses knows no weights."""
    import torch

    from palimpsest.pretrain.losses import loss

    losses = torch.tensor([[2.0, 3.0], [5.0, 7.0]], requires_grad=True)
    weights, groups = torch.tensor([[1.0, 3.0], [0.0, 1.0]]), torch.tensor([[0, 1], [1, 0]])
    total, count, told = loss(weights, groups, 2, losses)
    assert total.item() == 2 + 3 * 3 + 7
    assert (count.item(), count.dtype) == (
        3,
        torch.int,
    )  # as ever: the others' share of the mean does not change
    total.backward()
    assert losses.grad.tolist() == weights.tolist()
    assert told["loss"].tolist() == [2 + 3 + 7, 3, 2 + 7, 3, 2, 1]


def test_a_gradient_that_is_not_finite_is_never_applied(prepared):
    """One line, status 2, and no checkpoint with it, so a lower rate can go on from the one before."""
    from palimpsest.pretrain import checkpoint

    overrides = ["optimizer.learning_rate=1e6", "optimizer.clip_grad=0", "train.checkpoint_every=1"]
    prepared.ok("plan", "name=notfinite", *overrides)
    done = prepared.run("train", "name=notfinite", *overrides)
    assert done.status == 2, done.out
    assert "the step was not taken" in done.lines[-1]
    (written,) = json.loads((prepared.directory("notfinite") / "perturbed" / "non_finite.json").read_text())
    assert not written["skipped"]
    first = 8 * written["step"]
    assert written["windows"] == [first, first + 7]
    assert len(records(prepared, "notfinite")) == written["step"]  # it was the next one
    place = prepared.directory("notfinite") / "perturbed" / "checkpoints"
    last = checkpoint.tensors(checkpoint.path_of(place, checkpoint.finished(place)[-1]))
    assert all(tensor.isfinite().all() for tensor in last.values() if tensor.is_floating_point())
    assert all(np.isfinite(record["gradient_norm"]) for record in records(prepared, "notfinite"))


POISONED = """
import sys
from pathlib import Path
import numpy as np
import torch
from palimpsest.pretrain import parallel
from palimpsest.pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig, TrainConfig
from palimpsest.pretrain.non_finite import NonFinite
from palimpsest.pretrain.settings import Settings
from palimpsest.pretrain.telemetry import JsonLines, Live
from palimpsest.pretrain.trainer import Trainer

class Windows:
    identity = "made up"
    def require(self, windows):
        pass
    def window(self, position):
        window = np.random.default_rng(position).integers(1, 100, 33)
        window[7] = 150 if position in (9, 14) else 1
        return window

def main():
    settings = Settings(
        model=ModelConfig(name="m", layers=1, hidden=16, heads=2, ffn=16, tied_embeddings=False),
        optimizer=OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-3, warmup_steps=0, schedule="constant"),
        train=TrainConfig(
            steps=9, global_batch_size=8, micro_batch_size=2, sequence_length=32, seed=1, checkpoint_every=9,
            non_finite=sys.argv[2],
        ),
        parallel=ParallelConfig(),
    )
    with parallel.start(ParallelConfig(), RuntimeConfig(device="cpu")) as world:
        trainer = Trainer(
            settings, world, order=Windows(), plan=None, vocab_size=200, directory=Path(sys.argv[1])
        )
        with torch.no_grad():
            trainer.chunks[0].module.embedding.word_embeddings.weight[150] = float("nan")
        try:
            trainer.run([JsonLines(Path(sys.argv[1]) / "metrics.jsonl", 0), Live("poisoned", 0, 2)])
        except NonFinite as error:
            print(error)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("non_finite", ["stop", "skip"])
def test_the_windows_that_are_to_blame(tmp_path, non_finite):
    """A token whose embedding is NaN stands in windows 9 and 14: the second step stops, and they are written down.

    Where it is skipped, the others are taken, and its record has no loss.
    """
    (tmp_path / "poisoned.py").write_text(POISONED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "poisoned.py"), str(tmp_path), non_finite],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "the loss is nan in step 1 (windows 8 to 15, of which 2 have" in done.stdout + done.stderr
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines if json.loads(line).get("skipped")]
    if non_finite == "skip":
        assert len(lines) == 9
        assert [(one["step"], one["loss"]) for one in skipped] == [(2, None)]
        assert "poisoned: step 2/2  skipped  " in done.stderr
    else:
        assert (len(lines), skipped) == (1, [])
    (written,) = json.loads((tmp_path / "non_finite.json").read_text())
    assert (written["step"], written["what"], written["offending"]) == (1, "loss", [9, 14])
    losses = [float(loss) for loss in written["losses"]]
    assert all(losses[row] == pytest.approx(32 * np.log(200), rel=0.1) for row in (0, 2, 3, 4, 5, 7))


@pytest.mark.slow
def test_bf16(prepared):
    """Trains, resumes bit for bit, goes on with shared float32 weights, and is scored; near the losses of fp32."""
    import shutil

    from palimpsest.pretrain import checkpoint

    prepared.ok("plan", "name=fp32")
    prepared.ok("train", "name=fp32")
    for name in ("bf16", "bf16-again"):
        prepared.ok("plan", f"name={name}", "train.precision=bf16")
        prepared.ok("train", f"name={name}", "train.precision=bf16")
    again = next(p for p in (prepared.path / "runs" / "small").glob("bf16-again-*")) / "perturbed"
    once = next(p for p in (prepared.path / "runs" / "small").glob("bf16-????????")) / "perturbed"
    for step in (14, 16, 20):
        shutil.rmtree(checkpoint.path_of(again / "checkpoints", step))
    prepared.ok("train", "name=bf16-again", "train.precision=bf16")
    one, other = (checkpoint.tensors(checkpoint.path_of(p / "checkpoints", 20)) for p in (once, again))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    losses = [json.loads(line)["loss"] for line in (once / "metrics.jsonl").read_text().splitlines()]
    for step in (14, 16, 20):
        shutil.rmtree(checkpoint.path_of(again / "checkpoints", step))
    prepared.ok("train", "name=bf16-again", "train.precision=bf16", ranks=2)
    shared = [json.loads(line)["loss"] for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert len(shared) == 20
    assert np.abs(np.array(losses) - shared).max() < 1e-3
    full = [record["loss"] for record in records(prepared, "fp32")]
    assert np.abs(np.array(losses) - full).max() < 0.05
    scored = prepared.ok("score", "name=bf16", "train.precision=bf16").out
    steps = checkpoint.finished(once / "checkpoints")
    assert f"at {len(steps)} checkpoints: scored" in scored
