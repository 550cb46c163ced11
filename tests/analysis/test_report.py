"""The report on a synthetic experiment whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.report import Answer, ReportInputs, analyse, answer, build
from palimpsest.analysis.report.facts import split_facts
from palimpsest.analysis.report.results import item_gains
from palimpsest.data.errors import UserError
from tests.analysis.synthetic import DOSES, experiment

HOSTILE = '<script>alert(1)</script> ]]> \u202e reversed & "quoted" <img src=x onerror=alert(2)>'


class _Page(HTMLParser):
    """The page as a browser reads it: its elements, links, and the text it shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


SMALL = (0, 16, 250)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], _Page]:
    directory = tmp_path_factory.mktemp("report")
    numbers = build(experiment(steps=SMALL), directory)
    return directory, numbers, _Page((directory / "report.html").read_text(encoding="utf-8"))


def test_a_known_effect_is_found_and_the_twin_shows_none(built: tuple[Path, dict[str, Any], _Page]) -> None:
    _, numbers, page = built
    assert numbers["verdict"] == "reproduced"
    assert numbers["caveats"] == ["one run"]
    gain = numbers["gain_at_highest_dose"]
    truth = 0.06 * np.log2(65) / 4  # four bytes a token
    assert gain["perturbed"]["low"] < truth < gain["perturbed"]["high"]
    assert gain["perturbed"]["low"] > 0
    assert gain["twin"]["low"] < 0 < gain["twin"]["high"]
    assert gain["perturbed - twin"]["low"] < truth < gain["perturbed - twin"]["high"]
    assert numbers["minimum_effective_dose"] in (1, 4, 16)
    assert f"from dose {numbers['minimum_effective_dose']} on" in page.text
    assert re.search(r"Audit: PASS \(2,550 exposures, each exactly once\)", page.text)


def test_the_page_needs_nothing_but_itself(built: tuple[Path, dict[str, Any], _Page]) -> None:
    directory, _, page = built
    # The two streams of the item browser, and its program.
    assert page.tags.count("script") == 3
    assert not {"img", "link", "iframe"} & set(page.tags)
    urls = [value for name, value in page.attributes if name in ("src", "href", "xlink:href") and value]
    assert not [url for url in urls if "//" in url]
    for url in urls:
        assert url.startswith("#") or (directory / url).is_file()
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {url[1:] for url in urls if url.startswith("#")} <= set(ids)
    assert page.tags.count("svg") >= 8


