"""What the interval of several runs speaks of: their items, the training runs, or both."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.report.sweep import SweepRun, aggregate
from palimpsest.analysis.statistics import PAIRED, gain_over_control
from tests.analysis.coverage import design

SUMMARY = {
    "primary_metric": "m",
    "unit": "nats/byte",
    "step": 0,
    "audit": "PASS",
    "minimum_effective_dose": 4,
}


def run(place: Path, seeds: dict[str, int], rng: np.random.Generator, effect: float, rows: bool) -> SweepRun:
    made = design(20, 20)
    values = effect * (made.dose > 0) + rng.normal(0, 0.2, len(made.dose))
    table = made.rows(values[None], PAIRED)
    directory = place / "-".join(f"{key}{value}" for key, value in seeds.items())
    (directory / "report").mkdir(parents=True)
    gain_over_control(table).write_csv(directory / "report" / "estimates.csv")
    if rows:
        table.write_parquet(directory / "report" / "metrics.parquet")
    factors = {key: str(value) for key, value in seeds.items()}
    return SweepRun(factors=factors, directory=directory, summary=SUMMARY, link="")


@pytest.fixture(autouse=True)
def measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest.analysis.metrics import METRICS

    monkeypatch.setitem(METRICS, "m", METRICS["loglik_per_byte"])


@pytest.mark.parametrize(
    ("seeds", "rows", "over"),
    [
        ([{"seed": 1}], True, "one run"),
        ([{"seed": 1}, {"seed": 2}, {"seed": 3}], True, "draws"),
        ([{"train.seed": 1}, {"train.seed": 2}, {"train.seed": 3}], True, "shared items"),
        ([{"train.seed": 1}, {"train.seed": 2}, {"train.seed": 3}], False, "these items"),
        ([{"seed": s, "train.seed": t} for s in (1, 2) for t in (1, 2)], True, "draws"),
        ([{"insertion.seed": 1}, {"insertion.seed": 2}], True, "draws, one training seed"),
    ],
)
def test_the_claim_names_what_varies(
    tmp_path: Path, seeds: list[dict[str, int]], rows: bool, over: str
) -> None:
    rng = np.random.default_rng(0)
    runs = [run(tmp_path, one, rng, 1.0, rows) for one in seeds]
    (row,) = aggregate(runs).rows(named=True)
    assert (row["cell"], row["dose"], row["seeds"], row["over"]) == ("all runs", 4, len(seeds), over)
    assert row["low"] < row["estimate"] < row["high"]
    assert row["estimate"] == pytest.approx(1, abs=0.2)


def test_runs_of_one_draw_of_items_are_one_observation(tmp_path: Path) -> None:
    """Two draws with two training seeds each: t over two draws has one degree of freedom, not three."""
    rng = np.random.default_rng(1)
    effects = {1: 0.8, 2: 1.2}
    runs = [
        run(tmp_path, {"seed": s, "train.seed": t}, rng, effects[s], True) for s in (1, 2) for t in (1, 2)
    ]
    (row,) = aggregate(runs).rows(named=True)
    assert row["high"] - row["low"] > 2 * 12.7 * 0.2 / math.sqrt(2) * 0.7


def test_shared_items_add_their_own_variance(tmp_path: Path) -> None:
    """Equal runs of the same items agree exactly: over runs the interval has width 0, over items it has not."""
    runs = [run(tmp_path, {"train.seed": t}, np.random.default_rng(2), 1.0, True) for t in (1, 2, 3)]
    (row,) = aggregate(runs).rows(named=True)
    alone = gain_over_control(pl.read_parquet(runs[0].directory / "report" / "metrics.parquet"))
    told = alone.filter(pl.col("family") == "all").row(0, named=True)
    assert row["high"] - row["low"] > 0.8 * (told["high"] - told["low"])
