"""Scaling over the runs of a sweep: known exponents, their limits, and what is said where there is no answer."""

import json
import math

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.report import scaling
from palimpsest.analysis.report.scaling import Point, axes, point, slopes
from palimpsest.analysis.report.sweep import SweepRun, build
from palimpsest.analysis.run import open_run
from palimpsest.analysis.statistics.ec50 import Ec50
from palimpsest.pretrain import saved
from palimpsest.pretrain.huggingface import export
from tests.analysis.test_sweep_seeds import SUMMARY, run
from tests.conftest import SMALL, Workplace, write_text


def ec50(value: float) -> Ec50:
    return Ec50(value, value / 1.5, value * 1.5, 1.0, 0.0, math.inf, "made up")


def points(rng, noise: float, exponents: dict[str, float]) -> list[Point]:
    """A grid of two sizes and three corpora, twice; EC50 5 at 1M parameters and 1M tokens."""
    made = []
    for _ in range(2):
        for parameters in (1e6, 4e6):
            for tokens in (1e6, 2e6, 4e6):
                scale = {"parameters": parameters, "tokens": tokens, "learning rate": 1e-3}
                middle = 5 * math.prod((scale[axis] / 1e6) ** power for axis, power in exponents.items())
                value = middle * 2 ** rng.normal(0, noise)
                made.append(Point(scale, ec50(value), 0.5 - 0.1 * math.log2(tokens / 1e6)))
    return made


def test_known_exponents():
    rows = slopes(points(np.random.default_rng(0), 0.0, {"parameters": -0.5, "tokens": 1.0}), dose=64)
    found = {(row["quantity"], row["axis"]): row["estimate"] for row in rows.iter_rows(named=True)}
    assert found == pytest.approx(
        {
            ("exponent of the EC50", "parameters"): -0.5,
            ("exponent of the EC50", "tokens"): 1.0,
            ("gain at dose 64, a doubling", "parameters"): 0.0,
            ("gain at dose 64, a doubling", "tokens"): -0.1,
        },
        abs=1e-9,
    )
    assert set(rows["runs"]) == {12}


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_limits_hold_the_exponent_as_often_as_they_say(exponent):
    rng = np.random.default_rng(1)
    held = []
    for _ in range(600):
        rows = slopes(points(rng, 0.5, {"tokens": exponent}), dose=64)
        row = rows.filter((pl.col("axis") == "tokens") & pl.col("quantity").str.starts_with("exponent")).row(
            0, named=True
        )
        held.append(row["low"] <= exponent <= row["high"])
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_two_runs_have_the_limits_of_their_ec50s():
    pair = [Point({"tokens": tokens}, ec50(value), 0.1) for tokens, value in ((4e6, 20.0), (1e6, 5.0))]
    row = slopes(pair, dose=64).row(0, named=True)
    half = math.hypot(math.log(1.5), math.log(1.5)) / math.log(4)
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx((1.0, 1 - half, 1 + half))


@pytest.mark.parametrize(
    "made",
    [
        [Point({"tokens": 1e6}, ec50(5.0), 0.1)] * 3,
        [Point({"tokens": k * 1e6, "windows a step": k}, ec50(5.0 * k), 0.1) for k in (1, 2, 4)],
        [Point({"tokens": 1e6}, None, 0.1)],
        [],
    ],
    ids=["the same", "together", "one", "none"],
)
def test_runs_that_cannot_tell_give_no_rows(made):
    assert slopes(made, dose=64).is_empty()


def test_an_ec50_that_was_not_reached_is_left_out():
    summary = {
        "primary_metric": "m",
        "gain_at_highest_dose": {"perturbed - twin": {"estimate": 0.2}},
        "ec50": [{"run": "perturbed - twin", "metric": "m", "ec50": None, "low": 0.0, "high": None}],
    }
    made = [point({"tokens": 1e6}, summary)]
    made += [Point({"tokens": tokens}, ec50(tokens / 1e6), 0.1) for tokens in (2e6, 4e6)]
    rows = slopes(made, dose=64)
    assert rows["runs"].to_list() == [2, 3]
    assert scaling.figure(made, axes(made)[0], 64).rows.height == 2


