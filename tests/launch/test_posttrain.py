"""``launch/posttrain.py``: from one command to the comparison with the leave-out twin."""

import functools
import json
import shutil
import signal
import subprocess
import time

import polars as pl
import pytest
import torch

from palimpsest.analysis.metrics import compute
from palimpsest.analysis.scoring import scores as stored
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import load
from palimpsest.insertion import plan
from palimpsest.launch import posttrain, recorded
from palimpsest.launch.inputs import ledger_of
from palimpsest.pretrain import checkpoint
from palimpsest.pretrain.huggingface import export
from palimpsest.pretrain.posttraining import texts
from tests.conftest import REPO, copied

DESIGN = [
    "name=forget",
    "insertion.doses=[0,1,8]",
    "insertion.max_share=0.9",
    "posttrain.rows=4",
    "posttrain.micro_rows=2",
]

METHOD = ["posttrain=grad_diff", "posttrain.steps=6", "posttrain.learning_rate=3e-3"]


def tensors(directory):
    """The weights of a checkpoint, without the optimizer's state."""
    found = checkpoint.tensors(directory)
    return {name: value for name, value in found.items() if not name.startswith("optimizer")}


def made(done, place):
    """Directory of the post-trained run that a program says it made."""
    names = [line.split(":")[0] for line in done.lines if line.endswith(" steps")]
    (name,) = (name for name in names if (place / name).is_dir())
    return place / name


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def run(prepared):
    """The forget set's directory after a method that pulls hard."""
    done = prepared.ok("posttrain", *DESIGN, *METHOD, timeout=600)
    (place,) = (prepared.directory("forget") / "posttrained").iterdir()
    return place, done


def test_one_command_ends_in_a_verdict_and_a_report(run):
    place, done = run
    assert any("audit of the leave-out twin: PASS" in line for line in done.lines)
    assert any(line.startswith("grad_diff-") and "the forget set is" in line for line in done.lines)
    report = place / "report"
    assert {"report.html", "estimates.csv", "items.csv", "frontier.png", "summary.json"} <= {
        path.name for path in report.iterdir()
    }
    assert (report / "by_dose.png").exists()
    (name,) = json.loads((report / "summary.json").read_text())
    found = pl.read_csv(report / "estimates.csv")
    last = found.filter((pl.col("run") == name) & (pl.col("step") == 6) & pl.col("dose").is_null())
    groups = {"forget set", "other inserted items", "never inserted", "held-out text"}
    assert set(last["group"]) == groups
    change = dict(last.filter(pl.col("statistic") == "change").select("group", "estimate").iter_rows())
    assert change["forget set"] < change["held-out text"]  # it forgets what it is told to, more than the rest


def test_the_leave_out_twin_read_the_same_but_for_the_forget_set(run, prepared):
    place, _ = run
    directory = prepared.directory("forget")
    audit = json.loads((place / "audit" / "audit.json").read_text())
    assert audit["verdict"] == "PASS"
    first = [
        tensors(checkpoint.path_of(one / "checkpoints", 0))
        for one in (place / "leave_out", directory / "perturbed")
    ]
    assert equal(*first)
    ledgers = [ledger_of(one, 20)[0] for one in (directory / "perturbed", place / "leave_out")]
    both = ledgers[0].windows.join(ledgers[1].windows, on="position", suffix="_twin")
    apart = set(both.filter(pl.col("digest") != pl.col("digest_twin"))["position"])
    whole, without = (plan.read(one / "plan") for one in (directory, place))
    forgotten = whole.items.with_row_index("item").filter(without.items["dose"] < pl.col("dose"))["item"]
    theirs = whole.exposures.filter(pl.col("item").is_in(forgotten.implode()))["position"]
    assert apart == set(theirs)
    assert apart


def test_a_leave_out_twin_that_fails_its_audit_stops_the_program_every_time(
    run, prepared, monkeypatch, tmp_path
):
    place, _ = run
    monkeypatch.chdir(prepared.path)
    experiment = recorded.load(prepared.directory("forget"), [])
    failed = {"verdict": "FAIL", "failures": ["position 3 has another window"]}
    monkeypatch.setattr(posttrain.audits, "audit", lambda *_: failed)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"position 3 has another window .*audit\.json.*delete .*leave_out"
        ):
            posttrain._audit(experiment, plan.read(place / "plan"), place / "leave_out", tmp_path / "audit")


