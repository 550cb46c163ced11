"""A run that is killed and started again is the run that was not."""

import random
import signal
import subprocess
import time

import pytest

from data.artifact import file_digest


def final_weights(directory):
    """Every tensor of the last checkpoint."""
    from pretrain import checkpoint

    return checkpoint.tensors(directory / "perturbed" / "checkpoints" / "step_00000020")


def ledger_files(directory):
    return {
        f"{p.parent.name}/{p.name}": file_digest(p)
        for p in (directory / "perturbed" / "ledger").glob("*/*.parquet")
    }


@pytest.fixture(scope="module")
def whole(prepared):
    """The run that was never interrupted."""
    prepared.ok("plan", "name=whole")
    prepared.ok("train", "name=whole")
    prepared.ok("train", "name=whole", "run=twin")
    return prepared.directory("whole")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_sigkill_at_a_random_moment(prepared, whole, attempt):
    """Same final weights bit for bit, same ledger, passing audit."""
    import torch

    name = f"killed{attempt}"
    prepared.ok("plan", f"name={name}")
    rng = random.Random(time.time_ns())
    metrics = prepared.directory(name) / "perturbed" / "metrics.jsonl"
    victim_step = rng.randrange(1, 19)
    kills = 0
    while True:
        process = subprocess.Popen(
            prepared.command("train", f"name={name}"),
            cwd=prepared.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            if kills < 2 and metrics.exists() and len(metrics.read_bytes().splitlines()) >= victim_step:
                time.sleep(rng.random() * 0.1)  # anywhere inside a step, a save or between
                process.send_signal(signal.SIGKILL)
                kills += 1
                victim_step = rng.randrange(victim_step, 20)
            time.sleep(0.002)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, f"seen at step {victim_step}"
    assert kills >= 1

    ours, theirs = final_weights(prepared.directory(name)), final_weights(whole)
    assert ours.keys() == theirs.keys()
    assert any("word_embeddings" in key for key in ours)
    assert any("exp_avg" in key for key in ours)
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    assert ledger_files(prepared.directory(name)) == ledger_files(whole)
    prepared.ok("train", f"name={name}", "run=twin")
    assert "audit: PASS" in prepared.ok("audit", f"name={name}").out


def test_a_finished_run_is_left_alone(prepared, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}
    done = prepared.ok("train", "name=whole")
    assert "nothing to do" in done.out
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_an_unfinished_checkpoint_is_passed_over(prepared, whole, tmp_path):
    """A checkpoint without its manifest does not exist."""
    from pretrain import checkpoint

    place = tmp_path / "checkpoints"
    (place / "step_00000003").mkdir(parents=True)
    (place / "step_00000003" / "__0_0.distcp").write_bytes(b"half")
    assert checkpoint.finished(place) == []
