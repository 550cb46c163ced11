"""A run opened in a notebook: what is found, what it says, and what is refused."""

import subprocess
import sys
import time

import polars as pl
import pytest

import palimpsest
from palimpsest.analysis import figures
from palimpsest.analysis.metrics import defaults
from palimpsest.analysis.run.figures import bind
from palimpsest.analysis.statistics import PAIRED
from palimpsest.data.errors import UserError
from tests.conftest import REPO
from tests.written import GAIN, LEVEL, Written


@pytest.fixture(scope="module")
def place(prepared, tmp_path_factory):
    """A directory with one whole run."""
    place = tmp_path_factory.mktemp("opened")
    Written(place, prepared).whole()
    return place


@pytest.fixture(scope="module")
def run(place):
    return palimpsest.open_run(place / "runs" / "small" / "run-0123abcd")


def test_a_run_is_found_by_what_people_type(place, monkeypatch):
    whole = place / "runs" / "small" / "run-0123abcd"
    for given in (whole, str(whole), whole.parent / "run", whole.parent, place / "runs"):
        assert palimpsest.open_run(given).directory == whole
    monkeypatch.setenv("PALIMPSEST_RUN", str(whole))
    assert palimpsest.open_run().directory == whole
    monkeypatch.delenv("PALIMPSEST_RUN")
    (place / "below" / "it").mkdir(parents=True)
    monkeypatch.chdir(place / "below" / "it")  # such as the directory of a notebook
    assert palimpsest.open_run().directory == whole


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("runs/smal", "there is no .*runs/smal; did you mean 'small'"),
        ("runs/small/run-0123abcd/plan", "is a part of a run; open .*run-0123abcd"),
        ("runs/small/run-0123abcd/plan/manifest.json", "is a part of a run; open .*run-0123abcd"),
        ("runs/corpora", "is not a run and holds none"),
        ("note.txt", "is a file; give the directory of a run"),
        ("nowhere/at/all", "there is no .*nowhere/at/all; runs lie in"),
    ],
)
def test_what_is_no_run(place, given, told):
    (place / "note.txt").write_text("")
    with pytest.raises(UserError, match=told):
        palimpsest.open_run(place / given)


def test_several_runs_are_not_guessed_at(prepared, tmp_path, monkeypatch):
    for name in ("run-0123abcd", "run-89abcdef"):
        Written(tmp_path, prepared, name)
    for given in ("runs/small/run", "runs/small", "runs"):
        with pytest.raises(UserError, match=r"several runs: .*run-0123abcd, .*run-89abcdef; give one"):
            palimpsest.open_run(tmp_path / given)
    report = tmp_path / "runs/small/run-89abcdef/report/manifest.json"
    report.parent.mkdir()
    report.write_text("{}")
    with pytest.raises(UserError, match=r"run-0123abcd, .*run-89abcdef \(has a report\); give one"):
        palimpsest.open_run(tmp_path / "runs/small")
    assert palimpsest.open_run(tmp_path / "runs/small/run-89abcdef").name == "small/run-89abcdef"
    # Without a name: the one that was planned last, and before it any that is scored.
    monkeypatch.chdir(tmp_path)
    assert palimpsest.open_run().name == "small/run-89abcdef"
    written = Written(tmp_path, prepared, "old-01234567")
    written.score("perturbed", 0)
    Written(tmp_path, prepared, "new-01234567")
    assert palimpsest.open_run().name == "small/old-01234567"
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="there is no run in /runs"):
        palimpsest.open_run()


LAZY = """
import sys
import palimpsest
run = palimpsest.open_run(sys.argv[1])
assert list(vars(run)) == ["directory"], vars(run)
assert "altair" not in sys.modules and "scipy" not in sys.modules
run.estimates(); run.figures.dose_response(); run.ledger; run.audit; run.tokenizer; repr(run)
assert "torch" not in sys.modules and "megatron" not in sys.modules
"""


