"""Every default figure draws the numbers that its rows hold, where its axes say, and says what it lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import vl_convert
from scipy import stats

from palimpsest.analysis import figures
from palimpsest.analysis.figures.membership import points
from palimpsest.data.errors import UserError


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def records(chart: Any, *keys: str) -> list[dict[str, Any]]:
    """The data records that have all of these keys, each once."""
    found = [
        record
        for node in nodes(chart.to_dict())
        if isinstance(node.get("values"), list)
        for record in node["values"]
        if isinstance(record, dict) and set(keys) <= record.keys()
    ]
    return list({json.dumps(record, sort_keys=True): record for record in found}.values())


def layers(chart: Any, mark: str) -> list[dict[str, Any]]:
    """Unit specifications of one kind of mark."""
    kinds = ((node, node.get("mark")) for node in nodes(chart.to_dict()))
    return [
        node for node, kind in kinds if kind == mark or (isinstance(kind, dict) and kind.get("type") == mark)
    ]


def svg(figure: figures.Figure) -> str:
    return str(vl_convert.vegalite_to_svg(figure.chart.to_dict()))


def symbols(text: str) -> list[tuple[float, float]]:
    """Places of the plotted points in pixels of their panel; the legend's own symbols are elsewhere."""
    plotted = re.findall(r'<g class="mark-symbol role-mark[^"]*"[^>]*>(.*?)</g>', text, re.DOTALL)
    return [
        (float(x), float(y))
        for part in plotted
        for x, y in re.findall(r"translate\(([-\d.]+),([-\d.]+)\)", part)
    ]


def estimates(**columns: Any) -> pl.DataFrame:
    """Rows with limits 0.1 about the estimate and n = 40, unless they are given."""
    frame = pl.DataFrame(columns, strict=False)
    return frame.with_columns(
        *(pl.lit(40).alias("n") for _ in range("n" not in columns)),
        *((pl.col("estimate") - 0.1).alias("low") for _ in range("low" not in columns)),
        *((pl.col("estimate") + 0.1).alias("high") for _ in range("high" not in columns)),
    )


DOSES = np.array([0, 1, 4, 16, 64, 256])


# 1 to 5: over the dose.

HITS, ITEMS = np.array([1, 2, 5, 82, 136, 75]), np.array([759, 759, 759, 379, 152, 76])


def hubble_wikipedia() -> pl.DataFrame:
    low = stats.beta.ppf(0.025, HITS, ITEMS - HITS + 1)
    high = stats.beta.ppf(0.975, HITS + 1, ITEMS - HITS)
    columns = {"dose": DOSES, "estimate": HITS / ITEMS, "low": low, "high": high, "n": ITEMS, "mde": 0.05}
    return pl.DataFrame({"run": "8B-100B", "metric": "extracted", **columns})


def test_dose_response_marks_the_published_ec50_and_draws_points_where_the_axes_say() -> None:
    rows = hubble_wikipedia()
    figure = figures.dose_response(rows, fit=True, y_title="extracted")
    mark = next(r for r in records(figure.chart, "text", "x") if "EC50" in str(r["text"]))
    assert mark["text"] == "EC50 27.2"
    assert 2 ** mark["x"] == pytest.approx(27.214192, rel=1e-4)
    curve = {
        round(r["x"], 6): r["estimate"] for r in records(figure.chart, "x", "estimate") if "dose" not in r
    }
    sigma = 1 / (1 + np.exp(-1.745374 * (6 - np.log2(27.214192))))
    nearest = min(curve, key=lambda x: abs(x - 6))
    assert curve[nearest] == pytest.approx(0.001571 + (1 - 0.001571) * sigma, abs=0.02)
    ticks = records(figure.chart, "y", "dose")
    assert {(r["dose"], round(r["y"], 9)) for r in ticks} == {
        (int(d), round(1 / 759 + 0.05, 9)) for d in DOSES[1:]
    }
    text = svg(figure)
    for label in (">0<", ">256<", ">n=759<", ">n=379<", ">n=76<"):
        assert label in text
    axis = next(node["y"] for node in nodes(figure.chart.to_dict()) if "scale" in node.get("y", {}))
    low, high = axis["scale"]["domain"]
    expected = sorted(300 * (high - y) / (high - low) for y in rows["estimate"])
    assert sorted(y for _, y in symbols(text)) == pytest.approx(expected, abs=0.02)
    across = sorted({x for x, _ in symbols(text)})
    apart = np.diff(across)  # doses are powers of 4: even steps on a log axis, dose 0 aside
    assert apart[1:] == pytest.approx(np.full(4, apart[-1]), abs=0.05)


