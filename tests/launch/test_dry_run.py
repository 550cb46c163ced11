"""``dry_run=true``: what would be made, reused and submitted; nothing is."""

import os
import re
import subprocess

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.launch import dry_run
from palimpsest.launch.compose import CONF, build
from palimpsest.pretrain import estimate, memory
from palimpsest.pretrain.config import padded_vocabulary
from tests.conftest import Workplace

QUICK = "+experiment=quickstart"
SLURM = (
    "launcher=slurm_gpu",
    "launcher.account=me",
    "launcher.nodes=2",
    "launcher.processes=1",
    "launcher.gpus=4",
)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "here").mkdir()
    return Workplace(tmp_path / "here")


@pytest.fixture
def sbatch(tmp_path):
    """A directory with an sbatch that answers 100, 101, ... and a function that tells what it was called with."""
    directory, log = tmp_path / "bin", tmp_path / "calls"
    directory.mkdir()
    for name, text in (
        ("sbatch", f'echo "$@" >> {log}; echo $((99 + $(wc -l < {log})))'),
        ("squeue", "true"),
        ("scancel", f"rm {log}"),
    ):
        (directory / name).write_text(f"#!/bin/bash\n{text}\n")
        (directory / name).chmod(0o755)

    def calls():
        return log.read_text().splitlines() if log.exists() else []

    return {"PATH": f"{directory}:{os.environ['PATH']}"}, calls


def files(place):
    return sorted(str(path.relative_to(place.path)) for path in place.path.rglob("*"))


def test_run_says_what_each_stage_would_make(place):
    done = place.ok("run", QUICK, "dry_run=true")
    for line in (
        "prepare          make runs/corpora/installed_docs-",
        "plan             make runs/quickstart/run-",
        "/perturbed: 450 steps on 1 process",
        "/twin: 450 steps on 1 process",
        "audit            make runs/quickstart/run-",
        "30 checkpoints, 0 of them scored",
        "report           make runs/quickstart/run-",
        "parameters: 1,377,408",
    ):
        assert line in done.out
    assert files(place) == []


