"""Figures drawn from a run with several phases and wordings, and facts at three depths; its scores are known."""

from __future__ import annotations

import inspect
import json
import shutil
from types import SimpleNamespace

import polars as pl
import pytest

import palimpsest
from palimpsest.analysis import figures
from palimpsest.analysis.run import sweep
from palimpsest.analysis.run.figures import FROM_RUN, SEVERAL, Figures
from palimpsest.analysis.run.rows import ROWS, memorised_families
from palimpsest.data.errors import UserError
from tests.written import GAIN, Written

PLAN = [
    "name=factors",
    "insertion=fictional_facts",
    "insertion.families.fictional_facts.paraphrases=3",
    "insertion.doses=[0,1,4]",
    "insertion.items_per_dose=4",
    "insertion.phase=[{start: 0.0, end: 0.3}, {start: 0.3, end: 0.6}]",
    "insertion.wording=[verbatim, 'rotate:3']",
    "insertion.batch=[any]",
    "insertion.max_share=0.9",
    "insertion.heldout_probes=4",
    "train.sequence_length=512",
]
STEPS = (0, 7, 13, 16, 20)
SHARED = ["estimate", "low", "high", "n"]


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """A run with checkpoints before, between and after its phases; every token of an item of dose d gains d times GAIN
    in the perturbed run from step 7 on."""
    prepared.ok("plan", *PLAN)
    place = tmp_path_factory.mktemp("factors")
    planned = SimpleNamespace(path=prepared.path, directory=lambda: prepared.directory("factors"))
    written = Written(place, planned)
    for which in ("perturbed", "twin"):
        written.log(which, range(1, 21))
        for step in STEPS:
            written.save(which, step)
            written.score(which, step)
    return palimpsest.open_run(place / "runs" / "small" / "run-0123abcd")


def rows(run, name: str) -> pl.DataFrame:
    figure = getattr(run.figures, name)()
    assert figure.chart.to_dict()
    return figure.rows


def per_byte(run, dose: int) -> tuple[float, float]:
    """Least and largest gain of the items of a dose, nats a byte."""
    items = run.plan.items.filter(pl.col("dose") == dose)
    gains = dose * GAIN * items["length"] / items["bytes"]
    return gains.min() - 1e-6, gains.max() + 1e-6


def test_phases_come_with_their_first_and_last_step_and_the_gain_of_each_dose(run):
    found = rows(run, "phases")
    assert set(found["phase"]) == {"0-0.3", "0.3-0.6"}
    assert found.filter(pl.col("phase") == "0-0.3")["end"].max() < 6
    assert found.filter(pl.col("phase") == "0.3-0.6")["start"].min() >= 6
    assert found.filter(pl.col("step") == 0)["estimate"].to_list() == pytest.approx([0] * 4, abs=1e-6)
    for dose in (1, 4):
        final = found.filter((pl.col("step") == 20) & (pl.col("dose") == dose))
        assert final["n"].to_list() == [8, 8]
        assert final["estimate"].is_between(*per_byte(run, dose)).all()


def test_wordings_are_compared_at_the_end(run):
    found = rows(run, "wordings")
    assert set(found["wording"]) == {"verbatim", "rotate:3"}
    assert found.filter(pl.col("dose") == 4)["estimate"].is_between(*per_byte(run, 4)).all()


def test_a_profile_has_a_cohort_a_phase_and_no_effect_before_it(run):
    found = rows(run, "memorisation_profile")
    cohorts = sorted(found["cohort"].unique())
    assert cohorts[0] == 7
    assert len(cohorts) >= 2
    first = found.filter(pl.col("cohort") == 7)
    assert first.filter(pl.col("step") == 0)["estimate"].to_list() == [0]
    assert first.filter(pl.col("step") >= 7)["estimate"].is_between(*per_byte(run, 1)).all()
    # Known scores rise at step 7 for every item: a later cohort's effect was there before its exposure, so it has none.
    late = found.filter((pl.col("cohort") == 13) & (pl.col("step") > 7))
    assert late["estimate"].to_list() == pytest.approx([0] * late.height, abs=1e-6)


def test_facts_are_acquired_by_depth_and_retained(run):
    found = rows(run, "acquisition")
    assert set(found["depth"]) == {"memorization", "semantic", "composition"}
    assert found.filter(pl.col("step") == 0)["estimate"].to_list() == pytest.approx([0] * 3, abs=1e-6)
    assert (found.filter(pl.col("step") == 20)["estimate"] > 0).all()
    assert found.filter(pl.col("injected"))["step"].unique().sort().to_list() == [7, 13]
    kept = rows(run, "retainability")
    assert set(kept["depth"]) == {"memorization", "semantic", "composition"}
    assert kept["estimate"].to_list() == pytest.approx([1] * kept.height, abs=1e-3)


def test_the_design_is_balanced_and_halves_of_the_controls_do_not_differ(run):
    found = rows(run, "balance")
    assert set(found["covariate"]) == {"length in tokens", "length in bytes", "loglik of twin"}
    assert set(found["dose"]) == {1, 4}
    lengths = {dose: run.plan.items.filter(pl.col("dose") == dose)["length"] for dose in (0, 1, 4)}
    scatter = sum(((x - x.mean()) ** 2).sum() for x in lengths.values()) / sum(map(len, lengths.values()))
    for dose in (1, 4):
        row = found.filter((pl.col("covariate") == "length in tokens") & (pl.col("dose") == dose)).row(
            0, named=True
        )
        wanted = (lengths[dose].mean() - lengths[0].mean()) / scatter**0.5
        assert row["difference"] == pytest.approx(wanted)
        assert row["n"] == len(lengths[dose])
    # The known scores of items that were never inserted are the twin's: no half differs from the other.
    halves = run.figures.aa_pvalues().rows
    assert halves["p"].to_list() == [1.0] * 100
    assert rows(run, "perplexities")["count"].sum() == run.plan.items.height


