"""The supported versions of megatron-core give the same results; ``make test-engine`` runs this on the other one."""

import json
import subprocess
import sys

import pytest

from tests import warm
from tests.conftest import REPO

EXPERTS = """
import json
import sys
from pathlib import Path

import numpy as np

from palimpsest.pretrain import engine, parallel
from palimpsest.pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig, TrainConfig
from palimpsest.pretrain.settings import Settings
from palimpsest.pretrain.telemetry import Writer
from palimpsest.pretrain.trainer import Trainer


class Windows:
    identity, eod = "made up", 0

    def require(self, windows):
        pass

    def window(self, position):
        return np.random.default_rng(position).integers(1, 100, 33)


class Norms(Writer):
    found = []

    def write(self, record):
        self.found.append(record["gradient_norm"])


def main(place):
    with parallel.start(ParallelConfig(), RuntimeConfig(device="cpu")) as world:
        for micro in (1, 2, 8):
            settings = Settings(
                model=ModelConfig(
                    name="m", layers=1, hidden=16, heads=2, ffn=16, experts=4, balance_loss=3.0, init_std=0.2
                ),
                optimizer=OptimizerConfig(
                    learning_rate=1e-3, min_learning_rate=1e-3, warmup_steps=0, schedule="constant"
                ),
                train=TrainConfig(
                    steps=1, global_batch_size=8, micro_batch_size=micro, sequence_length=32, seed=1,
                    checkpoint_every=1,
                ),
                parallel=ParallelConfig(),
            )
            trainer = Trainer(
                settings, world, order=Windows(), plan=None, vocab_size=200, directory=place / str(micro)
            )
            trainer.run([Norms()])
    manifest = json.loads((place / "8/checkpoints/step_00000001/manifest.json").read_text())
    print(json.dumps({"norms": Norms.found, "version": engine.NAME, "written": manifest["facts"]["megatron_core"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
"""


def test_the_gradient_of_the_balance_loss_does_not_depend_on_the_micro_batch(tmp_path):
    """The coefficient is large enough for its part to show; the checkpoint names the engine's version."""
    script = tmp_path / "experts.py"
    script.write_text(EXPERTS)
    status, out = warm.run([str(script), str(tmp_path)], tmp_path)
    assert status == 0, out
    found = json.loads(out.splitlines()[-1])
    assert found["norms"][1:] == pytest.approx([found["norms"][0]] * 2, rel=1e-5)
    assert found["written"] == found["version"]


def test_the_engine_needs_no_triton(tmp_path):
    """PyTorch's builds for CPUs bring none; Triton itself stays absent for whoever looks."""
    script = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from palimpsest.pretrain import trainer\n"
        "assert sys.modules['triton'] is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=REPO, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