def test_what_is_there_would_be_reused(prepared):
    prepared.ok("plan", "dry_run=true")  # what this copy's text is, is remembered beside the corpora
    before = {path: path.stat().st_mtime_ns for path in prepared.path.rglob("*")}
    done = prepared.ok("run", "dry_run=true")
    assert f"reuse {prepared.corpus().relative_to(prepared.path)}" in done.out
    assert f"reuse {prepared.directory().relative_to(prepared.path)}/plan" in done.out
    assert "20 steps on 1 process" in done.out
    assert "to mend" not in done.out
    longer = prepared.ok("run", "dry_run=true", "train.steps=2000").out
    reads, has, epochs = re.search(
        r"to mend: the run reads ([\d,]+) tokens but the corpus has ([\d,]+); .*mixture.epochs=(\d+)", longer
    ).groups()
    assert int(reads.replace(",", "")) == 2000 * 8 * 64
    assert int(epochs) == -(-2000 * 8 * 64 // int(has.replace(",", "")))
    assert (
        "to mend"
        not in prepared.ok("run", "dry_run=true", "train.steps=2000", f"mixture.epochs={epochs}").out
    )
    other = prepared.ok("plan", "dry_run=true", "train.micro_batch_size=2")
    assert other.lines == [f"plan: reuse {prepared.directory().relative_to(prepared.path)}/plan"]
    assert {path: path.stat().st_mtime_ns for path in prepared.path.rglob("*")} == before


@pytest.mark.parametrize(
    "program",
    [
        ("export",),
        ("write_corpus",),
        ("adaptive",),
        ("dependence",),
        ("plan", "show"),
        ("plan", "power=true"),
        ("plan", "family=passages"),
    ],
)
def test_other_programs_refuse_it(place, program):
    done = place.run(program[0], *program[1:], QUICK, "dry_run=true")
    assert done.status == 2
    assert done.lines[-1].startswith("palimpsest: dry_run=true does not work with this program")
    assert files(place) == []


@pytest.mark.parametrize("program", ["prepare", "plan", "train", "audit", "score", "report"])
def test_stages_obey_it(place, program):
    done = place.ok(program, QUICK, "dry_run=true")
    assert "make" in done.out or "parameters" in done.out or "scored" in done.out
    assert files(place) == []


def test_a_sweep_here_makes_nothing(place):
    done = place.ok("sweep", QUICK, "seed=1,2", "dry_run=true")
    assert "2 runs, 0 of them finished; dry_run=true" in done.lines[0]
    assert sum("train perturbed: make" in line for line in done.lines) == 2
    assert files(place) == []


def test_a_submission_without_slurm(place, sbatch):
    """Scripts that bash can read, and the very lines that a submission would run."""
    done = place.ok("sweep", QUICK, "seed=1,2", *SLURM, "dry_run=true", env={"PATH": "/usr/bin:/bin"})
    (directory,) = (place.path / "runs" / "sweeps").iterdir()
    scripts = sorted(directory.glob("*.sh"))
    assert len(scripts) == 10
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-' in script.read_text()
        assert "dry_run" not in script.read_text()
    assert "dry_run" not in (directory / "arguments.txt").read_text()
    assert "# train-perturbed: 2 tasks of 2 nodes, 4 GPUs a node, at most 24:00:00 each" in done.lines
    assert not (directory / "jobs.json").exists()

    lines = [line for line in done.lines if "=$(sbatch " in line]
    environment, calls = sbatch
    subprocess.run(["bash", "-euc", "\n".join(lines)], check=True, env={**os.environ, **environment})
    typed = calls()
    assert len(typed) == 10
    again = place.ok("sweep", QUICK, "seed=1,2", *SLURM, env=environment)
    assert [re.sub(r"\b11(\d)\b", r"10\1", call) for call in calls()[10:]] == typed
    assert "submitted: prepare 110" in again.out


def test_missing_inputs_are_named_before_anything_is_submitted(place, sbatch):
    environment, calls = sbatch
    (place.path / "items.jsonl").write_text("")
    wanted = ("+experiment=traps_1b", "seed=1,2", "model.weights=weights/llama")
    done = place.run("sweep", *wanted, *SLURM, env=environment)
    assert done.status == 2
    for missing in (
        "corpus.source.paths: corpora/train does not exist",
        "corpus.tokenizer.path=corpora/tokenizer.json does not exist",
        "model.weights=weights/llama does not exist here",
        "insertion.families.traps.path=checkpoints/reference does not exist",
    ):
        assert done.lines[-1].count(missing) == 1
    assert calls() == []
    assert files(place) == ["items.jsonl"]
    run = place.run("run", "+experiment=traps_1b")
    assert (run.status, run.lines[-1].count("does not exist")) == (2, 3)
    dry = place.ok("sweep", *wanted, *SLURM, "dry_run=true", env=environment)
    assert "missing: model.weights=weights/llama does not exist here" in dry.out
    assert calls() == []


def test_dry_run_is_the_whole_sweep_s(place):
    done = place.run("sweep", QUICK, "dry_run=true,false")
    assert (done.status, done.lines[-1]) == (
        2,
        "palimpsest: dry_run must have one value, because it applies to the whole sweep",
    )


def composed(*words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", list(words)))


def test_cost_is_that_of_the_submission():
    """3 seeds x 2 trainings on the launcher's 2 nodes of 8 GPUs: GPU hours by 6 N + attention, disk, scoring."""
    words = ["+experiment=hubble_1b", *SLURM[:3], "launcher.processes=8", "launcher.gpus=8"]
    runs = [composed(*words, f"seed={seed}") for seed in (1, 2, 3)]
    one = runs[0]
    padded = padded_vocabulary(dry_run.vocabulary(one)[0])
    a_token = estimate.flops_per_token(one.model, padded, one.train.sequence_length)
    tokens = one.train.steps * one.train.global_batch_size * one.train.sequence_length
    hours = 6 * a_token * tokens / (0.4 * 989.4e12) / 3600
    weights = one.model.parameters(padded, one.train.sequence_length)
    checkpoints = len(one.train.checkpoint_steps())
    tib = 6 * ((checkpoints - 1) * 14 + 2) * weights / 2**40
    told = dry_run.whole(runs)
    assert told.startswith("in all: 3 runs, 6 trainings (each perturbed and twin) on 16 H100 each, about ")
    assert f"about {hours / 6 / 16 / 24:,.2f} days the longest: {hours:,.0f} H100 hours; then scoring" in told
    assert f"checkpoints {tib:,.2f} TiB" in told
    assert "assumed: 40% of the peak FLOP/s in training and 4% in scoring" in told
    assert all("on 16 processes" in line for stage, line in dry_run.stages(one) if stage.startswith("train"))
    alone = dry_run.whole(runs[:1])
    assert alone.startswith("in all: both trainings of the pair on 16 H100 each, about ")
    assert f"{hours / 3:,.0f} H100 hours" in alone
    days, jobs, scoring, together = re.search(
        r"scoring, about ([\d,.]+) days a pair on (\d+) at a time: ([\d,.]+); together ([\d,.]+) H100 hours",
        alone,
    ).groups()
    assert int(jobs) == one.launcher.score_shares
    assert float(days) == pytest.approx(float(scoring.replace(",", "")) / int(jobs) / 24, abs=0.03)
    assert float(together.replace(",", "")) == pytest.approx(
        hours / 3 + float(scoring.replace(",", "")), abs=1.5
    )
    shard = memory.per_stage(one.model, padded, one.train, one.parallel, 16)[0].optimizer
    assert shard == pytest.approx(
        memory.per_stage(one.model, padded, one.train, one.parallel, 1)[0].optimizer / 16
    )


def test_gpus_that_no_process_uses_are_told(place):
    """A launcher that reserves more GPUs than it starts processes; a run that would not submit says so, too."""
    wide = [QUICK, "launcher=slurm", "launcher.account=me", "launcher.gpus=8"]
    idle = "to mend: launcher.gpus=8 but launcher.processes=1: 7 of the GPUs of each node would be reserved"
    assert idle in place.ok("sweep", *wide, "dry_run=true").out
    alone = place.ok("run", *wide, "dry_run=true").out
    assert idle in alone
    assert "to mend: launcher=slurm submits nothing here" in alone
    used = place.ok("sweep", QUICK, *SLURM[:2], "train.global_batch_size=32", "dry_run=true").out
    assert "to mend" not in used


def test_what_does_not_fit_is_told_at_once(place):
    """Topology, number and length of the user's items: in one line, before anything is prepared or submitted."""
    (place.path / "items.jsonl").write_text("".join(f'{{"text": "item {k}"}}\n' for k in range(7)))
    wanted = [QUICK, "insertion=table", "insertion.families.table.path=items.jsonl", *SLURM]
    wanted = [*wanted, "launcher.processes=3", "corpus=jsonl", "corpus.source.paths=[none.jsonl]"]
    refused = place.run("sweep", *wanted)
    assert refused.status == 2
    for told in (
        "none.jsonl does not exist",
        "train.global_batch_size=8",
        "insertion.families.table: ",
        "there are 7",
        "(5 arms take at least 10 rows)",
    ):
        assert told in refused.lines[-1]
    assert files(place) == ["items.jsonl"]
    dry = place.ok("run", *wanted[:3], "dry_run=true")
    assert "to mend: insertion.families.table: " in dry.out
    (place.path / "items.jsonl").write_text("".join(f'{{"text": "item {k}"}}\n' for k in range(20)))
    refused = place.run("run", *wanted[:3])
    assert refused.status == 2
    assert "(insertion.items_per_dose=4 fits: 5 arms take 20 rows)" in refused.lines[-1]
    assert files(place) == ["items.jsonl"]
