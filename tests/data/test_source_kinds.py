"""Every kind of source gives the documents that were put into it; filters count what they drop."""

import json
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.data.prepare import CorpusConfig
from palimpsest.data.sources import SourceConfig, hub, lines, parquet, read, split, token_files
from palimpsest.data.tokenizer import TokenizerConfig, train
from palimpsest.data.tokens import TokenWriter
from tests.data.test_prepare import make, table, texts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def source(kind, *paths, **settings):
    return SourceConfig(**{"kind": kind, "paths": tuple(map(str, paths)), "min_words": 0, **settings})


def found(config, tokenizer=None, counts=None):
    return [(d.text, d.row) for d in read(config, counts, tokenizer)]


# ---- text ----


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"documents": "line"},
            [("= A =", "1"), ("one", "2"), ("two", "4"), ("= B =", "5"), ("three ", "7")],
        ),
        ({"documents": "paragraph"}, [("= A =\none", "1"), ("two\n= B =", "4"), ("three ", "7")]),
        (
            {"documents": "pattern", "pattern": "^= .* =$"},
            [("= A =\none\n\ntwo", "1"), ("= B =\n\nthree ", "5")],
        ),
        ({"documents": "file"}, [("= A =\none\n\ntwo\n= B =\n\nthree ", "1")]),
    ],
)
def test_what_is_a_document_of_a_text(tmp_path, settings, expected):
    (tmp_path / "a.txt").write_bytes(b"= A =\r\none\r\n\r\ntwo\r\n= B =\r\n\r\nthree \r\n")
    assert found(source("text", tmp_path, **settings)) == expected


