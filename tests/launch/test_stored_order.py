"""Runs that read a corpus in its stored order: trained with insertions, resumed, audited; and what does not fit."""

import shutil

import numpy as np
import polars as pl
import pytest

from palimpsest.data import prepare as corpus
from palimpsest.data.tokens import TokenWriter
from palimpsest.insertion.ledger import window_digest
from tests.conftest import SMALL, Workplace

pytestmark = pytest.mark.slow
LENGTH, BATCH, STEPS = 64, 4, 8


@pytest.fixture(scope="module")
def place(pristine, tmp_path_factory):
    """Rows of 65 tokens as Pythia's preshuffled ones: documents cut without regard to their ends, .bin and .idx."""
    place = Workplace(tmp_path_factory.mktemp("stored"), SMALL)
    made = pristine.corpus()
    tokens = np.fromfile(made / "train.bin", dtype=np.uint16)
    count = 60
    rows = tokens[: count * (LENGTH + 1)].reshape(count, LENGTH + 1)
    rows = rows[np.random.default_rng(3).permutation(count)]
    np.save(place.path / "rows.npy", rows)
    eod = corpus.load_tokenizer(made).eod
    assert (rows == eod).sum() > 3
    assert (rows[:, -1] != eod).any()
    (place.path / "tokenizer.json").write_bytes((made / "tokenizer.json").read_bytes())
    # A writer whose end-of-document token is each row's last token: what lies there is what is given.
    with TokenWriter(place.path / "rows", 65_000, eod) as writer:
        writer.add([row[:-1].astype(np.int32) for row in rows])
    raw = np.memmap(place.path / "rows.bin", dtype=np.uint16, mode="r+").reshape(count, LENGTH + 1)
    raw[:] = rows
    raw.flush()
    return place


def given(*more, first=5):
    return [
        *("corpus=megatron", "corpus.source.paths=[rows.idx]", "corpus.tokenizer.path=tokenizer.json"),
        *("corpus.heldout_fraction=0", "corpus.order=stored", f"corpus.first_window={first}"),
        *("~corpus.tokenizer.vocab_size", f"train.steps={STEPS}", f"train.global_batch_size={BATCH}"),
        *("insertion=canaries", "insertion.heldout_probes=0", "insertion.families.canaries.secrets=[random]"),
        *("insertion.doses=[0,1,2]", "insertion.items_per_dose=2", "insertion.max_share=0.5", *more),
    ]


def test_a_run_reads_the_rows_and_is_proven(place):
    """Trained with insertions from row 5 on, stopped and gone on, with a twin; the audit passes."""
    shown = place.ok("prepare", *given("show=1", "index=true")).out
    assert "order of 55 windows" in shown
    rows = np.load(place.path / "rows.npy")
    tokenizer = corpus.load_tokenizer(next((place.path / "runs" / "corpora").glob("megatron-*")))
    for row in rows[5 + BATCH : 5 + 2 * BATCH]:
        assert repr(tokenizer.decode(row.astype(np.int64))) in shown
    place.ok("plan", *given())
    place.ok("train", *given())
    shutil.rmtree(place.directory() / "perturbed" / "checkpoints" / "step_00000008")
    assert "going on from step 7" in place.ok("train", *given()).out
    place.ok("train", *given("run=twin"))
    out = place.ok("audit", *given()).out
    assert "PASS" in out
    assert "the windows are read in the stored order" in out
    read = pl.read_parquet(place.directory() / "twin" / "ledger" / "*" / "windows.parquet").sort("position")
    assert read["digest"].to_list() == [
        window_digest(row, np.ones(LENGTH, dtype=bool)) for row in rows[5 : 5 + STEPS * BATCH]
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["train.sequence_length=32"], "rows of 65 tokens, which do not fit train.sequence_length=32"),
        (
            ["train.steps=20"],
            "the run needs 80 windows but the corpus has 60, of which corpus.first_window=5",
        ),
        (["mixture.epochs=2"], "corpus.order=stored reads one corpus, once; set mixture.epochs=1"),
        (["+insertion.interventions={a: {kind: mask, find: [method]}}"], "set corpus.order=shuffled"),
    ],
)
def test_what_does_not_fit_is_one_line(place, settings, line):
    """Refused by plan, which leaves nothing behind; the corpus is that of the first test."""
    before = sorted((place.path / "runs").rglob("plan/manifest.json"))
    done = place.run("plan", *given("name=misfit", *settings))
    assert done.status == 2, done.out
    assert line in done.out
    assert len(done.lines) == 1, done.out
    assert sorted((place.path / "runs").rglob("plan/manifest.json")) == before


def test_an_index_file_and_its_digest(place):
    """Windows come in the order of the file; the same numbers under another name are the same run."""
    numbers = np.random.default_rng(0).permutation(60).astype(np.uint32)
    numbers.tofile(place.path / "global_indices.npy")
    numbers.tofile(place.path / "copy.npy")
    rows = np.load(place.path / "rows.npy")
    asked = given("name=listed", "corpus.order=global_indices.npy", first=2)
    shown = place.ok("prepare", *asked, "show=0").out
    tokenizer = corpus.load_tokenizer(next((place.path / "runs" / "corpora").glob("megatron-*")))
    places = [shown.index(repr(tokenizer.decode(rows[k].astype(np.int64)))) for k in numbers[2 : 2 + BATCH]]
    assert places == sorted(places)
    place.ok("plan", *asked)
    place.ok("plan", *given("name=listed", "corpus.order=copy.npy", first=2))
    place.directory("listed")
    assert len(list((place.path / "runs" / "corpora").glob("megatron-*"))) == 1