def test_opening_reads_nothing_and_reading_takes_no_torch(place):
    done = subprocess.run(
        [sys.executable, "-c", LAZY, str(place / "runs")],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_opening_takes_milliseconds(place):
    began = time.perf_counter()
    for _ in range(20):
        palimpsest.open_run(place / "runs" / "small" / "run-0123abcd")
    assert (time.perf_counter() - began) / 20 < 0.05


def test_frames_are_the_files(run):
    planned = pl.read_parquet(run.directory / "plan" / "exposures.parquet")
    assert run.exposures["position"].to_list() == planned["position"].to_list()
    assert (run.exposures["step"] == planned["position"] // 8).all()
    assert run.ledger.exposures.select("position", "item_id").equals(
        run.exposures.select("position", "item_id")
    )
    assert run.ledger_of("twin").exposures.is_empty()
    assert sorted(run.scores.select("run", "step").unique().rows()) == [
        ("perturbed", 0), ("perturbed", 20), ("twin", 0), ("twin", 20)
    ]  # fmt: skip
    assert run.scores.height == 4 * run.probes.height
    assert run.training.filter(pl.col("run") == "twin")["step"].to_list() == list(range(1, 21))
    assert (run.last_step, run.checkpoints("twin")) == (20, [0, 20])
    assert run.audit["verdict"] == "PASS"
    assert run.config["run"] == {"begin": 0, "steps": 20, "global_batch_size": 8, "sequence_length": 64}
    assert run.config["model"] == {"hidden": 32}
    first = run.plan.wordings.row(0, named=True)
    assert run.tokenizer.decode(first["tokens"]) == first["text"]
    assert "small/run-0123abcd" in repr(run)
    assert "step 20 of 20" in repr(run)


def test_metrics_by_hand(run):
    """ln p is LEVEL + GAIN x dose a token: nats a byte and hits follow by arithmetic."""
    assert (run.parameters.prefix, run.parameters.suffix) == (2, 3)  # as in the report
    rows = run.metrics("loglik_per_token", "extracted", steps=[20])
    found = rows.filter((pl.col("metric") == "loglik_per_token") & (pl.col("run") == "perturbed"))
    expected = LEVEL + GAIN * found["dose"].cast(pl.Float64)
    assert found["value"].to_list() == pytest.approx(expected.to_list())
    verbatim = rows.filter((pl.col("metric") == "extracted") & (pl.col("run") == "perturbed"))
    assert ((verbatim["value"] == 1) == (verbatim["dose"] == 4)).all()
    assert set(rows["step"]) == {20}


@pytest.mark.parametrize("metric", ["loglik_per_token", "min_k_logprob"])
def test_estimates_by_hand(run, metric):
    """Of the report's metrics as of others: the gain over dose 0 and over the twin is GAIN x dose."""
    assert (metric in defaults()) == (metric == "loglik_per_token")
    rows = run.estimates(metric).filter((pl.col("step") == 20) & (pl.col("family") == "all"))
    assert set(rows["metric"]) == {metric}
    gains = rows.filter((pl.col("statistic") == "gain") & (pl.col("run") == PAIRED))
    assert dict(gains.select("dose", "estimate").iter_rows()) == pytest.approx(
        {1: GAIN, 4: 4 * GAIN}, abs=1e-6
    )
    both = run.estimates("loglik_per_token", "min_k_logprob")
    assert set(both["metric"]) == {"loglik_per_token", "min_k_logprob"}


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda run: run.metrics("extractd"), "unknown metric 'extractd'; did you mean 'extracted'"),
        (lambda run: run.estimates("extractd"), "did you mean 'extracted'"),
        (lambda run: run.metrics("extracted", prefx=3), "no setting 'prefx'; did you mean 'prefix'"),
        (lambda run: run.metrics("extracted", suffix=0), "suffix >= 1, not 2 and 0"),
        (lambda run: run.metrics(steps=[7]), r"step 7 was not scored; scored steps: \[0, 20\]"),
        (lambda run: run.tokens("ghost-00003", 7), r"step 7 was not scored"),
        (lambda run: run.tokens("ghost-3"), r"the plan has no item 'ghost-3'; did you mean 'ghost-0000"),
        (lambda run: run.ledger_of("twn"), "there is no run 'twn' in a pair; did you mean 'twin'"),
    ],
)
def test_mistakes(run, ask, told):
    with pytest.raises(UserError, match=told):
        ask(run)


def test_figures_draw_the_runs_rows(run):
    """All figures there are, by name; frames come from the run, the rest is as in ``analysis.figures``."""
    drawn = run.figures.dose_response()
    rows = drawn.rows.filter(pl.col("run") == "perturbed").sort("dose")
    means = run.estimates("loglik_per_byte").filter(
        (pl.col("run") == "perturbed") & (pl.col("statistic") == "mean") & (pl.col("step") == 20)
        & (pl.col("family") == "all")
    ).sort("dose")  # fmt: skip
    assert rows["estimate"].to_list() == means["estimate"].to_list()
    assert '"mark"' in drawn.chart.to_json()
    assert set(run.figures.dose_response("min_k_logprob").rows["metric"]) == {"min_k_logprob"}
    assert run.figures.training_curves().rows.filter(pl.col("tokens") == 512 * 20).height == 2
    listed = dir(run.figures)
    assert {"controls", "dose_response", "over_training", "training_curves"} <= set(listed)
    assert all(callable(getattr(run.figures, name)) for name in listed)
    assert run.figures.dose_response.__doc__ == figures.dose_response.__doc__
    with pytest.raises(AttributeError, match="no figure 'dose_respons'; did you mean 'dose_response'"):
        _ = run.figures.dose_respons