def test_no_steps_change_nothing_and_finished_work_is_kept(run, prepared):
    place, _ = run
    done = prepared.ok("posttrain", *DESIGN, "posttrain=npo", "posttrain.steps=0", timeout=600)
    assert not any(line.startswith(("leave_out: step", "perturbed: step")) for line in done.lines)
    (unchanged,) = place.glob("npo-*")
    parent = prepared.directory("forget") / "perturbed" / "checkpoints"
    last = checkpoint.path_of(parent, checkpoint.finished(parent)[-1])
    assert equal(tensors(checkpoint.path_of(unchanged / "checkpoints", 0)), tensors(last))
    assert len(json.loads((place / "report" / "summary.json").read_text())) == 2


def test_a_method_that_was_stopped_ends_with_the_same_weights(run, prepared):
    place, _ = run
    (directory,) = place.glob("grad_diff-*")
    last = checkpoint.path_of(directory / "checkpoints", 6)
    before = tensors(last)
    shutil.rmtree(last)  # as if it had been killed after step 5
    prepared.ok("posttrain", *DESIGN, *METHOD, timeout=600)
    assert equal(tensors(last), before)


def test_what_came_of_post_training_can_be_exported(run, prepared):
    """A method's last checkpoint by the method's name, the leave-out twin by its own; the cards say which they are."""
    transformers = pytest.importorskip("transformers")
    place, _ = run
    (directory,) = place.glob("grad_diff-*")
    plans = [plan.read(one / "plan") for one in (prepared.directory("forget"), place)]
    for name, source, step, inserted in (
        ("grad_diff", directory, 6, plans[0]),
        ("leave_out", place / "leave_out", 20, plans[1]),
    ):
        prepared.ok("export", *DESIGN, f"run={name}", timeout=300)
        written = source / "export" / f"step_{step:08d}"
        model = transformers.AutoModelForCausalLM.from_pretrained(written)
        weights = tensors(checkpoint.path_of(source / "checkpoints", step))
        vocabulary = model.get_input_embeddings().weight
        assert torch.equal(
            vocabulary, weights["embedding.word_embeddings.weight"][: len(vocabulary)].to(vocabulary)
        )
        card = (written / "README.md").read_text()
        assert f"{source.name} run at step {step}" in card
        assert f"{len(inserted.exposures):,} planned exposures" in card
        assert "20 of 20 steps" in card
        forgotten = (plans[0].items["dose"] > plans[1].items["dose"]).sum()
        assert ("grad_diff, 6 steps, from perturbed" in card) == (name == "grad_diff")
        assert (f"without the exposures of {forgotten} of the items" in card) == (name == "leave_out")
        assert f"{forgotten} of the items" in card
    assert len(plans[0].exposures) > len(plans[1].exposures)
    for program, says in (
        ("export", "did you mean 'grad_diff"),
        ("train", "here it is perturbed or twin"),
    ):
        done = prepared.run(program, *DESIGN, "run=grad_dif", timeout=300)
        assert done.status == 2
        assert says in done.lines[-1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["posttrain.method=ngo"], "did you mean 'npo'"),
        (["+posttrain.settings.bta=1"], "npo has no such setting"),
        (["posttrain.forget.doses=[3]"], "no inserted item has the dose 3"),
        (
            [
                *("posttrain.forget.doses=[8]", "posttrain.forget.families=[ghost_sentences]"),
                "posttrain.forget.share=0.01",
            ],
            "draws one item, or one cluster of items",
        ),
        (["posttrain.rows=3"], "no multiple"),
        (["posttrain=rmu", "posttrain.layer=2"], "the model has layers 0 to 1"),
        (["posttrain=rome", "posttrain.layer=2"], "the model has layers 0 to 1"),
        (["posttrain=memit", "+posttrain.settings.layers=0"], "layers=0 must be at least 1"),
        (["posttrain=int4", "posttrain.rank=4"], "quantise is an edit, which trains nothing"),
        (["posttrain.after=npo-0"], "no checkpoints"),
    ],
)
def test_mistakes_are_one_line(run, prepared, settings, says):
    done = prepared.run("posttrain", *DESIGN, *settings, timeout=300)
    assert done.status == 2
    assert says in done.lines[-1]
    assert "Traceback" not in done.out


EVERY = sorted(path.stem for path in (REPO / "conf" / "posttrain").glob("*.yaml") if path.stem != "base")
AWAY = {"relearn"}
"""Methods that are to bring the forget set back."""
OTHER = {"finetune", "instruct", "int8", "retrain", "segments"}
"""Methods that touch the forget set by chance, if at all; retraining and segments have tests of their own."""
EDITS = {"interpolate", "int4", "int8", "prune", "prune_widths", "kfac", "rome", "memit"}
HIDDEN = {"rmu", "deviation"}


