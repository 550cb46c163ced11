"""Counterfactual memorization, influence and epsilon over runs with coins: a null, a known effect, and real runs."""

import json

import numpy as np
import polars as pl
import pytest

import palimpsest
from palimpsest.analysis.report.counterfactual import COINS, Coins, epsilons, memorization, overall, read
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from tests.conftest import SMALL, Workplace, write_text
from tests.launch.test_shared import experiment, planned

RUNS, ITEMS, DOCUMENTS = 12, 30, 8


def coins(effect: float, rng: np.random.Generator, spill: float = 0.0) -> Coins:
    """Runs whose items score ``effect`` more where they are included, and whose documents, ``spill`` more where the
    first item is."""
    inside = rng.random((RUNS, ITEMS)) < 0.5
    score = rng.normal(0, 0.2, ITEMS) + rng.normal(0, 0.1, (RUNS, ITEMS)) + effect * inside
    documents = rng.normal(0, 0.02, (RUNS, DOCUMENTS)) + spill * inside[:, :1]
    names = [f"item-{k:02}" for k in range(ITEMS)]
    return Coins(pl.DataFrame({"item_id": names, "family": ["mine"] * ITEMS}), inside, score, documents)


@pytest.mark.parametrize("effect", [0.0, 0.3])
def test_intervals_hold_the_truth_as_often_as_they_say(effect):
    rng = np.random.default_rng(3)
    tables = [memorization(coins(effect, rng)) for _ in range(40)]
    rows = pl.concat(tables)
    held = ((rows["low"] <= effect) & (effect <= rows["high"])).mean()
    assert held == pytest.approx(0.95, abs=0.02)  # of 1,200 intervals
    assert rows["estimate"].mean() == pytest.approx(effect, abs=0.01)
    assert ((rows["influence_low"] <= 0) & (rows["influence_high"] >= 0)).mean() > 0.92
    found = np.mean([(table["p_holm"] <= 0.05).any() for table in tables])
    assert found <= 0.12 if effect == 0 else found == 1
    whole = [overall(coins(effect, rng)) for _ in range(100)]
    assert np.mean([low <= effect <= high for _, low, high in whole]) == pytest.approx(0.95, abs=0.06)


def test_epsilon_is_bounded_by_chance_where_nothing_is_remembered():
    rng = np.random.default_rng(4)
    null = np.concatenate([epsilons(coins(0.0, rng)) for _ in range(40)])
    assert (null > 0).mean() <= 0.07
    rng = np.random.default_rng(5)
    assert np.mean(epsilons(coins(2.0, rng))) > 1


def test_no_epsilon_for_coins_that_are_not_of_one_half():
    one = coins(0.0, np.random.default_rng(6))
    assert epsilons(one._replace(included=np.random.default_rng(7).random((RUNS, ITEMS)) < 0.7)) == []


@pytest.mark.parametrize(
    ("doses", "told"),
    [
        ([(4, 0), (0, 4), (4, 0), (0, 4)], True),
        ([(4, 0), (0, 4), (4, 4), (0, 4)], False),  # a run with all items
        ([(4, 0), (4, 0), (4, 0), (0, 4)], False),  # no item is left out twice and included twice
    ],
)
def test_coins_that_cannot_tell_give_no_section(tmp_path, doses, told):
    runs = []
    for number, pair in enumerate(doses):
        rows = [
            {"run": "perturbed", "step": 1, "metric": "loglik", "item_id": item, "family": "mine", "stratum": "",
             "dose": dose, "probe_id": item, "value": float(number)}
            for item, dose in zip("ab", pair, strict=True)
        ]  # fmt: skip
        directory = tmp_path / str(number) / "report"
        directory.mkdir(parents=True)
        pl.DataFrame(rows).write_parquet(directory / "metrics.parquet")
        runs.append((directory.parent, {"step": 1, "primary_metric": "loglik"}))
    assert (read(runs) is not None) == told


def test_influence_finds_the_item_that_changes_other_texts():
    rng = np.random.default_rng(8)
    rows = memorization(coins(0.0, rng, spill=0.1))
    strongest = rows.sort("influence", descending=True).row(0, named=True)
    assert strongest["item_id"] == "item-00"
    assert strongest["influence_low"] < 0.1 < strongest["influence_high"]


def test_coins_change_who_is_included_and_nothing_else(prepared):
    made = [planned(prepared, f"coins-{seed}", f"{COINS}={seed}")[0] for seed in (1, 2, 3)]
    texts = [one.items.select("item_id", "text") for one in made]
    assert texts[0].equals(texts[1])
    assert texts[0].equals(texts[2])
    assert len({tuple(one.items["dose"]) for one in made}) == 3
    assert (
        len({len(one.items.filter(pl.col("dose") == 0)) for one in made}) > 1
    )  # coins, and not exact counts


def test_a_run_without_coins_is_named_as_before_there_were_any(prepared):
    plain, tossed = experiment(prepared), experiment(prepared, f"{COINS}=1")
    assert plain.directory != tossed.directory
    assert "coin_seed" not in plans.plan_config(plain.insertion, plain.shape)["insertion"]
    assert plans.plan_config(tossed.insertion, tossed.shape)["insertion"]["coin_seed"] == 1


def test_coins_and_given_doses_exclude_each_other(prepared):
    with pytest.raises(UserError, match="coin_seed=1 draws the items' doses"):
        experiment(prepared, f"{COINS}=1", "insertion.paired_with=elsewhere")


@pytest.mark.slow
def test_a_sweep_over_coins_reports_what_its_runs_say(tmp_path):
    place = Workplace(tmp_path, SMALL)
    write_text(place.path / "text.jsonl")
    place.ok(
        "sweep",
        f"{COINS}=1,2,3,4,5",
        "insertion.doses=[0,8]",
        "optimizer.learning_rate=5e-3",
        "launcher.jobs=2",
    )
    (page,) = (place.path / "runs" / "sweeps").glob("*/report/report.html")
    table = pl.read_csv(page.parent / "counterfactual.csv")
    assert "Counterfactual memorization" in page.read_text()
    lines = [json.loads(line) for line in (page.parent.parent / "runs.jsonl").read_text().splitlines()]
    row = table.row(0, named=True)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for line in lines:
        directory = place.path / line["directory"]
        summary = json.loads((directory / "report" / "summary.json").read_text())
        rows = pl.read_parquet(directory / "report" / "metrics.parquet").filter(
            (pl.col("item_id") == row["item_id"])
            & (pl.col("metric") == summary["primary_metric"])
            & (pl.col("step") == summary["step"])
        )
        value = {run: part["value"].mean() for (run,), part in rows.group_by("run")}
        scores[rows["dose"][0] > 0].append(value["perturbed"] - value["twin"])
    assert row["runs_with"] == len(scores[True])
    assert row["runs_without"] == len(scores[False])
    assert row["estimate"] == pytest.approx(np.mean(scores[True]) - np.mean(scores[False]), abs=1e-9)
    assert table["estimate"].mean() > 0
    drawn = palimpsest.open_sweep(page.parent.parent).figures.shapes().rows
    assert drawn["shape"].n_unique() == len(lines)
    assert set(drawn["dose"]) == {8}