def test_a_run_that_does_not_rise_has_no_ec50_and_a_standard_model_is_a_flat_band() -> None:
    flat = estimates(run=["twin"] * 6, metric="extracted", dose=DOSES.tolist(), estimate=[0.02] * 6)
    standard = estimates(run=["standard"], metric=["extracted"], dose=[None], estimate=[0.01])
    figure = figures.dose_response(pl.concat([flat, standard], how="vertical_relaxed"), fit=True)
    assert not any("EC50" in str(r) for r in records(figure.chart, "text"))
    (band,) = records(figure.chart, "x_end")
    assert (band["run"], band["estimate"]) == ("standard", 0.01)
    assert (band["low"], band["high"]) == (pytest.approx(-0.09), pytest.approx(0.11))
    assert len(symbols(svg(figure))) == 6


def test_several_metrics_and_families_are_panels() -> None:
    rows = pl.concat(
        estimates(run=["perturbed"] * 2, metric=metric, family=family, dose=[0, 4], estimate=[0.1, value])
        for metric, family, value in (("m", "x", 0.2), ("m", "y", 0.3), ("k", "x", 0.4))
    )
    text = json.dumps(figures.dose_response(rows).chart.to_dict(), ensure_ascii=False)
    assert all(f'"title": "{title}"' in text for title in ("m · x", "m · y", "k · x"))
    assert '"title": "k · y"' not in text


def test_phases_shade_their_windows_and_follow_the_highest_dose() -> None:
    parts = [
        estimates(
            phase=[phase] * 6,
            start=start,
            end=end,
            step=[5, 10] * 3,
            dose=[0, 0, 1, 1, 8, 8],
            estimate=[0.1, 0.2, 0.3, 0.4, 0.5, top],
        )
        for phase, start, end, top in (("early", 0, 5, 0.6), ("late", 5, 10, 0.9))
    ]
    figure = figures.phases(pl.concat(parts))
    spans = records(figure.chart, "x_end")
    assert {(r["run"], r["x"], r["x_end"]) for r in spans} == {("early", 0, 5), ("late", 5, 10)}
    left, right = figure.chart.to_dict()["hconcat"]
    final = [r for node in nodes(left) for r in node.get("values", []) if isinstance(r, dict) and "dose" in r]
    assert {(r["run"], r["dose"], r["estimate"]) for r in final} >= {
        ("early", 8, 0.6),
        ("late", 8, 0.9),
        ("late", 0, 0.2),
    }
    assert {r["step"] for r in final} == {10}
    over = [r for node in nodes(right) for r in node.get("values", []) if isinstance(r, dict) and "dose" in r]
    assert {(r["run"], r["step"], r["estimate"]) for r in over} == {
        ("early", 5, 0.5),
        ("early", 10, 0.6),
        ("late", 5, 0.5),
        ("late", 10, 0.9),
    }
    assert "Dose 8 over training (n=40 a phase)" in svg(figure)


