"""Windows in a stored order: rows and streams by hand, index files, and what does not fit."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palimpsest.data.errors import UserError
from palimpsest.data.prepare import CorpusConfig
from palimpsest.data.shards import DOCUMENTS
from palimpsest.data.sources import SourceConfig
from palimpsest.data.stored import StoredOrder, read_index
from palimpsest.data.tokens import TokenWriter

EOD, VOCABULARY = 0, 90


def corpus(directory, documents, files=None):
    """A prepared corpus of documents (without their last end-of-document token), each in a file of ``files``."""
    directory.mkdir()
    with TokenWriter(directory / "train", VOCABULARY, EOD) as writer:
        writer.add([np.asarray(one, dtype=np.int32) for one in documents])
    names = files or ["one"] * len(documents)
    pq.write_table(pa.table({"source": names, "row": names}), directory / DOCUMENTS)
    return directory


def order(directory, kind="megatron", length=8, index=None, first=0):
    facts = {"eod": EOD, "vocab_size": VOCABULARY}
    manifest = SimpleNamespace(facts=facts, digest="c", config={"source": {"kind": kind}})
    return StoredOrder(directory, manifest=manifest, sequence_length=length, index=index, first_window=first)


def rows(count=12, size=9):
    """Rows of packed documents; every third ends with its document's end."""
    rng = np.random.default_rng(1)
    made = rng.integers(1, VOCABULARY, (count, size))
    made[:, 4] = EOD
    made[::3, -1] = EOD
    return made


def as_documents(made):
    """Rows as the source gives them: a last end-of-document token is the writer's."""
    return [row[:-1] if row[-1] == EOD else row for row in made]


def test_each_row_is_a_window(tmp_path):
    made = rows()
    ours = order(corpus(tmp_path / "c", as_documents(made)))
    assert ours.rows
    assert len(ours) == 12
    assert [ours.window(p).tolist() for p in range(12)] == made.tolist()
    later = order(tmp_path / "c", first=5)
    assert [later.window(p).tolist() for p in range(7)] == made[5:].tolist()
    splits, starts = ours.boundaries(np.array([3, 7, 3]))
    assert (splits.tolist(), starts.tolist()) == ([0, 1, 2, 3], [5, 5, 5])
    assert ours.documents(4) == [(4, 0, 9)]
    assert ours.identity not in (later.identity, order(tmp_path / "c", kind="jsonl").identity)
    assert ours.identity == order(tmp_path / "c").identity
    with pytest.raises(
        UserError, match=r"needs 8 windows but the corpus has 12, of which corpus.first_window=5"
    ):
        later.require(8)
    with pytest.raises(IndexError):
        later.window(7)


@pytest.mark.parametrize("length", [7, 9, 20])
def test_rows_of_another_length_are_refused(tmp_path, length):
    directory = corpus(tmp_path / "c", as_documents(rows()))
    with pytest.raises(UserError, match=r"rows of 9 tokens.*set train.sequence_length=8"):
        order(directory, length=length)


def test_a_row_of_another_length_is_named(tmp_path):
    documents = as_documents(rows())
    documents[7] = documents[7][:5]
    with pytest.raises(
        UserError, match="document 7 of the corpus has 5 tokens, and most others are rows of 9"
    ):
        order(corpus(tmp_path / "c", documents))


def stream(tmp_path, lengths, files=None):
    rng = np.random.default_rng(2)
    documents = [rng.integers(1, VOCABULARY, n) for n in lengths]
    flat = np.concatenate([np.append(one, EOD) for one in documents])
    return corpus(tmp_path / "c", documents, files), flat


