"""``torchrun launch/train.py`` in a new directory: what is missing is made first, by one rank."""

import pytest

from palimpsest.pretrain import saved
from tests.conftest import REPO, SMALL, Workplace, write_text

NAMED = [f"--config-dir={REPO / 'tests' / 'conf'}", "+experiment=traps_1b", "+scale=nano"]
TINY = [
    "corpus=jsonl",
    "corpus.source.paths=[text.jsonl]",
    "corpus.tokenizer.vocab_size=400",
    "model.layers=2",
    "model.hidden=32",
    "model.heads=4",
    "model.ffn=64",
    "train.steps=12",
    "train.sequence_length=128",
    "train.checkpoint_every=12",
    "optimizer.warmup_steps=2",
    "insertion.doses=[0,1,2]",
    "insertion.items_per_dose=2",
    "insertion.max_share=0.9",
    "insertion.families.traps.low=1",
    "insertion.families.traps.high=100000",
    "insertion.families.traps.buckets=1",
    "insertion.heldout_probes=4",
    "runtime.workers=1",
]


@pytest.mark.slow
def test_two_ranks_make_corpus_reference_model_and_plan_before_they_train(tmp_path):
    place = Workplace(tmp_path, [*NAMED, *TINY], warm=False)
    write_text(tmp_path / "text.jsonl")
    done = place.ok("train", ranks=2, timeout=600)
    order = [
        done.out.index(words)
        for words in ("missing: the corpus and the plan", "training the reference", "made in")
    ]
    assert order == sorted(order)
    assert "the other rank waits" in done.out
    (run,) = (tmp_path / "runs" / "traps_1b_nano").iterdir()
    assert saved.finished(run / "perturbed" / "checkpoints")[-1] == 12
    again = place.ok("train", ranks=2, timeout=600)
    assert "missing" not in again.out
    assert "nothing to do" in again.out


def test_a_corpus_that_is_not_there_is_named_in_one_line(tmp_path):
    place = Workplace(tmp_path, SMALL)
    done = place.run("train")
    assert done.status == 2
    (line,) = done.lines
    assert "text.jsonl" in line


@pytest.mark.slow
def test_a_stage_that_fails_ends_the_training_with_its_status(tmp_path):
    place = Workplace(tmp_path, SMALL, warm=False)
    write_text(tmp_path / "text.jsonl")
    done = place.run("train", "insertion.max_share=0.0001")
    assert done.status == 2
    assert "max_share" in done.out
    assert "plan, which this training needs, ended with status 2" in done.lines[-1]


@pytest.mark.long
def test_the_command_that_we_are_known_by_in_a_new_directory(tmp_path):
    place = Workplace(tmp_path, ["+experiment=traps_1b", "+scale=nano"], warm=False)
    place.ok("train", ranks=2, timeout=3600)
    (run,) = (tmp_path / "runs" / "traps_1b_nano").iterdir()
    assert saved.finished(run / "perturbed" / "checkpoints")[-1] == 450
