"""Held-out text is not trained on in nearly the same words."""

import random
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq

from palimpsest.data.duplicates import near_keys
from palimpsest.data.prepare import load_tokenizer, prepare
from palimpsest.data.tokens import document_offsets, read_tokens
from tests.data.test_prepare import corpus

VOCABULARY = [f"word{k}" for k in range(400)]


def pairs(count, seed=1):
    """Each text twice, with one word of forty changed."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        words = rng.choices(VOCABULARY, k=40)
        lines.append(" ".join([*words, f"end{number}"]))
        words[rng.randrange(40)] = "changed"
        lines.append(" ".join([*words, f"end{number}"]))
    return lines


def bands(text):
    return {tuple(row) for row in near_keys(text).tolist()}


def prepared(tmp_path, **settings):
    said = []
    manifest = prepare(
        corpus(tmp_path, pairs(150), **settings), tmp_path / "x", workers=1, progress=said.append
    )
    ids, ends = read_tokens(tmp_path / "x" / "train"), document_offsets(tmp_path / "x" / "train")
    tokenizer = load_tokenizer(tmp_path / "x")
    train = [tokenizer.decode(ids[a : b - 1]) for a, b in pairwise(ends.tolist())]
    heldout = pq.read_table(tmp_path / "x" / "heldout.parquet")["text"].to_pylist()
    return manifest, train, heldout, said


def test_training_documents_like_held_out_ones_are_dropped(tmp_path):
    """Whichever of the two comes first; held-out documents stay, and so do pairs inside the training text."""
    manifest, train, heldout, said = prepared(tmp_path)
    held = set().union(*map(bands, heldout))
    assert len(heldout) > 30
    assert not any(bands(text) & held for text in train)
    assert manifest.facts["like_heldout_dropped"] == 300 - len(train) - len(heldout)
    assert manifest.facts["like_heldout_dropped"] > 30
    ends = [text.split()[-1] for text in train]
    assert len(ends) - len(set(ends)) > 50
    assert any("held-out documents" in line and "share 12 tokens" in line for line in said)


def test_the_share_that_is_left_is_counted(tmp_path):
    """Against a plain search for runs of 12 tokens."""
    manifest, _, heldout, _ = prepared(tmp_path, heldout_apart=False)
    assert manifest.facts["like_heldout_dropped"] == 0
    ids = read_tokens(tmp_path / "x" / "train").astype(np.int64).tolist()
    runs = {tuple(ids[k : k + 12]) for k in range(len(ids) - 11)}
    tokenizer = load_tokenizer(tmp_path / "x")
    shared = 0
    for text in heldout:
        own = tokenizer.encode(text).tolist()
        shared += any(tuple(own[k : k + 12]) in runs for k in range(len(own) - 11))
    assert manifest.facts["heldout_sampled"] == len(heldout) <= 256
    assert manifest.facts["heldout_overlapping"] == shared > 0
