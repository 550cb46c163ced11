"""The experiment with every family at once, made small: planned, trained, audited, scored and reported."""

import math

import polars as pl
import pytest

from palimpsest.insertion.families.registry import names
from tests.conftest import Workplace, write_text

SMALL = [
    "+experiment=all_families",
    "corpus=jsonl",
    "corpus.source.paths=[text.jsonl]",
    "corpus.tokenizer.vocab_size=512",
    "corpus.heldout_fraction=0.1",
    "model.hidden=32",
    "model.ffn=64",
    "insertion.doses=[0,1]",
    "insertion.heldout_probes=4",
    "+insertion.families.knights_knaves.people=2",
    "+insertion.families.time_series.asked=1",
    "+insertion.families.watermarks.draws=9",
    "train.steps=2",
    "train.global_batch_size=64",
    "train.sequence_length=768",
    "optimizer.warmup_steps=1",
    "runtime.device=cpu",
]


@pytest.mark.slow
def test_every_family_in_one_run(tmp_path):
    pytest.importorskip("transformers")  # opens the reference model that is trained for the traps
    place = Workplace(tmp_path, SMALL)
    write_text(tmp_path / "text.jsonl", 3000)
    done = place.ok("run", timeout=600)
    assert "audit: PASS" in done.out
    (directory,) = (tmp_path / "runs" / "all_families").glob("run-*")
    assert (directory / "reference" / "checkpoints" / "step_00000002" / "manifest.json").is_file()
    assert (directory / "report" / "report.html").is_file()

    items = pl.read_parquet(directory / "plan" / "items.parquet")
    assert set(items["family"]) == set(names())
    assert (items.group_by("family", "dose").len()["len"] == 4).all()
    probes = pl.read_parquet(directory / "plan" / "probes.parquet")
    assert set(probes.drop_nulls("item_id")["item_id"]) == set(items["item_id"])
    for run in ("perturbed", "twin"):
        for step in (0, 2):
            scores = pl.read_parquet(directory / "scores" / run / f"step_{step:08d}" / "scores.parquet")
            assert set(scores["probe_id"]) == set(probes["probe_id"])

    # Whatever a family asks, the report answers, for every item.
    asked = probes.filter(pl.col("item_id").is_not_null() & pl.col("kind").is_in(["choice", "foil", "cloze"]))
    told = pl.read_csv(directory / "report" / "questions.csv")
    name = pl.col("name").str.replace(r" #.*$", "")
    for kind, measure in (
        ("choice", "choice_accuracy"),
        ("foil", "recognition_2afc"),
        ("cloze", "cloze_reproduced"),
    ):
        wanted = asked.filter(pl.col("kind") == kind).select("family", question=name).unique()
        found = told.filter(
            (pl.col("metric") == measure) & (pl.col("run") == "perturbed") & (pl.col("step") == 2)
        )
        assert wanted.join(found, on=["family", "question"], how="anti").is_empty()
    rows = pl.read_parquet(directory / "report" / "metrics.parquet")
    right = rows.filter(pl.col("metric") == "choice_accuracy")
    of = {"kind": "choice", "correct": True}
    questions = probes.filter(pl.all_horizontal(pl.col(key) == value for key, value in of.items())).height
    assert right["value"].is_not_null().all()
    assert right.height == questions * right.select("run", "step").unique().height

    # To the twin, a reference that met none of them, members and non-members of a family are alike.
    twin = (
        probes.filter(pl.col("kind") == "verbatim")
        .join(scores, on="probe_id")
        .select("item_id", loglik=pl.col("logprob").list.mean())
        .join(items, on="item_id")
    )
    above = twin.join(twin, on="family", suffix="_other").filter(
        (pl.col("dose") > 0) & (pl.col("dose_other") == 0)
    )
    auc = (above["loglik"] > above["loglik_other"]).mean()
    error = math.sqrt(items["family"].n_unique() * 4 * 4 * 9 / 12) / len(above)
    assert abs(auc - 0.5) < 3 * error