@given(st.binary(max_size=200), st.sampled_from(["file", "line", "paragraph"]), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_random_text_is_read_whole_or_the_row_is_named(tmp_path_factory, data, documents, stretch):
    path = tmp_path_factory.mktemp("x") / "a.txt"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_STRETCH", stretch)
        try:
            texts_ = [text for text, _ in found(source("text", path, documents=documents))]
        except UserError as error:
            assert str(path) in str(error) or "corpus is empty" in str(error)  # noqa: PT017
            assert "row" in str(error) or not data.strip() or "empty" in str(error)  # noqa: PT017
            return
    joined = "".join(texts_).replace("\n", "")
    wanted = data.removeprefix(b"\xef\xbb\xbf").decode().replace("\n", "").replace("\r", "")
    assert "".join(joined.replace("\r", "").split()) == "".join(wanted.split())


# ---- Parquet ----


@given(st.lists(TEXT, min_size=1, max_size=30), st.integers(1, 7), st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_parquet_gives_every_row(tmp_path_factory, values, group, stretch):
    path = tmp_path_factory.mktemp("x") / "a.parquet"
    pq.write_table(pa.table({"id": range(len(values)), "text": values}), path, row_group_size=group)
    good = [(text, str(row)) for row, text in enumerate(values, start=1) if text.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_STRETCH", stretch)
        if good:
            assert found(source("parquet", path)) == good
        else:
            with pytest.raises(UserError, match="corpus is empty"):
                found(source("parquet", path))


def test_bad_parquet_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"a\.parquet: is no Parquet file"):
        found(source("parquet", path))
    pq.write_table(pa.table({"txt": ["a"]}), path)
    with pytest.raises(UserError, match=r"no column 'text'; did you mean 'txt'.*text_field"):
        found(source("parquet", path))
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(UserError, match=r"a\.parquet row 2: field 'text' holds a NoneType"):
        found(source("parquet", path))
    counts = Counter()
    assert found(source("parquet", path, bad_rows="drop"), counts=counts) == [("a", "1")]
    assert (counts["bad_dropped"], counts["documents_read"]) == (1, 2)
    pq.write_table(pa.table({"text": texts(2000)}), path, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[20:2000] = b"\xff" * 1980
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet (after )?rows? .*(damaged|UTF-8)"):
        found(source("parquet", path))


# ---- datasets ----


def test_datasets_from_disk_cache_and_stream(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_ROWS", 7)
    values = texts(30)
    made = datasets.Dataset.from_dict({"text": values, "language": ["en"] * 30})
    made.save_to_disk(str(tmp_path / "disk"))
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "dict"))
    (tmp_path / "folder").mkdir()
    made.to_json(str(tmp_path / "folder" / "train.jsonl"))
    expected = [(text, str(row)) for row, text in enumerate(values, start=1)]
    for name in ("disk", "dict"):
        assert found(source("datasets", tmp_path / name, languages=("en",))) == expected
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert found(source("datasets", tmp_path / "folder")) == expected
    assert found(source("datasets", tmp_path / "folder", streaming=True)) == expected
    with pytest.raises(UserError, match=r"no split 'test'; .*dataset_split"):
        found(source("datasets", tmp_path / "dict", dataset_split="test"))
    with pytest.raises(UserError, match="gone' could not be loaded"):
        found(source("datasets", tmp_path / "gone"))


# ---- ready tokens ----


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    made = train(texts(), TokenizerConfig(vocab_size=300))
    made.save(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    return made


def ready(tmp_path, ours, config):
    ours.save(tmp_path / "tokenizer.json")
    brought = TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json"))
    return CorpusConfig(source=config, tokenizer=brought, heldout_fraction=0.0)


@pytest.mark.parametrize("stretch", [1 << 24, 100])
def test_ready_megatron_files_come_out_as_they_went_in(tmp_path, ours, monkeypatch, stretch):
    monkeypatch.setattr(token_files, "_STRETCH", stretch)
    values = texts(60)
    with TokenWriter(tmp_path / "theirs", ours.vocab_size, ours.eod) as writer:
        writer.add(ours.encode_batch(values))
    config = source("megatron", tmp_path / "theirs.idx")
    assert found(config, ours) == [(text, str(row)) for row, text in enumerate(values, start=1)]
    make(ready(tmp_path, ours, config), tmp_path / "out")
    for suffix in ("bin", "idx"):
        assert (tmp_path / "out" / f"train.{suffix}").read_bytes() == (
            tmp_path / f"theirs.{suffix}"
        ).read_bytes()


def test_gpt_neox_files_of_other_dtypes_and_several_sequences_are_read(tmp_path, ours):
    values = texts(9)
    builder = IndexedDatasetBuilder(str(tmp_path / "neox.bin"), dtype=np.int64)
    for text in values:
        ids = ours.encode(text).tolist()
        builder.add_document([*ids, ours.eod], [3, len(ids) - 2])  # two sequences
    builder.finalize(str(tmp_path / "neox.idx"))
    assert [text for text, _ in found(source("megatron", tmp_path), ours)] == values


def test_wrong_ready_tokens_are_named(tmp_path, ours):
    with TokenWriter(tmp_path / "big", 1000, 0) as writer:
        writer.add([np.array([5, 6]), np.array([5, 999])])
    with pytest.raises(
        UserError, match=r"big document 2: id 999 is outside the vocabulary of 300.*corpus\.tokenizer"
    ):
        found(source("megatron", tmp_path / "big.idx"), ours)
    with pytest.raises(UserError, match=r"holds ready tokens; set corpus\.tokenizer\.kind"):
        found(source("megatron", tmp_path / "big.idx"))
    with TokenWriter(tmp_path / "mid", 300, 9) as writer:
        writer.add([np.array([5, ours.eod, 7])])
    with pytest.raises(UserError, match=r"mid document 1: holds the end-of-document id"):
        found(source("megatron", tmp_path / "mid.idx"), ours)
    with (tmp_path / "big.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"big\.bin has \d+ bytes"):
        found(source("megatron", tmp_path / "big.idx"), ours)


@given(
    st.lists(st.lists(st.integers(1, 299), max_size=9), min_size=1, max_size=20),
    st.integers(1, 12),
    st.integers(1, 8),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_olmo_documents_are_found_whatever_the_cuts(tmp_path_factory, documents, stretch, block, last):
    ids = np.array([t for d in documents for t in [*d, 0]][: None if last else -1], dtype=np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "_BLOCK", block)
        got = [
            ids[a:b].tolist()
            for start in range(0, max(len(ids), 1), stretch)
            for a, b in token_files.olmo_documents(ids, start, min(start + stretch, len(ids)), 0)
        ]
    assert got == (documents if last or documents[-1] else documents[:-1])


@pytest.mark.parametrize("header", [False, True])
def test_olmo_files(tmp_path, ours, header):
    values = texts(20)
    ids = np.concatenate([np.append(ours.encode(text), ours.eod) for text in values]).astype(np.uint16)
    if header:
        np.save(tmp_path / "a.npy", ids)
    else:
        ids.tofile(tmp_path / "a.npy")
    config = source("olmo", tmp_path, eod_id=ours.eod)
    assert [text for text, _ in found(config, ours)] == values
    make(ready(tmp_path, ours, config), tmp_path / "out")
    assert np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist() == ids.tolist()
    (tmp_path / "a.npy").write_bytes(b"\0\0\0")
    with pytest.raises(UserError, match=r"a\.npy: 3 bytes are no whole number of uint16"):
        found(config, ours)
    with pytest.raises(UserError, match=r"eod_id=None does not go with"):
        source("olmo", tmp_path)


# ---- filters ----


def test_filters_keep_what_they_say_and_count_the_rest(tmp_path):
    rows = [
        {"text": "one two", "language": "en", "meta": {"source": "web", "stars": 3}},
        {"text": "one two three four five six", "language": "en-GB", "meta": {"source": "web", "stars": 3}},
        {"text": "eins zwei", "language": "de", "meta": {"source": "web", "stars": 3}},
        {"text": "two three", "language": "EN_us", "meta": {"source": "books", "stars": 3}},
        {"text": "three four", "language": "EN_us", "meta": {"source": "web", "stars": 1}},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Counter()
    config = source(
        "jsonl", path, languages=("en",), max_words=5, keep={"meta.source": ["web"], "meta.stars": [3, 2]}
    )
    assert found(config, counts=counts) == [("one two", "1")]
    assert {k: v for k, v in counts.items() if v} == {
        "documents_read": 5, "long_dropped": 1, "language_dropped": 1, "unwanted_dropped": 2, "files_read": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"row 1: has no field 'meta\.sorce'; did you mean 'source'"):
        found(source("jsonl", path, keep={"meta.sorce": ["web"]}))


@given(
    st.lists(
        st.one_of(
            TEXT.map(lambda text: (json.dumps({"text": text}).encode(), text)),
            st.binary(max_size=30).map(lambda data: (data.replace(b"\n", b""), None)),
            st.sampled_from([(b'{"text": "\\ud800"}', None), (b'{"text": null}', None)]),
            st.just((json.dumps({"text": "nul \0 " + "long " * 3000}).encode(), "nul \0 " + "long " * 3000)),
        ),
        max_size=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_dropping_bad_rows_never_loses_a_good_one(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("x") / "a.jsonl"
    path.write_bytes(b"\n".join(data for data, _ in rows))
    good = [text for _, text in rows if text is not None and text.strip()]
    try:
        got = [text for text, _ in found(source("jsonl", path, bad_rows="drop"))]
    except UserError as error:
        assert "corpus is empty" in str(error)  # noqa: PT017
        got = []
    assert [text for text in got if text in good] == good


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bad_rows": "skip"}, r"bad_rows='skip' is unknown"),
        ({"max_words": 3, "min_words": 4}, r"max_words=3 is below"),
        ({"documents": "pattern"}, r"pattern=None does not go with"),
        ({"languages": "en"}, r"languages='en' is one string"),
        ({"token_dtype": "uint8"}, r"token_dtype='uint8' is unknown"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        source("text", "x", **settings)


def test_parts_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_STRETCH", 500)
    for number in range(5):
        rows = "".join(json.dumps({"text": t}) + "\n" for t in texts(random.Random(number).randint(1, 40)))
        (tmp_path / f"{number}.jsonl").write_text(rows)
    one = split(source("jsonl", tmp_path), 1)
    assert split(source("jsonl", tmp_path), 4) == one
    assert len(one) > 5
    assert one[0].digest == artifact.file_digest(tmp_path / "0.jsonl")


def test_wikitext_as_a_person_would_read_it(tmp_path):
    (tmp_path / "wiki.txt").write_text(
        " \n = Robert = \n \n He acts . \n \n = = Career = = \n \n = Du Fu = \n \n A poet . \n"
    )
    config = source("text", tmp_path / "wiki.txt", documents="pattern", pattern="^ = [^=].* = $")
    made = CorpusConfig(source=config, tokenizer=TokenizerConfig(vocab_size=257), heldout_fraction=0.0)
    make(made, tmp_path / "out")
    assert [row["row"] for row in table(tmp_path / "out", "documents.parquet")] == ["2", "8"]
