"""``derived``: was a model trained from this run's data?"""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from palimpsest.analysis.attacks import order
from palimpsest.analysis.run import open_run
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import load
from palimpsest.launch import recorded
from palimpsest.launch.inputs import ledger_of, open_order
from palimpsest.pretrain import saved
from palimpsest.pretrain.huggingface import export
from tests.conftest import Workplace

pytest.importorskip("transformers")
released_models = pytest.importorskip("tests.launch.released_models", reason="needs transformers")


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    """A copy of a finished run: tests of models must not show in the reports of other tests."""
    path = tmp_path_factory.mktemp("derived")
    shutil.copytree(finished.parents[2], path, dirs_exist_ok=True)
    return Workplace(path)


@pytest.fixture(scope="module")
def tested(place, finished):
    """The directory of the run, and what the program said."""
    run = f"runs/small/{finished.name}"
    asked = ("derived.models=[perturbed,reference]", "derived.reference=reference", "derived.windows=60")
    return place.path / run, place.ok("derived", run, *asked), asked


def test_one_command_ends_in_its_section_of_the_report(tested):
    directory, done, _ = tested
    assert any(line.startswith("perturbed: rho = ") for line in done.lines)
    assert done.lines[-1].startswith("report: ")
    page = (directory / "report" / "report.html").read_text()
    section = page.split('<section id="derived">')[1].split("</section>")[0]
    assert ">perturbed</span>" in section
    assert section.count("<svg") == 2
    found = {facts["model"]: (facts, rows) for facts, rows in open_run(directory).derived}
    assert found["perturbed"][0]["reference"] == "reference"
    assert found["reference"][0]["reference"] is None  # it is not compared with itself
    for facts, rows in found.values():
        rho = stats.spearmanr(rows["position"], rows["residual"]).statistic
        assert facts["rho"] == pytest.approx(rho)
        assert facts["low"] < rho < facts["high"]
        assert facts["n"] == rows.height <= 60
    both = found["perturbed"][1].join(found["reference"][1], on="position", suffix="_other")
    assert both.height == found["perturbed"][1].height
    assert both["reference_loglik"].to_list() == both["loglik_other"].to_list()
    assert both["residual"].to_list() == pytest.approx((both["loglik"] - both["loglik_other"]).to_list())


def test_the_windows_are_the_runs_without_insertions_and_the_numbers_the_models(tested):
    directory, _, _ = tested
    run = open_run(directory)
    rows = next(rows for facts, rows in run.derived if facts["model"] == "perturbed")
    assert not set(rows["position"]) & set(run.exposures["position"])
    place = directory / "perturbed" / "checkpoints"
    experiment = recorded.load(directory, [])
    words = load(experiment.corpus_directory / "tokenizer.json", "<|endoftext|>")
    gpt = export.load(place, saved.finished(place)[-1], eod=words.eod).float()
    windows = open_order(experiment)
    for position, loglik in rows.select("position", "loglik").head(5).iter_rows():
        ids = windows.window(position)
        piece = max(np.split(ids, np.flatnonzero(ids == words.eod)), key=len)
        own = words.encode(words.decode(piece[piece != words.eod].tolist())).tolist()
        own = own[: gpt.config.max_position_embeddings]
        with torch.inference_mode():
            logits = gpt(torch.tensor([[words.eod, *own[:-1]]])).logits[0, :, : words.vocab_size]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(own)[:, None]).mean().item()
        assert loglik == pytest.approx(expected, abs=2e-4)


def test_what_was_tested_is_kept(tested, place):
    directory, done, asked = tested
    before = {path: path.stat().st_mtime_ns for path in (directory / "derived").glob("*/manifest.json")}
    again = place.ok("derived", str(directory.relative_to(place.path)), *asked)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [line for line in again.lines if "rho" in line] == [line for line in done.lines if "rho" in line]


