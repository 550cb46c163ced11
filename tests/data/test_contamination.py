"""N-gram counts over a token file equal those of a plain count in Python."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data import contamination
from palimpsest.data.contamination import DecontaminateConfig, Finder
from palimpsest.data.errors import UserError
from palimpsest.data.tokens import TokenWriter
from tests.data.test_prepare import corpus, make, table, texts

EOD = 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=40), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(1, 5), max_size=12), max_size=5),
    st.integers(1, 6),
    st.integers(1, 50),
)
def test_counts(tmp_path_factory, documents, spans, n, block):
    prefix = tmp_path_factory.mktemp("corpus") / "train"
    with TokenWriter(prefix, 300, EOD) as writer:
        writer.add([np.array(d, dtype=np.int32) for d in documents])
    stream = [token for d in documents for token in [*d, EOD]]
    plain = Counter(tuple(stream[k : k + n]) for k in range(len(stream) - n + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "_BLOCK", block)  # n-grams that straddle blocks count as well
        found = contamination.ngram_counts(prefix, [np.array(s, dtype=np.int32) for s in spans], n=n)
    for span, counts in zip(spans, found, strict=True):
        assert counts.tolist() == [plain[tuple(span[k : k + n])] for k in range(max(len(span) - n + 1, 0))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=30), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(1, 3), max_size=20), max_size=5),
    st.integers(1, 40),
)
def test_texts_are_found_in_just_the_documents_that_hold_them(documents, spans, block):
    rule = DecontaminateConfig(skip_below=2, exact_up_to=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "_BLOCK", block)
        finder = Finder([np.array(s, dtype=np.int32) for s in spans], rule)
        flat, ends = np.array([t for d in documents for t in d]), np.cumsum([len(d) for d in documents])
        found = Counter(zip(*(a.tolist() for a in finder.find(flat, ends)), strict=True))
    expected = Counter()
    for text, span in enumerate(spans):
        size, stride = (len(span), 1) if len(span) <= 8 else (len(span) // 2, len(span) // 4)
        if len(span) >= 2:
            for start in range(0, len(span) - size + 1, stride):
                gram = span[start : start + size]
                for number, document in enumerate(documents):
                    hits = sum(document[k : k + size] == gram for k in range(len(document) - size + 1))
                    expected[text, number] += hits
    assert found == +expected
    assert finder.skipped.tolist() == [len(span) < 2 for span in spans]


def test_hubbles_rule_in_numbers():
    """Nine tokens are skipped, 10 to 40 are looked for whole, 80 by their 40-grams at stride 20."""
    rng = np.random.default_rng(0)
    spans = [rng.integers(1, 60_000, n).astype(np.int32) for n in (9, 10, 40, 80)]
    finder = Finder(spans, DecontaminateConfig())
    assert finder.skipped.tolist() == [True, False, False, False]
    parts = [spans[0], spans[1], spans[1][:9], spans[2][1:], spans[2], spans[3][20:60], spans[3][5:45]]
    found, where = finder.find(np.concatenate(parts), np.cumsum([len(p) for p in parts]))
    assert sorted(zip(found.tolist(), where.tolist(), strict=True)) == [(1, 1), (2, 4), (3, 5)]


def test_documents_that_hold_a_test_item_are_dropped_and_counted(tmp_path):
    lines = texts(200)
    items = [
        lines[3],
        lines[50],
        "never seen anywhere in these texts at all, not once, I promise you " * 3,
        "short",
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"question": t}) + "\n" for t in items))
    rule = DecontaminateConfig(paths=(str(tmp_path / "items.jsonl"),), text_field="question")
    config = corpus(tmp_path, lines, heldout_fraction=0.0, decontaminate=rule)
    told = []
    facts = make(config, tmp_path / "out", told).facts
    assert "200 documents read; left out: 2 with a text of corpus.decontaminate.paths" in told
    rows = {int(row["row"]) for row in table(tmp_path / "out", "documents.parquet")}
    assert {4, 51} == set(range(1, 201)) - rows
    assert facts["contaminated_dropped"] == 2
    assert facts["contaminations_found"] >= 2
    assert (
        make(corpus(tmp_path, lines, heldout_fraction=0.0), tmp_path / "all").facts["train_documents"] == 200
    )
    items[1] = lines[random.Random(1).randint(60, 90)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"question": t}) + "\n" for t in items))
    with pytest.raises(UserError, match=r"input decontaminate file 0: .*is not replaced"):
        make(config, tmp_path / "out")


def test_impossible_rules_are_refused():
    with pytest.raises(UserError, match=r"skip_below=1 "):
        DecontaminateConfig(skip_below=1)
    with pytest.raises(UserError, match=r"paths='x' is one string"):
        DecontaminateConfig(paths="x")
