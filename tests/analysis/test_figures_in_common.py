"""Tests that hold for every default figure: it is drawn, says what it lacks, and is saved whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import vl_convert

from palimpsest.analysis import figures
from palimpsest.analysis.figures import FIGURES, examples, gallery, theme
from palimpsest.data.errors import UserError
from tests.analysis.test_default_figures import estimates, records, svg, symbols

# What all of them have in common.


def test_all_eighteen_are_there_and_every_one_is_in_the_gallery() -> None:
    assert {found.number for found in FIGURES.values()} == set(range(1, 19))
    assert examples.EXAMPLES.keys() == FIGURES.keys()
    assert [found.number for found in FIGURES.values()] == sorted(found.number for found in FIGURES.values())
    for name, found in FIGURES.items():
        assert getattr(figures, name) is found.draw
        assert set(found.columns) == set(found.needs)


def test_the_gallery_draws_every_figure_and_says_that_it_is_simulated(tmp_path: Path) -> None:
    count = gallery.write(tmp_path, formats=["svg"])
    page = (tmp_path / "README.md").read_text()
    images = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert count == len(FIGURES) == len(images)
    for name, found in FIGURES.items():
        drawn = (tmp_path / f"{found.number:02d}_{name}.svg").read_text()
        assert "Simulated by a formula, not measured" in drawn
        assert "nothing to draw" not in drawn
        assert ">undefined<" not in drawn
        assert "NaN" not in drawn
        assert re.search(r"\bn=\d|\d cells|beneath: n|documents n", drawn), f"{name} prints no n"
        assert f"]({found.number:02d}_{name}.svg)" in page
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 800_000


@pytest.mark.parametrize("name", list(FIGURES))
def test_what_cannot_be_drawn_is_said(name: str) -> None:
    found = FIGURES[name]
    rows, settings = examples.example(name)
    settings = {key: value for key, value in settings.items() if key != "ours"}
    with pytest.raises(UserError, match=f"figure {name} needs the column '{found.needs[0]}'"):
        found.draw(rows.drop(found.needs[0]), **settings)
    with pytest.raises(UserError, match="needs rows as a Polars frame, not dict"):
        found.draw({}, **settings)
    empty = json.dumps(found.draw(rows.head(0), **settings).chart.to_dict())
    assert "nothing to draw" in empty
    assert "not computed because there are no rows" in empty or name in ("personal",)
    number = (
        next(column for column in reversed(found.needs) if figures.COLUMNS[column][0] == "number")
        if any(figures.COLUMNS[column][0] == "number" for column in found.needs)
        else None
    )
    if number is not None:
        with pytest.raises(UserError, match=f"'{number}'.*should be a number"):
            found.draw(rows.with_columns(pl.lit("x").alias(number)), **settings)
    if "estimate" in found.needs:
        for missing in (None, float("nan")):
            gone = rows.with_columns(pl.lit(missing, pl.Float64).alias("estimate"))
            text = json.dumps(found.draw(gone, **settings).chart.to_dict())
            assert f"none of the {rows.height} rows has a value" in text


@pytest.mark.parametrize(
    "name", ["dose_response", "extraction_rate", "limem", "memorisation_profile", "order_p"]
)
def test_intervals_that_are_missing_leave_the_estimates(name: str) -> None:
    rows, settings = examples.example(name)
    limits = [column for column in ("low", "high") if column in rows.columns]
    bare = rows.with_columns(pl.lit(None, pl.Float64).alias(column) for column in limits)
    assert "nothing to draw" not in json.dumps(FIGURES[name].draw(bare, **settings).chart.to_dict())


@pytest.mark.parametrize("doses", [[0], [4], [0, 4]])
def test_few_doses_are_drawn_and_nothing_is_fitted(doses: list[int]) -> None:
    rows = estimates(run=["a"] * len(doses), metric="extracted", dose=doses, estimate=[0.25] * len(doses))
    figure = figures.dose_response(rows, fit=True)
    assert {(r["dose"], r["estimate"]) for r in records(figure.chart, "dose", "estimate")} == {
        (d, 0.25) for d in doses
    }
    assert not any("EC50" in str(r) for r in records(figure.chart, "text"))
    assert len(symbols(svg(figure))) == len(doses)


def test_no_two_series_look_alike() -> None:
    for known in ([], ["perturbed", "twin"]):
        names = [*known, *(f"model {i}" for i in range(20))]
        looks = list(zip(theme.colours(names), theme.shapes(names), strict=True))
        assert len(set(looks)) == len(names)
        assert looks[: len(known)] == [("#D55E00", "circle"), ("#0072B2", "square")][: len(known)]


# Files.


def test_paper_figures_have_the_width_of_a_column_and_all_four_forms(tmp_path: Path) -> None:
    rows, settings = examples.example("interference")
    figure = figures.interference(rows, **settings)
    for width, inches in (("single", 3.25), ("double", 6.75)):
        figures.save(figure, tmp_path / f"{width}.pdf", style="paper", width=width)
        drawn = (tmp_path / f"{width}.svg").read_text()
        assert f'width="{inches}in"' in drawn.split(">")[0]
        png = (tmp_path / f"{width}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert abs(int.from_bytes(png[16:20], "big") - 300 * inches) <= 2
        pdf = (tmp_path / f"{width}.pdf").read_bytes()
        box = re.search(rb"MediaBox\s*\[\s*0 0 ([\d.]+)", pdf)
        assert box
        assert float(box.group(1)) == pytest.approx(72 * inches, abs=1)
        # Type of 12 in the layout, which is this much wider than the column: near 7 points.
        layout = float(drawn.split('viewBox="0 0 ')[1].split(" ")[0])
        assert 6.3 < 12 * inches * 72 / layout < 7.8
        assert "Interference" not in drawn
        assert pl.read_csv(tmp_path / f"{width}.csv")["estimate"].to_list() == pytest.approx(
            rows["estimate"].to_list()
        )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_illegible_in_a_column_is_refused(tmp_path: Path) -> None:
    rows = estimates(field=[f"field {i}" for i in range(20)], format="choice", dose=64, estimate=0.5)
    with pytest.raises(UserError, match=r"too narrow for this figure: its type would be .* width='double'"):
        figures.save(figures.personal(rows), tmp_path / "f", style="paper", width="single")
    assert not list(tmp_path.iterdir())


def test_a_form_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = figures.aa_pvalues(pl.DataFrame({"p": [0.2, 0.8]}))
    figures.save(figure, tmp_path / "f", formats=["svg", "csv"])
    before = (tmp_path / "f.svg").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        figures.save(figures.aa_pvalues(pl.DataFrame({"p": [0.5]})), tmp_path / "f", formats=["svg"])
    assert (tmp_path / "f.svg").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", "f.svg"]


def test_a_wrong_style_width_or_form_is_the_users_mistake(tmp_path: Path) -> None:
    figure = figures.aa_pvalues(pl.DataFrame({"p": [0.2, 0.8]}))
    for settings, message in (
        ({"style": "papr"}, "style='papr'.*paper"),
        ({"style": "paper", "width": "triple"}, "width='triple'.*single"),
        ({"formats": ["jpg"]}, "formats='jpg'"),
    ):
        with pytest.raises(UserError, match=message):
            figures.save(figure, tmp_path / "f", **settings)
    assert not list(tmp_path.iterdir())


def test_the_saved_svg_is_the_same_drawing_in_fewer_bytes(tmp_path: Path) -> None:
    rows, settings = examples.example("token_strip")
    figure = figures.token_strip(rows, **settings)
    saved, before = figures.save(figure, tmp_path / "f", formats=["svg"]), svg(figure)
    assert len(saved) < 0.9 * len(before)
    one, other = (vl_convert.svg_to_png(text, scale=1) for text in (saved, before))
    assert abs(len(one) - len(other)) < 0.01 * len(other)
    assert one[16:24] == other[16:24]  # width and height
    assert re.findall(r">([^<>]+)</text>", saved) == re.findall(r">([^<>]+)</text>", before)
    places = [re.findall(r"translate\(([-\d.]+),([-\d.]+)\)", text) for text in (saved, before)]
    assert np.allclose(*(np.array(found, float) for found in places), atol=0.0051)


def test_a_figure_saves_itself(tmp_path: Path) -> None:
    figure = figures.aa_pvalues(pl.DataFrame({"p": [0.2, 0.8]}))
    figure.save(tmp_path / "own.png", formats=["svg", "csv"])
    figures.save(figure, tmp_path / "other", formats=["svg", "csv"])
    assert (tmp_path / "own.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()
    assert (tmp_path / "own.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_a_bare_chart_has_its_inline_data_beside_it(tmp_path: Path) -> None:
    figure = figures.aa_pvalues(pl.DataFrame({"p": [0.2, 0.8]}))
    figures.save(figure.chart, tmp_path / "f", formats=["csv"])
    assert {0.2, 0.8} <= set(pl.read_csv(tmp_path / "f.csv")["p"].drop_nulls())
