"""Replications: declared claims, tested over the runs of several seeds, and a page."""

import csv
import json
import re

import numpy as np
import polars as pl
import pytest

import palimpsest
from palimpsest.analysis.metrics import METRICS
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.insertion.contrasts import parts
from palimpsest.launch.plan import plan
from palimpsest.launch.prepare import prepare
from palimpsest.launch.replicate import asked, composed, load, names
from tests.conftest import SMALL, Workplace, write_text

MINE = """
title: Inserted text becomes more likely
finding: it does
source: everybody
pilots: none
arguments: [{arguments}]
runs: {{few: ["insertion.doses=[0,4]"], many: ["insertion.doses=[0,8]"]}}
seeds: [1, 2, 3]
claims:
  rises:
    text: Text is more likely after 8 insertions
    published: "yes"
    quantity: gain
    cell: {{metric: loglik_per_byte, run: many, dose: 8}}
    expected: 0.1
    deviation: 0.05
    unit: nats/byte
  more:
    text: Eight insertions do more than four
    published: "yes"
    quantity: gain
    cell: {{metric: loglik_per_byte, run: many, dose: 8}}
    minus: {{run: few, dose: 4}}
    expected: 0.05
    deviation: 0.02
    unit: nats/byte
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("replication"))
    write_text(place.path / "text.jsonl")
    arguments = ", ".join(json.dumps(text) for text in [*SMALL, "train.steps=24"])
    (place.path / "mine.yaml").write_text(MINE.format(arguments=arguments))
    place.ok("replicate", "mine.yaml", "jobs=2", "out=pages", timeout=900)
    return place


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_page_says_what_the_runs_say(place):
    claims = {row["claim"]: row for row in table(place.path / "pages" / "mine.csv")}
    gains: dict[str, list[float]] = {"few": [], "many": []}
    lines = (place.path / "runs" / "replications" / "mine" / "runs.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        rows = palimpsest.open_run(place.path / line["directory"]).gains("loglik_per_byte")
        inserted = rows.filter(rows["dose"] > 0)
        gains[line["factors"]["run"]].append(float(inserted["gain"].mean()))
    assert [float(claims["rises"][f"seed {seed}"]) for seed in (1, 2, 3)] == pytest.approx(gains["many"])
    difference = np.subtract(gains["many"], gains["few"])
    assert [float(claims["more"][f"seed {seed}"]) for seed in (1, 2, 3)] == pytest.approx(list(difference))
    page = (place.path / "pages" / "mine.md").read_text()
    assert "Text is more likely after 8 insertions" in page
    assert "seeds (1, 2, 3)" in page
    assert (place.path / "pages" / "mine.svg").stat().st_size > 1000
    overview = (place.path / "pages" / "README.md").read_text()
    assert "[Inserted text becomes more likely](mine.md)" in overview
    assert sum(file.stat().st_size for file in (place.path / "pages").iterdir()) < 1_000_000


@pytest.mark.slow
def test_runs_that_differ_in_insertions_alone_share_their_twin(place):
    lines = (place.path / "runs" / "replications" / "mine" / "runs.jsonl").read_text().splitlines()
    last = "twin/checkpoints/step_00000024/manifest.json"
    weights = [(place.path / one["directory"] / last).stat().st_ino for one in map(json.loads, lines)]
    assert len(weights) == 6
    assert len(set(weights)) == 3  # one a seed


@pytest.mark.slow
def test_the_same_command_makes_no_run_again(place):
    before = (place.path / "pages" / "mine.csv").read_bytes()
    again = place.ok("replicate", "mine.yaml", "out=pages")
    assert "6 runs, 6 of them finished" in again.out
    assert (place.path / "pages" / "mine.csv").read_bytes() == before


@pytest.mark.slow
def test_other_seeds_are_pilots_and_write_no_page(place):
    done = place.ok("replicate", "mine.yaml", "seeds=[1,2]", "out=elsewhere")
    assert "pilot runs" in done.out
    assert "deviation" in done.out
    assert not (place.path / "elsewhere").exists()


PROGRAMS = """
title: Programs that make runs
finding: they do
source: everybody
pilots: none
arguments: [{arguments}, "insertion.doses=[0,8]"]
runs:
  main: []
  before: [posttrain, posttrain=gradient_ascent, posttrain.steps=0]
  npo: [posttrain, posttrain=npo, posttrain.steps=2]
  relearned: [posttrain, posttrain=relearn, posttrain.steps=2, posttrain.after=npo]
  until: [adaptive, "insertion.doses=[0,1]", "~insertion.families.passages",
    "insertion.adaptive={{policy: insert_until, at: [8,16], threshold: 0.001, each: 4}}"]
seeds: [1, 2, 3]
claims:
  before: {{text: The forget set is likelier than under the twin, published: "yes", quantity: unlearned,
    cell: {{run: before, group: forget set, statistic: shift}}, expected: 0.1, deviation: 0.1}}
  npo: {{text: NPO changes it, published: "yes", quantity: unlearned,
    cell: {{run: npo, group: forget set, statistic: change}}, direction: less, expected: 0.1, deviation: 0.1}}
  until: {{text: Items are remembered after a few exposures, published: "yes", quantity: ec50,
    cell: {{metric: loglik_per_byte, run: until, level: 0.001}}, direction: less, against: 9, expected: 1,
    deviation: 1}}
