"""The leaderboard of unlearning: means and limits over seeds, the nearest method first, and what did not come back."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from benchmarks import testbed
from palimpsest.analysis.report.unlearned import FORGET, HELD_OUT

DISTANCES = {"far": (0.5, 0.6, 0.7), "near": (0.1, 0.2, 0.3)}
CHANGES = {"far": (-0.1, -0.1, -0.1), "near": (-0.4, -0.2, -0.3)}
BACK = {"far": (4.0, 5.0, 6.0), "near": (4.0, None, 6.0)}


def estimates(methods: list[str], seed: int, _runs: Path) -> pl.DataFrame:
    """Estimates of a seed's runs: two checkpoints, the first of them twice as far."""
    rows = []
    for method in methods:
        distance, change = DISTANCES[method][seed - 1], CHANGES[method][seed - 1]
        rows += [
            (method, seed, 10, 20, FORGET, None, "distance", 2 * distance),
            (method, seed, 20, 20, FORGET, None, "distance", distance),
            (method, seed, 20, 20, FORGET, 4, "distance", 9.0),
            (method, seed, 10, 20, HELD_OUT, None, "change", change / 2),
            (method, seed, 20, 20, HELD_OUT, None, "change", change),
            (method, seed, 20, 20, FORGET, None, "half_back", BACK[method][seed - 1]),
            (method, seed, 0, 20, None, None, "cost", 20.0),
        ]
    names = ["method", "seed", "step", "last", "group", "dose", "statistic", "estimate"]
    return pl.DataFrame(rows, schema=names, orient="row")


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(testbed, "all_runs", estimates)
    monkeypatch.setattr(testbed, "METHODS", ["far", "near"])
    assert testbed.main(["--runs", str(tmp_path), "--out", str(tmp_path)]) == 0
    return tmp_path


def test_means_and_student_t_limits_over_seeds(written):
    found = pl.read_csv(written / "unlearning.csv")
    row = found.filter(
        (pl.col("method") == "near")
        & (pl.col("statistic") == "distance")
        & (pl.col("step") == 20)
        & pl.col("dose").is_null()
    ).row(0, named=True)
    # Three seeds: sd 0.1, so the half width is t(0.975; 2) * 0.1 / sqrt(3) = 4.302653 * 0.0577350.
    assert row["seeds"] == 3
    assert row["estimate"] == pytest.approx(0.2)
    assert row["high"] - row["estimate"] == pytest.approx(0.248414, abs=1e-5)


def test_the_nearest_method_is_first_and_what_never_came_back_says_so(written):
    lines = [line for line in (written / "unlearning.md").read_text().splitlines() if line.startswith("| ")]
    head, near, far = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert near[0] == "near"
    assert far[0] == "far"
    assert near[head.index("steps")] == "20"
    assert near[head.index("distance")] == "0.200 [-0.048, 0.448]"
    assert near[head.index("half back after")] == "never"
    assert far[head.index("half back after")].startswith("5.000 [")
    assert far[head.index("AUC")] == "-"


def test_the_figure_has_a_line_a_method(written):
    assert (written / "unlearning.png").stat().st_size > 10_000
    means = testbed.over_seeds(pl.concat([estimates(["far", "near"], seed, written) for seed in (1, 2, 3)]))
    rows = testbed.frontier(means).rows
    assert rows.select("method", "step").rows() == [("far", 10), ("far", 20), ("near", 10), ("near", 20)]
    assert rows["distance"].to_list() == pytest.approx([1.2, 0.6, 0.4, 0.2])
    assert rows["change"].to_list() == pytest.approx([-0.05, -0.1, -0.15, -0.3])
