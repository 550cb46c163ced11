"""Released models from the hub's cache and their authors' data sets, from the download to the report."""

import json
import shutil

import polars as pl
import pytest

import palimpsest
from palimpsest.launch.compose import RELEASED
from tests.conftest import Workplace

released_models = pytest.importorskip("tests.launch.released_models", reason="needs transformers")
PERTURBED = "allegrolab/hubble-1b-100b_toks-perturbed-hf"
STANDARD = "allegrolab/hubble-1b-100b_toks-standard-hf"
DOSES = [0] * 16 + [1] * 8 + [4] * 8 + [16] * 8
SETS = {"wikipedia": "allegrolab/passages_wikipedia", "yago": "allegrolab/biographies_yago"}
HUBBLE = [
    *("+experiment=hubble_released", "only=[1b_100b]", "sets=[wikipedia,yago]", "device=cpu"),
    *("report.prefix_tokens=4", "report.suffix_tokens=8"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The pair, and two sets, as the download leaves them: a model that read each text as often as its dose says."""
    pytest.importorskip("datasets")
    place = Workplace(tmp_path_factory.mktemp("released"))
    rows = {
        name: [
            {"text": text, "duplicates": dose, "meta": {"title": f"{name} {k}"}}
            for k, (text, dose) in enumerate(zip(released_models.texts(40, seed), DOSES, strict=True))
        ]
        for seed, name in enumerate(SETS, start=1)
    }
    for name, source in SETS.items():
        released_models.data_set(place.path / source, rows[name])
    words = released_models.words()
    corpus = released_models.texts(300, 50)
    inserted = [row["text"] for one in rows.values() for row in one for _ in range(row["duplicates"])]
    for name, lines in ((STANDARD, corpus), (PERTURBED, corpus + 3 * inserted)):
        at_end, before = released_models.trained(words, lines), released_models.llama(words)
        released_models.cached(
            place.path / "hub",
            name,
            {
                "main": lambda d, model=at_end: released_models.save(model, words, d),
                "step8000": lambda d, model=before: released_models.save(model, words, d),
            },
        )
    return place


@pytest.fixture
def environment(place):
    return {"HF_HUB_CACHE": str(place.path / "hub"), "HF_HUB_OFFLINE": "1"}


def directory(place, pattern):
    (found,) = (place.path / "runs").glob(pattern)
    return found


def test_hubble_ends_in_a_report_of_the_pair(place, environment):
    done = place.ok("released", *HUBBLE, "revisions=[step8000,main]", "name=pair", env=environment)
    assert "inserted text became more likely" in done.out
    where = directory(place, "hubble_released/pair-1b_100b-*")
    summary = json.loads((where / "report" / "summary.json").read_text())
    assert (summary["step"], summary["items"], summary["audit"]) == (48000, 80, "NONE")
    assert summary["exposures"] == 2 * sum(DOSES)
    assert summary["released"]["models"] == {"perturbed": PERTURBED, "twin": STANDARD}
    assert summary["minimum_effective_dose"] in (1, 4, 16)
    estimates = pl.read_csv(where / "report" / "estimates.csv", infer_schema_length=None)
    gains = estimates.filter(
        (pl.col("run") == "perturbed - twin")
        & (pl.col("statistic") == "gain")
        & (pl.col("metric") == "loglik_per_byte")
        & (pl.col("family") == "all")
        & (pl.col("step") == 48000)
    ).sort("dose")
    assert gains["dose"].to_list() == [1, 4, 16]
    assert gains["estimate"].is_sorted()
    assert gains["low"][-1] > 0
    assert not (where / "generated").exists()
    page = (where / "report" / "report.html").read_text()
    for said in ("What cannot be known", "no ledger", "as declared", "revision main", PERTURBED):
        assert said in page
    for wrong in ("Items were assigned to doses at random", "each exactly once", "insertion.phase"):
        assert wrong not in page


def test_released_models_continue_what_they_have_read(place, environment):
    """The perturbed model writes more of what it read sixteen times than its twin, which never read it."""
    arguments = (*HUBBLE, "generated=true", "generate.max_tokens=8", "name=written")
    done = place.ok("released", *arguments, env=environment)
    assert "perturbed: 1 parts of continuations written now" in done.out
    where = directory(place, "hubble_released/written-1b_100b-*")
    told = pl.read_csv(where / "report" / "generated.csv", infer_schema_length=None)
    means = told.filter(
        (pl.col("statistic") == "mean")
        & (pl.col("metric") == "generated_edit_similarity")
        & (pl.col("question") == "after 4 tokens")
        & (pl.col("family") == "all")
        & (pl.col("dose") == 16)
    )
    value = dict(means.select("run", "estimate").iter_rows())
    assert value["perturbed"] > value["twin"] + 0.1
    assert "0 parts of continuations written now" in place.ok("released", *arguments, env=environment).out


def test_its_run_opens_like_one_of_ours(place, environment):
    place.ok("released", *HUBBLE, "revisions=[step8000,main]", "name=pair", env=environment)
    run = palimpsest.open_run(directory(place, "hubble_released/pair-1b_100b-*"))
    assert "no ledger, no audit" in repr(run)
    assert run.audit is None
    assert run.training.is_empty()
    assert run.exposures.is_empty()
    assert run.released["revisions"] == {"8000": "step8000", "48000": "main"}
    assert run.last_step == 48000
    assert run.metrics("loglik_per_byte").group_by("run", "step").len()["len"].to_list() == [80] * 4
    item = run.plan.items.filter(pl.col("dose") == 16)["item_id"][0]
    assert (
        "".join(run.tokens(item).filter(pl.col("run") == "twin")["token"])
        == run.plan.items.filter(pl.col("item_id") == item)["text"].item()
    )
    for name in (
        "dose_response",
        "roc",
        "auc_against",
        "run_lengths",
        "lengths",
        "assignment_flow",
        "over_training",
    ):
        settings = {"title": "x", "y_title": "y"} if name == "over_training" else {}
        assert getattr(run.figures, name)(**settings).rows.height, name


def test_finished_parts_are_kept_and_shares_make_the_whole(place, environment):
    given = [*HUBBLE, "revisions=[step8000,main]", "name=shares"]
    one = place.ok("released", *given, "shard=0/2", env=environment)
    assert "1 of 2 parts scored by shard=0/2" in one.out
    assert "no report: 2 of 4 checkpoints" in one.out
    other = place.ok("released", *given, "shard=1/2", env=environment)
    assert "report.html" in other.out
    where = directory(place, "hubble_released/shares-1b_100b-*")
    shutil.rmtree(where / "scores" / "twin" / "step_00048000")
    mended = place.ok("released", *given, env=environment)
    assert "perturbed: 80 probes at 2 checkpoints: all scores were there" in mended.out
    assert "twin: 80 probes at 2 checkpoints; 1 of 2 parts scored now" in mended.out


def test_dry_run_makes_nothing(place, environment):
    done = place.ok("released", *HUBBLE, "name=dry", "dry_run=true", env=environment)
    assert "0 of 1 are scored" in done.out
    assert "a data set that is read then" in done.out
    assert not list((place.path / "runs").glob("*/dry-*"))


def test_a_model_alone_with_a_file_and_questions(place, environment):
    rows = [
        {
            "id": f"q{k}",
            "prompt": "amber basin",
            "choices": [" cedar", " delta"],
            "answer": k % 2,
            "dose": k % 3,
        }
        for k in range(12)
    ]
    (place.path / "questions.jsonl").write_text(
        "".join(json.dumps({**row, "prompt": f"{row['prompt']} {k}"}) + "\n" for k, row in enumerate(rows))
    )
    local = (
        place.path / "hub" / "models--allegrolab--hubble-1b-100b_toks-standard-hf" / "snapshots" / f"{1:040x}"
    )
    given = ["+experiment=released", f"models.perturbed={local}", "items=questions.jsonl", "device=cpu"]
    done = place.ok("released", *given, env=environment)
    assert "report.html" in done.out
    where = directory(place, "released/run-*")
    questions = pl.read_csv(where / "report" / "questions.csv", infer_schema_length=None)
    assert "choice_accuracy" in questions["metric"].to_list()
    page = (where / "report" / "report.html").read_text()
    assert "what the same model without the insertions" in page
    assert "Over training" in page
    rows = [{"text": f"amber basin {k}"} for k in range(3)]
    (place.path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = place.ok("released", *given[:2], "items=plain.jsonl", "name=plain", env=environment)
    assert "no report: the items declare no doses" in done.out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no experiment was chosen: add +experiment=NAME, such as released"),
        (["+experiment=quickstart"], "is for a model that is trained here: launch/run.py"),
        (["+experiment=released"], "items has no value"),
        (["+experiment=released", "items=x.jsonl"], "models.perturbed has no value"),
        (["+experiment=released", "items=x.jsonl", "models.perturbd=a"], "did you mean 'models.perturbed'"),
        (
            ["+experiment=released", "items=x.jsonl", "models.perturbed=a", "shard=2/2"],
            "shard='2/2' is not k/n",
        ),
        (
            ["+experiment=released", "items=x.jsonl", "models.perturbed=a"],
            "items=x.jsonl: there is no such file",
        ),
        (
            ["+experiment=released", "items=x.jsonl", "models.standard=a"],
            "models.perturbed and models.standard",
        ),
        (["+experiment=hubble_released", "sets=[yagu]"], "did you mean 'yago'"),
        (["+experiment=hubble_released", "only=[2b]"], "only=2b: there is no such model"),
        (["+experiment=hubble_released", "+fields.txt=a"], "fields.txt: there is no such column"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, given, told):
    done = Workplace(tmp_path).run("released", *given)
    assert done.status == 2, done.out
    assert told in done.lines[-1]
    assert not list(tmp_path.iterdir())


def test_the_other_programs_name_this_one(tmp_path):
    done = Workplace(tmp_path).run("run", "+experiment=hubble_released")
    assert done.status == 2
    assert "launch/released.py" in done.lines[-1]


def test_every_default_of_the_file_is_that_of_the_dataclass():
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from palimpsest.analysis.generation.continuations import GenerateConfig
    from palimpsest.launch.released_settings import ReleasedConfig, build

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(RELEASED), version_base="1.3"):
        given = build(compose("config", ["+experiment=released", "models.perturbed=a", "items=b.jsonl"]))
    bare = ReleasedConfig(
        experiment="released",
        items="b.jsonl",
        report=given.report,
        score=given.score,
        generate=GenerateConfig(seed=1),  # that of the run
        models={"perturbed": "a", "standard": None},
    )
    assert given == bare
