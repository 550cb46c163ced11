"""Programs that are given a run's directory instead of the settings that made it."""

import json
import re
import shutil

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.analysis.run import open_run
from palimpsest.data.errors import UserError
from palimpsest.launch import recorded
from palimpsest.launch.compose import CONF, build
from tests.conftest import Workplace

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*_nano.yaml"))


@pytest.fixture
def place(finished):
    return Workplace(finished.parents[2])


@pytest.fixture
def run(finished):
    return f"runs/small/{finished.name}"


def test_command_and_configuration_lie_in_the_run(finished):
    first, where = (finished / "config.yaml").read_text().splitlines()[:2]
    assert first.startswith("# palimpsest run --config-dir=")
    assert first.endswith("insertion.max_share=0.5")
    assert where == f"# in {finished.parents[2]}"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (("audit",), "PASS"),
        (("score",), "all scores were there"),
        (("plan", "show", "item=biography-00000"), "biography-00000"),
        (("plan",), "reusing runs/small/finished-"),
        (("run", "dry_run=true"), "finished at step 40"),
        (("prepare", "show=3"), "window 24 token 0"),
    ],
)
def test_programs_take_it(place, run, program, told):
    assert told in place.ok(*program, run).out


def test_an_item_that_was_never_inserted_is_called_so(place, run, finished):
    dose = dict(open_run(finished).plan.items.select("item_id", "dose").iter_rows())
    control, inserted = (next(name for name in dose if (dose[name] == 0) == never) for never in (True, False))
    assert "never inserted" in place.ok("show", run, f"item={control}").out
    assert "never inserted" not in place.ok("show", run, f"item={inserted}").out


def test_a_mistyped_table_is_no_run(place):
    refused = place.run("show", "gain")
    assert refused.status == 2
    assert "gain: there is no such table; did you mean 'gains'?" in refused.out


def test_a_run_that_is_older_than_a_setting_takes_its_default(finished, tmp_path):
    path = tmp_path / finished.parent.name / finished.name
    shutil.copytree(finished, path)
    (path / "config.yaml").write_text(
        "".join(
            part
            for part in re.split(r"(?m)^(?=\S)", (finished / "config.yaml").read_text())
            if not part.startswith(("posttrain:", "generate:"))
        )
    )
    shutil.copytree(finished.parents[1] / "corpora", tmp_path / "corpora")
    loaded = recorded.load(path, ["posttrain=simnpo"])
    assert loaded.posttrain.method == "simnpo"
    assert loaded.directory.name == finished.name


def test_a_report_with_one_more_metric(place, run, tmp_path):
    done = place.ok("report", run, "report.metrics=[min_k_logprob]", f"report.out={tmp_path / 'mine'}")
    assert f"report: {tmp_path / 'mine'}" in done.out
    assert "min_k_logprob" in (tmp_path / "mine" / "estimates.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train.steps=50"], "train.steps=50 would make another run of runs/small/finished-"),
        (["name=other"], "name=other would make another run of runs/small/finished-"),
        (["seed=2"], "would make another run"),
        (["+experiment=small"], "has an experiment of its own; give one of the two"),
        (["report.metric=[x]"], "report.metric: there is no such setting; did you mean 'report.metrics'?"),
        (["runs"], "one run at a time"),
    ],
)
def test_what_it_refuses(place, run, arguments, told):
    done = place.run("report", run, *arguments)
    assert done.status == 2
    assert told in done.lines[-1]


def test_export_takes_it(place, run):
    """Its checkpoints, named where another is asked for; nothing is written."""
    done = place.run("export", run, "step=41")
    assert done.status == 2
    assert "step=41: there is no such checkpoint" in done.lines[-1]
    assert f"{run}/perturbed/checkpoints" in done.lines[-1]
    assert not (place.path / run / "perturbed" / "export").exists()


def test_every_csv_of_a_report_says_which_run_it_is_of(finished):
    plan = json.loads((finished / "plan" / "manifest.json").read_text())["digest"]
    found = sorted((finished / "report").glob("*.csv"))
    assert len(found) > 10
    for path in found:
        table = pl.read_csv(path, infer_schema_length=None)
        assert {"source", "seed", "digest"} <= set(table.columns), path.name
        assert set(table.select("source", "seed", "digest").iter_rows()) <= {
            (f"small/{finished.name}", 1, plan)
        }


def test_places_without_a_run(place, run):
    for given, told in (
        ("runs/small/finshed-1", "there is no runs/small/finshed-1; did you mean"),
        ("train.steps", "a setting is typed train.steps=VALUE"),
        (f"{run}/report", f"{run}/report is a part of a run; open "),
    ):
        done = place.run("report", given)
        assert done.status == 2
        assert told in done.lines[-1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_recorded_is_the_experiment(name, tmp_path, monkeypatch):
    """Every setting is read back as it was, from anywhere."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            experiment = build(compose("config", [f"+experiment={name}"]))
        except UserError as error:
            pytest.skip(str(error))  # starts from weights that are not here
    experiment.directory.mkdir(parents=True)
    recorded.record(experiment)
    assert recorded.load(experiment.directory, []) == experiment
    assert recorded.load(experiment.directory, ["shard=0/4"]).shard == "0/4"


def test_a_refused_attempt_leaves_nothing(pristine):
    """Neither a directory nor an experiment: a plan that cannot be made, or a run that wants what is not there."""
    before = sorted(pristine.path.rglob("*"))
    for arguments in (["insertion.items_per_dose=5000"], ["insertion.max_share=0.0001"]):
        done = pristine.run("plan", "name=refused", *arguments)
        assert done.status == 2, done.out
        assert sorted(pristine.path.rglob("*")) == before


def test_planned_runs_are_passed_over(finished):
    """Those of which nothing was trained do not stand in the way of the one that was."""
    place = Workplace(finished.parents[2])
    planned = shutil.copytree(finished / "plan", finished.with_name("finished-00000000") / "plan").parent
    try:
        assert open_run(finished.parent / "finished").directory == finished
        assert "planned, nothing trained: small/" in place.ok("runs").out
    finally:
        shutil.rmtree(planned)


@pytest.mark.slow
def test_a_run_ends_with_what_it_found(place, run, finished):
    """The report's sentence is the last line."""
    headline = json.loads((finished / "report" / "summary.json").read_text())["headline"]
    assert place.ok("run", run).lines[-1] == headline
