"""Inputs that would take all memory or time, or fail without saying what is wrong with them."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import struct
import tracemalloc

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.data.sources import SourceConfig, lines, parquet, parquet_pages, read
from palimpsest.data.tokenizer import Tokenizer, TokenizerConfig, load, train
from tests.data import test_order

PACK = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def texts(kind, *paths, **settings):
    return [
        d.text for d in read(SourceConfig(kind=kind, paths=tuple(map(str, paths)), min_words=1, **settings))
    ]


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("plain", [".json", ".jsonl", ".ndjson"])
def test_directories_of_packed_lines(tmp_path, plain, ending):
    data = b'{"text": "one row"}\n{"text": "another row"}\n'
    (tmp_path / f"c4-train.00000{plain}{ending}").write_bytes(PACK[ending](data))
    assert texts("jsonl", tmp_path) == ["one row", "another row"]


@pytest.mark.parametrize("ending", [".bz2", ".xz"])
def test_cut_archives_are_named(tmp_path, ending):
    data = b'{"text": "one row"}\n' * 1000
    (tmp_path / f"a.jsonl{ending}").write_bytes(PACK[ending](data)[:-20])
    with pytest.raises(UserError, match=rf"a.jsonl{ending}: corrupt archive"):
        texts("jsonl", tmp_path)


def test_text_inside_a_field(tmp_path):
    rows = [{"content": {"text": "inside"}}, {"content": {"text": "again"}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    for kind in ("jsonl", "parquet"):
        assert texts(kind, tmp_path / f"a.{kind}", text_field="content.text") == ["inside", "again"]
        with pytest.raises(UserError, match=r"row 1: has no field 'content.txt'; did you mean 'text'"):
            texts(kind, tmp_path / f"a.{kind}", text_field="content.txt")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_gigantic_document_in_a_small_archive_is_refused_in_little_memory(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(lines, "_LONGEST", 1 << 22)
    path = tmp_path / f"bomb.jsonl{ending}"
    path.write_bytes(PACK[ending](b'{"text": "short"}\n{"text": "' + b"a" * (1 << 26) + b'"}\n'))
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"bomb.jsonl{ending} after row 1: a line has more than 4 MiB"):
        texts("jsonl", path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()
    (tmp_path / "long.txt").write_text("a line of text\n" * 500_000)
    with pytest.raises(UserError, match=r"long.txt row 1: a document has more than 4 MiB"):
        texts("text", tmp_path / "long.txt")
    assert len(texts("text", tmp_path / "long.txt", documents="line")) == 500_000


POOLS = []


def peak(work):
    """Bytes that pyarrow held at most while ``work`` ran."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    POOLS.append(pool)  # what was allocated in it may outlive this function
    pa.set_memory_pool(pool)
    try:
        work()
    finally:
        pa.set_memory_pool(before)
    return pool.max_memory()


def test_a_gigantic_cell_of_a_small_parquet_file_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_TEXTS", 1 << 20)
    monkeypatch.setattr(parquet, "_PAGE", 1 << 22)
    path = tmp_path / "bomb.parquet"
    for dictionary in (False, True):
        table = pa.table({"text": ["short", "a" * (1 << 26)]})
        pq.write_table(table, path, compression="zstd", use_dictionary=dictionary)
        assert path.stat().st_size < 1 << 18

        def refused():
            with pytest.raises(
                UserError, match=r"bomb.parquet row group 1: a page of column 'text' has 64 MiB"
            ):
                texts("parquet", path)

        assert peak(refused) < 1 << 24
    monkeypatch.undo()
    monkeypatch.setattr(lines, "_LONGEST", 1 << 22)
    with pytest.raises(UserError, match=r"bomb.parquet row 2: a document has more than 4 MiB"):
        texts("parquet", path)


@pytest.mark.parametrize("dictionary", [False, True])
def test_long_texts_in_one_row_group_are_read_a_few_at_a_time(tmp_path, monkeypatch, dictionary):
    """With a dictionary one text of a megabyte stands for all rows: 300 MiB in a file of kilobytes."""
    monkeypatch.setattr(parquet, "_TEXTS", 1 << 24)
    path = tmp_path / "long.parquet"
    table = pa.table({"text": ["a" * (1 << 20)] * 300, "n": range(300)})
    pq.write_table(table, path, compression="zstd", use_dictionary=dictionary, write_batch_size=1)
    read_rows = []

    def count():
        source = SourceConfig(kind="parquet", paths=(str(path),), min_words=1)
        read_rows.extend(len(document.text) for document in read(source))

    assert peak(count) < 1 << 26
    assert read_rows == [1 << 20] * 300


@pytest.mark.parametrize("writer", ["pyarrow", "polars"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_the_largest_page_is_found(tmp_path, writer, version, dictionary):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["word " * (k % 50) + str(k) for k in range(3000)] + ["b" * 300_000]})
    if writer == "pyarrow":
        pq.write_table(
            table, path, data_page_version=version, use_dictionary=dictionary, data_page_size=1 << 12
        )
    else:
        pl.DataFrame(table).write_parquet(
            path, data_page_size=1 << 12, statistics="full" if dictionary else False
        )
    chunk = pq.read_metadata(path).row_group(0).column(0)
    with path.open("rb") as file:
        most = parquet_pages.largest(file, chunk, 0)
        assert 300_000 < most <= chunk.total_uncompressed_size
        assert dictionary or most < 500_000
        first = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        cut = io.BytesIO(path.read_bytes()[: first + 3])
        assert parquet_pages.largest(cut, chunk, 0) == chunk.total_uncompressed_size