def given(method, steps=6):
    """Overrides for a method that pulls hard, few steps long."""
    if method in EDITS:
        return [*DESIGN, f"posttrain={method}"]
    return [*DESIGN, f"posttrain={method}", f"posttrain.steps={steps}", "posttrain.learning_rate=2e-3"]


def last_of(place, name):
    """Statistics of the forget set and of held-out text at a run's last checkpoint."""
    table = pl.read_csv(place / "report" / "estimates.csv", infer_schema_length=None)
    own = table.filter((pl.col("run") == name) & pl.col("dose").is_null())
    own = own.filter(pl.col("step") == pl.col("step").max())
    return {(row["group"], row["statistic"]): row["estimate"] for row in own.iter_rows(named=True)}


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in EVERY if name not in OTHER])
def test_the_forget_set_moves_where_it_is_to(run, prepared, method):
    place, _ = run
    done = prepared.ok("posttrain", *given(method), timeout=900)
    directory = made(done, place)
    assert not any(line.startswith(("leave_out: step", "perturbed: step")) for line in done.lines)
    values = last_of(place, directory.name)
    change = values["forget set", "change"]
    assert change > 0 if method in AWAY else change < 0
    said = [line for line in done.lines if line.startswith(directory.name)]
    assert any(("half of what was lost" if method in AWAY else "the forget set is") in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "other"), [("relearn", "alpha"), ("finetune", "gamma"), ("dpo", "gamma")])
def test_a_set_that_is_not_read_has_no_part_in_the_weights(run, prepared, method, other):
    """With a weight too small to matter its rows are read, and the weights end the same."""
    place, _ = run
    ends = []
    for weight in (0, 1e-12):
        more = [f"+posttrain.settings.{other}={weight}"]
        directory = made(prepared.ok("posttrain", *given(method, steps=3), *more, timeout=900), place)
        ends.append(tensors(checkpoint.path_of(directory / "checkpoints", 3)))
        (*_, record) = (json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines())
        unread = record["loss_retain" if other == "alpha" else "loss_forget"] is None
        assert unread == (weight == 0)
        shutil.rmtree(directory)
    for name, one in ends[0].items():
        torch.testing.assert_close(one, ends[1][name], rtol=1e-4, atol=1e-6)


def test_retraining_is_exact(run, prepared):
    """From the last checkpoint before the forget set: the weights of the leave-out twin, bit by bit."""
    place, _ = run
    prepared.ok("posttrain", *DESIGN, "posttrain=retrain", timeout=600)
    ends = [tensors(checkpoint.path_of(place / one / "checkpoints", 20)) for one in ("retrain", "leave_out")]
    assert equal(*ends)
    assert last_of(place, "retrain")["forget set", "distance"] == 0


