"""Figures of order, recognition, formats, reasoning and bits, drawn from runs that programs made."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from scipy import stats

import palimpsest
from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ModelConfig
from tests.written import Written

PLAN = [
    "name=questions",
    "~insertion.families.passages",
    "~insertion.families.ghost_sentences",
    "+insertion.families={few_shot_memories: {}, test_sets: {ask: [question, infill]}, knights_knaves: {}}",
    "insertion.doses=[0,1,4]",
    "insertion.items_per_dose=4",
    "insertion.max_share=0.9",
    "insertion.heldout_probes=4",
    "train.sequence_length=512",
]


@pytest.fixture(scope="module")
def asked(prepared, tmp_path_factory):
    """A run whose items of dose 4 are reproduced, and the others not; every choice of an item is as likely a token."""
    prepared.ok("plan", *PLAN)
    place = tmp_path_factory.mktemp("questions")
    planned = SimpleNamespace(path=prepared.path, directory=lambda: prepared.directory("questions"))
    Written(place, planned).whole()
    return palimpsest.open_run(place / "runs" / "small" / "run-0123abcd")


@pytest.fixture(scope="module")
def trained(finished):
    return palimpsest.open_run(finished)


def rows(run, name: str) -> pl.DataFrame:
    figure = getattr(run.figures, name)()
    assert figure.chart.to_dict()
    return figure.rows


def test_recall_begins_where_the_last_words_are_reproduced(asked):
    found = rows(asked, "recognition_recall")
    values = {(row["measure"], row["x"]): row["estimate"] for row in found.iter_rows(named=True)}
    assert values == {
        **{("recognition", dose): 0.5 for dose in (0, 1, 4)},
        **{("recall", 0): 0.0, ("recall", 1): 0.0, ("recall", 4): 1.0},
    }
    assert set(found["n"]) == {4}


def test_formats_are_those_that_are_asked(asked):
    found = rows(asked, "format_transfer")
    values = asked.metrics("choice_accuracy", steps=[20]).filter(
        (pl.col("run") == "perturbed") & (pl.col("dose") == 4) & (pl.col("family") == "test_sets")
    )
    assert set(found["trained"]) == {"question"}
    assert set(found["tested"]) == set(values["question"]) >= {"question", "infill"}
    for row in found.iter_rows(named=True):
        own = values.filter(pl.col("question") == row["tested"])
        assert row["estimate"] == pytest.approx(
            own.group_by("item_id").agg(pl.col("value").mean())["value"].mean()
        )


def test_puzzles_are_split_into_inserted_and_never_inserted(asked):
    found = rows(asked, "limem")
    assert set(found.select("run", "split").iter_rows()) == {
        (run, split) for run in ("perturbed", "twin") for split in ("inserted", "never inserted")
    }
    puzzles = asked.plan.items.filter(pl.col("family").is_in(["knights_knaves", "test_sets"]))["dose"]
    assert dict(found.filter(pl.col("run") == "twin").select("split", "n").iter_rows()) == {
        "inserted": (puzzles > 0).sum(),
        "never inserted": (puzzles == 0).sum(),
    }


def test_the_order_test_is_of_the_items_that_were_read_once(trained):
    step = trained.last_step
    values = {
        which: dict(part.select("item_id", "value").iter_rows())
        for (which,), part in trained.metrics("loglik_per_token", steps=[step]).group_by("run")
    }
    once = trained.plan.items.filter(pl.col("dose") == 1)["item_id"].to_list()
    position = dict(trained.exposures.select("item_id", "position").iter_rows())
    pairs = sorted((position[item], values["perturbed"][item] - values["twin"][item]) for item in once)
    from palimpsest.analysis.run.question_rows import order_residuals

    found = order_residuals(trained)
    assert [tuple(row) for row in found.iter_rows()] == [pytest.approx(pair) for pair in pairs]
    last = rows(trained, "order_p").row(-1, named=True)
    rho = stats.spearmanr(*zip(*pairs, strict=True)).statistic
    t = abs(rho) * math.sqrt((len(pairs) - 2) / (1 - rho**2))
    assert last["samples"] == len(once)
    assert last["p"] == pytest.approx(2 * stats.t.sf(t, len(pairs) - 2))


def test_bits_are_those_that_the_twin_and_the_form_do_not_explain(trained):
    row = rows(trained, "capacity").row(0, named=True)
    values = trained.metrics("loglik_per_token", steps=[trained.last_step]).filter(
        pl.col("item_id").is_not_null()
    )
    wide = values.pivot("run", index=["item_id", "family", "dose"], values="value")
    bits = 0.0
    length = dict(trained.plan.items.select("item_id", "length").iter_rows())
    for _, part in wide.group_by("family"):
        form = (part["perturbed"] - part["twin"]).filter(part["dose"] == 0).mean()
        for one in part.filter(pl.col("dose") > 0).iter_rows(named=True):
            bits += max(0.0, one["perturbed"] - one["twin"] - form) * length[one["item_id"]] / np.log(2)
    assert row["bits"] == pytest.approx(bits)
    assert row["n"] == (trained.plan.items["dose"] > 0).sum()
    model = ModelConfig(**{"name": "", **trained.config["model"]})
    assert row["parameters"] == model.parameters(trained.config["vocab_size"], 160)
    assert row["low"] < row["bits"] < row["high"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("format_transfer", "add the family test_sets"),
        ("limem", "add the family knights_knaves"),
    ],
)
def test_a_run_without_such_items_says_which_family_to_add(trained, name, part):
    with pytest.raises(UserError, match=part):
        getattr(trained.figures, name)()