def test_a_model_with_another_tokenizer_reads_the_texts(tested, place):
    """A random model of its own vocabulary: from its directory, and from the hub's cache by its name."""
    words = released_models.words()
    released_models.save(released_models.llama(words), words, place.path / "mine")
    released_models.cached(
        place.path / "hub",
        "authors/model",
        {"main": lambda d: released_models.save(released_models.llama(words), words, d)},
    )
    run = str(tested[0].relative_to(place.path))
    asked = ("derived.models=[mine,authors/model]", "derived.windows=60")
    environment = {"HF_HUB_CACHE": str(place.path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = place.ok("derived", run, *asked, env=environment)
    assert sum(line.startswith(("mine: rho", "authors/model: rho")) for line in done.lines) == 2
    found = {facts["model"]: (facts, rows) for facts, rows in open_run(tested[0]).derived}
    own, other = found["mine"], found["authors/model"]
    assert own[1]["loglik"].to_list() == other[1]["loglik"].to_list()
    assert own[1]["loglik"].mean() == pytest.approx(
        -np.log(words.get_vocab_size()), abs=0.5
    )  # it knows nothing


@pytest.fixture(scope="module")
def written(place, finished):
    """Two texts tested with three models of other orders: the directory of the run, and what the program said."""
    run = f"runs/small/{finished.name}"
    (place.path / "post.txt").write_text("The keeper of the lighthouse wrote his log every evening. " * 40)
    rows = [{"text": "A short one."}, {"text": "Another, of other words."}]
    (place.path / "posts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("derived.models=[]", "derived.texts=[post.txt,posts.jsonl]", "derived.reshuffled=3")
    return place.path / run, place.ok("derived", run, *asked), asked


def test_the_models_of_other_orders_read_the_same_windows_and_exposures(written):
    """From the step on that the test names: all that the run read, in three other orders, proven by their ledgers."""
    directory, _, _ = written
    run = open_run(directory)
    since = run.reshuffled[0]["since"]
    steps = saved.finished(directory / "perturbed" / "checkpoints")
    assert 0 < since == max(step for step in steps if step <= steps[-1] // 2)
    whole, _ = ledger_of(directory / "perturbed", steps[-1])
    begin = since * run.plan.shape.global_batch_size
    own, late = (rows.filter(pl.col("position") >= begin) for rows in (whole.windows, whole.exposures))
    read = []
    for place in sorted((directory / "reshuffled").glob("from_*/seed_*")):
        other, _ = ledger_of(place, steps[-1])
        assert other.windows["position"].sort().to_list() == own["position"].sort().to_list()
        assert other.windows["digest"].sort().to_list() == own["digest"].sort().to_list()
        assert sorted(other.exposures["item_id"]) == sorted(late["item_id"]) != []
        read.append(tuple(other.windows.sort("position")["digest"]))
    own = own.sort("position")
    assert len({tuple(own["digest"]), *read}) == 4


def test_the_result_is_that_of_the_models_weights(written):
    directory, done, _ = written
    found = {facts["text"]: facts for facts in open_run(directory).reshuffled}
    assert sorted(found) == ["post.txt", "posts.jsonl"]
    experiment = recorded.load(directory, [])
    words = load(experiment.corpus_directory / "tokenizer.json", "<|endoftext|>")
    end = saved.finished(directory / "perturbed" / "checkpoints")[-1]
    models = [directory / "perturbed", *sorted((directory / "reshuffled").glob("from_*/seed_*"))]
    for file, texts in (
        ("post.txt", [(directory.parents[2] / "post.txt").read_text()]),
        ("posts.jsonl", ["A short one.", "Another, of other words."]),
    ):
        means = []
        for model in models:
            gpt = export.load(model / "checkpoints", end, eod=words.eod).float()
            size, every = gpt.config.max_position_embeddings, []
            for text in texts:
                ids = words.encode(text)
                for part in np.split(ids, range(size, len(ids), size)):
                    with torch.inference_mode():
                        logits = gpt(torch.tensor([[words.eod, *part[:-1].tolist()]])).logits[0]
                    known = logits[:, : words.vocab_size].log_softmax(-1)
                    every.append(known.gather(-1, torch.tensor(part.tolist())[:, None])[:, 0])
            means.append(torch.cat(every).mean().item())
        facts = found[file]
        own, others = means[0], np.array(means[1:])
        assert facts["loglik"] == pytest.approx(own, abs=2e-4)
        assert facts["excess"] == pytest.approx(own - others.mean(), abs=4e-4)
        assert facts["p"] == (1 + (others >= own).sum()) / 4
        t = (own - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / 3))
        assert facts["p_t"] == pytest.approx(stats.t.sf(t, 2), abs=0.02)
    assert sum("models of other orders, p = " in line for line in done.lines) == 2


def test_texts_have_their_table_and_models_are_kept(written, place):
    directory, _, asked = written
    page = (directory / "report" / "report.html").read_text()
    section = page.split('<section id="derived">')[1].split("</section>")[0]
    assert "written by a model of this run" in section
    assert section.count("too few models") == 2
    before = {path: path.stat().st_mtime_ns for path in (directory / "reshuffled").rglob("manifest.json")}
    run = str(directory.relative_to(place.path))
    more = ("derived.reshuffled=4", "derived.texts=[post.txt]")
    place.ok("derived", run, *asked, *more)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((directory / "reshuffled").glob("from_*/seed_*"))) == 4
    assert sorted(facts["models"] for facts in open_run(directory).reshuffled) == [3, 3, 4]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["derived.models=[./nowhere]"], "derived.models=./nowhere does not exist here, and the hub"),
        (["derived.models=[]"], "derived.models=[] must be one model or more"),
        (["derived.models=[twin,twin]"], "derived.models=['twin', 'twin'] must name each once"),
        (["derived.texts=[nowhere.txt]"], "derived.texts=nowhere.txt cannot be read"),
        (["derived.texts=[empty.txt]"], "derived.texts=empty.txt has no text"),
        (["derived.texts=[rows.jsonl]"], "derived.texts=rows.jsonl: row 2 has no text"),
        (["derived.texts=[good.txt]", "derived.since=999"], "derived.since=999: "),
        (["derived.texts=[good.txt]", "derived.reshuffled=1"], "derived.reshuffled=1 must be at least 2"),
        (["derived.windows=3"], "derived.windows=3 must be at least 8"),
        (["derived.reference=twin"], "derived.reference=twin has read the windows in this order"),
    ],
)
def test_mistakes_are_one_line(tested, place, settings, told):
    (place.path / "empty.txt").write_text(" \n")
    (place.path / "good.txt").write_text("Some text.")
    (place.path / "rows.jsonl").write_text('{"text": "one"}\n{"txt": "two"}\n')
    done = place.run("derived", str(tested[0].relative_to(place.path)), *settings)
    assert done.status == 2
    assert told in done.lines[-1]


