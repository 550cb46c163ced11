"""Figures draw the numbers they are given, in every form they are saved in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from palimpsest.analysis import figures
from palimpsest.analysis.figures import theme
from palimpsest.analysis.statistics import estimates


def estimate_rows(statistic: str = "mean", runs: tuple[str, ...] = ("perturbed", "twin")) -> pl.DataFrame:
    rows = [
        {
            "run": run,
            "step": step,
            "metric": "m",
            "statistic": statistic,
            "family": family,
            "dose": dose,
            "estimate": 0.01 * dose + 0.5,
            "low": 0.4,
            "high": 0.01 * dose + 0.6,
            "n": 30 + dose,
            "n_control": 30,
        }
        for run in runs
        for family in ("all", "<b>x</b>", "y")
        for step in (0, 8)
        for dose in ((0, 1, 64) if statistic == "mean" else (0,) if statistic == "split" else (1, 64))
    ]
    return estimates(pl.DataFrame(rows))


def drawn(figure: figures.Figure) -> list[dict[str, Any]]:
    """Every data record of the specification, wherever it lies."""
    found: list[dict[str, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if (
                isinstance(node.get("values"), list)
                and node["values"]
                and isinstance(node["values"][0], dict)
            ):
                found.extend(node["values"])
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(figure.chart.to_dict())
    return found


def test_the_dose_response_draws_the_last_step_of_both_runs() -> None:
    figure = figures.dose_response(estimate_rows(), "m", title="t", y_title="y")
    points = [record for record in drawn(figure) if "estimate" in record]
    assert {(p["run"], p["dose"], p["estimate"]) for p in points} == {
        (run, dose, 0.01 * dose + 0.5) for run in ("perturbed", "twin") for dose in (0, 1, 64)
    }
    assert {p["step"] for p in points} == {8}
    at = {p["dose"]: p["x"] for p in points if p["run"] == "perturbed"}
    assert at[0] < at[1] < at[64]
    assert at[64] - at[1] == pytest.approx(6)


def test_doses_and_counts_are_printed_as_they_are(tmp_path: Path) -> None:
    figure = figures.dose_response(estimate_rows(), "m", title="t", y_title="y")
    svg = figures.save(figure.chart, tmp_path, "d", figure.rows)
    for text in (">0<", ">1<", ">64<", ">n=30<", ">n=31<", ">n=94<", ">perturbed<", ">twin<"):
        assert text in svg
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert pl.read_csv(tmp_path / "d.csv").height == 6


def test_family_names_cannot_become_markup(tmp_path: Path) -> None:
    figure = figures.dose_response(estimate_rows(), "m", title="t", y_title="y", families=["<b>x</b>", "y"])
    svg = figures.save(figure.chart, tmp_path, "f", figure.rows)
    assert "<b>" not in svg
    assert "&lt;b&gt;x&lt;/b&gt;" in svg


def test_over_training_has_a_line_a_dose_and_both_runs() -> None:
    exposures = pl.DataFrame({"item_id": ["a"] * 5, "step": [1, 1, 2, 3, 7]})
    figure = figures.over_training(estimate_rows(), "m", exposures, title="t", y_title="y")
    records = drawn(figure)
    assert {r["label"] for r in records if "label" in r} == {"0 (n=30)", "1 (n=31)", "64 (n=94)"}
    assert sum(r["exposures"] for r in records if r.get("exposures")) == 5
    assert {(r["run"], r["step"]) for r in records if "label" in r} == {
        (r, s) for r in ("perturbed", "twin") for s in (0, 8)
    }


def test_gains_over_training_have_a_panel_for_the_difference_and_bands_for_two_doses() -> None:
    rows = estimate_rows("gain", runs=("perturbed", "twin", "perturbed - twin"))
    figure = figures.over_training(
        rows, "m", pl.DataFrame({"step": [1]}), title="t", y_title="y", statistic="gain"
    )
    assert {r["run"] for r in drawn(figure) if "label" in r} == {"perturbed", "twin", "perturbed - twin"}
    assert json.dumps(figure.chart.to_dict()).count('"oneOf": [1, 64]') == 3


def test_the_axis_holds_every_interval_and_doses_have_colours_of_their_own() -> None:
    figure = figures.dose_response(estimate_rows(), "m", title="t", y_title="y")
    domains: list[list[float]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("y"), dict) and "domain" in node["y"].get("scale", {}):
                domains.append(node["y"]["scale"]["domain"])
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(figure.chart.to_dict())
    assert domains
    assert all(low < 0.4 and high > 0.01 * 64 + 0.6 for low, high in domains)
    assert len(set(theme.dose_colours([0, 1, 2, 4, 8, 16, 32, 64, 128]))) == 9
    assert len(theme.dose_colours([0, 8])) == 2


def test_controls_show_the_split_and_the_highest_dose() -> None:
    rows = pl.concat([estimate_rows("split"), estimate_rows("gain")])
    figure = figures.controls(rows, "m", unit="u")
    assert {(r["statistic"], r["dose"]) for r in figure.rows.to_dicts()} == {("split", 0), ("gain", 64)}
    assert figure.rows.height == 4


def test_training_curves_thin_long_runs_and_keep_their_mean() -> None:
    training = pl.DataFrame(
        {"run": "perturbed", "step": range(5000), "tokens": range(5000), "loss": [1.0, 3.0] * 2500}
    )
    figure = figures.training_curves(training, estimate_rows().head(0))
    assert figure.rows.height <= 400
    assert figure.rows["value"].mean() == pytest.approx(2.0, abs=0.1)


def test_nothing_to_draw_is_said_in_the_figure(tmp_path: Path) -> None:
    empty = estimate_rows().head(0)
    nothing = pl.DataFrame(schema={"item_id": pl.String, "step": pl.Int64})
    training = pl.DataFrame(
        schema={"run": pl.String, "step": pl.Int64, "tokens": pl.Int64, "loss": pl.Float64}
    )
    for figure in (
        figures.dose_response(empty, "m", title="t", y_title="y"),
        figures.over_training(empty, "m", nothing, title="t", y_title="y"),
        figures.controls(empty, "m", unit="u"),
        figures.training_curves(training, empty),
    ):
        assert "nothing to draw" in json.dumps(figure.chart.to_dict())
    assert "nothing to draw" in figures.save(figure.chart, tmp_path, "n", figure.rows)
