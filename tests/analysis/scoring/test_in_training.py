"""What a training is asked on the way is what its checkpoints answer."""

import json

import polars as pl
import pytest

ASKED = ["name=asked", "insertion.heldout_probes=20"]


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def asked(prepared, request):
    overrides = [*ASKED, f"name=asked-{request.param}", f"train.precision={request.param}"]
    prepared.ok("plan", *overrides)
    prepared.ok("train", *overrides, "eval.heldout_every=5", "eval.probes_every=checkpoint")
    prepared.ok("score", *overrides)
    directory = prepared.directory(f"asked-{request.param}")
    lines = (directory / "perturbed" / "metrics.jsonl").read_text().splitlines()
    return directory, [json.loads(line) for line in lines]


def test_answers_are_those_of_the_checkpoints(asked):
    directory, records = asked
    probes = pl.read_parquet(directory / "plan" / "probes.parquet")
    doses = pl.read_parquet(directory / "plan" / "items.parquet").select("item_id", "dose")
    for step in (1, 14, 20):
        (place,) = (directory / "scores" / "perturbed").glob(f"step_{step:08d}*")
        stored = pl.read_parquet(f"{place}/*.parquet" if place.is_dir() else place)
        rows = probes.join(doses, on="item_id", how="left").join(stored, on="probe_id")
        losses = {}
        for family, dose, start, logprob in rows.select(
            "family", "dose", "target_start", "logprob"
        ).iter_rows():
            name = f"eval/{family}" if dose is None else f"eval/{family}/dose {dose}"
            losses.setdefault(name, []).extend(-value for value in logprob[start:])
        assert {"eval/heldout", "eval/passages/dose 0", "eval/ghost_sentences/dose 4"} <= losses.keys()
        found = {name: value for name, value in records[step - 1].items() if name.startswith("eval/")}
        assert found == {
            name: pytest.approx(sum(values) / len(values), rel=1e-5) for name, values in losses.items()
        }


def test_held_out_documents_more_often(asked):
    """Steps 5, 10 and 15 ask about them alone; 20 has a checkpoint and asks everything."""
    _, records = asked
    told = {record["step"]: [name for name in record if name.startswith("eval/")] for record in records}
    assert all(told[step] == ["eval/heldout"] for step in (5, 10, 15))
    assert {step for step, names in told.items() if len(names) > 1} == {1, 2, 4, 7, 8, 14, 16, 20}
    assert records[-1]["eval/heldout"] < records[0]["eval/heldout"] - 0.3


def test_training_is_not_touched(prepared, asked):
    """The losses are those of a run that is asked nothing."""
    directory, records = asked
    precision = directory.name.split("-")[1]
    overrides = [*ASKED, f"name=silent-{precision}", f"train.precision={precision}"]
    prepared.ok("plan", *overrides)
    prepared.ok("train", *overrides)
    lines = (
        (prepared.directory(f"silent-{precision}") / "perturbed" / "metrics.jsonl").read_text().splitlines()
    )
    assert [json.loads(line)["loss"] for line in lines] == [record["loss"] for record in records]