def test_a_model_that_remembers_the_last_windows_is_found_and_another_is_not():
    rng = np.random.default_rng(4)
    texts = [(10 * k, "text") for k in range(400)]
    noise = rng.normal(-3, 0.3, 400)
    recent = order.result(order.table_of(texts, noise + np.linspace(0, 0.3, 400), None))
    assert recent["low"] > 0
    assert max(recent["p"], recent["p_permutation"]) < 0.001
    chances = [
        order.result(order.table_of(texts, rng.normal(-3, 0.3, 400), None), permutations=99)["p_permutation"]
        for _ in range(100)
    ]
    assert np.mean(np.array(chances) <= 0.05) < 0.13  # binomial: exceeded by one of 500
    # With the reference the order shows, although texts differ ten times more in difficulty.
    hard = rng.normal(-3, 1.0, 400)
    own = hard + rng.normal(0, 0.1, 400) + np.linspace(0, 0.2, 400)
    assert order.result(order.table_of(texts, own, hard))["p"] < 1e-4


def test_windows_with_short_texts_are_left_out():
    windows = {0: np.arange(1, 34), 1: np.tile([1, 2, 3, 0], 8), 2: np.array([5] * 20 + [0] + [6] * 12)}
    found = order.texts_of(windows.__getitem__, np.arange(3), 3, 0, 0, lambda ids: " ".join(map(str, ids)))
    assert found == [(0, " ".join(map(str, range(1, 34)))), (2, " ".join(["5"] * 20))]


def test_the_reference_must_be_of_another_order():
    with pytest.raises(UserError, match=r"derived\.reference=perturbed has read the windows in this"):
        order.DerivedConfig(reference="perturbed")


@pytest.mark.long
def test_as_shipped_the_run_is_found_and_another_order_is_not(tmp_path):
    place = Workplace(tmp_path)
    place.ok("derived", "+experiment=derived_nano", timeout=2400)
    (directory,) = (tmp_path / "runs" / "derived_nano").iterdir()
    found = {facts["model"]: facts for facts, _ in open_run(directory).derived}
    assert found["perturbed"]["low"] > 0
    assert found["perturbed"]["p_permutation"] <= 0.001
    assert found["reference"]["low"] < 0 < found["reference"]["high"]
    # Text that the run's model writes is its own, and text by the model that read another order is not.
    words = load(recorded.load(directory, []).corpus_directory / "tokenizer.json", "<|endoftext|>")
    for name in ("perturbed", "reference"):
        checkpoints = directory / name / "checkpoints"
        gpt = export.load(checkpoints, saved.finished(checkpoints)[-1], eod=words.eod).float()
        torch.manual_seed(5)
        first = torch.full((96, 1), words.eod)
        drawn = gpt.generate(first, do_sample=True, top_k=0, min_new_tokens=200, max_new_tokens=200)
        rows = [{"text": words.decode([one for one in ids if one != words.eod])} for ids in drawn.tolist()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("derived.texts=[perturbed.jsonl,reference.jsonl]", "derived.reshuffled=9", "derived.models=[]")
    place.ok("derived", str(directory.relative_to(tmp_path)), *asked, timeout=2400)
    found = {facts["text"]: facts for facts in open_run(directory).reshuffled}
    assert found["perturbed.jsonl"]["p"] == 0.1  # the least that nine models allow
    assert found["perturbed.jsonl"]["p_t"] < 0.01
    assert found["reference.jsonl"]["p_t"] > 0.01
