"""The page of post-trained models, from scores with a known answer: one forgets as it should, one gets further away."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.metrics import compute
from palimpsest.analysis.report import posttrained, unlearned
from palimpsest.analysis.report.posttrained import Origin
from tests.analysis.synthetic import experiment
from tests.browser import faults, opened

GAIN = {
    "perturbed": {0: 1.0},
    "leave_out": {0: 0.0},
    "better": {0: 1.0, 4: 0.2},
    "worse": {0: 1.0, 4: -2.0},
    "relearn": {0: 0.2, 4: 1.0},
}
"""What a token of the forget set is likelier by than in the leave-out twin, nats, by run and step."""
ORIGINS = {
    "better": Origin("npo", "perturbed", 4),
    "worse": Origin("gradient_ascent", "perturbed", 4),
    "relearn": Origin("relearn", "better", 4),
}


@pytest.fixture(scope="module")
def scored():
    """Items, scores and the forget set: every other item of each dose."""
    base = experiment(steps=(0, 1), per_cell=4)
    inserted = base.items.filter(pl.col("dose") > 0)
    forgotten = inserted["item_id"].gather_every(2).to_list()
    rng = np.random.default_rng(0)
    noise = {
        probe: rng.normal(0, 0.01, len(tokens))
        for probe, tokens in base.probes.select("probe_id", "tokens").iter_rows()
    }
    rows = []
    for run, steps in GAIN.items():
        for step, gain in steps.items():
            for probe in base.probes.iter_rows(named=True):
                own = gain if probe["item_id"] in forgotten else 0.0
                logprob = -3.0 + own + noise[probe["probe_id"]] + rng.normal(0, 0.001)
                rows.append((run, step, probe["probe_id"], logprob.tolist(), [int(own < 1)] * len(logprob)))
    scores = pl.DataFrame(rows, schema=["run", "step", "probe_id", "logprob", "rank"], orient="row")
    plan = SimpleNamespace(items=base.items, probes=base.probes)
    values = unlearned.value_rows(plan, scores, forgotten)
    return values, unlearned.estimates(values, scores, ["relearn"]), forgotten


def one(found, run, statistic, group="forget set"):
    (row,) = found.filter(
        (pl.col("run") == run)
        & (pl.col("step") == 4)
        & (pl.col("statistic") == statistic)
        & (pl.col("group") == group)
        & pl.col("dose").is_null()
    ).iter_rows(named=True)
    return row


def test_estimates_have_the_known_answers(scored):
    _, found, _ = scored
    bytes_a_token = 4
    assert one(found, "better", "distance")["estimate"] == pytest.approx(0.2 / bytes_a_token, abs=0.002)
    assert one(found, "worse", "distance")["estimate"] == pytest.approx(2.0 / bytes_a_token, abs=0.002)
    assert one(found, "worse", "shift")["estimate"] == pytest.approx(-2.0 / bytes_a_token, abs=0.002)
    assert one(found, "better", "nearer")["low"] > 0 > one(found, "worse", "nearer")["high"]
    assert one(found, "better", "change", "other inserted items")["estimate"] == pytest.approx(0, abs=0.002)
    # Members are told from the others on either side; the twin's AUC is near 0.5.
    assert one(found, "better", "leak")["estimate"] > 0.3
    assert one(found, "worse", "leak")["high"] < -0.2
    # All tokens of the perturbed model's forget set are argmaxes, none of the others'.
    assert one(found, "better", "extraction")["estimate"] == 0
    # Half of what was lost, from 0.2 to 1.0, is back in the middle of four steps.
    assert one(found, "relearn", "half_back")["estimate"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("statistic", ["leak", "half_back", "truth_distance"])
def test_copies_of_an_item_in_one_cluster_say_no_more_than_the_item(scored, statistic):
    """Limits are over clusters: four probes of each item that all have its value leave them as they are."""
    values, _, _ = scored
    values = values.filter((pl.col("metric") == unlearned.LOGLIK) & pl.col("item_id").is_not_null())
    noise = pl.Series(np.random.default_rng(1).normal(0, 0.1, len(values)))
    values = values.with_columns(value=pl.col("value") + noise)

    def limits(rows):
        if statistic == "half_back":
            found = unlearned.half_back(rows.filter(pl.col("group") == "forget set"), ["relearn"])
        elif statistic == "leak":
            found = unlearned.leaks(rows)
        else:
            found = unlearned.truth(rows.filter(pl.col("group") == "forget set"))
        return found.filter(pl.col("statistic") == statistic).select("estimate", "low", "high").to_numpy()

    copies = [
        values.with_columns(pl.col("probe_id") + f"-{copy}", item=pl.col("item_id") + f"-{copy}")
        .with_columns(cluster=pl.col("item_id"), item_id="item")
        .drop("item")
        for copy in range(4)
    ]
    once = limits(values)
    assert len(once) > 0
    assert limits(pl.concat(copies)) == pytest.approx(once, abs=1e-9)
    alone = pl.concat(copies).with_columns(cluster=pl.lit(""))
    narrower = limits(alone)
    assert (narrower[:, 2] - narrower[:, 1] < 0.8 * (once[:, 2] - once[:, 1])).any()


def test_divergence_is_that_of_the_true_token(scored):
    _, found, _ = scored
    q, p = np.exp(-3.0), np.exp(-5.0)
    expected = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    assert one(found, "worse", "divergence")["estimate"] == pytest.approx(expected, rel=0.05)


def test_a_model_that_got_further_away_is_called_so_on_the_first_screen(scored, tmp_path, chromium):
    _, found, forgotten = scored
    verdicts = {name: posttrained.verdict(name, found, origin) for name, origin in ORIGINS.items()}
    assert "FURTHER FROM" in verdicts["worse"]
    assert "nearer to" in verdicts["better"]
    assert "from better: half of what was lost" in verdicts["relearn"]
    page = posttrained.page_of(
        tmp_path, "unlearn", found, verdicts, ORIGINS, len(forgotten), {"method": "npo"}
    )
    (tmp_path / "report.html").write_text(page)
    for width in (1280, 480):
        shown = opened(chromium, tmp_path / "report.html", width=width, items=False)
        assert shown.complaints == []
        assert shown.requests == [(tmp_path / "report.html").as_uri()]
        title = shown.page.locator("h1")
        assert "FURTHER FROM it: worse" in title.inner_text()
        box = title.bounding_box()
        assert box["y"] + box["height"] < 900
        first = shown.page.locator("main li").first
        assert first.inner_text().startswith("worse: the forget set is FURTHER FROM")
        assert first.bounding_box()["y"] < 900
        assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert faults(shown.page) == []


def test_the_truth_ratio_of_questions_is_that_of_the_formula():
    """-ln TR of two questions: one with losses by hand, one whose choices are all alike."""
    choices = {"a": [-0.2, -0.4, -3.0, -0.6], "b": [-1.0] * 4}
    probes = [
        {
            "probe_id": f"{item}/{k}", "item_id": item, "family": "f", "kind": "choice", "tokens": list(range(1 + k)),
            "target_start": 0, "target_bytes": 4, "name": "q", "correct": k == 0,
        }
        for item in choices
        for k in range(4)
    ]  # fmt: skip
    scores = [
        (
            "r",
            0,
            probe["probe_id"],
            [choices[probe["item_id"]][k % 4]] * len(probe["tokens"]),
            [0] * len(probe["tokens"]),
        )
        for k, probe in enumerate(probes)
    ]
    items = pl.DataFrame({"item_id": list(choices), "stratum": ["s", "s"], "dose": [1, 0]})
    rows = compute(
        items,
        pl.DataFrame(probes),
        pl.DataFrame(scores, schema=["run", "step", "probe_id", "logprob", "rank"], orient="row"),
        ["minus_log_truth_ratio"],
    )
    by_item = dict(rows.select("item_id", "value").iter_rows())
    assert by_item["a"] == pytest.approx(-0.2 - np.log(np.exp([-0.4, -3.0, -0.6]).mean()))
    assert by_item["b"] == pytest.approx(0)
