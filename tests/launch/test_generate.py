"""``generate``: what checkpoints write, from one command to its section of the report."""

import math
import re
import shutil
from collections import Counter

import polars as pl
import pytest

from palimpsest.analysis.run import open_run
from tests.analysis.generation.sentences import write_model
from tests.browser import opened
from tests.conftest import Workplace

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    """A copy of a finished run: what is generated for it must not show in the reports of other tests."""
    path = tmp_path_factory.mktemp("generated")
    shutil.copytree(finished.parents[2], path, dirs_exist_ok=True)
    return Workplace(path)


@pytest.fixture(scope="module")
def generated(place, finished):
    """The directory of the run, and what the program said."""
    run = f"runs/small/{finished.name}"
    done = place.ok("generate", run, "generate.samples=2", "generate.max_tokens=12")
    return place.path / run, done


def test_one_command_ends_in_its_section_of_the_report(generated):
    directory, done = generated
    assert "1 of 1 parts written now" in done.out
    assert done.lines[-1].startswith("report: ")
    page = (directory / "report" / "report.html").read_text()
    assert '<section id="generated">' in page
    told = pl.read_csv(directory / "report" / "generated.csv", infer_schema_length=None)
    assert set(told["run"]) == {"perturbed", "twin", "perturbed - twin"}
    assert {"after 4 tokens", "birth_date"} <= {name.split(" given")[0] for name in told["question"]}
    means = told.filter((pl.col("statistic") == "mean") & (pl.col("run") != "perturbed - twin"))
    assert means["estimate"].is_between(0, 1).all()
    assert (means["low"].drop_nulls() >= 0).all()
    tested = told.filter((pl.col("statistic") == "gain") & (pl.col("run") == "perturbed - twin"))
    assert tested["p"].is_not_null().any()


def test_greedy_text_agrees_with_the_scores(generated):
    """While every argmax hits, greedy decoding writes the item: verbatim of both ways of asking."""
    run = open_run(generated[0])
    whole = run.generated.filter((pl.col("sample") == 0) & pl.col("probe_id").str.contains("/verbatim/"))
    assert whole["step"].unique().to_list() == [run.last_step]
    joined = whole.join(run.scores, on=["run", "step", "probe_id"])
    assert joined.height == whole.height == 2 * run.plan.items.height
    for row in joined.iter_rows(named=True):
        k, m = row["prefix"], len(row["reference"])
        argmax = row["argmax"][k : k + m]
        leading = next((at for at in range(m) if argmax[at] != row["reference"][at]), m)
        assert row["tokens"][:leading] == row["reference"][:leading]
        if leading < m and len(row["tokens"]) > leading:
            assert row["tokens"][leading] == argmax[leading]
        assert row["reference_loglik"] == pytest.approx(sum(row["logprob"][k : k + m]), abs=2e-3)


def test_what_is_there_is_kept_and_other_settings_write_anew(generated, place):
    directory, _ = generated
    run = str(directory.relative_to(place.path))
    before = (directory / "generated" / "perturbed" / "step_00000040" / "manifest.json").read_bytes()
    asked = ("generate", run, "generate.samples=2", "generate.max_tokens=12")
    assert "0 of 1 parts written now" in place.ok(*asked, "shard=0/1").out
    assert (directory / "generated" / "perturbed" / "step_00000040" / "manifest.json").read_bytes() == before
    told = place.ok(*asked, "dry_run=true").lines
    assert "generated/perturbed, 1 checkpoints, 1 of them continued before" in told[0]
    done = place.ok("generate", run, "step=0", "generate.questions=false", "shard=0/2")
    assert "step 0; 1 of 1 parts written now by shard=0/2" in done.out
    # The last checkpoint's settings count; what was made with others is left out of its report.
    assert open_run(directory).generated["step"].unique().to_list() == [40]


def test_continuations_stand_beside_the_item(generated, chromium):
    found = opened(chromium, generated[0] / "report" / "report.html")
    found.page.locator("#items-list .option").first.click()
    text = found.page.locator("#item-continued").inner_text()
    assert "What was written after its first 4 tokens, greedily, at step 40" in text
    assert "perturbed: edit similarity" in text
    assert "of 2 samples verbatim" in text
    assert "twin: edit similarity" in text
    assert found.complaints == []


def test_likeness_in_meaning_is_stored_and_reported(generated, place, finished):
    """Cosines of counts of words, which a model of words at right angles gives; the report has their means."""
    pytest.importorskip("sentence_transformers")
    run = place.path / "runs" / "small" / finished.name
    texts = open_run(run).plan.items["text"].to_list()
    known = {word for text in texts for word in re.findall(r"\w+", text)}
    write_model(place.path / "sentences", sorted(known))
    before = open_run(run).generated
    asked = ("generate.samples=2", "generate.max_tokens=12", "generate.embeddings=sentences")
    place.ok("generate", f"runs/small/{finished.name}", *asked)
    written = open_run(run).generated
    assert before["similarity"].null_count() == before.height
    assert written.drop("similarity").equals(before.drop("similarity"))
    for text, reference, value in written.select("text", "reference_text", "similarity").iter_rows():
        one, other = (
            Counter(word for word in re.findall(r"\w+", each) if word in known) for each in (text, reference)
        )
        lengths = [math.sqrt(sum(n * n for n in words.values())) for words in (one, other)]
        shared = sum(one[word] * other[word] for word in one)
        assert value == pytest.approx(shared / math.prod(lengths) if shared else 0, abs=1e-5)
    assert (written["similarity"] > 0.1).any()
    told = pl.read_csv(run / "report" / "generated.csv", infer_schema_length=None)
    mean = told.filter(
        (pl.col("metric") == "generated_semantic_similarity")
        & (pl.col("run") == "perturbed")
        & (pl.col("statistic") == "mean")
        & (pl.col("question") == "after 4 tokens")
        & (pl.col("family") == "all")
    )
    whole = (
        pl.col("probe_id").str.contains("/verbatim/")
        & (pl.col("run") == "perturbed")
        & (pl.col("sample") == 0)
    )
    values = written.filter(whole).join(
        open_run(run).plan.probes.select("probe_id", "item_id"), on="probe_id"
    )
    values = values.join(open_run(run).plan.items.select("item_id", "dose"), on="item_id")
    for dose, estimate in mean.select("dose", "estimate").iter_rows():
        of_dose = values.filter(pl.col("dose") == dose)["similarity"].clip(0, 1)
        assert estimate == pytest.approx(of_dose.mean(), abs=1e-6)
    assert mean.height
    assert "semantic similarity<" in (run / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["generate.embeddings=nowhere"],
            "generate.embeddings=nowhere: no sentence-embedding model could be read",
        ),
        (["step=7000"], "step=7000: there is no such checkpoint in "),
        (["generate.prefix_tokens=[0]"], "generate.prefix_tokens: 0 must be above 0"),
        (["generate.temperature=0"], "generate.temperature=0.0 must be above 0"),
        (
            ["generate.prefix_tokens=[500]", "generate.questions=false"],
            "nothing can be continued: no item is longer than generate.prefix",
        ),
        (["shard=2/2"], "shard='2/2' is not k/n"),
    ],
)
def test_refusals_are_one_line(generated, place, settings, told):
    done = place.run("generate", str(generated[0].relative_to(place.path)), *settings)
    assert done.status == 2
    assert told in done.lines[-1]
    assert "Traceback" not in done.out


def test_nothing_trained_is_told(prepared):
    done = prepared.run("generate")
    assert done.status == 2
    assert "there are no checkpoints in" in done.lines[-1]