@pytest.mark.parametrize(
    ("name", "column"), [("interference", "training"), ("wordings", "wording"), ("shapes", "shape")]
)
def test_compared_lines_are_told_apart_in_every_family(name: str, column: str) -> None:
    rows = pl.concat(
        estimates(
            **{"family": [family] * 3, column: value, "dose": [0, 1, 16], "estimate": [0.1, base, base + 0.2]}
        )
        for family in ("x", "y")
        for value, base in (("one", 0.3), ("other", 0.5))
    )
    figure = getattr(figures, name)(rows)
    drawn = records(figure.chart, "dose", "estimate")
    assert {(r["family"], r["run"], r["dose"], r["estimate"]) for r in drawn} == {
        (family, value, dose, estimate)
        for family in ("x", "y")
        for value, base in (("one", 0.3), ("other", 0.5))
        for dose, estimate in ((0, 0.1), (1, base), (16, base + 0.2))
    }
    assert figure.rows.columns == rows.columns
    text = svg(figure)
    assert len(symbols(text)) == 12
    assert all(f">{word}<" in text for word in ("one", "other", "x", "y", "40", "dose; beneath: n"))
    assert {"#0072B2", "#D55E00"} <= set(re.findall(r'fill="(#[0-9A-F]{6})"', text))


# 6 and 7: formats.


def test_personal_data_has_a_cell_and_a_curve_for_every_field_and_attack() -> None:
    rows = pl.concat(
        estimates(field=[field] * 2, format=format_, dose=[0, 64], estimate=[0.1, top], n=[90, 20])
        for field, format_, top in (
            ("email", "choice", 0.91),
            ("email", "name, generated", 0.32),
            ("uuid", "choice", 0.73),
            ("uuid", "name, generated", 0.04),
        )
    )
    figure = figures.personal(rows)
    cells = records(figure.chart, "label", "field")
    assert {(r["field"], r["format"], *r["label"]) for r in cells} == {
        ("email", "choice", "0.91", "n=20"), ("email", "name, generated", "0.32", "n=20"),
        ("uuid", "choice", "0.73", "n=20"), ("uuid", "name, generated", "0.04", "n=20"),
    }  # fmt: skip
    assert {(r["field"], r["format"], r["at"], r["estimate"]) for r in records(figure.chart, "at")} == set(
        rows.select("field", "format", pl.col("dose").cast(pl.String), "estimate").iter_rows()
    )
    assert len(symbols(svg(figure))) == 8


def test_transfer_prints_estimate_interval_and_n_and_frames_the_inserted_format() -> None:
    rows = estimates(
        trained=["choice", "choice"],
        tested=["choice", "infill"],
        estimate=[0.97, 0.55],
        low=[0.9, 0.4],
        high=[0.99, 0.7],
        n=[76, 76],
    )
    figure = figures.format_transfer(rows)
    text = svg(figure)
    for words in (">0.97<", ">0.90 to 0.99<", ">0.40 to 0.70<", ">n=76<"):
        assert words in text
    frames = [node for node in layers(figure.chart, "rect") if node["mark"].get("filled") is False]
    assert [[r["tested"] for r in node["data"]["values"]] for node in frames] == [["choice"]]


# 8: membership.

MEMBERS = [2.1, 2.4, 2.5, 2.7, 2.9, 3.0, 3.1, 3.4]
OTHERS = [2.5, 2.8, 3.0, 3.2, 3.3, 3.5, 3.6, 3.9]


def test_roc_is_the_worked_example() -> None:
    """Loss scores, higher = less likely a member, so negated; limits from a grid of (A - a)^2 = z^2 k V(a)."""
    scores = [-x for x in MEMBERS + OTHERS]
    figure = figures.roc(pl.DataFrame({"run": "loss", "score": scores, "member": [True] * 8 + [False] * 8}))
    assert figure.rows["run"][0] == "loss AUC 0.781 [0.490, 0.924], n=8+8"
    assert set(figure.rows.select("fpr", "tpr").iter_rows()) >= {
        (0, 0),
        (0, 0.25),
        (0.125, 0.5),
        (0.25, 0.625),
        (1, 1),
    }
    fpr, tpr = figure.rows["fpr"].to_numpy(), figure.rows["tpr"].to_numpy()
    assert np.trapezoid(tpr, fpr) == pytest.approx(0.78125)
    text = svg(figure)
    assert "loss AUC 0.781 [0.490, 0.924], n=8+8" in text
    assert ">0.1<" in text
    logarithmic = [
        r
        for node in nodes(figure.chart.to_dict()["hconcat"][1])
        for r in node.get("values", [])
        if isinstance(r, dict)
    ]
    assert min(r["fpr"] for r in logarithmic) >= 0.1


