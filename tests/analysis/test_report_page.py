"""The report in a real browser: what a reader sees, does with the keyboard, and is protected from."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.report import ReportInputs, build, sweep
from palimpsest.analysis.statistics import ESTIMATE_SCHEMA
from tests.analysis.synthetic import experiment
from tests.browser import Opened, faults, opened

SMALL = (0, 16, 250)
EVIL = (
    "<script>window.hacked=1</script> ]]> </script><img src=x onerror=window.hacked=2> "
    "\u202eabc\u202c \u2066x <b>bold</b> &amp; 'q' \"d\" \u0000\u200b"
)
LONG = "x" * 999_999 + "\u202e"
PERTURBED = [-0.05, -0.5, -1.0, -2.0, -3.0, -6.0, -9.0]
TWIN = [-3.55, -2.0, -1.5, -2.0, -2.5, -4.5, -3.0]


def with_texts(base: ReportInputs, texts: dict[str, str]) -> ReportInputs:
    """Other texts for some items; their tokens stay, so only those that have as many words are coloured."""
    return dataclasses.replace(
        base,
        items=base.items.with_columns(
            text=pl.col("item_id").replace_strict(texts, default=pl.col("text"), return_dtype=pl.String)
        ),
    )


def hand_made() -> ReportInputs:
    """A small experiment with an item of known scores, two with hostile texts, and one of a megabyte."""
    base = experiment(steps=SMALL, per_cell=2)
    known, *others = base.items.filter(pl.col("dose") == 16)["item_id"].to_list()[:4]
    base = with_texts(
        base,
        {
            known: "one two three four\nfive six seven",
            others[0]: EVIL,
            others[1]: EVIL + "2",
            others[2]: LONG,
        },
    )
    probe = f"{known}/verbatim"
    probes = base.probes.with_columns(
        tokens=pl.when(pl.col("probe_id") == probe).then(pl.lit(list(range(7)))).otherwise("tokens")
    )
    plain = base.spans

    def spans(text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        if not text.startswith("one two"):
            assert plain is not None
            return plain(text)
        ends = [3, 7, 13, 18, 23, 27, 33]
        return np.arange(7, dtype=np.int32), list(zip([0, *ends[:-1]], ends, strict=True))

    def scored(values: list[float], shift: float) -> pl.Expr:
        return pl.lit([value + shift for value in values], dtype=pl.List(pl.Float32))

    scores = base.scores
    for run, values in (("perturbed", PERTURBED), ("twin", TWIN)):
        for step in SMALL:
            # Earlier, everything was ten nats less likely.
            here = (pl.col("probe_id") == probe) & (pl.col("run") == run) & (pl.col("step") == step)
            scores = scores.with_columns(
                logprob=pl.when(here)
                .then(scored(values, 0.0 if step == 250 else -10.0))
                .otherwise("logprob"),
                rank=pl.when(here).then(pl.lit([1] * 7, dtype=pl.List(pl.UInt16))).otherwise("rank"),
            )
    return dataclasses.replace(base, probes=probes, scores=scores, spans=spans, permutations=99)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReportInputs]:
    directory, inputs = tmp_path_factory.mktemp("small"), hand_made()
    build(inputs, directory)
    return directory / "report.html", inputs


@pytest.fixture(scope="module")
def view(chromium: Any, small: tuple[Path, ReportInputs]) -> Opened:
    return opened(chromium, small[0])


def choose(page: Any, item: str) -> None:
    page.fill("#items-search", item)
    assert page.inner_text("#item-title") == item


def reset(page: Any) -> None:
    page.fill("#items-search", "")
    page.select_option("#items-family", "")
    page.select_option("#items-dose", "")
    page.select_option("#items-sort", "gain")


def listed(page: Any) -> list[str]:
    """Ids of the rows in sight, top down."""
    return page.evaluate(
        "[...document.querySelectorAll('.option')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
        ".map(row => row.querySelector('.name').textContent)"
    )


def test_it_opens_offline_without_a_word(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    assert view.complaints == []
    assert view.requests == [small[0].as_uri()]
    figures = view.page.evaluate(
        "[...document.querySelectorAll('figure .paper:not(.narrow) svg')].map(f => [f.getBoundingClientRect().width,"
        " f.getBoundingClientRect().height, f.querySelectorAll('path, line, text').length])"
    )
    assert len(figures) >= 8
    assert all(width > 150 and height > 60 and marks > 10 for width, height, marks in figures)
    assert view.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_figure_that_decides_fits_a_phone_whole(chromium: Any, small: tuple[Path, ReportInputs]) -> None:
    page = opened(chromium, small[0], width=390).page
    shown = page.locator(".first figure svg:visible")
    assert shown.count() == 1
    assert "The comparison that decides" in page.inner_text(".first figcaption")
    box = shown.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert shown.evaluate("s => s.parentElement.scrollWidth <= s.parentElement.clientWidth")
    text = shown.evaluate("s => s.textContent")
    for dose in sorted(set(small[1].items["dose"])):
        assert str(dose) in text
    smallest = (
        "s => Math.min(...[...s.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize)))"
    )
    assert shown.evaluate(smallest) >= 10
    page.context.close()


def test_the_panel_s_gain_has_an_evident_sign(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    """What stands there adds up: the difference of the two values, and the gain over dose 0 by its full name."""
    page = view.page
    reset(page)
    choose(page, small[1].items.filter(pl.col("dose") > 0)["item_id"][0])
    told = page.inner_text("#item-facts-list").replace("−", "-").replace("\n", " ")
    ours, twin, difference = (
        float(re.search(rf"{name}:? *([+-]?[0-9.]+)", told)[1])  # type: ignore[index]
        for name in (" perturbed", " twin", "perturbed - twin")
    )
    assert difference == pytest.approx(ours - twin, abs=0.0011)
    assert re.search(r"gain over dose 0 against the twin:? *[+-]", told)


def test_the_list_sorts_searches_and_filters(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    page, items = view.page, small[1].items
    reset(page)
    page.select_option("#items-sort", "item")
    assert listed(page)[:3] == sorted(items["item_id"], reverse=True)[:3]
    page.click("#items-direction")
    assert listed(page)[:3] == sorted(items["item_id"])[:3]
    page.click("#items-direction")
    page.select_option("#items-sort", "dose")
    doses = dict(items.select("item_id", "dose").iter_rows())
    assert {doses[item] for item in listed(page)[:12]} == {64}
    page.select_option("#items-dose", "4")
    page.select_option("#items-family", label="passage")
    expected = items.filter((pl.col("dose") == 4) & (pl.col("family") == "passage"))["item_id"]
    assert page.inner_text("#items-count") == "4 of 60 items"
    assert set(listed(page)) == set(expected)
    reset(page)
    page.fill("#items-search", "NUMBER 7 ")
    assert listed(page) == items.filter(pl.col("text").str.contains("number 7 "))["item_id"].to_list()
    page.fill("#items-search", "no such text")
    assert page.inner_text("#items-count") == "0 of 60 items"
    assert page.is_hidden("#item")
    reset(page)


def test_gains_are_those_of_the_scores(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    page, inputs = view.page, small[1]
    sums = {
        (run, probe.split("/")[0]): sum(values)
        for run, probe, values in inputs.scores.filter(
            (pl.col("step") == 250) & pl.col("probe_id").str.ends_with("/verbatim")
        )
        .select("run", "probe_id", "logprob")
        .iter_rows()
    }
    passages = inputs.items.filter(pl.col("family") == "passage")
    paired = {
        item: (sums["perturbed", item] - sums["twin", item]) / size
        for item, size in passages.select("item_id", "bytes").iter_rows()
    }
    never = np.mean([paired[item] for item in passages.filter(pl.col("dose") == 0)["item_id"]])
    reset(page)
    page.select_option("#items-family", label="passage")
    rows = listed(page)
    best = sorted(paired, key=lambda item: -paired[item])
    assert rows[:5] == best[:5]
    shown = page.inner_text(".option >> nth=0 >> .of")
    assert shown.endswith(f"gain +{paired[best[0]] - never:.2f}")
    reset(page)


def colours(page: Any) -> list[tuple[str, str]]:
    return [
        (text, kinds)
        for text, kinds in page.evaluate(
            "[...document.querySelectorAll('#item-text .t')].map(t => [t.textContent, t.classList[1]])"
        )
    ]


def test_tokens_are_coloured_by_their_log_probability(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    page = view.page
    choose(page, small[1].items.filter(pl.col("text").str.starts_with("one two"))["item_id"][0])
    page.select_option("#item-mode", "perturbed")
    words = ["one", " two", " three", " four", "↵\nfive", " six", " seven"]
    # p: .95, .61, .37, .14, .05, .0025, .0001
    assert colours(page) == list(zip(words, ["p6", "p5", "p4", "p3", "p2", "p1", "p0"], strict=True))
    page.select_option("#item-mode", "twin")
    assert [kind for _, kind in colours(page)] == ["p2", "p3", "p4", "p3", "p2", "p2", "p2"]
    page.select_option("#item-mode", "difference")
    # 3.5, 1.5, .5, 0, -.5, -1.5, -6
    assert [kind for _, kind in colours(page)] == ["d3", "d2", "d1", "d0", "e1", "e2", "e3"]
    grounds = page.evaluate(
        "[...document.querySelectorAll('#item-text .t')].map(t => getComputedStyle(t).backgroundColor)"
    )
    assert len(set(grounds)) == 7
    page.select_option("#item-mode", "perturbed")
    page.focus("#item-step")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#item-step-told") == "step 16"
    assert {kind for _, kind in colours(page)} == {"p0"}
    page.keyboard.press("End")
    page.focus("#item-text")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said = page.inner_text("#item-readout")
    assert "token 2" in said
    assert "perturbed −0.5" in said
    assert "twin −2.0" in said or "twin −1.9" in said
    assert "difference +1." in said
    reset(page)


def test_the_time_line_has_a_tick_for_each_exposure(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    page, inputs = view.page, small[1]
    item = inputs.items.filter(pl.col("dose") == 4)["item_id"][0]
    steps = inputs.exposures.filter(pl.col("item_id") == item)["step"]
    choose(page, item)
    assert page.locator("#item-time .exposure").count() == steps.n_unique()
    low, high = steps.min(), steps.max()
    assert page.inner_text("#item-when").startswith(f"Ticks: 4 exposures, from step {low} to {high}.")
    # Both runs' curves over three checkpoints.
    assert page.locator("#item-time .dot").count() == 6
    choose(page, inputs.items.filter(pl.col("dose") == 0)["item_id"][0])
    assert page.locator("#item-time .exposure").count() == 0
    assert "never inserted" in page.inner_text("#item-when")
    reset(page)


def test_hostile_texts_are_texts(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    page, items = view.page, small[1].items
    reset(page)
    for item in items.filter(pl.col("text").str.starts_with("<script"))["item_id"]:
        choose(page, item)
        shown = page.inner_text("#item-text")
        assert "<script>window.hacked=1</script> ]]> </script><img src=x onerror=window.hacked=2>" in shown
        assert "⟨U+202E⟩abc⟨U+202C⟩ ⟨U+2066⟩x <b>bold</b> &amp; 'q' \"d\" ⟨U+0000⟩⟨U+200B⟩" in shown
    assert page.evaluate("window.hacked") is None
    assert page.locator("#items script, #items img, #items b").count() == 0
    long = items.filter(pl.col("text").str.len_chars() == 1_000_000)["item_id"][0]
    choose(page, long)
    assert len(page.inner_text("#item-text")) == 3000
    assert "more characters are not in this page" in page.inner_text("#item-note")
    page.click("#item-more")
    assert len(page.inner_text("#item-text")) == 20_000
    assert page.is_hidden("#item-more")
    assert "980,000 more characters" in page.inner_text("#item-note")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "\u202e" not in page.content()
    assert view.complaints == []
    reset(page)


def test_everything_is_reached_by_tab_and_seen(chromium: Any, small: tuple[Path, ReportInputs]) -> None:
    page = opened(chromium, small[0]).page
    order: list[str] = []
    heights: list[float] = []
    for _ in range(150):
        page.keyboard.press("Tab")
        name, top, outline = page.evaluate(
            "(() => { const e = document.activeElement; const b = e.getBoundingClientRect();"
            " return [e.id || e.getAttribute('href') || e.className || e.tagName, b.top + window.scrollY,"
            " getComputedStyle(e).outlineStyle]; })()"
        )
        if name == "BODY":
            break
        assert outline != "none", name
        order.append(name)
        heights.append(top)
    else:
        pytest.fail("focus goes in circles")
    wanted = [
        "#gains",
        "#items",
        "items-search",
        "items-family",
        "items-dose",
        "items-sort",
        "items-direction",
    ]
    wanted += ["items-list", "item-mode", "item-step", "item-text", "summary.json"]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places)
    # Down the page: nothing jumps back by more than a screen.
    assert all(after > before - 900 for before, after in itertools.pairwise(heights))


def test_arrow_keys_walk_the_list(view: Opened, small: tuple[Path, ReportInputs]) -> None:
    page = view.page
    reset(page)
    page.select_option("#items-sort", "item")
    ids = sorted(small[1].items["item_id"], reverse=True)
    page.focus("#items-list")
    for key, place in (("Home", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 59)):
        page.keyboard.press(key)
        assert page.inner_text("#item-title") == ids[place]
        active = page.get_attribute("#items-list", "aria-activedescendant")
        row = page.locator(f"[id='{active}']")
        assert row.get_attribute("aria-selected") == "true"
        assert row.get_attribute("aria-posinset") == str(place + 1)
        assert row.is_visible()
    reset(page)


@pytest.mark.parametrize(
    ("width", "scheme", "mode"), [(1280, "light", "difference"), (390, "dark", "perturbed")]
)
def test_axe_finds_no_serious_fault(
    chromium: Any, small: tuple[Path, ReportInputs], width: int, scheme: str, mode: str
) -> None:
    page = opened(chromium, small[0], width=width, scheme=scheme).page
    choose(page, small[1].items.filter(pl.col("text").str.starts_with("one two"))["item_id"][0])
    page.select_option("#item-mode", mode)
    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.context.close()


def test_print_shows_the_item_without_its_controls(chromium: Any, small: tuple[Path, ReportInputs]) -> None:
    page = opened(chromium, small[0], scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.is_hidden("#items-list")
    assert page.is_hidden("nav")
    assert page.is_visible("#item-text")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
    page.context.close()


def many(count: int, length: int = 50, steps: tuple[int, ...] = (0, 250)) -> ReportInputs:
    """As many items, of random words."""
    rng = np.random.default_rng(5)
    base = experiment(steps=SMALL, per_cell=1)
    words = np.array(["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(4000)])
    doses = np.resize([0, 0, 0, 0, 1, 1, 4, 4, 16, 64], count)
    tokens = list(range(length))
    items = pl.DataFrame(
        {
            "item_id": [f"item-{i:05d}" for i in range(count)],
            "family": np.resize(np.repeat(["first", "second"], 10), count),
            "dose": doses,
            "text": [" ".join(row) for row in words[rng.integers(0, len(words), (count, length))]],
        },
        schema_overrides={"dose": pl.Int32},
    ).with_columns(
        stratum=pl.col("family"),
        arm=pl.format("dose {}", "dose"),
        bytes=pl.lit(6 * length),
        tokens=pl.lit(tokens, dtype=pl.List(pl.Int64)),
    )
    probes = items.select(
        pl.format("{}/verbatim", "item_id").alias("probe_id"),
        "item_id",
        "family",
        pl.lit("verbatim").alias("kind"),
        "text",
        "tokens",
        pl.lit(0).alias("target_start"),
        pl.col("bytes").alias("target_bytes"),
        pl.lit("").alias("name"),
        pl.lit(True).alias("correct"),
    )
    frames = []
    for run in ("perturbed", "twin"):
        for step in steps:
            logprob = -rng.gamma(2.0, 1.5, (count, length)).astype(np.float32)
            frames.append(
                probes.select(
                    pl.lit(run).alias("run"),
                    pl.lit(step, pl.Int64).alias("step"),
                    "probe_id",
                    pl.Series("logprob", logprob).arr.to_list(),
                    pl.lit([9] * length, dtype=pl.List(pl.UInt16)).alias("rank"),
                )
            )
    exposed = np.repeat(np.arange(count), doses)
    return dataclasses.replace(
        base,
        items=items,
        probes=probes,
        scores=pl.concat(frames),
        exposures=pl.DataFrame(
            {"item_id": items["item_id"].gather(exposed), "step": rng.integers(0, 250, len(exposed))}
        ),
        permutations=9,
    )


@pytest.mark.slow
def test_ten_thousand_items_open_in_three_seconds(chromium: Any, tmp_path: Path) -> None:
    build(many(10_000), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 15_000_000
    # The best of three: what else runs on the machine is not the page's doing.
    openings = [opened(chromium, tmp_path / "report.html") for _ in range(3)]
    found = min(openings, key=lambda opening: opening.seconds)
    assert found.seconds < 3
    assert found.complaints == []
    page = found.page
    assert page.inner_text("#items-count") == "10,000 of 10,000 items"
    assert page.locator(".option").count() < 60
    page.focus("#items-list")
    page.keyboard.press("End")
    assert page.locator(".option[aria-selected=true]").get_attribute("aria-posinset") == "10000"
    start = time.monotonic()
    page.fill("#items-search", "item-07777")
    assert page.inner_text("#items-count") == "1 of 10,000 items"
    assert time.monotonic() - start < 1
    assert page.locator("#item-text .t").count() == 50
    page.context.close()


def test_the_page_of_a_sweep(chromium: Any, tmp_path: Path) -> None:
    runs = []
    for seed in (1, 2):
        for model in ("nano", "tiny"):
            place = tmp_path / f"{model}-{seed}"
            (place / "report").mkdir(parents=True)
            rows = [
                {"run": "perturbed - twin", "step": 9, "metric": "loglik_per_byte", "statistic": "gain"}
                | {"family": "all", "dose": dose, "estimate": 0.1 * math.log2(1 + dose) * seed}
                | {"low": 0.05 * seed, "high": seed, "n": 9, "n_control": 9, "p": 0.01, "method": "t"}
                for dose in (1, 4, 16)
            ]
            pl.DataFrame(rows, schema=ESTIMATE_SCHEMA).write_csv(place / "report" / "estimates.csv")
            summary = {"primary_metric": "loglik_per_byte", "unit": "nats/byte", "step": 9, "audit": "PASS"}
            summary |= {"verdict": "more likely than its controls", "minimum_effective_dose": 4}
            (place / "report" / "summary.json").write_text(json.dumps(summary))
            factors = {"seed": str(seed), "model": f"{model}<b>\u202e"}
            runs.append(
                sweep.SweepRun(factors=factors, directory=place, summary=summary, link="../x/report.html")
            )
    sweep.build("four", runs, 4, tmp_path / "report")
    path = tmp_path / "report" / "report.html"
    assert path.stat().st_size < 15_000_000
    for width, scheme in ((1280, "light"), (390, "dark")):
        found = opened(chromium, path, width=width, scheme=scheme, items=False)
        page = found.page
        assert found.seconds < 3
        assert found.complaints == []
        assert found.requests == [path.as_uri()]
        assert page.inner_text("h1") == "Inserted text became more likely in 4 of 4 runs, from dose 4 on."
        told = page.inner_text(".detail")
        # 0.1 log2(17) of seed 1, and twice that of seed 2: the mean is 0.613.
        assert "at dose 16, nats/byte: " in told
        assert "model=tiny<b>⟨U+202E⟩ +0.6" in told
        assert told.endswith("4 of 4 runs are finished. Audit: PASS in 4 of 4.")
        assert page.locator("figure svg").count() == 2
        # Four cells' points and rules at three doses.
        assert page.locator("figure >> nth=0 >> svg path").count() >= 6
        assert "nano<b>⟨U+202E⟩" in page.inner_text("section[aria-label=Runs]")
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.context.close()
