"""``launch/posttrain.py``: from one command to the comparison with the leave-out twin."""

import json
import shutil

import polars as pl
import pytest
import torch

from palimpsest.insertion import plan
from palimpsest.launch.inputs import ledger_of
from palimpsest.pretrain import checkpoint

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
    (line,) = (line for line in done.lines if line.endswith(" steps"))
    return place / line.split(":")[0]


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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["posttrain.method=ngo"], "did you mean 'npo'"),
        (["+posttrain.settings.bta=1"], "npo has no such setting"),
        (["posttrain.forget.doses=[3]"], "no inserted item has the dose 3"),
        (["posttrain.rows=3"], "no multiple"),
        (["posttrain=rmu", "posttrain.layer=2"], "the model has layers 0 to 1"),
        (["posttrain.after=npo-0"], "no checkpoints"),
    ],
)
def test_mistakes_are_one_line(run, prepared, settings, says):
    done = prepared.run("posttrain", *DESIGN, *settings, timeout=300)
    assert done.status == 2
    assert says in done.lines[-1]
    assert "Traceback" not in done.out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "undial", "rmu"])
@pytest.mark.parametrize(
    "topology", [["parallel.tensor=2"], ["parallel.pipeline=2"], []], ids=["tp", "pp", "dp"]
)
def test_two_ranks_end_with_the_weights_of_one(run, prepared, method, topology):
    place, _ = run
    if method == "rmu" and "parallel.pipeline=2" in topology:
        pytest.skip("rmu reads a layer's output beside the loss, and refuses a pipeline")
    given = [*DESIGN, f"posttrain={method}", "posttrain.steps=3"]
    one = made(prepared.ok("posttrain", *given, timeout=600), place)
    whole = tensors(checkpoint.path_of(one / "checkpoints", 3))
    aside = one.rename(place / f".{one.name}")
    try:
        prepared.ok("posttrain", *given, *topology, ranks=2, timeout=600)
        shared = tensors(checkpoint.path_of(one / "checkpoints", 3))
        apart = max(
            (whole[name] - shared[name]).abs().max().item()
            for name in whole
            if whole[name].is_floating_point()
        )
        assert apart < 2e-4
    finally:
        shutil.rmtree(one, ignore_errors=True)
        aside.rename(one)