def test_own_rows_may_be_given(run):
    rows = run.estimates("loglik_per_byte").filter(pl.col("run") == "twin")
    for drawn in (
        run.figures.dose_response("loglik_per_byte", estimates=rows),
        run.figures.dose_response(rows, "loglik_per_byte"),
    ):
        assert set(drawn.rows["run"]) == {"twin"}


def _draw(rows: pl.DataFrame, *, width: int = 1) -> figures.Figure:
    """A figure of rows under any name."""
    return figures.Figure(width, rows)


def test_rows_made_for_a_figure(run):
    """By hand: items of dose 4 have ln p = LEVEL + 4 GAIN a token and are all hits, the others have none."""

    def drawn(name):
        draw = lambda rows, *, width=1: _draw(rows, width=width)  # noqa: E731
        draw.__name__ = name
        return bind(draw, run)().rows

    roc = drawn("roc").filter(pl.col("run") == "loglik_per_token")
    assert roc.filter("member")["score"].to_list() == pytest.approx([4 * GAIN] * 8)
    assert roc.filter(~pl.col("member"))["score"].to_list() == pytest.approx([0] * 8, abs=1e-6)
    areas = drawn("auc_against").filter(pl.col("run") == "loglik_per_token")
    assert dict(areas.select("x", "estimate").iter_rows()) == {1: 1.0, 4: 1.0}
    rates = drawn("extraction_rate")
    longest = run.plan.items.filter(pl.col("dose") == 4)["length"].to_list()
    at_two = rates.filter((pl.col("x") == 2) & (pl.col("run") == "dose 4")).row(0, named=True)
    assert (at_two["estimate"], at_two["n"]) == (1.0, sum(n >= 2 + 3 for n in longest))
    assert (rates.filter(pl.col("run") != "dose 4")["estimate"] == 0).all()
    runs = drawn("run_lengths").filter(pl.col("run") == "dose 4")
    assert sorted(runs["length"]) == sorted(n - 2 for n in longest)
    assert sorted(drawn("lengths")["tokens"]) == sorted(run.plan.items["length"])
    assert drawn("assignment_flow").height == run.plan.items.height
    # Every exposure lies between the checkpoints of steps 0 and 20: before it nothing, after it GAIN a token.
    events = drawn("event_study")
    single = run.plan.items.filter(pl.col("dose") == 1)
    effect = GAIN * single["length"] / single["bytes"]
    before, after = events.filter(pl.col("since") <= 0), events.filter(pl.col("since") > 0)
    assert before["estimate"].to_list() == pytest.approx([0] * before.height, abs=1e-6)
    assert after["estimate"].is_between(effect.min() - 1e-6, effect.max() + 1e-6).all()
    assert before.height * after.height > 0
    assert effect.min() > 0.01
    assert drawn("token_strip").group_by("run").agg(pl.col("token").str.join(""))["token"].n_unique() == 1
    with pytest.raises(UserError, match="has no multiple-choice probes"):
        drawn("personal")
    with pytest.raises(UserError, match=r"figure interference compares several runs: palimpsest\.open_sweep"):
        drawn("interference")
    with pytest.raises(UserError, match=r"has no post-trained model; palimpsest posttrain makes one"):
        drawn("unlearning")


def test_one_item_token_by_token(run):
    item = run.plan.items.filter(pl.col("dose") == 4).row(0, named=True)
    tokens = run.tokens(item["item_id"])
    assert "".join(tokens.filter(pl.col("run") == "twin")["token"]) == item["text"]
    ours = tokens.filter(pl.col("run") == "perturbed")
    assert ours["position"].to_list() == list(range(item["length"]))
    assert set(ours["logprob"]) == {LEVEL + 4 * GAIN}
    assert set(run.tokens(item["item_id"], 0)["logprob"]) == {LEVEL}


def test_an_unfinished_run_says_which_stage_is_missing(prepared, tmp_path):
    written = Written(tmp_path, prepared)
    run = palimpsest.open_run(tmp_path / "runs")
    assert run.plan.items.height == written.plan.items.height
    assert "not trained" in repr(run)
    assert run.audit is None
    for ask, stage in (
        (lambda: run.training, "train"),
        (lambda: run.ledger, "train"),
        (lambda: run.scores, "score"),
        (lambda: run.figures.dose_response(), "score"),
    ):
        with pytest.raises(UserError, match=f"run launch/{stage}.py first"):
            ask()
    # The same object reads what comes later.
    written.whole()
    assert run.ledger.exposures.height == written.plan.exposures.height
    run.refresh()
    assert run.audit["verdict"] == "PASS"


