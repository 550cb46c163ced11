"""``launch/write_corpus.py``: a trainer that knows nothing of plans reads the overlay's windows."""

import json

import numpy as np
import polars as pl

from palimpsest.insertion import plan as plans


def test_token_files_read_back(prepared):
    """Megatron-core, reading the copy in the same order, gets every window of the overlay but for listed tokens."""
    from palimpsest.data import artifact
    from palimpsest.data import prepare as corpus
    from palimpsest.data.order import Order

    given = ("name=exported", "insertion.position=[token]", "insertion.doses=[0,6]")
    prepared.ok("plan", *given)
    done = prepared.ok("write_corpus", *given)
    directory = prepared.directory("exported")
    exceptions = pl.read_parquet(directory / "corpus-megatron" / "exceptions.parquet")
    source = prepared.corpus("exported")
    facts = artifact.read(source, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION).facts
    common = {"vocab_size": facts["vocab_size"], "eod": facts["eod"], "sequence_length": 64, "seed": 1}
    original = Order(source, corpus_digest="one", **common)
    copy = Order(directory / "corpus-megatron", corpus_digest="other", **common)
    overlay = plans.read(directory / "plan").overlay()
    found = []
    for position in range(len(original)):
        expected, read = overlay.apply(position, original.window(position)), copy.window(position)
        different = np.flatnonzero(expected != read)
        found += [(position, int(k), int(expected[k]), int(read[k])) for k in different]
        for span in overlay.spans(position):  # every item is whole
            inside = slice(span.offset, span.offset + span.length)
            assert read[inside].tolist() == expected[inside].tolist()
    assert exceptions.rows() == found
    assert 0 < len(found) <= 96
    assert {offset for _, offset, _, _ in found} <= {0, 64}
    assert f"{len(found):,} tokens of" in done.out
    assert len(overlay.position) == 48


def test_lines_read_back(prepared):
    prepared.ok("write_corpus", "format=jsonl")
    directory = prepared.directory()
    made = plans.read(directory / "plan")
    lines = (directory / "corpus-jsonl" / "windows.jsonl").read_text().splitlines()
    assert len(lines) == 160
    ids = dict(
        zip(made.items["item_id"], made.wordings.filter(pl.col("wording") == 0)["tokens"], strict=True)
    )
    counts = dict.fromkeys(ids, 0)
    for position, line in enumerate(lines):
        row = json.loads(line)
        assert row["position"] == position
        assert len(row["tokens"]) == 65
        for name in row["items"]:
            counts[name] += 1
            text = ids[name].to_list()
            assert any(row["tokens"][k : k + len(text)] == text for k in range(65))
    assert counts == dict(zip(made.items["item_id"], made.items["dose"], strict=True))