def test_item_text_is_shown_as_text(built: tuple[Path, dict[str, Any], _Page], tmp_path: Path) -> None:
    base = experiment(steps=SMALL)
    hostile = base.items.with_columns(
        text=pl.lit(HOSTILE), family=pl.col("family").str.replace("passage", "<b>x</b>")
    )
    probes = base.probes.with_columns(family=pl.col("family").str.replace("passage", "<b>x</b>"))
    build(dataclasses.replace(base, items=hostile, probes=probes, permutations=99), tmp_path)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 3
    assert not {"img", "b"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert "⟨U+202E⟩ reversed" in page.text
    assert "\u202e" not in page.text
    assert "<b>x</b>" in page.text


def test_every_figure_comes_as_png_svg_and_the_csv_behind_it(
    built: tuple[Path, dict[str, Any], _Page],
) -> None:
    directory, _, _ = built
    names = {path.stem for path in directory.glob("*.png")}
    assert {
        "dose_response",
        "controls",
        "by_family",
        "verbatim",
        "recognition",
        "over_training",
        "training",
    } <= names
    for name in names:
        assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (directory / f"{name}.svg").read_text(encoding="utf-8")
        assert pl.read_csv(directory / f"{name}.csv").height > 0
    estimates = pl.read_csv(directory / "estimates.csv")
    assert set(estimates["statistic"]) == {"mean", "gain", "split", "auc"}
    drawn = pl.read_csv(directory / "dose_response.csv").select("run", "dose", "estimate")
    assert (
        drawn.join(
            estimates.filter((pl.col("metric") == "loglik_per_byte") & (pl.col("step") == 250)),
            on=["run", "dose", "estimate"],
            how="semi",
        ).height
        == 10
    )
    assert json.loads((directory / "summary.json").read_text())["verdict"] == "reproduced"


def test_a_report_is_the_same_bytes_twice(built: tuple[Path, dict[str, Any], _Page], tmp_path: Path) -> None:
    directory, _, _ = built
    build(experiment(steps=SMALL), tmp_path)
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert [n for n in names if (tmp_path / n).read_bytes() != (directory / n).read_bytes()] == []


def test_the_page_says_what_decides_and_how_small_p_can_be(built: tuple[Path, dict[str, Any], _Page]) -> None:
    _, numbers, page = built
    assert "What decides is the column in bold, item by item against the twin" in page.text
    assert "≤ 0.0005" in page.text
    head = re.sub(r"\s+", " ", page.text)
    assert "dose n controls perturbed − twin p perturbed p twin p".replace(" ", "") in head.replace(" ", "")
    assert numbers["verbatim_extraction"]["above_control"]
    assert re.search(r"and \d+ of \d+ items were reproduced verbatim at dose 64", numbers["headline"])
    assert "memorised" not in page.text
    controls = [line for line in page.text.splitlines() if "Negative control, " in line]
    assert "perturbed − twin" in controls[0]


def test_the_dose_of_half_the_effect_is_in_the_report(built: tuple[Path, dict[str, Any], _Page]) -> None:
    directory, numbers, page = built
    rows = {(row["metric"], row["run"]): row for row in numbers["ec50"]}
    verbatim = rows["extracted", "perturbed"]
    assert 16 < verbatim["ec50"] < 64
    assert 1 < verbatim["low"] < verbatim["ec50"] < verbatim["high"]
    # The effect of the primary measure is linear in log dose: it has not bent at the highest dose, or only just.
    assert rows["loglik_per_byte", "perturbed - twin"]["high"] > 20
    assert rows["loglik_per_byte", "twin"]["shown"] == rows["extracted", "twin"]["shown"] == "not reached"
    assert page.text.count("not reached") >= 2
    assert pl.read_csv(directory / "ec50.csv").height == len(rows) == 5


def test_strata_have_a_table_where_they_were_planned(built: tuple[Path, dict[str, Any], _Page]) -> None:
    directory, _, page = built
    strata = pl.read_csv(directory / "strata.csv")
    assert strata["family"].n_unique() == 6
    assert set(strata["n"]) == {5}
    assert "biography/short" in page.text
    assert "By stratum, at dose 64" in page.text


def test_the_first_screen_says_what_the_verdict_rests_on(built: tuple[Path, dict[str, Any], _Page]) -> None:
    _, _, page = built
    first = page.text[: page.text.index("Gain by dose")]
    assert "another training run would differ is not in the intervals" in re.sub(r"\s+", " ", first)
    few = experiment(steps=SMALL, per_cell=1)
    assert _answer(few).caveats == ("only 6 controls", "one run")


def test_controls_too_few_to_be_split_are_not_ticked() -> None:
    base = experiment(steps=SMALL, per_cell=1)
    items = base.items.filter(pl.col("family") == base.items["family"][0])
    probes = base.probes.join(items, on="item_id", how="semi")
    scores = base.scores.join(probes, on="probe_id", how="semi")
    two = _answer(dataclasses.replace(base, items=items, probes=probes, scores=scores))
    assert "only 2 controls" in two.caveats
    negative = [(passed, line) for passed, line in two.trust if line.startswith("Negative control")]
    assert len(negative) == 3
    assert all(passed is None and line.endswith("not tested, too few controls") for passed, line in negative)
    assert all(passed is not None for passed, line in _answer(experiment(steps=SMALL)).trust)


def test_clusters_stand_beside_items(tmp_path: Path) -> None:
    base = experiment(steps=SMALL)
    cluster = pl.format("c{}-{}", "dose", pl.int_range(pl.len()).over("stratum", "dose") // 2)
    grouped = base.items.with_columns(cluster=pl.concat_str("stratum", cluster))
    numbers = build(dataclasses.replace(base, items=grouped, permutations=99), tmp_path)
    gain = numbers["gain_at_highest_dose"]["perturbed - twin"]
    assert (gain["n"], gain["clusters"], gain["clusters_control"]) == (30, 18, 18)
    assert "n = 30 in 18 clusters against 30 in 18 clusters" in numbers["detail"]
    estimates = pl.read_csv(tmp_path / "estimates.csv", infer_schema_length=None)
    own = estimates.filter((pl.col("statistic") == "auc") & (pl.col("family") == "all"))
    assert set(own["clusters"]) == {18}


def test_nothing_extracted_is_said_in_words_and_not_drawn(tmp_path: Path) -> None:
    base = experiment(steps=SMALL)
    missed = base.scores.with_columns(rank=pl.col("rank").list.eval(pl.element() * 0 + 7))
    numbers = build(dataclasses.replace(base, scores=missed, permutations=99), tmp_path)
    assert re.search(r"; 0 of \d+ inserted items were reproduced verbatim\.$", numbers["headline"])
    assert numbers["verdict"] == "more likely than its controls"
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    found = numbers["verbatim_extraction"]
    assert f"0 of {found['tested_inserted']} inserted items extracted" in text
    # Not far from the rule of three, though families and strata are kept apart.
    assert 0.02 < found["limit_inserted"] < 3.7 / found["tested_inserted"] * 3**0.5
    assert not (tmp_path / "verbatim.png").exists()
    assert "≤ 0.01" in text


def test_arms_of_one_dose_get_a_table(tmp_path: Path) -> None:
    base = experiment(steps=SMALL)
    # Every second item of a dose, told apart by where it lies.
    place = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("word")).otherwise(pl.lit("document"))
    named = pl.when(pl.col("dose") > 0).then(pl.format("dose {}, position {}", "dose", place))
    split = base.items.with_columns(arm=named.otherwise(pl.lit("dose 0")))
    build(dataclasses.replace(base, items=split, permutations=99), tmp_path)
    arms = pl.read_csv(tmp_path / "arms.csv")
    assert arms["arm"].to_list() == [
        f"dose {dose}, position {at}" for dose in DOSES[1:] for at in ("document", "word")
    ]
    assert arms["n"].to_list() == [15] * 8
    truth = 0.06 * float(np.log2(65)) / 4
    assert ((arms["low"] < truth) & (truth < arms["high"])).to_list()[-2:] == [True, True]
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "dose 64, position word" in text
    assert "Each dose pools its arms" in text
    assert analyse(base).arms.is_empty()


def test_items_that_gained_most_are_freed_of_what_their_family_gained() -> None:
    base = experiment(steps=SMALL)
    lifted = pl.col("probe_id").str.starts_with("ghost") & (pl.col("run") == "perturbed")
    scores = base.scores.with_columns(
        logprob=pl.when(lifted).then(pl.col("logprob") + 0.5).otherwise("logprob")
    )
    plain, shifted = (
        item_gains(analyse(inputs), inputs).sort("item_id")["gain"]
        for inputs in (base, dataclasses.replace(base, scores=scores))
    )
    assert plain.to_list() == pytest.approx(shifted.to_list(), abs=1e-6)


def test_dose_0_above_the_twin_is_explained(tmp_path: Path) -> None:
    base = experiment(steps=SMALL)
    lifted = pl.when(pl.col("run") == "perturbed").then(pl.col("logprob") + 0.2).otherwise("logprob")
    build(
        dataclasses.replace(base, scores=base.scores.with_columns(logprob=lifted), permutations=99), tmp_path
    )
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "At dose 0 the perturbed run lies above the twin, by 0.05" in text


def test_facts_are_printed_for_people() -> None:
    pairs, tables = split_facts(
        {
            "share_of_tokens_inserted": 0.08505768952546296,
            "probes_left_out": [],
            "largest": 1.23456789,
            "arms": {"dose 16": {"items": 30}, "dose 4": {"items": 30, "exposures": 1200}},
            "balance": [{"covariate": "bytes", "p": 0.5}],
            "found": [{"item_id": "a", "count": 2}],
        }
    )
    assert pairs == [
        ("share of tokens inserted", "8.51 %"),
        ("probes left out", "none"),
        ("largest", "1.235"),
    ]
    assert [table.body for table in tables] == [
        [["dose 4", "30", "1,200"], ["dose 16", "30", "–"]],
        [["a", "2"]],
    ]


def test_imbalance_is_a_warning() -> None:
    base = experiment(steps=SMALL)
    uneven = dataclasses.replace(
        base, balance=[{"covariate": "bytes", "p": 0.03}, {"covariate": "length", "p": 0.2}]
    )
    assert [w for w in _answer(uneven).warnings if w.startswith("Balance")] == [
        "Balance: the arms differ in bytes (p = 0.030) although they were drawn at random. One in twenty such tests "
        "finds that by chance."
    ]
    assert not [w for w in _answer(base).warnings if w.startswith("Balance")]


def _answer(inputs: ReportInputs) -> Answer:
    return answer(inputs, analyse(inputs))


def test_a_dose_whose_interval_holds_0_is_said_to_rest_on_its_test() -> None:
    inputs = experiment(steps=SMALL)
    results = analyse(inputs)
    dose = answer(inputs, results).minimum_effective_dose
    here = (pl.col("statistic") == "gain") & (pl.col("family") == "all") & (pl.col("dose") == dose)
    wide = results.estimates.with_columns(low=pl.when(here).then(pl.lit(-0.01)).otherwise(pl.col("low")))
    found = answer(inputs, dataclasses.replace(results, estimates=wide))
    assert found.minimum_effective_dose == dose
    assert found.caveats == (
        f"dose {dose} by its one-sided test alone, as its two-sided 95 % interval holds 0",
        "one run",
    )


def test_no_effect_gives_no() -> None:
    found = _answer(experiment(effect=0.0, steps=SMALL, seed=3))
    assert found.verdict == "not shown"
    assert found.headline.startswith("Not shown: ")
    assert found.minimum_effective_dose is None


def test_a_failed_audit_overrules_the_numbers(tmp_path: Path) -> None:
    numbers = build(experiment(steps=SMALL, verdict="FAIL"), tmp_path)
    assert numbers["verdict"] == "audit failed"
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "The audit failed: do not use these numbers" in text
    assert "item passage-007 at step 31, row 4" in text
    assert "each exactly once" not in text


def test_a_gain_in_the_twin_too_is_not_called_memory() -> None:
    base = experiment(steps=SMALL)
    ours = base.scores.filter(pl.col("run") == "perturbed")
    same = pl.concat([ours, ours.with_columns(run=pl.lit("twin"))])
    found = _answer(dataclasses.replace(base, scores=same))
    assert found.verdict == "as much more likely in the twin"
    assert any("twin's interval" in warning for warning in found.warnings)


def test_no_twin_no_audit_and_runs_of_unequal_length_are_said() -> None:
    base = experiment(steps=SMALL)
    alone = _answer(
        dataclasses.replace(base, scores=base.scores.filter(pl.col("run") == "perturbed"), audit=None)
    )
    assert any("no twin" in warning for warning in alone.warnings)
    assert any("no audit" in warning for warning in alone.warnings)
    assert alone.caveats == ("no twin", "not audited", "one run")
    shorter = base.scores.filter((pl.col("run") == "perturbed") | (pl.col("step") < 250))
    inputs = dataclasses.replace(base, scores=shorter)
    assert analyse(inputs).step == 16
    assert any("different checkpoints" in warning for warning in _answer(inputs).warnings)


def test_what_was_not_computed_is_listed(tmp_path: Path) -> None:
    base = experiment(steps=SMALL)
    gone = base.items["item_id"][3]
    scores = base.scores.filter(~pl.col("probe_id").str.starts_with(gone) | (pl.col("step") < 250))
    build(dataclasses.replace(base, scores=scores), tmp_path)
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "the probe was not scored at this checkpoint" in text
    assert "it is shorter than 16 + 16 tokens" in text


def test_bad_inputs_are_refused_in_one_line() -> None:
    base = experiment(steps=(0, 8), per_cell=1)
    with pytest.raises(UserError, match="no scores of the perturbed run"):
        dataclasses.replace(base, scores=base.scores.filter(pl.col("run") == "twin"))
    with pytest.raises(UserError, match="did you mean 'extracted'"):
        dataclasses.replace(base, primary="extractd")
    with pytest.raises(UserError, match="must not be called 'all'"):
        dataclasses.replace(base, items=base.items.with_columns(family=pl.lit("all")))
    with pytest.raises(UserError, match="dose 0"):
        dataclasses.replace(base, items=base.items.filter(pl.col("dose") > 0))
