"""The benchmark's arms train the same model: it would be no comparison otherwise."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import REPO


@pytest.mark.long
def test_all_arms_take_the_same_steps():
    """The way for GPUs, in miniature: same weights, windows and optimizer, so the same loss after five steps."""
    pytest.importorskip("transformers")
    options = "--device cuda --rounds 1 --steps 2 --batch 4 --micro 2 --threads 1 --precisions fp32 bf16"
    done = subprocess.run(
        [sys.executable, str(REPO / "benchmarks" / "training.py"), *options.split()],
        env={**os.environ, "PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "this shows that it runs" in done.stdout
    full, low = done.stdout.split("## nano")[1:]
    for part, tolerance in ((full, 1e-4), (low, 5e-3)):
        losses = {
            name: float(loss)
            for name, loss in re.findall(r"^\| ([^|]+) \|.*? (\d\.\d{4}) \|  \|", part, re.M)
        }
        assert losses.keys() >= {"here", "transformers"}
        assert abs(losses["here"] - losses["transformers"]) <= tolerance
