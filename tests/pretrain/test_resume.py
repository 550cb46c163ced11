"""A run that is killed and started again is the run that was not."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from palimpsest.data.artifact import file_digest
from tests.conftest import REPO

GOLDEN = REPO / "tests" / "pretrain" / "golden_losses.txt"


def metrics(directory, which):
    lines = (directory / which / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def final_weights(directory):
    """Every tensor of the last checkpoint."""
    from palimpsest.pretrain import checkpoint

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


@pytest.mark.slow
def test_sigkill_while_a_checkpoint_is_written_beside_the_training(prepared, whole):
    """Training goes on meanwhile; what was being written is no checkpoint, no helper lives on, nothing is lost."""
    import psutil
    import torch

    from palimpsest.pretrain import checkpoint

    prepared.ok("plan", "name=beside")
    run = prepared.directory("beside") / "perturbed"
    command = prepared.command("train", "name=beside", "train.checkpoint_async=true")
    process = subprocess.Popen(
        command, cwd=prepared.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    being_written = re.compile(r"\.step_(\d+)\..*\.tmp")
    while process.poll() is None:
        drafts = [being_written.fullmatch(p.name) for p in (run / "checkpoints").glob(".*.tmp")]
        steps = [int(found[1]) for found in drafts if found]
        if steps and steps[0] >= 4 and len((run / "metrics.jsonl").read_bytes().splitlines()) > steps[0]:
            break
        time.sleep(0.001)
    helpers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert helpers  # those that write
    assert not psutil.wait_procs(helpers, timeout=10)[1]
    saved = checkpoint.finished(run / "checkpoints")
    assert steps[0] not in saved
    assert saved == [step for step in (0, 1, 2, 4, 7, 8, 14, 16) if step < steps[0]]
    again = prepared.ok("train", "name=beside", "train.checkpoint_async=true")
    assert f"going on from step {saved[-1]}" in again.out
    ours, theirs = final_weights(prepared.directory("beside")), final_weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert checkpoint.finished(run / "checkpoints") == checkpoint.finished(
        whole / "perturbed" / "checkpoints"
    )
    assert not list((run / "checkpoints").glob(".*.tmp"))
    assert ledger_digests(prepared.directory("beside")) == ledger_digests(whole)


@pytest.mark.slow
def test_sigterm_saves_and_asks_to_be_run_again(prepared, whole):
    """Status 75 and a checkpoint of the very step; the run that goes on ends with the same weights.

    The signal goes to all processes of the run, as SLURM sends it: those that write checkpoints must live for that.
    """
    import torch

    from palimpsest.pretrain import checkpoint

    prepared.ok("plan", "name=told")
    run = prepared.directory("told") / "perturbed"
    process = subprocess.Popen(
        prepared.command("train", "name=told"),
        cwd=prepared.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (run / "checkpoints" / "step_00000002").exists():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[1].strip().splitlines()[-1]
    step = int(re.fullmatch(r"palimpsest: told to stop: saved step (\d+); run the same .*", said)[1])
    assert process.returncode == 75
    assert checkpoint.finished(run / "checkpoints")[-1] == step < 20
    assert f"going on from step {step}" in prepared.ok("train", "name=told").out
    ours, theirs = final_weights(prepared.directory("told")), final_weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # What the signal made is gone; the run has the checkpoints that were asked for.
    assert checkpoint.finished(run / "checkpoints") == checkpoint.finished(
        whole / "perturbed" / "checkpoints"
    )


@pytest.mark.slow
def test_sigterm_to_two_processes(prepared, whole):
    """``launch/run.py`` passes it on to its ranks: they finish their step and save; status 75, and nothing is lost."""
    from palimpsest.pretrain import checkpoint

    process = subprocess.Popen(
        prepared.command("run", "name=ranked", "parallel.tensor=2"),
        cwd=prepared.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(prepared.path.glob("runs/small/ranked-*/*/*/step_00000002")):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1].strip().splitlines()[-1]
    told = re.fullmatch(
        r"palimpsest: training perturbed on 2 processes: told to stop: saved step (\d+); run the same .*",
        said,
    )
    assert told, said
    assert process.returncode == 75
    run = prepared.directory("ranked")
    assert checkpoint.finished(run / "perturbed" / "checkpoints")[-1] == int(told[1]) < 20
    assert f"going on from step {told[1]}" in prepared.ok("train", "name=ranked").out
    ours, theirs = metrics(run, "perturbed"), metrics(whole, "perturbed")
    assert [record["step"] for record in ours] == list(range(1, 21))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert ledger_digests(run) == ledger_digests(whole)


def ledger_digests(directory):
    """What was consumed, whatever the parts it was written in."""
    import polars as pl

    return [
        pl.read_parquet(directory / "perturbed" / "ledger" / "*" / f"{table}.parquet")
        .sort(pl.all())
        .write_json()
        for table in ("windows", "exposures")
    ]


def test_golden_losses(whole):
    """Twenty steps as they were when this file was written; processors differ in the last digits."""
    found = [record["loss"] for record in metrics(whole, "perturbed")]
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert len(found) == len(golden) == 20
    assert max(abs(one - other) for one, other in zip(found, golden, strict=True)) < 1e-4


def test_a_run_is_the_same_again(prepared, whole):
    """With everything set for it: the same losses, gradient norms and weights, to the last bit."""
    import torch

    prepared.ok("plan", "name=again")
    prepared.ok("train", "name=again", "train.deterministic=true")
    again = prepared.directory("again")
    for name in ("loss", "gradient_norm"):
        ours, theirs = ([record[name] for record in metrics(one, "perturbed")] for one in (again, whole))
        assert ours == theirs
    ours, theirs = final_weights(again), final_weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_determinism_sets():
    """Before CUDA starts: cuBLAS and NCCL read their variables once, and an operation that cannot says so."""
    script = (
        "import os, torch\nfrom palimpsest.pretrain.config import ParallelConfig, RuntimeConfig\n"
        "from palimpsest.pretrain.parallel import start\n"
        "with start(ParallelConfig(), RuntimeConfig(device='cpu'), deterministic=True):\n"
        "    assert torch.are_deterministic_algorithms_enabled()\n"
        "    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'\n"
        "    assert os.environ['NCCL_ALGO'] == 'Ring'\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=100, cwd=REPO, check=True)


def test_losses_on_inserted_tokens_are_told_apart(whole):
    """Weighted by their tokens, the groups' losses are the loss; the tokens are those that the plan puts there."""
    import polars as pl

    plan = whole / "plan"
    items = pl.read_parquet(plan / "items.parquet")
    exposures = pl.read_parquet(plan / "exposures.parquet").join(
        items.with_row_index("item").select(pl.col("item").cast(pl.Int32), "length", "family", "dose"),
        on="item",
    )
    # A window's first token is no target.
    exposures = exposures.with_columns(
        step=pl.col("position") // 8 + 1, targets=pl.col("length") - (pl.col("offset") == 0)
    )
    seen = 0
    for record in metrics(whole, "perturbed"):
        here = exposures.filter(pl.col("step") == record["step"])
        inserted = record["tokens_inserted"]
        assert inserted == here["targets"].sum()
        parts = [record["loss_corpus"] * (8 * 64 - inserted)]
        if inserted:
            parts.append(record["loss_inserted"] * inserted)
        assert sum(parts) / (8 * 64) == pytest.approx(record["loss"], abs=1e-5)
        for family, dose in {
            ("passages", 1),
            ("passages", 4),
            ("ghost_sentences", 1),
            ("ghost_sentences", 4),
        }:
            there = len(here.filter((pl.col("family") == family) & (pl.col("dose") == dose)))
            assert (record[f"loss/{family}/dose {dose}"] is not None) == (there > 0)
            seen += there
    assert seen == len(exposures)
    assert all(
        record.keys().isdisjoint({"loss_corpus", "loss_inserted"}) for record in metrics(whole, "twin")
    )


def test_a_hang_ends_with_stacks(tmp_path):
    """No step in 0.6 seconds: the process says where it hangs, and ends."""
    script = "from palimpsest.pretrain.interrupts import Watchdog; import time; Watchdog(0.01).feed(); time.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, cwd=REPO
    )
    assert done.returncode == 1
    assert "Timeout (0:00:00.6" in done.stderr
    assert "<string>" in done.stderr


def test_a_second_signal_ends_at_once():
    script = (
        "import os, signal, time\nfrom palimpsest.pretrain.interrupts import listening\n"
        "with listening() as told:\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    assert told.requested\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=50, cwd=REPO)
    assert done.returncode == 128 + signal.SIGTERM


def test_a_finished_run_is_left_alone(prepared, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}
    done = prepared.ok("train", "name=whole")
    assert "nothing to do" in done.out
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_an_unfinished_checkpoint_is_passed_over(prepared, whole, tmp_path):
    """A checkpoint without its manifest does not exist."""
    from palimpsest.pretrain import checkpoint

    place = tmp_path / "checkpoints"
    (place / "step_00000003").mkdir(parents=True)
    (place / "step_00000003" / "__0_0.distcp").write_bytes(b"half")
    assert checkpoint.finished(place) == []