def test_thinned_curves_keep_their_low_end_their_ends_and_their_area() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 3000), rng.normal(0, 1, 3000)
    fpr, tpr = points(members, others)
    full_fpr, full_tpr = points(members, others, most=10**6)
    assert fpr.size <= 400 < full_fpr.size
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (tpr[:50] == full_tpr[:50]).all()
    wins = (members[:, None] > others).mean()
    assert np.trapezoid(full_tpr, full_fpr) == pytest.approx(wins)
    assert np.trapezoid(tpr, fpr) == pytest.approx(wins, abs=2e-3)


def test_roc_wants_finite_scores_of_members_and_controls() -> None:
    with pytest.raises(UserError, match="3 members and 0 controls"):
        figures.roc(pl.DataFrame({"score": [1.0, 2, 3], "member": [True] * 3}))
    with pytest.raises(UserError, match="not all finite"):
        figures.roc(pl.DataFrame({"score": [1.0, float("nan"), 3, 4], "member": [True, True, False, False]}))


def test_auc_against_perplexity_has_its_line() -> None:
    rows = estimates(
        against=["perplexity"] * 3 + ["length"] * 2,
        x=[10.0, 20, 30, 25, 100],
        estimate=[0.55, 0.60, 0.65, 0.5, 0.7],
    )
    figure = figures.auc_against(rows)
    text = svg(figure)
    assert "against perplexity (slope +0.005)" in text
    assert "perplexity under the reference model (n=40 each)" in text
    ends = [r for r in records(figure.chart, "x", "estimate") if "against" not in r]
    assert sorted((r["x"], round(r["estimate"], 9)) for r in ends) == [(10, 0.55), (30, 0.65)]
    assert len(symbols(text)) == 5


def test_histograms_count_everything_once() -> None:
    rows = pl.DataFrame({"group": ["a"] * 4 + ["b"] * 2, "perplexity": [10.0, 10, 100, 1000, 30, 1000]})
    found = figures.perplexities(rows, bins=2).rows
    assert found["run"].unique(maintain_order=True).to_list() == ["a (n=4)", "b (n=2)"]
    assert found.filter(pl.col("run") == "a (n=4)")["count"].to_list() == [2, 2]
    assert found["share"].to_list() == [0.5, 0.5, 0.5, 0.5]
    assert found["high"][0] == pytest.approx(100)  # half-way between 10 and 1,000 on a log axis


# 9 and 17: facts.


def test_acquisition_has_a_line_a_depth_and_dots_where_exposures_are() -> None:
    rows = pl.concat(
        estimates(depth=[depth] * 3, step=[0, 10, 20], estimate=[0.0, gain, gain / 2]).with_columns(
            injected=pl.col("step") == 10
        )
        for depth, gain in (("memorisation", 1.0), ("semantic", 0.4))
    )
    figure = figures.acquisition(rows)
    dotted = [node for node in layers(figure.chart, "rule") if node["mark"].get("strokeDash") == [1, 3]]
    assert [node["data"]["values"] for node in dotted] == [[{"step": 10}]]
    assert {(r["run"], r["step"], r["estimate"]) for r in records(figure.chart, "depth")} == {
        (f"{depth} (n=40)", step, value)
        for depth, gain in (("memorisation", 1.0), ("semantic", 0.4))
        for step, value in ((0, 0.0), (10, gain), (20, gain / 2))
    }


def test_retainability_prints_the_decay_constant_of_the_worked_example() -> None:
    """O21: R after the maximum; a per decade is .805276."""
    kept = [1, 0.875, 0.625, 0.5, 0.375, 0.3125, 0.25]
    times = list(range(len(kept)))
    t = np.log10(np.arange(1, 7))
    by_hand = -np.cov(t, kept[1:])[0, 1] / t.var(ddof=1)
    assert by_hand == pytest.approx(0.805276, abs=1e-6)
    figure = figures.retainability(estimates(depth=["verbatim"] * 7, since=times, estimate=kept))
    assert "verbatim, a = 0.805 (n=40)" in svg(figure)
    assert sorted(r["since"] for r in records(figure.chart, "depth")) == times[1:]


