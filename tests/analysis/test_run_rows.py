"""Figures drawn from a run with several phases and wordings, and facts at three depths; its scores are known."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest

import palimpsest
from palimpsest.analysis import figures
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
