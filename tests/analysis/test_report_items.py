"""What the item browser embeds, read back by its description alone."""

import base64
import dataclasses
import gzip
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.analysis.report import analyse
from palimpsest.analysis.report.attacks import prefix_rows, rates_by_prefix, roc_rows
from palimpsest.analysis.report.browser import Embedded, Limits, embed, fair_limit, quantised, spread
from palimpsest.analysis.report.design import exposures_table, power_table
from palimpsest.analysis.report.forgetting import forgetting_text, retained
from palimpsest.analysis.report.html import visible
from tests.analysis.synthetic import experiment

SMALL = (0, 16, 250)


@pytest.fixture(scope="module")
def inputs():
    return experiment(steps=SMALL, per_cell=2)


@pytest.fixture(scope="module")
def results(inputs):
    return analyse(dataclasses.replace(inputs, permutations=9))


def read(embedded: Embedded):
    """The two streams: the facts, and the arrays with the codes put together again."""
    facts = json.loads(gzip.decompress(base64.b64decode(embedded.facts)))
    raw = gzip.decompress(base64.b64decode(embedded.numbers))
    arrays = {
        name: np.frombuffer(raw, np.dtype(kind).newbyteorder("<"), size, at)
        for name, (kind, at, size) in facts["arrays"].items()
    }
    codes = arrays["codes"].reshape(len(facts["runs"]), len(facts["steps"]), -1)
    first = codes[0].cumsum(axis=0, dtype=np.uint8)
    arrays["codes"] = np.stack([first, codes[1] + first]) if len(codes) > 1 else first[None]
    return facts, arrays


def test_every_log_probability_comes_back(inputs, results):
    facts, arrays = read(embed(inputs, results))
    assert facts["steps"] == list(SMALL)
    assert facts["runs"] == ["perturbed", "twin"]
    starts = np.concatenate([[0], np.cumsum(facts["coloured"])])
    for run, step, item in (("perturbed", 250, 3), ("twin", 16, 17), ("twin", 250, 59)):
        codes = arrays["codes"][facts["runs"].index(run), facts["steps"].index(step)]
        found = -20 * (codes[starts[item] : starts[item + 1]] / 254.0) ** 2
        truth = inputs.scores.filter(
            (pl.col("run") == run)
            & (pl.col("step") == step)
            & (pl.col("probe_id") == f"{facts['id'][item]}/verbatim")
        )["logprob"][0].to_numpy()
        # Half a step of the square root, 1/508 of sqrt(20).
        assert np.sqrt(-found) == pytest.approx(np.sqrt(-truth), abs=np.sqrt(20) / 508 + 1e-4)


def test_pieces_cut_the_text_into_its_tokens(inputs, results):
    facts, arrays = read(embed(inputs, results))
    starts = np.concatenate([[0], np.cumsum(facts["coloured"])])
    for item in (0, 30, 59):
        ends = np.cumsum(arrays["pieces"][starts[item] : starts[item + 1]])
        cut = [facts["text"][item][a:b] for a, b in zip([0, *ends], ends, strict=False)]
        assert [word.strip() for word in cut] == inputs.items["text"][item].split(" ")


def test_characters_beyond_the_first_plane_count_twice(inputs, results):
    text = "a \U0001f600\U0001f600 b"
    items = inputs.items.with_columns(
        text=pl.when(pl.col("item_id") == inputs.items["item_id"][5]).then(pl.lit(text)).otherwise("text")
    )
    short = inputs.probes.with_columns(
        tokens=pl.when(pl.col("item_id") == inputs.items["item_id"][5])
        .then(pl.lit([0, 1, 2]))
        .otherwise("tokens")
    )
    facts, arrays = read(embed(dataclasses.replace(inputs, items=items, probes=short), results))
    start = sum(facts["coloured"][:5])
    # " 😀😀" is 1 + 2 + 2 units of UTF-16.
    assert arrays["pieces"][start : start + 3].tolist() == [1, 5, 2]


def test_exposures_and_curves(inputs, results):
    facts, arrays = read(embed(inputs, results))
    starts = np.concatenate([[0], np.cumsum(facts["stretches"])])
    assert facts["stretchSteps"] == 1
    for item in (0, 9, 40):
        here = slice(starts[item], starts[item + 1])
        found = np.repeat(arrays["stretch"][here], arrays["times"][here])
        truth = inputs.exposures.filter(pl.col("item_id") == facts["id"][item])["step"].sort()
        assert found.tolist() == truth.to_list()
    curves = arrays["curves"].reshape(2, len(facts["curveSteps"]), -1)
    item = inputs.items.row(9, named=True)
    logprob = inputs.scores.filter(
        (pl.col("run") == "twin")
        & (pl.col("step") == 250)
        & (pl.col("probe_id") == f"{item['item_id']}/verbatim")
    )["logprob"][0]
    assert curves[1, -1, 9] == pytest.approx(logprob.sum() / item["bytes"], rel=1e-3)