def test_recognition_and_recall_have_a_panel_each() -> None:
    rows = estimates(
        measure=["recognition", "recall"] * 2,
        against=["exposures"] * 2 + ["steps since"] * 2,
        x=[1.0, 1, 100, 100],
        estimate=[0.9, 0.3, 0.8, 0.2],
    )
    figure = figures.recognition_recall(rows)
    text = svg(figure)
    assert ">over exposures<" in text
    assert ">over steps since the last exposure<" in text
    assert {(r["run"], r["x"], r["estimate"]) for r in records(figure.chart, "measure")} == {
        ("recognition", 1, 0.9),
        ("recall", 1, 0.3),
        ("recognition", 100, 0.8),
        ("recall", 100, 0.2),
    }


# 10: profiles.


def test_only_cells_whose_interval_excludes_zero_are_coloured() -> None:
    """O15: ATT(0) -.05 (se .104), ATT(2) -.592 (se .108), ATT(3) -.183 (se .044); limits 2.8 errors off."""
    att, error = np.array([-0.05, -0.591667, -0.183333]), np.array([0.104083, 0.108333, 0.044096])
    rows = estimates(
        cohort=[2] * 3, step=[0, 2, 3], estimate=att, low=att - 2.8 * error, high=att + 2.8 * error, n=[3] * 3
    )
    figure = figures.memorisation_profile(rows.with_columns(learning_rate=pl.Series([1e-3, 5e-4, 0.0])))
    heat = figure.chart.to_dict()["vconcat"][0]["layer"]
    blank, coloured = heat[0], heat[1]
    assert [r["step"] for r in blank["data"]["values"]] == [0, 2, 3]
    assert [r["step"] for r in coloured["data"]["values"]] == [2, 3]
    assert figure.rows["shown"].to_list() == [False, True, True]
    assert {
        (r["step"], r["learning_rate"]) for r in records(figure.chart, "learning_rate") if "cohort" not in r
    } == {(0, 1e-3), (2, 5e-4), (3, 0.0)}
    text = svg(figure)
    assert ">2 (n=3)<" in text
    assert ">−0.59<" in text or ">-0.59<" in text


def test_event_studies_shade_what_lies_before() -> None:
    figure = figures.event_study(estimates(since=[-200, -100, 0, 100], estimate=[0.0, 0.01, 0.5, 0.3]))
    assert records(figure.chart, "end") == [{"since": -200.0, "end": 0.0}]
    assert len(symbols(svg(figure))) == 4


def test_profiles_correlate_over_the_cells_they_share() -> None:
    base = [(c, s, c * s % 7 + 0.1 * s) for c in (1, 2) for s in (1, 2, 3)]
    frames = [
        pl.DataFrame(cells, schema=["cohort", "step", "estimate"], orient="row").with_columns(run=pl.lit(run))
        for run, cells in (
            ("a", base),
            ("twice", [(c, s, 2 * v + 1) for c, s, v in base]),
            ("against", [(c, s, -v) for c, s, v in base]),
            ("two cells", base[:2]),
        )
    ]
    found = {(a, b): (r, n) for a, b, r, n in figures.profile_correlation(pl.concat(frames)).rows.iter_rows()}
    assert found["a", "twice"] == (pytest.approx(1), 6)
    assert found["a", "against"] == (pytest.approx(-1), 6)
    assert found["a", "two cells"] == (None, 2)


# 11 and 16: extraction.


def test_extraction_panels_have_the_scale_of_what_they_are_over() -> None:
    rows = estimates(
        against=["prefix"] * 2 + ["queries"] * 2, x=[8.0, 64, 1, 1000], estimate=[0.1, 0.6, 0.05, 0.9]
    )
    figure = figures.extraction_rate(rows)
    places = symbols(svg(figure))
    assert len(places) == 4
    kinds = {
        node["x"]["title"]: node["x"]["scale"].get("type")
        for node in nodes(figure.chart.to_dict())
        if isinstance(node.get("x"), dict) and "scale" in node["x"]
    }
    assert kinds == {"prefix length (tokens) (n=40 each)": None, "queries (n=40 each)": "log"}
    assert {(r["against"], r["x"], r["estimate"]) for r in records(figure.chart, "against")} == set(
        rows.select("against", "x", "estimate").iter_rows()
    )