def test_the_page_of_a_sweep_has_the_table(tmp_path, monkeypatch):
    from palimpsest.analysis.metrics import METRICS

    monkeypatch.setitem(METRICS, "m", METRICS["loglik_per_byte"])
    runs = []
    for number, tokens in enumerate((1e6, 2e6, 4e6)):
        one = run(tmp_path, {"train.steps": number}, np.random.default_rng(number), 0.5, True)
        value = 4.0 * (tokens / 1e6) ** 0.8
        found = {"run": "perturbed - twin", "metric": "m", "ec50": value, "low": value / 2, "high": None}
        summary = {
            **SUMMARY,
            "verdict": "shown",
            "gain_at_highest_dose": {"perturbed - twin": {"estimate": 0.5}},
            "ec50": [{**found, "slope": 1.0, "method": "made up"}],
        }
        runs.append(
            SweepRun(
                factors=one.factors,
                directory=one.directory,
                summary=summary,
                link="",
                scale={"tokens": tokens},
            )
        )
    build("mine", runs, 3, tmp_path / "page")
    text = (tmp_path / "page" / "report.html").read_text()
    assert 'aria-label="Scaling"' in text
    table = pl.read_csv(tmp_path / "page" / "exponents.csv")
    assert table["estimate"][0] == pytest.approx(0.8)
    assert pl.read_csv(tmp_path / "page" / "scaling.csv")["high"].null_count() == 3


def test_limits_far_outside_are_kept_in_the_rows_and_cut_in_the_figure():
    limits = ((0.0, np.inf), (2.0, 30.0), (1e-9, 1e9))
    made = [
        Point({"tokens": 1e6 * 2**number}, ec50(4.0)._replace(low=low, high=high), 0.1)
        for number, (low, high) in enumerate(limits)
    ]
    found = scaling.figure(made, "tokens", 3)
    assert found.rows.select("low", "high").rows() == [(None, None), (2.0, 30.0), (1e-9, 1e9)]
    assert found.rows["extrapolated"].all()
    bars, marks = (layer["data"]["values"] for layer in found.chart.to_dict()["layer"])
    assert marks[0]["high"] is None
    assert [(one["low"], one["high"]) for one in bars] == [
        pytest.approx((2.0 / 1.5, 30.0 * 1.5)),
        (2.0, 30.0),
        pytest.approx((2.0 / 1.5, 30.0 * 1.5)),
    ]


def test_runs_at_the_same_place_stand_side_by_side():
    made = [Point({"tokens": tokens}, ec50(4.0), 0.1) for tokens in (1e6, 2e6, 1e6)]
    marks = scaling.figure(made, "tokens", 64).chart.to_dict()["layer"][1]["data"]["values"]
    assert [one["place"] for one in marks] == pytest.approx([1e6 / 1.02**0.5, 2e6, 1e6 * 1.02**0.5])


@pytest.mark.slow
def test_a_sweep_over_lengths_and_layers_reports_the_slopes_of_its_runs(tmp_path):
    """Real runs: the slopes along tokens and parameters, computed from their summaries and weights."""
    place = Workplace(tmp_path, SMALL)
    write_text(place.path / "text.jsonl")
    place.ok(
        "sweep",
        "train.steps=12,24",
        "model.layers=2,4",
        "insertion.doses=[0,8]",
        "optimizer.learning_rate=5e-3",
        "launcher.jobs=2",
    )
    (page,) = (place.path / "runs" / "sweeps").glob("*/report/report.html")
    assert 'aria-label="Scaling"' in page.read_text()
    rows, gains = [], []
    for line in map(json.loads, (page.parent.parent / "runs.jsonl").read_text().splitlines()):
        directory = place.path / line["directory"]
        gains.append(
            json.loads((directory / "report" / "summary.json").read_text())["gain_at_highest_dose"][
                "perturbed - twin"
            ]["estimate"]
        )
        checkpoints = directory / "perturbed" / "checkpoints"
        end = saved.finished(checkpoints)[-1]
        weights = sum(one.numel() for one in export.load(checkpoints, end, eod=0).parameters())
        shape = open_run(directory).plan.shape
        rows.append([1, np.log2(weights), np.log2(end * shape.global_batch_size * shape.sequence_length)])
    _, parameters, tokens = np.linalg.lstsq(np.array(rows), np.array(gains), rcond=None)[0]
    table = pl.read_csv(page.parent / "exponents.csv").filter(
        pl.col("quantity").str.starts_with("gain at dose 8")
    )
    found = {row["axis"]: row for row in table.iter_rows(named=True)}
    assert found["tokens"]["estimate"] == pytest.approx(tokens, abs=1e-6)
    assert found["parameters"]["estimate"] == pytest.approx(parameters, abs=1e-3)  # the vocabulary's padding
    assert all(row["runs"] == 4 and row["low"] < row["estimate"] < row["high"] for row in found.values())
