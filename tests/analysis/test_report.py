"""The report on a synthetic experiment whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.report import Answer, ReportInputs, analyse, answer, build
from analysis.report.facts import split_facts
from analysis.report.results import item_gains
from data.errors import UserError

DOSES = (0, 1, 4, 16, 64)
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 100, 128, 150, 180, 220, 250)
FAMILIES = ("biography", "ghost_sentence", "passage")
HOSTILE = '<script>alert(1)</script> ]]> \u202e reversed & "quoted" <img src=x onerror=alert(2)>'


def _texts(per_cell: int, rng: np.random.Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items of three families in two strata each, and their probes; some too short for verbatim extraction."""
    items: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []

    def probe(
        name: str, item: dict[str, Any] | None, family: str, kind: str, length: int, start: int
    ) -> None:
        probes.append(
            {"probe_id": name, "item_id": item and item["item_id"], "family": family, "kind": kind}
            | {"text": item["text"] if item else "held out", "tokens": list(range(length))}
            | {"target_start": start, "target_bytes": 4 * (length - start)}
            | {"name": "its trade" if kind == "cloze" else "", "correct": True}
        )

    for family, half, dose, _ in itertools.product(FAMILIES, ("short", "long"), DOSES, range(per_cell)):
        length = int(rng.integers(*((26, 46) if half == "short" else (45, 70))))
        text = f"the {family} number {len(items)} " + "lorem ipsum " * (length // 4)
        item = {
            "item_id": f"{family}-{len(items):03d}",
            "family": family,
            "stratum": f"{family}/{half}",
            "arm": f"dose {dose}",
            "dose": dose,
            "text": text,
            "bytes": 4 * length,
            "tokens": list(range(length)),
        }
        items.append(item)
        probe(f"{item['item_id']}/verbatim", item, family, "verbatim", length, 0)
        if family == "biography":
            probe(f"{item['item_id']}/cloze", item, family, "cloze", 20, 14)
    for i in range(24):
        probe(f"heldout-{i}", None, "heldout", "heldout", 60, 0)
    return items, probes


def experiment(
    *,
    effect: float = 0.06,
    steps: tuple[int, ...] = STEPS,
    per_cell: int = 5,
    seed: int = 0,
    verdict: str = "PASS",
) -> ReportInputs:
    """Inserted items gain ``effect * log2(1 + dose)`` nats/token by the end of the perturbed run."""
    rng = np.random.default_rng(seed)
    items, probes = _texts(per_cell, rng)
    frame = pl.DataFrame(items).with_columns(pl.col("dose").cast(pl.Int32))
    good = verdict == "PASS"
    checks = [
        {"name": "every planned exposure was consumed", "passed": good, "detail": "2,550 of 2,550"},
        {"name": "other windows are identical to the twin's", "passed": True, "detail": "250 steps"},
    ]
    exposures = [(i["item_id"], int(s)) for i in items for s in rng.integers(0, steps[-1] + 1, i["dose"])]
    return ReportInputs(
        title="synthetic",
        items=frame,
        probes=pl.DataFrame(probes, infer_schema_length=None),
        scores=_scores(frame, probes, steps, effect, rng),
        training=_training(steps[-1], rng),
        exposures=pl.DataFrame(exposures, schema=["item_id", "step"], orient="row"),
        audit={
            "verdict": verdict,
            "checks": checks,
            "failures": [] if good else ["item passage-007 at step 31, row 4: token 3 differs"],
        },
        balance=[{"covariate": "bytes", "max_standardised_difference": 0.11, "p": 0.61}],
        facts={"exposures": 2550, "insertion_rate": "1.2 %"},
        config={"training": {"steps": steps[-1]}},
        manifests={"plan": {"digest": "abc"}},
    )


def _scores(
    items: pl.DataFrame,
    probes: list[dict[str, Any]],
    steps: tuple[int, ...],
    effect: float,
    rng: np.random.Generator,
) -> pl.DataFrame:
    dose = dict(items.select("item_id", "dose").iter_rows())
    base = {probe["probe_id"]: rng.normal(-4.0, 0.25) for probe in probes}
    rows = []
    for run in ("perturbed", "twin"):
        for step in steps:
            progress = step / steps[-1]
            for probe in probes:
                gain = (
                    effect * np.log2(1 + dose.get(probe["item_id"], 0)) * progress
                    if run == "perturbed"
                    else 0.0
                )
                level = (
                    base[probe["probe_id"]]
                    - 4 * (1 - progress) ** 3
                    + gain
                    + (rng.normal(0, 0.02) if step else 0.0)
                )
                count = len(probe["tokens"])
                logprob = np.minimum(rng.normal(level, 0.2, count), -1e-3).astype(np.float32)
                hit = rng.random(count) < (0.999 if gain > 6 * effect * 0.9 else 0.15 + 0.4 * gain)
                rows.append(
                    {
                        "run": run,
                        "step": step,
                        "probe_id": probe["probe_id"],
                        "logprob": logprob.tolist(),
                        "rank": np.where(hit, 0, 7).tolist(),
                    }
                )
    return pl.DataFrame(rows, schema_overrides={"logprob": pl.List(pl.Float32), "rank": pl.List(pl.UInt16)})


def _training(last: int, rng: np.random.Generator) -> pl.DataFrame:
    steps = np.arange(last + 1)
    return pl.concat(
        pl.DataFrame(
            {
                "run": run,
                "step": steps,
                "loss": 3.6 + 4.7 * np.exp(-steps / 45) + shift + rng.normal(0, 0.04, last + 1),
                "tokens": steps * 4096,
            }
        )
        for run, shift in (("perturbed", 0.0), ("twin", 0.02))
    )


class _Page(HTMLParser):
    """What a browser would make of the page: its elements, links, and the text it shows."""

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
    assert numbers["verdict"] == "memorised"
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
    assert "script" not in page.tags
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
    assert not {"script", "img", "b"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.text
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
    assert json.loads((directory / "summary.json").read_text())["verdict"] == "memorised"


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


def test_nothing_extracted_is_said_in_words_and_not_drawn(tmp_path: Path) -> None:
    base = experiment(steps=SMALL)
    missed = base.scores.with_columns(rank=pl.col("rank").list.eval(pl.element() * 0 + 7))
    numbers = build(dataclasses.replace(base, scores=missed, permutations=99), tmp_path)
    assert re.search(r"; 0 of \d+ inserted items were reproduced verbatim\.$", numbers["headline"])
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    found = numbers["verbatim_extraction"]
    assert f"0 of {found['tested_inserted']} inserted items extracted" in text
    assert found["limit_inserted"] == pytest.approx(1 - 0.025 ** (1 / found["tested_inserted"]))
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


def test_no_effect_gives_no() -> None:
    found = _answer(experiment(effect=0.0, steps=SMALL, seed=3))
    assert found.verdict == "not detected"
    assert found.headline.startswith("No")
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
    assert found.verdict == "inconclusive"
    assert any("twin's interval" in warning for warning in found.warnings)


def test_no_twin_no_audit_and_runs_of_unequal_length_are_said() -> None:
    base = experiment(steps=SMALL)
    alone = _answer(
        dataclasses.replace(base, scores=base.scores.filter(pl.col("run") == "perturbed"), audit=None)
    )
    assert any("no twin" in warning for warning in alone.warnings)
    assert any("no audit" in warning for warning in alone.warnings)
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
    with pytest.raises(UserError, match="did you mean 'verbatim'"):
        dataclasses.replace(base, primary="verbatm")
    with pytest.raises(UserError, match="cannot be called 'all'"):
        dataclasses.replace(base, items=base.items.with_columns(family=pl.lit("all")))
    with pytest.raises(UserError, match="dose 0"):
        dataclasses.replace(base, items=base.items.filter(pl.col("dose") > 0))
