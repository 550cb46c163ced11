"""``launch/export_items.py``: a plan's items as other tools read them, and the numbers that lm-eval gives for them."""

import json
from dataclasses import replace

import polars as pl
import pytest
import yaml

import palimpsest
from palimpsest.insertion import item_sets, leave_out, plan
from tests.conftest import SMALL, WHOLE, Workplace
from tests.evaluation import lm_eval


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def written(prepared):
    given = ["name=sets", "+insertion.families.biographies={attributes: [birth_date, field]}"]
    given += ["train.sequence_length=160", "insertion.max_share=0.9", "insertion.doses=[0,1,4]"]
    prepared.ok("plan", *given)
    done = prepared.ok("export_items", *given)
    assert len(done.lines) == 3
    return prepared.directory("sets")


def test_every_item_is_a_member_or_not_and_both_loaders_find_it(written):
    items = plan.read(written / "plan").items
    place = written / "items" / "membership"
    rows = lines(place / "items.jsonl")
    assert [(row["input"], row["label"], row["dose"]) for row in rows] == [
        (row["text"], int(row["dose"] > 0), row["dose"]) for row in items.iter_rows(named=True)
    ]
    (cache,) = place.glob("cache_*")
    for part, inserted in (("train", True), ("test", False)):
        texts = [text for path in sorted((cache / part).glob("*.jsonl")) for text in lines(path)]
        assert sorted(texts) == sorted(items.filter((pl.col("dose") > 0) == inserted)["text"])


def test_a_forget_set_has_items_of_every_arm_and_family_and_none_is_kept(written):
    made = plan.read(written / "plan")
    place = written / "items" / "open_unlearning"
    forget, retain, never = (lines(place / f"{part}.jsonl") for part in ("forget", "retain", "holdout"))
    ids = [[row["item_id"] for row in rows] for rows in (forget, retain, never)]
    assert sorted(one for part in ids for one in part) == sorted(made.items["item_id"])
    assert {row["dose"] for row in never} == {0}
    cells = {(row["arm"], row["family"]) for row in forget}
    assert cells == set(made.items.filter(pl.col("dose") > 0).select("arm", "family").unique().iter_rows())
    assert len(forget) == len(cells)  # a tenth of four items is none, so one of each
    assert leave_out.forget_set(made, 1, 0.1).to_list() == sorted(ids[0])
    assert leave_out.forget_set(made, 2, 0.1).to_list() != sorted(ids[0])
    settings = yaml.safe_load((place / "palimpsest_forget.yaml").read_text())["palimpsest_forget"]
    assert settings["args"]["hf_args"] == {"path": "json", "data_files": "forget.jsonl", "split": "train"}


def test_tasks_hold_every_question_and_cards_say_doses_and_licence(written):
    made = plan.read(written / "plan")
    place = written / "items" / "lm_eval"
    kinds = made.probes.filter(pl.col("item_id").is_not_null()).group_by("kind").len()
    of_kind = dict(kinds.iter_rows())
    for kind in ("verbatim", "cloze"):
        asked = [row for path in place.glob(f"*_{kind}.jsonl") for row in lines(path)]
        assert len(asked) == of_kind[kind]
        texts = dict(made.probes.select("probe_id", "text").iter_rows())
        assert all(row["prompt"] + row["target"] == texts[row["probe_id"]] for row in asked)
    choices = [row for path in place.glob("*_choice*.jsonl") for row in lines(path)]
    assert sum(len(row["probe_ids"]) for row in choices) == of_kind["choice"]
    for card in (written / "items").glob("*/README.md"):
        text = card.read_text()
        assert made.digest in text
        assert "| passages | 4 | 4 |" in text
        assert "Licence of the texts" in text


def test_questions_that_lm_eval_cannot_ask_are_counted(written, tmp_path):
    made = plan.read(written / "plan")
    question = made.probes.filter(pl.col("kind") == "choice").select("item_id", "name").row(0, named=True)
    asked = (pl.col("kind") == "choice") & (pl.col("item_id") == question["item_id"])
    asked &= pl.col("name") == question["name"]
    unanswered = pl.when(asked).then(pl.lit(False)).otherwise("correct")
    probes = made.probes.with_columns(correct=unanswered)
    before = item_sets.write(made, tmp_path / "whole", name="small", seed=1)
    after = item_sets.write(replace(made, probes=probes), tmp_path / "less", name="small", seed=1)
    assert (before["choices_left_out"], after["choices_left_out"]) == (0, 1)
    assert sum(before["tasks"].values()) - sum(after["tasks"].values()) == 1
    assert "ask them: 1 choices without" in (tmp_path / "less" / "lm_eval" / "README.md").read_text()


@pytest.mark.slow
def test_lm_eval_gives_our_numbers(finished, tmp_path):
    """Log-likelihoods of every question of three tasks, and the accuracy of the choices."""
    place = Workplace(finished.parents[2], SMALL)
    place.ok("export", *WHOLE)
    place.ok("export_items", *WHOLE)
    export = finished / "perturbed" / "export" / "step_00000040"
    tasks = ["small_passages_verbatim", "small_biographies_cloze", "small_biographies_choice"]
    include, out = finished / "items" / "lm_eval", tmp_path / "out"
    lm_eval(export, tasks, include, out, options=",add_bos_token=True", samples=True)
    run = palimpsest.open_run(finished)
    scores = run.scores.filter((pl.col("run") == "perturbed") & (pl.col("step") == 40))
    ours = {
        row["probe_id"]: row["logprob"][row["target_start"] :]
        for row in scores.join(run.probes.select("probe_id", "target_start"), on="probe_id").iter_rows(
            named=True
        )
    }
    for task in tasks:
        (path,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        samples = lines(path)
        assert samples
        for sample in samples:
            probes = sample["doc"].get("probe_ids") or [sample["doc"]["probe_id"]]
            theirs = [float(answer[0][0]) for answer in sample["resps"]]
            for probe, total in zip(probes, theirs, strict=True):
                assert total / len(ours[probe]) == pytest.approx(
                    sum(ours[probe]) / len(ours[probe]), abs=1e-4
                )
    (path,) = (tmp_path / "out").rglob("results*.json")
    accuracy = json.loads(path.read_text())["results"][tasks[-1]]["acc,none"]
    asked = run.metrics("choice_accuracy", steps=[40]).filter(
        (pl.col("run") == "perturbed") & (pl.col("family") == "biographies") & pl.col("value").is_not_null()
    )
    assert accuracy == pytest.approx(asked["value"].mean(), abs=1e-4)
