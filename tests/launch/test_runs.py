"""What lies in runs/ is listed as it is, and nothing needed is pruned."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.data import artifact
from palimpsest.launch import runs
from palimpsest.pretrain import saved
from tests.conftest import REPO


def make(directory, kind, **files):
    with artifact.writing(directory, kind=kind, schema_version=1, config={}, inputs={}) as draft:
        for name, content in files.items():
            (draft.path / name.replace("__", ".")).write_text(content)


RATES = {"tokens": 512, "tokens_per_second": 256.0}


def train(directory, steps):
    """Leave the files of a training: a log, and checkpoints that are whole by their manifests."""
    directory.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 9 - step / 10, **RATES}) for step in range(1, max(steps) + 1)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99, "lo')  # killed in mid-line
    for step in steps:
        make(directory / "checkpoints" / f"step_{step:08d}", "checkpoint", a="x" * 1000)


@pytest.fixture
def place(prepared, tmp_path):
    """Runs in every state, each with the plan of a run of 20 steps."""
    base = tmp_path / "runs" / "small"
    for name in ("planned-1", "stopped-1", "trained-1", "scored-1", "finished-1", "busy-1"):
        shutil.copytree(prepared.directory() / "plan", base / name / "plan")
    train(base / "stopped-1" / "perturbed", [0, 1, 7])
    (base / "stopped-1" / "perturbed" / "checkpoints" / ".step_00000014.abc.tmp").mkdir()
    train(base / "busy-1" / "perturbed", [0, 1, 7])
    for name in ("trained-1", "scored-1", "finished-1"):
        train(base / name / "perturbed", [0, 1, 7, 20])
    for name in ("scored-1", "finished-1"):
        for step in (0, 1, 20):  # 7 is not scored
            make(base / name / "scores" / "perturbed" / f"step_{step:08d}", "scores", a="1")
    make(
        base / "finished-1" / "report",
        "report",
        summary__json=json.dumps({"verdict": "reproduced", "caveats": ["one run"]}),
    )
    (base / "broken-1").mkdir()
    (tmp_path / "runs" / "corpora" / "text-1").mkdir(parents=True)
    return tmp_path


def program(place, *arguments):
    return subprocess.run(
        [sys.executable, str(REPO / "launch" / "runs.py"), *arguments],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_states(place):
    found = {one.directory.name[:-2]: one for one in runs.entries(place / "runs")}
    assert {name: one.state for name, one in found.items()} == {
        "planned": "planned",
        "stopped": "stopped",
        "trained": "trained",
        "scored": "scored",
        "finished": "finished",
        "busy": "stopped",
        "broken": "damaged",
    }
    assert (found["stopped"].step, found["stopped"].steps) == (7, 20)
    assert found["stopped"].loss == pytest.approx(8.3)
    assert found["finished"].verdict == "reproduced, one run"
    files = sum(p.stat().st_size for p in (place / "runs/small/trained-1").rglob("*") if p.is_file())
    assert found["trained"].size == files


def test_a_run_in_training_is_told_and_left_alone(place):
    lock = place / "runs/small/busy-1/perturbed/.lock"
    holder = (
        "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    try:
        (busy,) = [one for one in runs.entries(place / "runs") if one.directory.name == "busy-1"]
        assert busy.state == "training"
        done = program(place, "remove=small/busy-1", "yes=true")
        assert (done.returncode, lock.exists()) == (2, True)
        assert "it is being trained" in done.stderr
    finally:
        child.communicate(b"\n")
    with lock.open("w") as file:  # asking has not taken it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_prune_takes_what_is_scored_between_first_and_last(place):
    def everything():
        return {str(p.relative_to(place)) for p in place.rglob("*")}

    before = everything()
    done = program(place, "prune")
    assert done.returncode == 0
    assert "add yes=true" in done.stderr
    assert everything() == before
    assert program(place, "prune", "yes=true").returncode == 0
    gone = {path for path in before - everything() if path.count("/") == 5}
    assert gone == {
        "runs/small/finished-1/perturbed/checkpoints/step_00000001",
        "runs/small/stopped-1/perturbed/checkpoints/.step_00000014.abc.tmp",
    }
    assert saved.removed(place / "runs/small/finished-1/perturbed/checkpoints") == {
        1
    }  # which the audit is to know of
    assert "nothing to remove" in program(place, "prune").stderr


def test_listing_and_mistakes(place):
    listed = program(place).stderr.splitlines()
    assert len(listed) == 1 + 6 + 1
    assert listed[-1] == "planned, nothing trained: small/planned-1"
    assert listed[0].split() == ["run", "state", "step", "loss", "verdict", "size"]
    (line,) = [line for line in listed if line.startswith("small/finished-1")]
    assert line.split()[1:5] == ["finished", "20/20", "7.000", "reproduced,"]
    for arguments, told in (
        (["purge"], "did you mean 'prune'"),
        (["remove=small/finishd-1"], "did you mean 'small/finished-1'"),
        (["experiment=smal"], "did you mean 'small'"),
        (["runs=nowhere"], "there is no nowhere"),
        (["yes=true"], "yes=true needs something to delete"),
    ):
        done = program(place, *arguments)
        assert done.returncode == 2
        assert told in done.stderr


def test_one_damaged_report_hides_no_run(place):
    before = len(runs.entries(place / "runs"))
    for text in ("", "[]", '{"verdict": 3}', "\udcff"):
        path = place / "runs/small/finished-1/report/summary.json"
        path.write_bytes(text.encode(errors="surrogateescape"))
        found = {one.directory.name: one for one in runs.entries(place / "runs")}
        assert len(found) == before
        assert (found["finished-1"].state, found["scored-1"].state) == ("damaged", "scored")
        assert "summary.json" in found["finished-1"].verdict


def test_a_colleague_may_look(place, monkeypatch):
    """Listing opens nothing for writing: in somebody else's directory that is forbidden."""
    opened = Path.open

    def reading(path, mode="r", *rest, **named):
        assert set(mode) <= set("rbt"), (path, mode)
        return opened(path, mode, *rest, **named)

    (place / "runs/small/finished-1/perturbed/.lock").touch()
    monkeypatch.setattr(Path, "open", reading)
    assert {one.state for one in runs.entries(place / "runs")} >= {"finished", "scored"}


def test_prune_takes_what_killed_programs_left_half_built(place):
    dead, alive = f"{artifact._host()}-999999", f"{artifact._host()}-{os.getpid()}"
    corpora, run = place / "runs" / "corpora", place / "runs" / "small" / "finished-1"
    left = [
        corpora / "text-1" / "order" / ".building-abc",
        corpora / "text-1" / "order" / f".length64.{dead}.x.tmp",
        corpora / f".text-2.{dead}.x.tmp",
        run / f".report.{dead}.x.tmp",
        run / "scores" / "perturbed" / f".step_00000007.{dead}.x.tmp.old",
    ]
    busy = [corpora / f".text-3.{alive}.x.tmp", run / f".audit.{alive}.x.tmp", run / ".plan.other-7.x.tmp"]
    for path in left + busy:
        path.mkdir(parents=True)
        (path / "half").write_text("half")
    listed = program(place, "prune").stderr
    assert all(str(path.relative_to(place)) in listed for path in left), listed
    assert all(path.exists() for path in left)
    assert program(place, "prune", "yes=true").returncode == 0
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in busy)