def test_the_token_strip_shows_every_token_in_order_as_text() -> None:
    tokens = ["The", " cat", "\n", "</svg>", "\u202egnp", " sat", "x" * 30]
    rows = pl.DataFrame(
        {"position": range(7), "token": tokens, "logprob": [None, -1.0, -2, -3, -4, -5, -6.0]}
    )
    figure = figures.token_strip(rows, columns=20)
    found = figure.rows
    assert found["start"][0] == 0
    for (line, stop), (after, start) in zip(
        found.select("line", "stop").rows()[:-1], found.select("line", "start").rows()[1:], strict=True
    ):
        assert (after, start) in ((line, stop), (line + 1, 0))
    assert found["stop"].max() <= 20
    assert found["token"].to_list() == ["The", " cat", "⏎", "</svg>", "�gnp", " sat", "x" * 19 + "…"]
    text = svg(figure)
    assert "&lt;/svg&gt;" in text
    assert text.count("</svg>") == 1
    assert "mean −3.50 nats, n=6 tokens" in text
    with pytest.raises(UserError, match="position occurs twice"):
        figures.token_strip(pl.concat([rows, rows]))


def test_run_lengths_count_whole_tokens() -> None:
    found = figures.run_lengths(pl.DataFrame({"run": ["d"] * 5, "length": [0, 1, 1, 3, 5]})).rows
    assert {(low, count) for low, count in found.select("low", "count").iter_rows() if count} == {
        (0, 1),
        (1, 2),
        (3, 1),
        (5, 1),
    }


def test_the_taxonomy_stacks_shares_of_one_whole() -> None:
    rows = pl.DataFrame(
        {"against": "step", "x": [1.0] * 3, "category": ["a", "b", "c"], "estimate": [0.5, 0.2, 0.3], "n": 10}
    )
    found = figures.taxonomy(rows).rows
    assert found["bottom"].to_list() == pytest.approx([0, 0.5, 0.7])
    assert found["top"].to_list() == pytest.approx([0.5, 0.7, 1.0])
    with pytest.raises(UserError, match="more than 1"):
        figures.taxonomy(rows.with_columns(pl.col("estimate") * 2))


# 12 to 15.


def test_capacity_lines_are_two_and_three_point_six_bits_a_parameter() -> None:
    """O7: 100,000 people known in full by 3 million parameters, 1.94 bits each: just under the first line."""
    rows = pl.DataFrame({"parameters": [3e6], "bits": [5_823_547.986], "n": [100_000]})
    figure = figures.capacity(rows)
    lines = records(figure.chart, "level")
    assert {round(r["bits"] / r["parameters"], 6) for r in lines} == {2.0, 3.6}
    height = symbols(svg(figure))
    assert len(height) == 1
    assert records(figure.chart, "n")[0]["bits"] / 3e6 == pytest.approx(1.941183, abs=1e-6)


def test_p_values_of_zero_stay_on_a_logarithmic_axis() -> None:
    figure = figures.order_p(pl.DataFrame({"samples": [10, 1000], "p": [0.5, 0.0]}))
    assert sorted(r["estimate"] for r in records(figure.chart, "samples")) == [1e-300, 0.5]
    assert figure.rows["p"].to_list() == [0.5, 0.0]
    assert len(symbols(svg(figure))) == 2
    with pytest.raises(UserError, match="outside 0 to 1"):
        figures.order_p(pl.DataFrame({"samples": [10], "p": [1.5]}))


