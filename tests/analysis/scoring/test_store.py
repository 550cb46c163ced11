"""The store: small, opened by anything, and no part made twice."""

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from palimpsest.analysis.scoring import models, store, token_statistics
from palimpsest.data import artifact

VOCABULARY, EOD = 50, 0


class Bigrams:
    """A model whose next token depends on the last alone."""

    device = torch.device("cpu")
    width, positions = 8, None

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(VOCABULARY, 8, generator=generator)
        self.head = torch.randn(VOCABULARY, 8, generator=generator)

    def states(self, ids):
        return self.table[ids]

    def output(self, vocab_size):
        return models.matrix(self.head, vocab_size)

    def together(self, length):
        return models.Together.ANY


def probes(count=40):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, VOCABULARY, rng.integers(3, 30)).tolist() for _ in range(count)]
    return pl.DataFrame(
        {"probe_id": [f"p{k}" for k in range(count)], "tokens": tokens},
        schema_overrides={"tokens": pl.List(pl.Int32)},
    )


def checkpoints(loaded, steps=(0, 10, 20)):
    def load(step):
        loaded.append(step)
        return Bigrams(step)

    return [store.Checkpoint(step, f"digest {step}", lambda step=step: load(step)) for step in steps]


def run(place, loaded, items="items", **share):
    return store.score_all(
        place, probes(), checkpoints(loaded), items_digest=items, eod=EOD, vocab_size=VOCABULARY, **share
    )


def test_opened_in_one_line(tmp_path):
    run(tmp_path, [])
    with_polars = pl.read_parquet(tmp_path / "step_*/scores.parquet")
    assert len(with_polars) == 3 * 40
    wanted = token_statistics.score(Bigrams(10), probes(), eod=EOD, vocab_size=VOCABULARY)
    with_pandas = pd.read_parquet(tmp_path / "step_00000010" / "scores.parquet")
    assert with_pandas["probe_id"].tolist() == wanted["probe_id"].to_list()
    for name in token_statistics.NUMBERS:
        found = np.concatenate(with_pandas[name].to_list())
        told = wanted[name].explode().to_numpy()
        if name in store.ROUNDED:
            np.testing.assert_allclose(found, told, rtol=2**-12)
        else:
            np.testing.assert_array_equal(found, told, err_msg=name)
    count = duckdb.sql(f"select sum(len(logprob)) from '{tmp_path}/step_*/scores.parquet'").fetchall()[0][0]
    assert count == with_polars["logprob"].list.len().sum()


def test_rounding_keeps_signs_zeros_and_magnitudes():
    values = np.array([0.0, -0.0, 1.0, -1.0, 2e-9, 3.3e38, -7.1234567, 1e-40], np.float32)
    found = store.rounded(values)
    np.testing.assert_allclose(found, values, rtol=2**-12, atol=1e-41)
    np.testing.assert_array_equal(np.sign(found), np.sign(values))


def test_finished_parts_are_reused_until_something_they_are_made_from_changes(tmp_path, monkeypatch):
    loaded = []
    assert run(tmp_path, loaded) == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/manifest.json")}
    assert run(tmp_path, loaded) == 0
    assert loaded == [0, 10, 20]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/manifest.json")}
    assert run(tmp_path, loaded, items="other items") == 3
    monkeypatch.setattr(store, "scorer_digest", lambda: "another scorer")
    assert run(tmp_path, loaded, items="other items") == 3


@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_tasks_share_the_parts(tmp_path, monkeypatch, tasks):
    monkeypatch.setattr(store, "TOKENS_A_PART", 200)
    assert len(store.parts(probes())) > 2
    done = [run(tmp_path, [], share=(task, tasks)) for task in range(tasks)]
    assert sum(done) == 3 * len(store.parts(probes()))
    assert max(done) - min(done) <= 1
    assert run(tmp_path, []) == 0
    for step in (0, 10, 20):
        found = pl.concat(pl.read_parquet(p / store.FILE) for p in tmp_path.glob(f"step_{step:08d}*"))
        wanted = token_statistics.score(Bigrams(step), probes(), eod=EOD, vocab_size=VOCABULARY)
        assert sorted(found["probe_id"]) == sorted(wanted["probe_id"])
        both = found.join(wanted, on="probe_id")
        assert (both["logprob"] == both["logprob_right"]).all()


def test_manifest_says_what_it_was_made_from(tmp_path):
    run(tmp_path, [])
    manifest = artifact.read(tmp_path / "step_00000020", kind=store.KIND, schema_version=store.VERSION)
    assert manifest.inputs == {"checkpoint": "digest 20", "items": "items"}
    assert manifest.facts["probes"] == 40