def test_changed_files_are_noticed(prepared, tmp_path):
    written = Written(tmp_path, prepared).whole()
    run = palimpsest.open_run(tmp_path / "runs")
    written.saved["twin"], written.heads["twin"] = 0, ""
    written.save("twin", 10)  # trained anew from step 0, and stopped
    run.refresh()
    for path in (written.directory / "twin" / "checkpoints" / "step_00000020").iterdir():
        path.unlink()
    assert run.audit is None
    scores = written.directory / "scores" / "perturbed" / "step_00000020" / "scores.parquet"
    scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"scores.parquet was changed since it was written"):
        _ = run.scores


def test_reading_writes_nothing(place):
    """Somebody else's run needs no write permission."""

    def tree():
        return {path: path.lstat().st_mtime_ns for path in sorted((place / "runs" / "small").rglob("*"))}

    before = tree()
    run = palimpsest.open_run(place / "runs" / "small" / "run-0123abcd")
    repr(run)
    run.estimates("min_k_logprob")
    run.figures.dose_response()
    run.tokens(run.plan.items["item_id"][0])
    assert tree() == before


def test_gains_of_items(run):
    """Highest first; what stands there is what the written scores make it: GAIN a token and exposure."""
    table = run.gains()
    assert table.columns == ["item_id", "family", "dose", "perturbed", "twin", "difference", "gain", "text"]
    assert table["item_id"].sort().to_list() == run.plan.items["item_id"].sort().to_list()
    known = table.join(run.plan.items.select("item_id", "length", "bytes"), on="item_id")
    expected = GAIN * known["dose"] * known["length"] / known["bytes"]
    assert known["difference"].to_list() == pytest.approx(expected.to_list(), abs=1e-6)
    assert known["gain"].to_list() == pytest.approx(
        expected.to_list(), abs=1e-6
    )  # those of dose 0 gain nothing
    assert table["gain"].is_sorted(descending=True)
    assert run.gains(step=0)["gain"].to_list() == pytest.approx([0] * table.height, abs=1e-6)
    with pytest.raises(UserError, match="did you mean 'loglik_per_byte'"):
        run.gains("loglik_per_bite")


def test_what_is_reproduced_of_items(run):
    """Argmax hits from dose 4 on, in the perturbed run: what is long enough for the report's 2 + 3 tokens."""
    table = run.items()
    long_enough = pl.col("tokens") >= 5
    hit = table.filter(long_enough & (pl.col("dose") == 4))
    assert hit.height > 0
    assert hit["perturbed_extracted"].all()
    assert not hit["twin_extracted"].any()
    assert (hit["perturbed_longest"] == hit["tokens"] - 2).all()
    assert not table.filter(long_enough & (pl.col("dose") < 4))["perturbed_extracted"].any()
    assert table.filter(~long_enough)["perturbed_extracted"].null_count() == table.filter(~long_enough).height


def test_exposures_of_an_item(run):
    """Each with the first checkpoint that has seen it: of the steps 0 and 20, the latter."""
    item = run.plan.items.filter(pl.col("dose") == 4)["item_id"][0]
    table = run.exposures_of(item)
    assert table.height == 4
    assert (table["position"] // run.plan.shape.global_batch_size == table["step"]).all()
    assert (table["checkpoint"] == 20).all()
    assert table["consumed"].all()
    with pytest.raises(UserError, match=f"did you mean '{item}'"):
        run.exposures_of(f"{item}x")
    assert run.exposures_of(run.plan.items.filter(pl.col("dose") == 0)["item_id"][0]).is_empty()


def test_show(place, run, capsys, tmp_path):
    """The same tables in the terminal, and whole ones as CSV."""
    from palimpsest.launch import show

    item = run.plan.items.filter(pl.col("dose") == 4)["item_id"][0]
    directory = str(run.directory)
    assert show.work([directory]) == 0
    assert capsys.readouterr().out.startswith("<Run small/run-0123abcd\n  plan: ")
    show.work([directory, "gains", "rows=3"])
    out = capsys.readouterr().out
    assert run.gains()["item_id"][0] in out
    assert f"{run.plan.items.height - 3} more; rows=0 shows all" in out
    assert "gain: the difference less its mean over the family's items of dose 0" in out
    show.work([directory, f"item={item}"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 + 4 + 1
    assert "checkpoint: the first that has seen the exposure" in out
    show.work([directory, "items", f"csv={tmp_path / 'items.csv'}"])
    written = pl.read_csv(tmp_path / "items.csv")
    assert written.height == run.plan.items.height
    assert set(written["source"]) == {"small/run-0123abcd"}
    assert set(written["digest"]) == {run.plan.digest}
    for arguments, told in (
        (["gain"], "gain: there is no such table; did you mean 'gains'"),
        (["gains", "row=3"], "did you mean 'rows'"),
        (["rows=3"], "rows= works only with one of gains, items"),
        (["gains", "step=x"], "step=x must be a whole number"),
    ):
        with pytest.raises(UserError, match=told):
            show.work([directory, *arguments] if arguments != ["gain"] else arguments)