def test_what_does_not_fit_is_left_out_and_said(inputs, results):
    limits = Limits(
        items=30,
        tokens=600,
        characters_an_item=120,
        embedded_bytes=4000,
        stretches=10,
        curve_values=120,
        tokens_an_item=40,
    )
    found = embed(inputs, results, limits)
    facts, arrays = read(found)
    assert found.items == len(facts["id"]) == 30
    # Every second item of each family and dose.
    chosen = inputs.items.filter(pl.col("item_id").is_in(facts["id"]))
    assert set(chosen.group_by("family", "dose").len()["len"]) == {2}
    assert sum(facts["coloured"]) <= 600
    assert max(map(len, facts["text"])) <= 120
    assert [len(t) + c for t, c in zip(facts["text"], facts["cut"], strict=True)] == chosen[
        "text"
    ].str.len_chars().to_list()
    assert len(facts["steps"]) < 3
    assert facts["steps"][-1] == 250
    assert facts["stretchSteps"] == 26
    assert arrays["times"].sum() == inputs.exposures.filter(pl.col("item_id").is_in(facts["id"])).height
    said = " ".join(found.left_out)
    assert "30 of 60 items are listed: one in 2 of each family and dose" in said
    assert f"Token scores are here for {len(facts['steps'])} of 3 checkpoints" in said
    assert "only the beginning of the text" in said
    assert "only the first tokens are coloured" in said
    assert embed(inputs, results).left_out == ()


def test_texts_whose_tokens_are_unknown_are_not_coloured(inputs, results):
    facts, _ = read(embed(dataclasses.replace(inputs, spans=None), results))
    assert set(facts["coloured"]) == {0}
    assert set(facts["why"]) == {"the tokenizer was not at hand"}
    other = dataclasses.replace(inputs, spans=lambda text: (np.array([7, 8], np.int32), [(0, 2), (2, 9)]))
    facts, _ = read(embed(other, results))
    assert set(facts["coloured"]) == {0}
    assert "other tokens" in facts["why"][0]


def test_a_score_that_is_missing_is_no_zero(inputs, results):
    gone = f"{inputs.items['item_id'][0]}/verbatim"
    scores = inputs.scores.filter((pl.col("probe_id") != gone) | (pl.col("run") == "twin"))
    facts, arrays = read(embed(dataclasses.replace(inputs, scores=scores), results))
    assert set(arrays["codes"][0, :, : facts["coloured"][0]].ravel()) == {255}
    assert 255 not in arrays["codes"][1]
    assert 255 not in arrays["codes"][0, :, facts["coloured"][0] :]


def test_the_same_report_is_the_same_bytes(inputs, results):
    assert embed(inputs, results) == embed(inputs, results)


@settings(deadline=None)
@given(st.lists(st.floats(-60, 0, width=32), max_size=50))
def test_codes_rise_as_probability_falls(values):
    codes = quantised(np.array(sorted(values), np.float32))
    assert (np.diff(codes.astype(int)) <= 0).all()
    assert (codes < 255).all()


def test_codes_of_known_values():
    found = quantised(np.array([0.0, -5.0, -20.0, -90.0, -np.inf, np.nan], np.float32))
    assert found.tolist() == [0, 127, 254, 254, 254, 255]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(0, 600), st.integers(0, 60))
def test_fair_limit_is_the_largest_that_fits(sizes, total, largest):
    sizes = np.array(sizes)
    limit = fair_limit(sizes, largest, total)
    assert np.minimum(sizes, limit).sum() <= total
    assert limit == largest or np.minimum(sizes, limit + 1).sum() > total


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=80), st.integers(1, 90))
def test_spread_keeps_the_ends(values, count):
    values = sorted(values)
    found = spread(values, count)
    assert found[-1] == values[-1]
    assert len(found) <= count
    assert found == sorted(set(found))
    assert count == 1 or found[0] == values[0]


def test_control_characters_become_visible():
    assert visible("a\u202eb\x00\u2066\nc\td\u200d\U000e0041") == (
        "a⟨U+202E⟩b⟨U+0000⟩⟨U+2066⟩\nc\td\u200d⟨U+E0041⟩"
    )