def test_a_tokenizer_that_makes_tokenizers_panic_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    train(["some text"], TokenizerConfig(vocab_size=270)).save(path)
    stored = json.loads(path.read_text())
    stored["model"]["continuing_subword_prefix"] = "<|endoftext|>"  # longer than the tokens it is cut from
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer.json \(range end index"):
        load(path)


def test_a_token_id_beyond_every_vocabulary_is_refused_at_once(tmp_path):
    path = tmp_path / "tokenizer.json"
    train(["some text"], TokenizerConfig(vocab_size=260)).save(path)
    stored = json.loads(path.read_text())
    stored["model"]["vocab"]["zzz"] = 2**31 - 1
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match="a token with id 2147483647; ids above 16777215 are not supported"):
        load(path)


def index(prefix, head, body=b"", tokens=b""):
    prefix.with_name(prefix.name + ".idx").write_bytes(head + body)
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens)


def test_foreign_token_files_are_named_for_what_they_are(tmp_path):
    def refused(name):
        with pytest.raises(UserError) as caught:
            texts("megatron", tmp_path / name)
        assert "prepare the corpus again" not in str(caught.value)
        return str(caught.value)

    header = struct.Struct("<9sQBQQ")
    magic = b"MMIDIDX\x00\x00"
    index(tmp_path / "old", b"TNTIDX\x00\x00" + bytes(64))
    assert "old format (TNTIDX)" in refused("old.idx")
    index(tmp_path / "float", header.pack(magic, 1, 7, 0, 1))
    assert "dtype code 7 (float32)" in refused("float.idx")
    body = np.array([2], "<i4").tobytes() + np.array([0, 0, 1], "<i8").tobytes() + b"\x00"
    index(tmp_path / "modes", header.pack(magic, 1, 8, 1, 2), body, np.array([1, 0], "<u2").tobytes())
    assert "modes of sequences" in refused("modes.idx")
    (tmp_path / "alone.bin").write_bytes(b"\x01\x00")
    assert "alone.bin has no index; put alone.idx beside it" in refused("alone")
    assert "alone.bin has no index; put alone.idx beside it" in refused("alone.bin")


def test_facts_are_under_a_digest(tmp_path):
    """A changed step or id is noticed, wherever in the manifest it stands."""
    with artifact.writing(tmp_path / "x", kind="scores", schema_version=1, config={}, inputs={}) as draft:
        draft.facts["step"] = 10
    path = tmp_path / "x" / artifact.MANIFEST
    stored = json.loads(path.read_text())
    for change in ({"facts": {"step": 18}}, {"made_by": {}}, {"record": "0" * 32}):
        path.write_text(json.dumps(stored | change))
        with pytest.raises(UserError, match="was edited: its digest does not match"):
            artifact.read(tmp_path / "x", kind="scores", schema_version=1)
    path.write_text(json.dumps({key: value for key, value in stored.items() if key != "record"}))
    with pytest.raises(UserError, match="earlier version, whose manifests had no digest of their facts"):
        artifact.read(tmp_path / "x", kind="scores", schema_version=1)
    for damaged in ("[]", "{}", '{"digest": NaN, "record": 1}', json.dumps(stored | {"facts": math_nan()})):
        path.write_text(damaged)
        with pytest.raises(UserError, match="is not a manifest"):
            artifact.read(tmp_path / "x", kind="scores", schema_version=1)


def math_nan():
    return {"step": float("nan")}


@pytest.mark.parametrize(
    "error",
    [
        OSError("4880 requested and 3040 written"),
        pl.exceptions.ComputeError("could not write: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_kind_of_error(tmp_path, error):
    def write():
        with artifact.writing(tmp_path / "x", kind="plan", schema_version=1, config={}, inputs={}):
            raise error

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        write()
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_half_built_order_is_removed_by_the_next_run(tmp_path, monkeypatch):
    test_order.corpus(tmp_path, [40] * 20)
    left = [
        tmp_path / "order" / name for name in (".building-abc", f".length8.{artifact._host()}-999999.x.tmp")
    ]
    for place in left:
        place.mkdir(parents=True)
        (place / "index.npy").write_bytes(b"half")
    whole = test_order.Order._build

    def fail(self, *arguments):
        raise OSError("10 requested and 3 written")

    monkeypatch.setattr(test_order.Order, "_build", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        test_order.order(tmp_path)
    assert not list((tmp_path / "order").iterdir())
    monkeypatch.setattr(test_order.Order, "_build", whole)
    assert len(test_order.order(tmp_path)) > 0
    assert len(list((tmp_path / "order").iterdir())) == 1


def test_a_vocabulary_without_an_end_of_document_is_refused():
    import tokenizers

    with pytest.raises(UserError, match="is not in the tokenizer"):
        Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))
