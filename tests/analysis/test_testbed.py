"""The leaderboard of unlearning: means and limits over seeds, the nearest method first, and what did not come back."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest

from benchmarks import testbed
from palimpsest.analysis.report.unlearned import FORGET, HELD_OUT

DISTANCES = {"far": (0.5, 0.6, 0.7), "near": (0.1, 0.2, 0.3)}
CHANGES = {"far": (-0.1, -0.1, -0.1), "near": (-0.4, -0.2, -0.3)}
BACK = {"far": (4.0, 5.0, 6.0), "near": (4.0, None, 6.0)}


def estimates(method: str, seed: int, _runs: Path) -> pl.DataFrame:
    """Estimates of a run: two checkpoints, the first of them twice as far."""
    distance, change = DISTANCES[method][seed - 1], CHANGES[method][seed - 1]
    rows = [
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
    monkeypatch.setattr(testbed, "with_relearning", estimates)
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
    assert near[head.index("distance")] == "0.200 [0.000, 0.448]"  # no distance is below 0
    assert near[head.index("half back after")] == "never"
    assert far[head.index("half back after")].startswith("5.000 [")
    assert far[head.index("AUC")] == "-"


def test_the_figure_has_a_line_a_method(written):
    assert (written / "unlearning.png").stat().st_size > 10_000
    runs = [estimates(method, seed, written) for method in ("far", "near") for seed in (1, 2, 3)]
    means = testbed.over_seeds(pl.concat(runs))
    rows = testbed.frontier(means).rows
    assert rows.select("method", "step").rows() == [("far", 10), ("far", 20), ("near", 10), ("near", 20)]
    assert rows["distance"].to_list() == pytest.approx([1.2, 0.6, 0.4, 0.2])
    assert rows["change"].to_list() == pytest.approx([-0.05, -0.1, -0.15, -0.3])


def test_a_pair_has_one_program_at_a_time_and_every_job_is_busy(tmp_path, monkeypatch):
    busy, most, begun = set(), [], []

    def run(method: str, seed: int, _runs: Path) -> pl.DataFrame:
        assert seed not in busy
        busy.add(seed)
        time.sleep(0.02)
        most.append(len(busy))
        busy.remove(seed)
        begun.append((seed, method))
        return pl.DataFrame({"seed": [seed], "method": [method]})

    monkeypatch.setattr(testbed, "with_relearning", run)
    found = testbed.all_runs(["a", "b", "c", "d"], [1, 2, 3], tmp_path, 2)
    assert sorted(found.rows()) == [(seed, method) for seed in (1, 2, 3) for method in "abcd"]
    assert [method for seed, method in begun if seed == 3] == list("abcd")
    assert max(most) == 2


def test_names_in_the_figure_do_not_cover_each_other():
    rows = pl.DataFrame(
        {
            "method": [f"method {k}" for k in range(12)],
            "distance": [0.4] * 6 + [0.41, 0.39, 0.4, 2.0, 0.0, 0.4],
            "change": [0.0] * 8 + [-0.01, -1.5, 0.0, -0.3],
        }
    )
    across, up = testbed._Axis.of(rows, ["change"], 760), testbed._Axis.of(rows, ["distance"], 560)
    assert across.value(across.pixel(rows["change"].to_numpy())) == pytest.approx(rows["change"].to_numpy())
    found = testbed.labelled(rows, across, up)
    places = list(
        zip(
            across.pixel(found["label_x"].to_numpy()),
            up.pixel(found["label_y"].to_numpy()),
            found["method"],
            strict=True,
        )
    )
    for k, (x, y, _) in enumerate(places):
        for other_x, other_y, name in places[:k]:
            beside = x >= other_x + 6 * len(name) or other_x >= x + 6 * len(name)
            assert beside or abs(y - other_y) >= 10.99
    # A name that has room stands at its point.
    alone = found.filter(pl.col("distance") == 2.0).row(0, named=True)
    assert alone["label_y"] == pytest.approx(2.0)