"""


@pytest.mark.slow
def test_runs_of_other_programs_start_from_the_pair_and_are_made_once(tmp_path):
    place = Workplace(tmp_path)
    write_text(place.path / "text.jsonl")
    arguments = ", ".join(
        json.dumps(text) for text in [*SMALL, "train.steps=24", "posttrain.forget.share=0.5"]
    )
    (place.path / "mine.yaml").write_text(PROGRAMS.format(arguments=arguments))
    done = place.ok("replicate", "mine.yaml", "seeds=[1,2]", timeout=900)
    assert "10 runs, 0 of them finished" in done.out
    assert "10 runs, 10 of them finished" in place.ok("replicate", "mine.yaml", "seeds=[1,2]").out
    lines = map(json.loads, (place.path / "runs/replications/mine/runs.jsonl").read_text().splitlines())
    directories = {(line["factors"]["run"], line["factors"]["seed"]): line["directory"] for line in lines}
    assert directories["npo", "1"] == directories["main", "1"] != directories["until", "1"]
    for seed in ("1", "2"):
        (report,) = (place.path / directories["main", seed]).glob("posttrained/*/report")
        runs = json.loads((report / "summary.json").read_text())
        assert sorted(
            (run["method"], run["parent"].split("-")[0], run["training_steps"]) for run in runs.values()
        ) == [
            ("gradient_ascent", "perturbed", 0),
            ("npo", "perturbed", 2),
            ("relearn", "npo", 2),
        ]
        found = pl.read_csv(report / "estimates.csv", infer_schema_length=None)
        whole = found.filter(pl.col("dose").is_null(), pl.col("group") == "forget set")
        for name, run in runs.items():
            one = whole.filter(pl.col("run") == name, pl.col("step") == run["training_steps"])
            (said,) = one.filter(pl.col("statistic") == "shift")["estimate"]
            assert (f"{said:.3g}" in done.out) == (run["training_steps"] == 0)


def test_a_program_that_makes_no_runs_is_refused(tmp_path):
    text = MINE.format(arguments="+experiment=replicate").replace("few: [", "few: [posttrian, ")
    (tmp_path / "mine.yaml").write_text(text)
    one = load(str(tmp_path / "mine.yaml"))
    with pytest.raises(
        UserError, match=r"runs\.few: there is no program posttrian .*; did you mean 'posttrain'"
    ):
        composed(one, one.seeds, [])


@pytest.mark.parametrize("name", names())
def test_every_shipped_replication_composes_and_its_cells_are_in_its_design(name):
    one = load(name)
    runs = composed(one, one.seeds[:1], [])
    assert [run.factors["run"] for run in runs] == list(one.runs)
    for claim in one.claims.values():
        for cell in (claim.cell, {**claim.cell, **(claim.minus or {})}):
            run = next(run for run in runs if run.factors["run"] == cell.get("run", next(iter(one.runs))))
            doses = {arm.dose for _, design in run.experiment.insertion.designs() for _, arm in design.arms}
            assert cell.get("dose", 0) in doses, (name, cell)
            assert cell.get("step", 0) in {0, *run.experiment.train.checkpoint_steps()}, (name, cell)
            assert cell.get("since", 0) in {0, *run.experiment.train.checkpoint_steps()}, (name, cell)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted({*names()} - {"traps"})
)  # traps train a model before they can be planned
def test_every_shipped_replication_can_be_planned(name, runs):
    one = load(name)
    for run in composed(one, one.seeds[:1], [f"runs={runs}"]):
        prepare(run.experiment)
        plan(run.experiment)
        items = plans.read(run.experiment.directory / "plan").items
        cells = [
            cell
            for claim in one.claims.values()
            for cell in (claim.cell, {**claim.cell, **(claim.minus or {})})
            if cell.get("run", run.factors["run"]) == run.factors["run"]
        ]
        assert {cell["family"] for cell in cells if "family" in cell} <= set(items["family"])
        probes = plans.read(run.experiment.directory / "plan").probes
        for cell in cells:
            if "metric" in cell and run.program == "run":
                asked = probes.filter(pl.col("kind").is_in(METRICS[cell["metric"]].needs))["name"]
                asked = asked.str.replace(r" #.*$", "")
                assert cell.get("question", asked[0]) in set(asked), (name, cell)
        names = [parts(arm) for arm in items["arm"].unique()]
        assert all(any(parts(cell["arm"]) <= arm for arm in names) for cell in cells if "arm" in cell)


@pytest.mark.parametrize("name", names())
def test_notes_name_the_models_own_number_of_parameters(name):
    one = load(name)
    counts = [
        run.experiment.model.parameters(
            run.experiment.corpus.tokenizer.vocab_size, run.experiment.train.sequence_length
        )
        for run in composed(one, one.seeds[:1], [])
    ]
    said = re.findall(r"([\d.]+)M(?= and [\d.]+M parameters| parameters)", one.notes)
    assert said == sorted({f"{count / 1e6:.1f}" for count in counts})


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give one replication"),
        (["dose", "timing"], "give one replication"),
        (["dose", "seeds=[a]"], "are numbers"),
        (["dose", "jobs=0"], "jobs=0 must be above 0"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_named(arguments, part):
    with pytest.raises(UserError) as error:
        asked(arguments)
    assert part in str(error.value)


def test_an_unknown_replication_is_named_and_the_nearest_given():
    with pytest.raises(UserError) as error:
        load("dosis")
    assert "did you mean 'dose'?" in str(error.value)


def test_a_mistake_in_a_file_names_file_and_field(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE.format(arguments="").replace("quantity: gain", "quantity: gian"))
    with pytest.raises(UserError) as error:
        load(str(tmp_path / "mine.yaml"))
    assert "mine.yaml" in str(error.value)
    assert "quantity=gian is unknown" in str(error.value)