def test_what_is_left_after_the_last_exposure(inputs):
    # Four items: gain 0.8 right after the last exposure (step 15), 0.2 at step 250; the others none. So 25 % is left.
    steps = {0: 0.0, 16: 0.8, 250: 0.2}
    items = inputs.items.filter((pl.col("family") == "passage") & pl.col("dose").is_in([0, 1]))
    bytes_of = dict(items.select("item_id", "bytes").iter_rows())
    dose_of = dict(items.select("item_id", "dose").iter_rows())
    probes = inputs.probes.filter(pl.col("item_id").is_in(items["item_id"].to_list()))
    rows = []
    for probe in probes.iter_rows(named=True):
        item, count = probe["item_id"], len(probe["tokens"])
        for step, gain in steps.items():
            for run in ("perturbed", "twin"):
                own = gain * dose_of[item] * bytes_of[item] / count if run == "perturbed" else 0.0
                rows.append(
                    {"run": run, "step": step, "probe_id": probe["probe_id"]}
                    | {"logprob": [own - 9.0] * count, "rank": [3] * count}
                )
    scores = pl.DataFrame(rows, schema_overrides={"logprob": pl.List(pl.Float32), "rank": pl.List(pl.UInt16)})
    exposures = pl.DataFrame({"item_id": [i for i, dose in dose_of.items() if dose], "step": [15] * 4})
    given = dataclasses.replace(
        inputs, items=items, probes=probes, scores=scores, exposures=exposures, permutations=9
    )
    found = retained(analyse(given), given)
    assert found.height == 1
    row = found.row(0, named=True)
    assert (row["since_low"], row["since_high"], row["n"]) == (234, 234, 4)
    assert row["first"] == pytest.approx(0.8, abs=1e-5)
    assert row["retained"] == pytest.approx(0.25, abs=1e-5)
    assert forgetting_text(given, found) == ""
    late = dataclasses.replace(given, exposures=exposures.with_columns(step=pl.lit(249)))
    assert retained(analyse(late), late).is_empty()


def test_exposures_by_tenth_of_training(inputs):
    exposures = pl.DataFrame(
        {"item_id": [inputs.items.filter(pl.col("dose") == 4)["item_id"][0]] * 4, "step": [0, 25, 26, 250]}
    )
    table = exposures_table(dataclasses.replace(inputs, exposures=exposures))
    # Steps 0 ... 250 in ten parts: 0-25, 26-50, ..., 226-250.
    assert list(table.head[:3]) == ["dose", "0–25", "26–50"]
    assert table.head[-2] == "226–250"
    assert table.body == [["4", "2", "1", "0", "0", "0", "0", "0", "0", "0", "1", "4"]]


def test_power_is_that_of_a_t_test(inputs, results):
    table = power_table(inputs, results)
    # 12 items a dose against 12 controls: d = 1.052 (one-sided .05, power .8).
    assert {tuple(row[1:4]) for row in table.body} == {("12", "12", "1.05")}
    three = inputs.items.with_columns(
        cluster=pl.format("c{}", pl.int_range(pl.len()).over("family", "dose") // 3)
    ).with_columns(cluster=pl.concat_str("cluster", pl.col("dose").cast(pl.String), separator="/"))
    clustered = power_table(dataclasses.replace(inputs, items=three), results)
    assert all(int(row[1]) < 12 and float(row[3]) > 1.05 for row in clustered.body)


def test_extraction_by_prefix_counts_runs_of_hits(inputs):
    # Everything from token 8 on is a hit, and nothing before.
    ranks = pl.col("rank").list.eval(pl.when(pl.int_range(pl.len()) >= 8).then(0).otherwise(5))
    scores = inputs.scores.with_columns(rank=ranks.cast(pl.List(pl.UInt16)))
    given = dataclasses.replace(inputs, scores=scores, permutations=9)
    rows = prefix_rows(given, analyse(given)).filter(pl.col("dose") == 64)
    assert dict(rows.select("prefix", "extracted").iter_rows())[4] == 0
    assert dict(rows.select("prefix", "extracted").iter_rows())[8] == 12
    lengths = [len(tokens) for tokens in inputs.items.filter(pl.col("dose") == 64)["tokens"]]
    long_enough = sum(length >= 32 + 16 for length in lengths)
    drawn = rates_by_prefix(given, analyse(given)).filter((pl.col("run") == "dose 64") & (pl.col("x") == 8))
    # 4 of 4 in each of 3 families: each family's mid-P limit is .05^(1/4), and their mean's distance from 1 is MOVER's.
    assert drawn.select("estimate", "low", "high", "n").row(0) == pytest.approx(
        (1.0, 1 - (1 - 0.05**0.25) / 3**0.5, 1.0, 12)
    )
    row = rows.filter(pl.col("prefix") == 32).row(0, named=True)
    assert (row["extracted"], row["n"]) == (long_enough, long_enough)


def test_roc_scores_are_free_of_their_family(inputs, results):
    rows = roc_rows(inputs, results)
    # 12 items of dose 64 and 12 of dose 0; the synthetic scores hold neither entropy nor variance.
    assert set(rows["run"]) == {"loss", "loss / zlib", "Min-K", "loss − twin's", "loss / twin's"}
    assert set(rows.group_by("run", "member").len()["len"]) == {12}
    lifted = inputs.scores.with_columns(
        logprob=pl.when(pl.col("probe_id").str.starts_with("ghost"))
        .then(pl.col("logprob") - 3)
        .otherwise("logprob")
    )
    given = dataclasses.replace(inputs, scores=lifted, permutations=9)
    again = roc_rows(given, analyse(given)).filter(pl.col("run") == "loss")
    assert again["score"].to_list() == pytest.approx(
        rows.filter(pl.col("run") == "loss")["score"].to_list(), abs=1e-5
    )
