"""``make gpu`` without a GPU: it says so in a line, and every part runs in miniature."""

import os
import re
import subprocess
import sys

import pytest
import torch

from tests.conftest import REPO


def run(*options):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )


def test_without_a_gpu_it_ends_in_a_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        "palimpsest: PyTorch sees no GPU here; --rehearse runs every part in miniature on the CPU"
    )


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    from benchmarks import gpu

    written = tmp_path / "gpu.md"
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--rehearse", "--parts", "scoring", "memory", "--out", str(written)]
    )

    def measure(command, seconds, **_):
        if "scoring" in command:
            raise RuntimeError("status 1: out of memory")
        return "- Preflight: 1 GiB"

    monkeypatch.setattr(gpu, "run", measure)
    with pytest.raises(SystemExit, match="failed: scoring"):
        gpu.main()
    text = written.read_text()
    assert "**Failed**: status 1: out of memory" in text
    assert "- Preflight: 1 GiB" in text


def test_a_command_that_hangs_is_stopped():
    from benchmarks import gpu

    with pytest.raises(RuntimeError, match="stopped after 1 s; it had printed: begun"):
        gpu.run([sys.executable, "-c", "print('begun', flush=True)\nimport time\ntime.sleep(60)"], 1)


@pytest.mark.long
def test_every_part_in_miniature(tmp_path):
    pytest.importorskip("transformers")
    written = tmp_path / "gpu.md"
    done = run("--rehearse", "--out", str(written))
    assert done.returncode == 0, done.stdout + done.stderr
    text = written.read_text()
    parts = re.findall(r"^## (\w+) \(\d+ s\)$", text, re.M)
    assert parts == ["Experiment", "Programs", "Memory", "Tests", "Training", "Scoring", "Checkpoints"]
    assert "`: the same bits." in text.replace("deterministic=true`: ", "`: ")
    assert "| here |" in text
    assert "| transformers |" in text
    assert "six numbers a token" in text
    assert re.search(r"GiB: saved in [\d.]+ s .*\n- Checked and loaded in [\d.]+ s", text)
    assert "5 of 5 programs ended well" in text
    assert re.search(r"Preflight: [\d.]+ GiB", text)
    assert "skipped" in text