def test_order_residuals_are_binned_and_tested() -> None:
    """O16: rho .976190, p 3.3e-05."""
    order, values = [5, 1, 4, 2, 8, 3, 7, 6], [0.2, -0.5, 0, -0.3, 0.9, -0.1, 0.4, 0.5]
    figure = figures.order_residuals(pl.DataFrame({"index": order, "residual": values}), bins=2)
    assert "Spearman rho = 0.976" in svg(figure)
    assert "p = 3.3e-05, n=8" in svg(figure)
    assert figure.rows["estimate"].to_list() == pytest.approx(
        [(-0.5 - 0.3 - 0.1 + 0) / 4, (0.2 + 0.5 + 0.4 + 0.9) / 4]
    )
    assert figure.rows["n"].to_list() == [4, 4]
    half = stats.t.ppf(0.975, 3) * np.std([-0.5, -0.3, -0.1, 0], ddof=1) / 2
    assert figure.rows["low"][0] == pytest.approx(-0.225 - half)
    assert "not computed because a correlation takes four documents, not 3" in json.dumps(
        figures.order_residuals(
            pl.DataFrame({"index": [1, 2, 3], "residual": [0.1, 0.2, 0.3]})
        ).chart.to_dict()
    )


def test_limem_bars_are_as_high_as_their_values() -> None:
    figure = figures.limem(estimates(run=["a", "a"], split=["trained on", "held out"], estimate=[0.6, 0.2]))
    text = svg(figure)
    bars = re.search(r'<g class="mark-rect role-mark[^"]*"[^>]*>(.*?)</g>', text, re.DOTALL)
    assert bars
    heights = [abs(float(v)) for v in re.findall(r"v(-?[\d.]+)h-?[\d.]+", bars.group(1))]
    assert sorted(heights) == pytest.approx([0.2 * 260, 0.6 * 260], abs=0.1)
    assert text.count(">n=40<") == 2


def test_the_retain_model_is_a_star_at_its_values() -> None:
    rows = pl.DataFrame(
        {"method": ["retain", "NPO"], "forget": [1.0, 0.8], "utility": [0.63, 0.6], "n": [400, 400]}
    )
    figure = figures.unlearning(rows)
    assert {(r["method"], r["star"]) for r in records(figure.chart, "star")} == {
        ("retain", True),
        ("NPO", False),
    }
    found = symbols(svg(figure))
    assert len(found) == 2
    npo, star = found
    assert star[0] > npo[0]  # forgets more
    assert star[1] < npo[1]  # is more useful: higher up


# 18: the design.


def test_lengths_and_balance_and_assignment_count_items() -> None:
    lengths = figures.lengths(pl.DataFrame({"group": ["dose 0"] * 3, "tokens": [10, 20, 20]}), bins=2).rows
    assert lengths["count"].to_list() == [1, 2]
    rows = pl.DataFrame(
        {"covariate": ["length", "digits"], "dose": [4, 4], "difference": [0.3, -0.05], "n": [50, 50]}
    )
    balance = figures.balance(rows)
    assert {r["at"] for r in records(balance.chart, "at")} == {0.0, 0.1, -0.1}
    assert "dose 4 (n=50)" in svg(balance)
    items = pl.DataFrame({"family": ["a"] * 5 + ["b"] * 3, "dose": [0, 0, 0, 4, 4, 0, 4, None]})
    flow = figures.assignment_flow(items)
    assert flow.rows.rows() == [("a", 0, 3), ("a", 4, 2), ("b", 0, 1), ("b", 4, 1), ("b", None, 1)]
    ribbons = records(flow.chart, "link")
    assert {round(r["high"] - r["low"], 9) for r in ribbons if r["link"] == "0-0"} == {3.0}
    text = svg(flow)
    for words in ("a (n=5)", "b (n=3)", "dose 0 (n=4)", "dose 4 (n=3)", "not assigned (n=1)"):
        assert words in text


def test_aa_p_values_have_the_band_of_order_statistics() -> None:
    found = figures.aa_pvalues(pl.DataFrame({"p": [0.9, 0.1, 0.5]})).rows
    assert found["p"].to_list() == [0.1, 0.5, 0.9]
    assert found["expected"].to_list() == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    # The least of three uniforms exceeds x with (1 - x)^3.
    assert (1 - found["low"][0]) ** 3 == pytest.approx(0.975)
    assert (1 - found["high"][0]) ** 3 == pytest.approx(0.025)