def test_text_is_cut_as_it_lies(tmp_path):
    directory, flat = stream(tmp_path, [5, 30, 11, 3, 17])
    for kind in ("jsonl", "megatron"):
        ours = order(directory, kind)
        assert len(ours) == (len(flat) - 1) // 8
        for p in range(len(ours)):
            assert ours.window(p).tolist() == flat[8 * p : 8 * p + 9].tolist()
            splits, starts = ours.boundaries(np.array([p]))
            assert starts.tolist() == (np.flatnonzero(ours.window(p)[:-1] == EOD) + 1).tolist()
            assert splits.tolist() == [0, len(starts)]
    assert ours.documents(4) == [(1, 0, 5), (2, 5, 9)]


def test_olmo_numbers_chunks_file_by_file(tmp_path):
    """Chunk k of a file holds its tokens 8k to 8k + 7, and the rest of a file is left out."""
    lengths, files = [5, 30, 11, 3, 17, 2], ["a", "a", "b", "b", "c", "c"]
    directory, flat = stream(tmp_path, lengths, files)
    edges = np.cumsum([0, 6 + 31, 12 + 4, 18 + 3])
    starts = [s + 8 * k for s, e in pairwise(edges) for k in range((e - s) // 8)]
    chosen = [7, 0, 5, 5, 3]
    np.asarray(chosen, dtype=np.uint32).tofile(tmp_path / "global_indices.npy")
    ours = order(directory, "olmo", index=tmp_path / "global_indices.npy")
    assert ours.windows == len(starts) == 8
    assert [ours.window(p).tolist() for p in range(5)] == [flat[starts[k] :][:9].tolist() for k in chosen]
    later = order(directory, "olmo", index=tmp_path / "global_indices.npy", first=2)
    assert later.window(0).tolist() == ours.window(2).tolist()
    with pytest.raises(UserError, match=r"needs 6 windows but .*global_indices.npy has 5"):
        ours.require(6)


def test_index_files(tmp_path):
    path, numbers = tmp_path / "order.npy", [3, 0, 11, 7]
    identities = set()
    directory = corpus(tmp_path / "c", as_documents(rows()))
    for dtype in ("<u4", "<u8"):
        np.asarray(numbers, dtype=dtype).tofile(path)
        assert read_index(path).tolist() == numbers
        identities.add(order(directory, index=path).identity)
    for dtype in ("int16", ">u4", "uint64"):
        np.save(path, np.asarray(numbers, dtype=dtype))
        assert read_index(path).tolist() == numbers
        identities.add(order(directory, index=path).identity)
    assert len(identities) == 1
    ours = order(directory, index=path)
    assert ours.verify() == []
    np.load(path, mmap_mode="r+")[1] = 2
    assert ours.verify() == [f"{path} was changed"]
    for numbers in ([0, 12], [-1, 3]):
        np.save(path, np.asarray(numbers))
        with pytest.raises(
            UserError, match=rf"lists windows {numbers[0]} to {numbers[1]}, but the corpus has 12"
        ):
            order(directory, index=path)
    for numbers, message in (
        (np.zeros((2, 2), dtype=int), r"of shape \(2, 2\)"),
        (np.ones(3), "holds float64"),
        (np.array([], dtype=int), "no window numbers"),
    ):
        np.save(path, numbers)
        with pytest.raises(UserError, match=message):
            read_index(path)
    for content, message in (
        (b"12345", "no whole number of uint32"),
        (b"", "no window numbers"),
        (b"\x93NUMPYx", "no file of window numbers"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_index(path)
    for place in (tmp_path / "no", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_index(place)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"corpus.heldout_fraction=0.02 leaves documents out.*set corpus.heldout_fraction=0"),
        ({"heldout_fraction": 0}, r"corpus.deduplicate=true .*set corpus.deduplicate=false"),
        ({"order": "shuffled", "first_window": 3}, r"corpus.first_window=3 needs corpus.order=stored"),
        ({"first_window": -1}, r"corpus.first_window=-1 must be 0 or above"),
    ],
)
def test_a_stored_order_of_token_files_takes_all_of_them(given, message):
    source = SourceConfig(kind="megatron", paths=("x.idx",), min_words=0)
    with pytest.raises(UserError, match=message):
        CorpusConfig(**({"source": source, "order": "stored"} | given))
