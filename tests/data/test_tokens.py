import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from palimpsest.data import tokens
from palimpsest.data.errors import UserError
from palimpsest.data.tokens import TokenWriter, bin_path, check, idx_path, read_lengths

VOCABULARIES = (300, 65_499, 65_500, 200_000)


def write(prefix, documents, vocab_size=300, eod=0, one_by_one=False):
    with TokenWriter(prefix, vocab_size, eod) as writer:
        for group in [[ids] for ids in documents] if one_by_one else [documents]:
            writer.add(group)
    return prefix


@st.composite
def corpora(draw):
    vocab_size = draw(st.sampled_from(VOCABULARIES))
    lengths = draw(st.lists(st.integers(1, 40), max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return vocab_size, [rng.integers(0, vocab_size, n, dtype=np.int32) for n in lengths]


@given(corpora(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_bytes_equal_megatrons_builder(tmp_path_factory, corpus, chunk):
    vocab_size, documents = corpus
    place = tmp_path_factory.mktemp("tokens")
    theirs = IndexedDatasetBuilder(str(place / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    for ids in documents:
        theirs.add_document(torch.tensor([*ids, 7]), [len(ids) + 1])
    theirs.finalize(str(place / "theirs.idx"))
    with TokenWriter(place / "ours", vocab_size, 7) as writer:
        for start in range(0, len(documents), chunk):
            writer.add(documents[start : start + chunk])
    for suffix in ("bin", "idx"):
        assert (place / f"ours.{suffix}").read_bytes() == (place / f"theirs.{suffix}").read_bytes()
    check(place / "ours", vocab_size)
    assert read_lengths(place / "ours").tolist() == [len(ids) + 1 for ids in documents]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, np.uint16), (65_500, np.int32)])
def test_megatron_reads_what_was_written(tmp_path, vocab_size, dtype):
    documents = [np.arange(1, 6), np.array([vocab_size - 1])]
    write(tmp_path / "with.dot", documents, vocab_size, eod=3)
    dataset = IndexedDataset(str(tmp_path / "with.dot"))
    assert [dataset[i].tolist() for i in range(2)] == [[1, 2, 3, 4, 5, 3], [vocab_size - 1, 3]]
    assert dataset[0].dtype == dtype


def test_index_is_written_in_blocks_without_seams(tmp_path, monkeypatch):
    lengths = np.arange(1, 30, dtype=np.int32)
    tokens.write_index(tmp_path / "whole", [lengths], tokens.dtype_for(300))
    monkeypatch.setattr(tokens, "_BLOCK", 7)
    tokens.write_index(tmp_path / "blocks", [lengths[:11], lengths[11:]], tokens.dtype_for(300))
    assert idx_path(tmp_path / "whole").read_bytes() == idx_path(tmp_path / "blocks").read_bytes()


@pytest.mark.parametrize(("bad", "message"), [([300], "id 300"), ([-1], "id -1"), ([], "no tokens")])
def test_bad_documents_are_named_and_nothing_is_left(tmp_path, bad, message):
    documents = [np.array([1]), np.array([2]), np.array(bad, dtype=np.int32)]
    with pytest.raises(UserError, match=rf"document 2 .*{message}"):
        write(tmp_path / "x", documents, one_by_one=True)
    assert not list(tmp_path.iterdir())


def test_eod_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="eod=300"):
        TokenWriter(tmp_path / "x", 300, 300)


@pytest.mark.parametrize("cut", [0, 1, 20, 33, 34, 60])
def test_truncated_index_is_found(tmp_path, cut):
    prefix = write(tmp_path / "x", [np.array([1, 2]), np.array([3])])
    path = idx_path(prefix)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"x\.idx"):
        check(prefix, 300)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(0, b"NOTMEGA", "MMIDIDX"), (9, struct.pack("<Q", 2), "version 2"), (17, b"\x07", "dtype code 7")]
    + [(place, b"\x09", "inconsistent") for place in (34, 42, 50, 66)],
)
def test_edited_index_is_found(tmp_path, offset, value, message):
    prefix = write(tmp_path / "x", [np.array([1, 2]), np.array([3])])
    data = bytearray(idx_path(prefix).read_bytes())
    data[offset : offset + len(value)] = value
    idx_path(prefix).write_bytes(data)
    with pytest.raises(UserError, match=rf"x\.idx.*{message}"):
        check(prefix, 300)


@pytest.mark.parametrize("change", [-1, -2, 2])
def test_truncated_or_grown_tokens_are_found(tmp_path, change):
    prefix = write(tmp_path / "x", [np.array([1, 2]), np.array([3])])
    data = bin_path(prefix).read_bytes()
    bin_path(prefix).write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(UserError, match=r"x\.bin has \d+ bytes"):
        check(prefix, 300)


def test_missing_files_and_narrow_dtypes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.idx does not exist"):
        check(tmp_path / "x", 300)
    prefix = write(tmp_path / "x", [np.array([1])])
    with pytest.raises(UserError, match="cannot hold the 70000 ids of the tokenizer"):
        check(prefix, 70_000)
    bin_path(prefix).unlink()
    with pytest.raises(UserError, match=r"x\.bin does not exist"):
        check(prefix, 300)