def test_a_run_without_factors_says_which_setting_a_figure_needs(prepared, tmp_path):
    Written(tmp_path, prepared).whole()
    plain = palimpsest.open_run(tmp_path / "runs" / "small" / "run-0123abcd")
    for name, said in (
        ("phases", "the same phase, .* two or more in insertion.phase"),
        ("wordings", "the same wording, .* two or more in insertion.wording"),
    ):
        with pytest.raises(UserError, match=said):
            getattr(plain.figures, name)()
    assert figures.FIGURES.keys() >= {"phases", "wordings", "acquisition"}


def test_every_figure_is_drawn_from_a_run_or_says_what_makes_its_rows():
    for name in dir(Figures(None)):
        first = next(iter(inspect.signature(getattr(figures, name)).parameters))
        assert first in FROM_RUN or name in ROWS or name in SEVERAL, name
    assert set(sweep.ROWS) < set(SEVERAL)


@pytest.fixture(scope="module")
def compared(run, tmp_path_factory):
    """A sweep of the run above and of the same one with the twin's scores in place of its own: nothing is gained."""
    place = tmp_path_factory.mktemp("sweep") / "runs"
    lines = []
    for name in ("gained", "nothing"):
        directory = place / "small" / f"{name}-0123abcd"
        shutil.copytree(run.directory, directory, symlinks=True)
        lines.append({"directory": f"runs/small/{name}-0123abcd", "factors": {"model": name}})
    shutil.rmtree(directory / "scores" / "perturbed")
    shutil.copytree(directory / "scores" / "twin", directory / "scores" / "perturbed")
    (place / "sweeps" / "small-0123abcd").mkdir(parents=True)
    (place / "sweeps" / "small-0123abcd" / "runs.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    return palimpsest.open_sweep(place / "sweeps" / "small-0123abcd")


def test_a_sweeps_figures_compare_its_runs(compared, run):
    assert list(compared.runs) == ["model=gained", "model=nothing"]
    shapes = compared.figures.shapes().rows
    for dose in (1, 4):
        gained, nothing = (
            shapes.filter((pl.col("shape") == title) & (pl.col("dose") == dose))["estimate"][0]
            for title in compared.runs
        )
        assert per_byte(run, dose)[0] < gained < per_byte(run, dose)[1]
        assert nothing == pytest.approx(0, abs=1e-6)
    by_family = compared.figures.interference().rows
    assert set(by_family["family"]) == {"fictional_facts"}
    assert sorted(by_family["estimate"]) == pytest.approx(sorted(shapes["estimate"]))
    pairs = compared.figures.profile_correlation().rows
    own = pairs.filter((pl.col("first") == "model=gained") & (pl.col("second") == "model=gained"))
    assert own["estimate"][0] == pytest.approx(1)
    assert dir(compared.figures) == ["interference", "profile_correlation", "shapes"]
    with pytest.raises(AttributeError, match="there is no figure of a sweep 'shape'; did you mean 'shapes'"):
        compared.figures.shape()


def test_what_is_no_sweep_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"is no sweep: it has no runs\.jsonl"):
        palimpsest.open_sweep(run.directory)
    (tmp_path / "runs.jsonl").write_text(json.dumps({"directory": "nowhere/x-0", "factors": {}}) + "\n")
    with pytest.raises(UserError, match=r"no run of .* is scored; palimpsest sweep makes them"):
        palimpsest.open_sweep(tmp_path)


def test_families_of_what_is_reproduced(run):
    """All that is reproduced at a step is of one family here; the shares at a step add up to 1."""
    found = memorised_families(run)
    reproduced = run.metrics("extracted").filter((pl.col("run") == "perturbed") & (pl.col("value") == 1))
    counts = dict(reproduced.drop_nulls("item_id").group_by("step").len().iter_rows())
    assert {int(x): n for x, n in found.select("x", "n").iter_rows()} == counts
    assert found["estimate"].to_list() == pytest.approx([1.0] * found.height)


def test_post_trained_runs_beside_the_twin(run, tmp_path):
    copy = tmp_path / "run-0123abcd"
    shutil.copytree(run.directory, copy, symlinks=True)
    report = copy / "posttrained" / "forget-1" / "report"
    report.mkdir(parents=True)
    rows = [
        ("perturbed", 20, "forget set", "distance", 0.5, 0.4, 0.6),
        ("npo-1", 0, "forget set", "nearer", 0.0, 0.0, 0.0),
        ("npo-1", 5, "forget set", "nearer", 0.3, 0.2, 0.4),
        ("npo-1", 5, "held-out text", "change", -0.1, -0.2, 0.0),
    ]
    table = pl.DataFrame(
        rows, schema=["run", "step", "group", "statistic", "estimate", "low", "high"], orient="row"
    )
    table.with_columns(dose=pl.lit(None, pl.Int64), n=pl.lit(8)).write_csv(report / "estimates.csv")
    drawn = palimpsest.open_run(copy).figures.unlearning().rows
    assert drawn.select("method", "forget", "utility", "forget_low", "utility_high").rows() == [
        ("npo-1", 0.3, -0.1, 0.2, 0.0),
        ("retain", 0.5, 0.0, None, None),
    ]
