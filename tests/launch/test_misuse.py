"""Mistakes end in one clear line and exit status 2, with nothing half-written, and nothing lost.

A sweep that is interrupted is in ``tests/slurm``, an account that was not set in ``test_sweep.py``.
"""

import ctypes
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import xxhash
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.data.errors import UserError
from palimpsest.launch.compose import CONF, build
from tests.conftest import REPO, SMALL, Workplace, write_text


def snapshot(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.name != ".lock")


def refused(done, *told):
    """One line that says what is wrong, and status 2."""
    assert done.status == 2, done.out
    line = done.lines[-1]
    assert line.startswith("palimpsest: "), done.out
    assert "Traceback" not in done.out
    for part in told:
        assert part in line, line
    return line


CASES = {
    "unknown experiment": (["+experiment=quikstart"], ["experiment=quikstart", "did you mean 'quickstart'"]),
    "no experiment": ([], ["no experiment was chosen", "quickstart"]),
    "unknown key": (["+experiment=quickstart", "train.step=3"], ["train.step", "did you mean 'train.steps'"]),
    "key added": (["+experiment=quickstart", "+train.stepz=3"], ["train.stepz", "did you mean 'steps'"]),
    "wrong type": (["+experiment=quickstart", "train.steps=many"], ["train.steps=many", "integer"]),
    "unknown model": (["+experiment=quickstart", "model=nanno"], ["model=nanno", "did you mean 'nano'"]),
    "impossible value": (["+experiment=quickstart", "train.steps=0"], ["train.steps=0 must be above 0"]),
    "heads": (["+experiment=quickstart", "model.heads=3"], ["model.hidden=128", "model.heads=3"]),
    "bad name": (["+experiment=quickstart", "name=a/b"], ["name='a/b'"]),
    "missing value": (["+experiment=quickstart", "corpus=jsonl"], ["corpus.source.paths"]),
    "no controls": (["+experiment=quickstart", "insertion.doses=[1,4]"], ["insertion.doses=[1, 4] lacks 0"]),
    "syntax": (["+experiment=quickstart", "train.steps"], ["train.steps"]),
    "no plus": (["experiment=quickstart"], ["write +experiment=quickstart"]),
    "of another launcher": (
        ["+experiment=quickstart", "launcher.nodes=2"],
        ["launcher.nodes is no setting of the launcher chosen here; launcher=slurm has it"],
    ),
    "near one of the launcher": (
        ["+experiment=quickstart", "launcher=slurm_gpu", "launcher.account=me", "launcher.node=2"],
        ["launcher.node: there is no such setting; did you mean 'launcher.nodes'?"],
    ),
    "of another corpus": (
        ["+experiment=quickstart", "corpus.source.documents=line"],
        ["corpus.source.documents is no setting of the corpus chosen here; corpus=text has it"],
    ),
    "SLURM without a sweep": (
        ["+experiment=quickstart", "launcher=slurm", "launcher.account=me"],
        ["launcher=slurm submits nothing here", "type `palimpsest sweep`"],
    ),
    "warm-up": (
        ["+experiment=quickstart", "train.steps=20"],
        ["optimizer.warmup_steps=50 must be below train.steps=20"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_configuration(tmp_path, case):
    overrides, told = CASES[case]
    refused(Workplace(tmp_path).run("plan", *overrides), *told)
    assert snapshot(tmp_path) == []


def made(*overrides):
    """The experiment that a command line means, without starting a program."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", ["+experiment=quickstart", *overrides]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "train.micro_batch_size=3",
            "train.global_batch_size=8 must be a multiple of train.micro_batch_size=3",
        ),
        ("parallel.tensor=8", "parallel.tensor=8 must divide model.heads=4"),
        ("parallel.tensor=3", "parallel.tensor=3 must divide 128"),
        ("parallel.pipeline=3", "parallel.pipeline=3 must divide model.layers=4"),
        ("seed=-1", "seed=-1 must lie between 0 and 4294967295"),
        ("seed=4294967296", "seed=4294967296 must lie between"),
        ("train.seed=-1", "train.seed=-1 must lie between"),
        ("insertion.seed=4294967296", "insertion.seed=4294967296 must lie between"),
        ("insertion.heldout_probes=-1", "insertion.heldout_probes=-1 must be 0 or above"),
        ("insertion.families.passages.tokens=abc", "families.passages.tokens=abc must be a whole number"),
        ("insertion.families.passages.tokens=true", "families.passages.tokens=True must be a whole number"),
        ("insertion.families.ghost_sentences.words=-2", "ghost_sentences.words=-2 must be above 0"),
        ("+insertion.families.passages.token=3", "no such setting; did you mean 'tokens'"),
        ("insertion.families.passages=40", "insertion.families.passages=40"),
        ("model.kv_heads=0", "model.kv_heads=0 must be above 0"),
        ("optimizer.beta1=1", "optimizer.beta1=1.0 must lie between 0 and 1"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: nan is no finite number"),
        ("insertion.doses=[0,true]", "insertion.doses: true is no number"),
        ("insertion.items_per_dose=true", "insertion.items_per_dose: true is no number"),
        ("insertion.items_per_dose=ten", "insertion.items_per_dose=ten: "),
        ("train.steps=false", "train.steps: false is no number"),
        ("train.steps=[3]", "train.steps=[3]: "),
        ("insertion.doses=4", "write it as insertion.doses=[4]"),
        ("insertion.phase=[{stop: 0.5}]", "insertion.phase.stop: there is no such setting"),
        ("~train.seed", "train.seed: field required"),
        ("name=true", "name=true: "),
    ],
)
def test_values(override, told):
    with pytest.raises(UserError) as error:
        made(override)
    line = str(error.value)
    assert told in line
    assert "\n" not in line


def test_one_text_for_a_list():
    with pytest.raises(UserError, match=r"write it as corpus\.source\.paths=\[x\.jsonl\]"):
        made("corpus=jsonl", "corpus.source.paths=x.jsonl")


def test_what_people_may_write():
    """Whole numbers for fractions, numbers for names, lists, one level for a factor."""
    experiment = made("name=2024", "runs=7", "optimizer.learning_rate=1", "insertion.phase=[{end: 1}]")
    assert (experiment.name, experiment.runs.name) == ("2024", "7")
    assert type(experiment.optimizer.learning_rate) is float
    assert experiment.insertion.doses == (0, 1, 4, 16, 64)


def test_the_directory_changes_with_the_result_alone():
    usual = made().directory
    for same in (
        ["train.checkpoint_every=10"],
        ["model.name=other"],
        ["train.micro_batch_size=8"],
        ["parallel.tensor=2"],
        [
            "~insertion.families.biographies",
            "~insertion.families.ghost_sentences",
            "+insertion.families.ghost_sentences={list_size: 1024, words: 16}",
            "+insertion.families.biographies={attributes: [birth_date, field]}",
        ],
    ):
        assert made(*same).directory == usual, same
    for other in ("seed=2", "model.ffn=256", "insertion.families.passages.tokens=30", "train.steps=500"):
        assert made(other).directory != usual, other


def test_help_that_nobody_reads_to_its_end(tmp_path):
    place = Workplace(tmp_path)
    program = subprocess.Popen(
        place.command("train", "--help"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait() == 0


RANK = """
from palimpsest.insertion.ledger import PlanViolation
from palimpsest.launch.program import program

@program
def main(experiment):
    raise PlanViolation("step 3: the batch is not what the plan says")

main()
"""


def test_a_rank_leaves_status_and_line_for_who_started_torchrun(tmp_path):
    """torchrun itself always ends with 1."""
    told = tmp_path / "status"
    for rank in ("1", "0"):  # the second finds that the first has spoken
        done = subprocess.run(
            [sys.executable, "-c", RANK, "+experiment=quickstart"],
            cwd=REPO,
            env={**os.environ, "RANK": rank, "PALIMPSEST_STATUS": str(told)},
            check=False,
            capture_output=True,
        )
        assert done.returncode == 3, done.stderr
    assert told.read_text() == "3\nstep 3: the batch is not what the plan says"


@pytest.mark.slow
def test_run_ends_as_its_ranks_do(prepared):
    prepared.ok("plan", "name=ranks")
    directory = prepared.directory("ranks") / "perturbed"
    directory.mkdir()
    with (directory / ".lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        done = prepared.run("run", "name=ranks", "parallel.tensor=2")
    assert done.status == 2, done.out
    assert "training perturbed on 2 processes: " in done.lines[-1]
    assert "in use by another process" in done.lines[-1]


@pytest.mark.parametrize(
    ("contrast", "told"),
    [
        ("dose 4 vs dose 3", "report.contrasts: no arm has 'dose 3'; did you mean"),
        ("dose 4", "report.contrasts: 'dose 4' must be FIRST vs SECOND"),
    ],
)
def test_a_contrast_that_no_arm_has_is_refused_before_anything_is_made(tmp_path, contrast, told):
    """A report would only find it after the training."""
    refused(Workplace(tmp_path, SMALL).run("prepare", f"report.contrasts=['{contrast}']"), told)
    assert [p for p in snapshot(tmp_path) if p != "runs"] == []


def test_a_stage_before_its_time(tmp_path):
    place = Workplace(tmp_path, SMALL)
    for program in ("plan", "audit", "score", "report"):
        refused(place.run(program), "does not exist; run launch/")
    # Training makes corpus and plan itself, once their text is there.
    refused(place.run("train"), "corpus.source.paths: text.jsonl does not exist")
    assert [p for p in snapshot(tmp_path) if p != "runs"] == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "text.jsonl"),
        ("", "text.jsonl"),
        ('{"text": "fine"}\n{"text": 3}\n', "row 2"),
        ('{"text": "fine"}\nnot json\n', "row 2"),
    ],
)
def test_corpus(tmp_path, content, told):
    if content is not None:
        (tmp_path / "text.jsonl").write_text(content)
    refused(Workplace(tmp_path, SMALL).run("prepare"), told)
    assert [p for p in snapshot(tmp_path) if "manifest" in p or ".tmp" in p] == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("insertion.families.passages.tokens=70", "longer than a window: item passage-"),
        (
            "+insertion.families.ghost_sentence={}",
            "no family 'ghost_sentence'; did you mean 'ghost_sentences'",
        ),
        ("insertion.doses=[0,300]", "2,400 exposures but there are only 160 windows"),
        ("train.steps=2000", "one epoch of the corpus has"),
    ],
)
def test_plan(prepared, override, told):
    prepared.ok("plan")  # a corpus that was copied makes the order of its windows anew
    before = snapshot(prepared.path)
    refused(prepared.run("plan", "name=bad", override), told)
    assert snapshot(prepared.path) == before


def test_topologies(prepared):
    refused(prepared.run("train", "parallel.tensor=2"), "does not divide the world size 1")
    refused(prepared.run("train", "train.micro_batch_size=3"), "train.global_batch_size=8 must be a multiple")
    refused(prepared.run("train", "runtime.device=cuda"), "runtime.device=cuda", "no GPU")


def test_help_and_config(tmp_path):
    place = Workplace(tmp_path)
    assert "+experiment=quickstart" in place.ok("train", "--help").out
    assert "sequence_length: 256" in place.ok("train", "+experiment=quickstart", "--cfg", "job").out
    assert snapshot(tmp_path) == []


def test_two_trainings_in_one_directory(prepared):
    """The second one is refused, and does not disturb the first."""
    prepared.ok("plan", "name=busy")
    directory = prepared.directory("busy") / "perturbed"
    first = subprocess.Popen(
        prepared.command("train", "name=busy"), cwd=prepared.path, stderr=subprocess.DEVNULL
    )
    while not (directory / "checkpoints" / "step_00000001").exists():
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # in the middle of its steps
    before = snapshot(directory)
    try:
        refused(prepared.run("train", "name=busy"), directory.parent.name, "in use by another process")
        assert snapshot(directory) == before
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 0
    assert "finished at step 20; nothing to do" in prepared.ok("train", "name=busy").out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is trained, which each test copies."""
    place = Workplace(tmp_path_factory.mktemp("trained"), SMALL)
    write_text(place.path / "text.jsonl", 400)
    for program in ("prepare", "plan", "train"):
        place.ok(program, "insertion.items_per_dose=2")
    return place


def copy(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "copy")
    return Workplace(tmp_path / "copy", [*SMALL, "insertion.items_per_dose=2"])


def test_a_text_that_changed_after_training_began(trained, tmp_path):
    """It is another corpus and another run; with the text as it was, the run is as it was."""
    place = copy(trained, tmp_path)
    before = {path: path.read_bytes() for path in place.directory().rglob("*.*") if path.is_file()}
    text = place.path / "text.jsonl"
    original = text.read_text()
    text.write_text(original + json.dumps({"text": "One more document that nobody planned for."}) + "\n")
    assert "reusing" not in place.ok("prepare").out
    place.ok("plan")
    assert len(list((place.path / "runs" / "corpora").glob("*/manifest.json"))) == 2
    assert len(list((place.path / "runs" / "small").glob("run-*/plan/manifest.json"))) == 2
    text.write_text(original)
    assert "reusing" in place.ok("prepare").out
    assert "reusing" in place.ok("plan").out
    assert "finished at step 20; nothing to do" in place.ok("train").out
    assert {path: path.read_bytes() for path in before} == before


def test_a_checkpoint_that_was_copied_by_half(trained, tmp_path):
    """With a file missing it is refused; without its manifest, which comes last, the one before is gone on from."""
    place = copy(trained, tmp_path)
    last = place.directory() / "perturbed" / "checkpoints" / "step_00000020"
    shard = max(last.glob("*.distcp"), key=lambda path: path.stat().st_size)
    shard.unlink()
    before = snapshot(last.parent)
    for program in ("train", "score"):
        line = refused(place.run(program), f"{shard.name} is missing; copy the checkpoint again, or delete ")
        assert "goes on from the one before" in line
    assert snapshot(last.parent) == before
    (last / "manifest.json").unlink()
    assert "going on from step 16" in place.ok("train").out
    assert shard.is_file()
    there, other = (checkpoints(run) for run in (place, trained))
    assert there == other


def checkpoints(place):
    """Every tensor of the last checkpoint, by a digest of its bytes."""
    from palimpsest.pretrain import checkpoint

    path = checkpoint.path_of(place.directory() / "perturbed" / "checkpoints", 20)
    return {name: xxhash.xxh3_128_hexdigest(t.numpy()) for name, t in checkpoint.tensors(path).items()}


def test_checkpoints_of_something_else(prepared, tmp_path):
    """A checkpoint of another configuration, plan or corpus (so of another tokenizer) is refused; so is half a one."""
    prepared.ok("plan", "name=one")
    prepared.ok("train", "name=one")
    one = prepared.directory("one")
    for name, override, told in (
        ("model", "model.ffn=96", "setting model.ffn: it was made with 64, asked for is 96"),
        ("plan", "insertion.items_per_dose=6", "input plan"),
        ("tokenizer", "corpus.tokenizer.vocab_size=390", "setting vocab_size: it was made with"),
    ):
        if name == "tokenizer":
            prepared.ok("prepare", override)
        prepared.ok("plan", f"name={name}", override)
        other = prepared.directory(name)
        for part in ("checkpoints", "ledger"):
            shutil.copytree(one / "perturbed" / part, other / "perturbed" / part)
        before = snapshot(other)
        refused(prepared.run("train", f"name={name}", override), "belongs to another run", told)
        assert snapshot(other) == before
    last = one / "perturbed" / "checkpoints" / "step_00000020"
    shard = next(last.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(prepared.run("train", "name=one"), str(shard.name), "changed since it was written")


def test_a_changed_tokenizer_or_plan(prepared, tmp_path):
    place = Workplace(tmp_path, prepared.overrides)
    shutil.copytree(prepared.path / "runs" / "corpora", tmp_path / "runs" / "corpora")
    shutil.copy(prepared.path / "text.jsonl", tmp_path)
    place.ok("plan")
    directory = place.directory()
    items = directory / "plan" / "items.parquet"
    original = items.read_bytes()
    items.write_bytes(original[:100] + b"x" + original[101:])
    refused(place.run("train"), "items.parquet", "changed since it was written")
    items.write_bytes(original)
    (corpus,) = {
        line.split()[1].rstrip(":") for line in place.ok("prepare").lines if line.startswith("corpus ")
    }
    path = tmp_path / corpus / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"].pop()
    path.write_text(json.dumps(tokenizer))
    refused(place.run("prepare"), "tokenizer.json")


def test_full_disk_during_a_save(prepared):
    """The save fails in one line; the checkpoint before it stays usable, and the run goes on from it."""
    prepared.ok("plan", "name=full")
    size = 100_000  # a checkpoint's tensors are larger than this; nothing else here is

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    prepared_checkpoints = prepared.directory("full") / "perturbed" / "checkpoints"
    refused(prepared.run("train", "name=full", preexec_fn=limit), "could not be written", "GiB are free")
    assert [p.name for p in prepared_checkpoints.glob("*")] == [
        "step_00000000"
    ]  # small: no optimizer state yet
    prepared.ok("train", "name=full")
    # Now with checkpoints before it.
    for step in (14, 16, 20):
        shutil.rmtree(prepared_checkpoints / f"step_{step:08d}")
    refused(prepared.run("train", "name=full", preexec_fn=limit), "could not be written", "GiB are free")
    assert sorted(p.name for p in prepared_checkpoints.glob("*"))[-1] == "step_00000008"
    assert "going on from step 8" in prepared.ok("train", "name=full").out


def as_others():
    """Let a child heed permissions even as root: drop from what it may get CAP_DAC_OVERRIDE and _READ_SEARCH."""
    pr_capbset_drop = 24
    if os.geteuid() == 0:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(pr_capbset_drop, capability, 0, 0, 0)


def test_no_permission(trained, tmp_path):
    """To make runs/, and to write into a run; with the permission, everything goes on."""
    for place, program in (
        (Workplace(tmp_path / "new", SMALL), "prepare"),
        (copy(trained, tmp_path), "score"),
    ):
        closed = place.path if program == "prepare" else place.directory()
        closed.mkdir(exist_ok=True)
        write_text(place.path / "text.jsonl", 400)
        closed.chmod(0o500)
        try:
            if subprocess.run(["test", "-w", closed], preexec_fn=as_others, check=False).returncode == 0:
                pytest.skip("this process may write anywhere, and may not give that up")
            before = snapshot(place.path)
            refused(place.run(program, preexec_fn=as_others), "no permission to write", "runs")
            assert snapshot(place.path) == before
        finally:
            closed.chmod(0o700)
        place.ok(program)