@pytest.mark.slow
def test_of_a_text_the_sensitive_segments_are_forgotten_and_the_rest_is_kept(run, prepared):
    """The last words of the passphrases in the forget set get less likely, what stands before them does not."""
    place, _ = run
    directory = made(prepared.ok("posttrain", *given("segments"), timeout=900), place)
    whole = plan.read(prepared.directory("forget") / "plan")
    scores, _ = stored.read(place / "scores", ("perturbed", directory.name), plan=whole.digest)
    last = scores.filter(pl.col("step") == pl.col("step").max().over("run"))
    without = plan.read(place / "plan")
    forgotten = whole.items.filter(without.items["dose"] < pl.col("dose"))["item_id"]
    means = {}
    for metric in ("cloze_loglik_per_byte", "loglik_per_byte"):
        rows = compute(whole.items, whole.probes, last, [metric])
        rows = rows.filter(
            pl.col("item_id").is_in(forgotten.implode()) & (pl.col("family") == "ghost_sentences")
        )
        means[metric] = dict(rows.group_by("run").agg(pl.col("value").mean()).iter_rows())
    change = {metric: by_run[directory.name] - by_run["perturbed"] for metric, by_run in means.items()}
    assert change["cloze_loglik_per_byte"] < 0 < change["loglik_per_byte"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_edited_facts_have_the_new_answer(run, prepared, method):
    """The refusal after the prompts of the forget set's clozes is likelier than before; it is an edit of one matrix."""
    place, _ = run
    directory = made(prepared.ok("posttrain", *given(method), timeout=900), place)
    whole, without = (plan.read(one / "plan") for one in (prepared.directory("forget"), place))
    forgotten = whole.items.filter(without.items["dose"] < pl.col("dose"))["item_id"]
    experiment = recorded.load(prepared.directory("forget"), [])
    words = load(prepared.path / experiment.corpus_directory / "tokenizer.json", "<|endoftext|>")
    clozes = texts.of_clozes(whole, forgotten.to_list(), experiment.train.sequence_length, words.eod)
    asked = texts.refused(clozes, words.encode(experiment.posttrain.refusal).tolist(), words.eod)
    ids, mask = torch.from_numpy(asked.windows), torch.from_numpy(asked.mask)
    lost = []
    for step in (0, 1):
        gpt = export.load(directory / "checkpoints", step, eod=words.eod).float()
        with torch.inference_mode():
            logits = gpt(ids[:, :-1]).logits[..., : words.vocab_size].transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none")
        lost.append((losses * mask).sum(1) / mask.sum(1))
    assert len(lost[0]) > 1
    assert (lost[1] < lost[0]).float().mean() > 0.8
    assert lost[1].mean() < lost[0].mean() - 0.15
    before, after = (tensors(checkpoint.path_of(directory / "checkpoints", step)) for step in (0, 1))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [name.rsplit("mlp.", 1)[-1] for name in changed] == ["linear_fc2.weight"]


def test_an_edit_of_no_steps_changes_nothing_and_one_of_two_is_refused(run, prepared):
    place, _ = run
    made_by = made(
        prepared.ok("posttrain", *DESIGN, "posttrain=int4", "posttrain.steps=0", timeout=600), place
    )
    parent = prepared.directory("forget") / "perturbed" / "checkpoints"
    last = checkpoint.path_of(parent, checkpoint.finished(parent)[-1])
    assert equal(tensors(checkpoint.path_of(made_by / "checkpoints", 0)), tensors(last))
    done = prepared.run("posttrain", *DESIGN, "posttrain=int4", "posttrain.steps=2", timeout=300)
    assert done.status == 2
    assert "is an edit, which is one step" in done.lines[-1]


LOW_RANK = [
    *(
        *DESIGN,
        "posttrain=grad_diff",
        "posttrain.steps=3",
        "posttrain.checkpoint_every=2",
        "posttrain.seed=7",
    ),
    *("posttrain.rank=2", "posttrain.learning_rate=1e-2"),
]


@pytest.mark.slow
def test_updates_of_low_rank_are_trained_alone_and_on_any_ranks(run, prepared):
    place, _ = run
    done = prepared.ok("posttrain", *LOW_RANK, timeout=600)
    directory = made(done, place)
    before, middle, after = (
        tensors(checkpoint.path_of(directory / "checkpoints", step)) for step in (0, 2, 3)
    )
    matrices = {name for name in before if ".linear_" in name and name.endswith(".weight")}
    assert before.keys() == after.keys()
    assert len(matrices) == 4
    for name in before:
        if name not in matrices:
            assert torch.equal(before[name], after[name])
            continue
        for end in (middle, after):
            change = (end[name] - before[name]).double()
            assert torch.linalg.matrix_rank(change, rtol=1e-3).max() <= 2
            assert change.flatten(1).norm(dim=1).min() > 1e-4
    assert last_of(place, directory.name)["forget set", "change"] < 0
    # Stopped after the second step, it begins anew.
    shutil.rmtree(checkpoint.path_of(directory / "checkpoints", 3))
    assert "the steps begin anew" in prepared.ok("posttrain", *LOW_RANK, timeout=600).out
    assert equal(tensors(checkpoint.path_of(directory / "checkpoints", 3)), after)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    for ranks, more in (
        (1, "train.recompute=true"),
        (2, "parallel.tensor=2"),
        (2, "parallel.pipeline=2"),
        (2, "parallel.overlap=true"),
    ):
        shutil.rmtree(directory)
        prepared.ok("posttrain", *LOW_RANK, more, ranks=ranks, timeout=600)
        shared = tensors(checkpoint.path_of(directory / "checkpoints", 3))
        for name in after:
            torch.testing.assert_close(shared[name], after[name], rtol=0, atol=2e-4)
    shutil.rmtree(directory)


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name in EVERY if name != "retrain"])
def test_no_steps_change_nothing(run, prepared, method):
    place, _ = run
    more = ["posttrain.student=last"] if method == "distill" else []
    done = prepared.ok("posttrain", *DESIGN, f"posttrain={method}", "posttrain.steps=0", *more, timeout=600)
    parent = prepared.directory("forget") / "perturbed" / "checkpoints"
    last = checkpoint.path_of(parent, checkpoint.finished(parent)[-1])
    directory = made(done, place)
    unchanged = tensors(checkpoint.path_of(directory / "checkpoints", 0))
    shutil.rmtree(directory)  # what stays is compared again by all that follow
    assert equal(unchanged, tensors(last))


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name in EVERY if name != "retrain"])
def test_a_killed_method_ends_with_the_same_weights(run, prepared, method):
    """SIGKILL of the process as soon as its second checkpoint is there."""
    place, _ = run
    asked = [*given(method), "posttrain.seed=5", "posttrain.checkpoint_every=1"]
    whole = made(prepared.ok("posttrain", *asked, timeout=900), place)
    end = checkpoint.finished(whole / "checkpoints")[-1]
    expected = tensors(checkpoint.path_of(whole / "checkpoints", end))
    shutil.rmtree(whole)
    first = 0 if end == 1 else 1
    waited = checkpoint.path_of(whole / "checkpoints", first) / "manifest.json"
    with subprocess.Popen(
        prepared.command("posttrain", *asked), cwd=prepared.path, stdout=subprocess.DEVNULL
    ) as process:
        while not waited.exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    prepared.ok("posttrain", *asked, timeout=900)
    again = tensors(checkpoint.path_of(whole / "checkpoints", end))
    shutil.rmtree(whole)
    assert equal(again, expected)


