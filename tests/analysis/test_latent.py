"""Latent memories: items that come back without a new exposure."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.report import ReportInputs, analyse, build
from palimpsest.analysis.report.latent import latent, shares_back
from tests.analysis.synthetic import experiment

STEPS = (0, 10, 20, 30, 40, 50)


def course(gains: dict[int, float], steps: tuple[int, ...] = STEPS) -> ReportInputs:
    """Inserted items, last exposed at step 9, are ``gains`` nats a token likelier at these steps."""
    base = experiment(steps=steps, effect=0.0, per_cell=4)
    inserted = base.items.filter(pl.col("dose") > 0)["item_id"].to_list()
    probes = base.probes.filter(pl.col("item_id").is_in(inserted))["probe_id"].to_list()
    raised = (pl.col("run") == "perturbed") & pl.col("probe_id").is_in(probes)
    by_step = pl.col("step").replace_strict(gains, default=0.0, return_dtype=pl.Float64)
    scores = base.scores.with_columns(more=pl.when(raised).then(by_step).otherwise(0.0))
    scores = scores.with_columns(
        logprob=pl.struct("logprob", "more").map_elements(
            lambda row: [value + row["more"] for value in row["logprob"]], return_dtype=pl.List(pl.Float64)
        )
    )
    scores = scores.with_columns(pl.col("logprob").cast(pl.List(pl.Float32))).drop("more")
    exposures = pl.DataFrame({"item_id": inserted, "step": [9] * len(inserted)})
    return dataclasses.replace(base, scores=scores, exposures=exposures, permutations=199)


def test_states() -> None:
    held = np.array(
        [[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], dtype=bool
    )
    assert shares_back(held) == pytest.approx([1, 0, np.nan, 1, np.nan, np.nan], nan_ok=True)
    longer = np.array([[1, 0, 1, 0, 1, 0]], dtype=bool)
    assert shares_back(longer) == pytest.approx([2 / 4])


def test_what_comes_back_is_told_from_what_stays_away(tmp_path: Path) -> None:
    returned = course({10: 1.5, 20: 1.5, 30: 0.0, 40: 1.5, 50: 1.5})
    found = latent(analyse(returned), returned)
    assert found["dose"].to_list() == [0, 1, 4, 16, 64]
    assert found["checkpoints"].unique().to_list() == [5]
    inserted = found.filter(pl.col("dose") > 0)
    # The limit is the 95 % quantile of four controls a family: some items are above it at step 30 without any gain.
    assert (inserted["forgotten"] >= 0.6 * inserted["n"]).all()
    assert (inserted["came_back"] == inserted["forgotten"]).all()
    assert inserted["estimate"].to_list() == pytest.approx([1] * 4)
    assert (inserted["p"] < 0.05).all()
    build(returned, tmp_path)
    assert pl.read_csv(tmp_path / "latent.csv").height == 5
    assert "Latent memories" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_is_forgotten_for_good_comes_back_no_oftener_than_never_inserted_text() -> None:
    gone = course({10: 1.5, 20: 1.5})
    found = latent(analyse(gone), gone).filter(pl.col("dose") > 0)
    assert (found["forgotten"] >= 0.9 * found["n"]).all()
    assert (found["estimate"] < 0.6).all()  # by chance, at one of three checkpoints
    assert (found["p"].drop_nulls() > 0.01).all()


def test_two_checkpoints_are_too_few_and_nothing_learned_is_nothing_forgotten() -> None:
    few = course({10: 1.5}, steps=(0, 10, 20))
    assert latent(analyse(few), few).is_empty()
    never = dataclasses.replace(few, exposures=few.exposures.clear())
    assert latent(analyse(never), never).is_empty()
