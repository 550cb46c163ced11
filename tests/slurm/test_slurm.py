"""A real SLURM on this machine runs a sweep, loses two tasks, and ends with what the local sweep found."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import xxhash

from tests.browser import faults, opened
from tests.conftest import SMALL, Workplace, write_text

HERE = Path(__file__).parent
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "setpriv")


FOUR = ("seed=1,2", "train.steps=20,21", "insertion.items_per_dose=2")


def results(place):
    """What the runs of a sweep found: run -> every number of its report, its last weights, and what they were fed.

    A run that was told to stop has another part in its ledger; the parts together say the same.
    """
    from palimpsest.launch.inputs import ledger_of
    from palimpsest.pretrain import checkpoint

    found = {}
    for report in sorted(place.path.glob("runs/small/*/report")):
        place_of = report.parent / "perturbed" / "checkpoints"
        last = checkpoint.finished(place_of)[-1]
        weights = checkpoint.tensors(checkpoint.path_of(place_of, last))
        inputs, fed = checkpoint.read(place_of, last).inputs, ledger_of(report.parent / "perturbed", last)[0]
        found[report.parent.name] = (
            (report / "estimates.csv").read_text(),
            {name: xxhash.xxh3_128_hexdigest(tensor.numpy()) for name, tensor in weights.items()},
            {name: digest for name, digest in inputs.items() if name != "ledger"},
            (fed.windows.sort("position").rows(), sorted(fed.exposures.rows())),
        )
    return found


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of four on this machine, two at a time, that was interrupted after its first finished run."""
    place = Workplace(tmp_path_factory.mktemp("sweep"), SMALL)
    write_text(place.path / "text.jsonl", 500)
    command = place.command("sweep", *FOUR, "launcher.jobs=2")
    process = subprocess.Popen(command, cwd=place.path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(place.path.glob("runs/small/*/report")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told = process.communicate()[1]
    before = {path: path.stat().st_mtime_ns for path in place.path.glob("runs/small/*/report/*")}
    done = place.ok("sweep", *FOUR, "launcher.jobs=2")
    return place, (process.returncode, told), before, done


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(swept):
    place, (status, told), before, done = swept
    assert status == 130
    assert told.strip().splitlines()[-1] == "palimpsest: interrupted; run the same command again to go on"
    assert before
    assert "4 runs, 1 of them finished" in done.lines[0] or "4 runs, 2 of them finished" in done.lines[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before  # finished ones were left alone
    assert len(results(place)) == 4
    page = next(place.path.glob("runs/sweeps/small-*/report/report.html")).read_text()
    assert "4 of 4 runs are finished" in page


@pytest.mark.slow
def test_its_page_and_those_of_its_runs_in_a_browser(chromium, swept):
    place = swept[0]
    path = next(place.path.glob("runs/sweeps/small-*/report/report.html"))
    page = opened(chromium, path, items=False)
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
    assert faults(page.page) == []
    figures = page.page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(f => f.querySelectorAll('path, line, text').length)"
    )
    assert len(figures) == 2
    assert min(figures) > 10
    links = page.page.evaluate("[...document.querySelectorAll('a[href$=\"report.html\"]')].map(a => a.href)")
    assert sorted(links) == sorted(
        report.as_uri() for report in place.path.glob("runs/small/*/report/report.html")
    )
    page.page.click("a[href$='report.html'] >> nth=0")
    page.page.wait_for_selector("html[data-items=ready]", state="attached")
    assert page.requests[1:] == links[:1]
    assert page.complaints == []
    assert page.page.locator("figure svg").count() >= 7
    assert faults(page.page) == []
    page.page.context.close()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which SLURM's commands find it."""
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root here")
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)")
    directory = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run(
            [HERE / "start.sh", directory, free_port(), free_port()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if started.returncode:
            pytest.skip(f"SLURM does not start on this machine: {started.stderr.strip()[-300:]}")
        yield {"SLURM_CONF": str(directory / "slurm.conf")}
    finally:
        subprocess.run([HERE / "stop.sh", directory], check=False, timeout=60)


def steps_of(run):
    metrics = run / "perturbed" / "metrics.jsonl"
    return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0


def trainer_of(place, run):
    """The process that trains the perturbed run of this line."""
    wanted = [argument.encode() for argument in [*run["arguments"], "run=perturbed"]]
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().split(b"\0")
            here = (path / "cwd").readlink() == place.path
        except OSError:
            continue
        if here and command[1:2] and command[1].endswith(b"launch/train.py") and command[2:-1] == wanted:
            return int(path.name)
    return None


def queue(environment, jobs):
    """The jobs that wait or run, a line each."""
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%i %T %r", f"--jobs={','.join(jobs.values())}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split("\n")


@pytest.mark.slow
def test_two_lost_tasks_change_nothing(slurm, swept, tmp_path):
    """One gets TERM from scancel, one is killed; both are put back and go on. Every number is the local sweep's."""
    local = swept[0]
    place = Workplace(tmp_path, SMALL)
    shutil.copy(local.path / "text.jsonl", tmp_path)
    launcher = [
        "launcher=slurm",
        "launcher.account=null",
        "launcher.cpus=1",
        "launcher.jobs=2",
        "launcher.time=10",
    ]
    environment = {**slurm, "OMP_NUM_THREADS": "1"}
    place.ok("sweep", *FOUR, *launcher, env=environment)
    (sweep,) = (tmp_path / "runs" / "sweeps").glob("small-*")
    jobs = json.loads((sweep / "jobs.json").read_text())
    runs = [json.loads(line) for line in (sweep / "runs.jsonl").read_text().splitlines()]
    # The same sweep is not submitted twice.
    again = place.run("sweep", *FOUR, *launcher, env=environment)
    assert again.status == 2
    assert "is in SLURM's queue" in again.lines[-1]

    lost = {}
    deadline = time.monotonic() + 1800
    while any(line.strip() for line in queue(slurm, jobs)):
        assert time.monotonic() < deadline, queue(slurm, jobs)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            for index, how in ((0, signal.SIGTERM), (1, signal.SIGKILL)):
                if index in lost or not 3 <= (step := steps_of(tmp_path / runs[index]["directory"])) < 15:
                    continue
                if (process := trainer_of(place, runs[index])) is None:
                    continue
                if how == signal.SIGTERM:
                    os.kill(process, signal.SIGSTOP)  # lest it ends before SLURM's signal comes
                    task = f"{jobs['train-perturbed']}_{index}"
                    subprocess.run(
                        ["scancel", "--signal=TERM", task], env={**os.environ, **slurm}, check=True
                    )
                    time.sleep(1)
                    os.kill(process, signal.SIGCONT)
                else:
                    os.kill(process, signal.SIGKILL)
                lost[index] = step
            time.sleep(0.005)
    logs = {path.name: path.read_text() for path in (sweep / "logs").iterdir()}
    assert sorted(lost) == [0, 1], logs
    for index in lost:
        log = logs[f"train-perturbed-{index}.log"]
        assert "put back, to go on from the last checkpoint" in log, log
        assert "perturbed: going on from step" in log, log
    assert "status 137" in logs["train-perturbed-1.log"]
    assert results(place) == results(local)
    assert "4 of 4 runs are finished" in (sweep / "report" / "report.html").read_text()