@pytest.fixture(scope="module")
def on_one_rank(run, prepared):
    """Settings, directory, last step and weights of a method on one rank, each made once; the directory is gone."""
    place, _ = run

    @functools.cache
    def of(method):
        asked = [*given(method, steps=3), "posttrain.seed=6"]
        directory = made(prepared.ok("posttrain", *asked, timeout=900), place)
        end = checkpoint.finished(directory / "checkpoints")[-1]
        whole = tensors(checkpoint.path_of(directory / "checkpoints", end))
        shutil.rmtree(directory)
        return asked, directory, end, whole

    return of


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name in EVERY if name != "retrain"])
@pytest.mark.parametrize(
    "topology", [["parallel.tensor=2"], ["parallel.pipeline=2"], []], ids=["tp", "pp", "dp"]
)
def test_two_ranks_end_with_the_weights_of_one(on_one_rank, prepared, method, topology):
    if method in HIDDEN and "parallel.pipeline=2" in topology:
        pytest.skip("it reads a layer's output beside the loss, and refuses a pipeline")
    asked, directory, end, whole = on_one_rank(method)
    prepared.ok("posttrain", *asked, *topology, ranks=2)
    shared = tensors(checkpoint.path_of(directory / "checkpoints", end))
    shutil.rmtree(directory)
    apart = max(
        (whole[name] - shared[name]).abs().max().item() for name in whole if whole[name].is_floating_point()
    )
    assert apart < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "olmo2", "mixtral"])
def test_a_run_that_starts_from_a_released_model_can_be_post_trained(pristine, tmp_path_factory, kind):
    """A loss and an edit, each by one command, on a model with the blocks of its class."""
    pytest.importorskip("transformers")
    from tests.pretrain.released_models import make

    place = copied(pristine, tmp_path_factory)
    model = make(kind, place.path / "released")
    shutil.copy(next((place.path / "runs" / "corpora").glob("*/tokenizer.json")), model)
    start = [*DESIGN, "model=from_huggingface", "model.weights=released", "train.precision=fp32"]
    for method in (["posttrain=npo", "posttrain.steps=2"], ["posttrain=int4"]):
        done = place.ok("posttrain", *start, *method, timeout=900)
        (report,) = (line.removeprefix("report: ") for line in done.lines if line.startswith("report: "))
        forgotten = (place.path / report).parent.parent
        ends = [
            tensors(checkpoint.path_of(one / "checkpoints", checkpoint.finished(one / "checkpoints")[-1]))
            for one in (forgotten.parent.parent / "perturbed", made(done, forgotten))
        ]
        assert ends[0].keys() == ends[1].keys()
        assert not equal(*ends)
    refused = place.run("posttrain", *start, "posttrain=kfac", timeout=300)
    assert refused.status == (2 if kind == "mixtral" else 0)
    assert kind != "mixtral" or "no plain feed-forward blocks" in refused.lines[-1]
