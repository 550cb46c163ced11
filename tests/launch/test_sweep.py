"""A sweep: what a line expands to, and that nothing is lost or run twice."""

import json

import pytest

from palimpsest.data.errors import UserError
from palimpsest.launch import preconditions
from palimpsest.launch.compose import CONF
from palimpsest.launch.sweep import composed, expand, gpus, gpus_of, lines_of
from tests.conftest import Workplace

QUICK = "+experiment=quickstart"


def test_every_combination_once():
    lines = expand([QUICK, "seed=1,2,3", "train.steps=500", "model=nano,tiny"])
    assert [arguments for arguments, _ in lines] == [
        (QUICK, f"seed={seed}", "train.steps=500", f"model={model}")
        for seed in (1, 2, 3)
        for model in ("nano", "tiny")
    ]
    assert lines[3][1] == {"seed": "2", "model": "tiny"}


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("insertion.doses=[0,1,4]", None),  # a list is one value
        ("insertion.doses=[0,1],[0,4]", ["[0,1]", "[0,4]"]),
        ("insertion.phase=[{end: 0.25}],[{start: 0.75}]", ["[{end:0.25}]", "[{start:0.75}]"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("seed=choice(5,7)", ["5", "7"]),
        ("~insertion.families.passages", None),
    ],
)
def test_what_a_list_of_values_is(argument, values):
    lines = expand([QUICK, argument])
    if values is None:
        assert lines == [((QUICK, argument), {})]
    else:
        key = argument.split("=")[0]
        assert [factors for _, factors in lines] == [{key: value} for value in values]
        composed(lines)  # what was expanded can be read again


def test_runs_have_their_own_directories():
    runs = composed(expand([QUICK, "seed=1,2", "model=nano,tiny", "launcher.jobs=2"]))
    assert len({run.experiment.directory for run in runs}) == 4
    assert [run.experiment.seed for run in runs] == [1, 1, 2, 2]
    assert [run.experiment.model.name for run in runs] == ["nano", "tiny"] * 2
    assert all("launcher.jobs=2" not in run.arguments for run in runs)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_named_sweeps(name):
    """Every file in conf/sweep is a sweep of runs that compose; their names are a factor beside those typed."""
    runs = composed(lines_of([f"+sweep={name}", "seed=1,2", "launcher=report"]))
    assert len({run.experiment.directory for run in runs}) == len(runs) >= 4
    assert {run.experiment.seed for run in runs} == {1, 2}
    own = {"counterfactual": ("insertion.coin_seed",), "scaling": ("train.steps",)}.get(
        name.split("_")[0], ()
    )
    assert {tuple(run.factors) for run in runs} == {(name, *own, "seed")}
    families = 3 if own else 16
    assert all(len(run.experiment.insertion.families) == families for run in runs)
    assert not any(preconditions.unfit(run.experiment) for run in runs)


def test_phases_and_tokens_of_hubble():
    timing = composed(lines_of(["+sweep=hubble_timing"]))
    spans = [(phase.start, phase.end) for run in timing for phase in run.experiment.insertion.phase]
    assert spans == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1), (0, 0.5), (0.5, 1)]
    short, long = composed(lines_of(["+sweep=hubble_dilution"]))
    for run, tokens in ((short, 100.7e9), (long, 500.2e9)):
        train = run.experiment.train
        assert train.steps * train.global_batch_size * train.sequence_length == pytest.approx(
            tokens, rel=1e-3
        )
    assert short.experiment.insertion == long.experiment.insertion


def test_an_unknown_sweep_is_refused():
    with pytest.raises(UserError, match=r"\+sweep=hubble_time: there is no such sweep; did you mean"):
        lines_of(["+sweep=hubble_time"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["seed=1,1"], "has a value twice"),
        (["train.checkpoint_every=10,20"], "the same run"),
        (["launcher.jobs=1,2"], "launcher.jobs must have one value"),
        (["runs=a,b"], "runs must have one value"),
        (["model=glob(*)"], "one by one"),
        (["seed=1,-1"], "seed=-1 must lie between"),
        (["--multirun"], "a sweep takes no --multirun"),
        (["launcher.jobs=0"], "launcher.jobs=0 must be above 0"),
    ],
)
def test_refused_before_anything_starts(arguments, told):
    with pytest.raises(UserError, match=told):
        composed(expand([QUICK, *arguments]))


def test_unset_account_and_absent_slurm(tmp_path):
    place = Workplace(tmp_path)
    done = place.run("sweep", QUICK, "seed=1,2", "launcher=slurm")
    assert done.status == 2
    assert done.lines[-1].startswith("palimpsest: launcher.account has no value; set it: launcher.account=")
    assert list(tmp_path.iterdir()) == []
    done = place.run(
        "sweep", QUICK, "seed=1,2", "launcher=slurm", "launcher.account=me", env={"PATH": "/nowhere"}
    )
    assert done.status == 2
    assert "there is no sbatch on this machine" in done.lines[-1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.steps=450,225"], "the plan has 2,550 exposures but there are only 1,800 windows"),
        (
            ["insertion.phase=[{end: 1.0}],[{end: 0.5}]"],
            "the plan has 2,550 exposures but there are only 1,800",
        ),
        (
            ["insertion.phase=[{unit: step, end: 450}],[{unit: step, end: 460}]"],
            "ends at step 460, but the run has",
        ),
    ],
)
def test_a_run_that_has_no_room_stops_the_sweep_first(tmp_path, settings, told):
    done = Workplace(tmp_path).run("sweep", QUICK, *settings)
    assert done.status == 2
    assert told in done.lines[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("devices", "jobs", "wanted"),
    [
        ("0,1,2,3", 2, [["0", "1"], ["2", "3"]]),
        ("4,5", 2, [["4"], ["5"]]),
        ("GPU-a,GPU-b,GPU-c", 2, [["GPU-a"], ["GPU-b"]]),  # equal shares
        ("0,1", 3, [["0"], ["1"], ["0"]]),  # two runs share one
    ],
)
def test_runs_at_a_time_have_gpus_of_their_own(monkeypatch, devices, jobs, wanted):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert [gpus_of(slot, jobs, gpus()) for slot in range(jobs)] == wanted


def test_without_gpus_nothing_is_assigned(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpus() == []


def test_runs_that_fail_are_named_and_run_again_alone(prepared):
    """Both runs fail at planning; status 2 as theirs, and each one's line is shown."""
    arguments = ("name=long", "insertion.families.passages.tokens=70,71", "launcher.jobs=2")
    for _ in range(2):
        done = prepared.run("sweep", *arguments)
        assert done.status == 2, done.out
        assert sum("longer than a window: item passage-" in line for line in done.lines) == 2
        assert "2 of 2 runs failed (0, 1)" in done.lines[-1]
    (manifest,) = (prepared.path / "runs" / "sweeps").glob("small-*/runs.jsonl")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [line["factors"] for line in lines] == [
        {"insertion.families.passages.tokens": "70"},
        {"insertion.families.passages.tokens": "71"},
    ]
