"""The same contents are the same corpus, however and wherever their path is spelled."""

import json
import os
import shutil

import pytest

from palimpsest.data import identity
from palimpsest.data.identity import by_contents
from palimpsest.data.prepare import prepare
from palimpsest.data.sources import SourceConfig
from palimpsest.data.tokenizer import TokenizerConfig, load
from tests.data.test_prepare import corpus, texts


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    monkeypatch.setattr(identity, "_KNOWN", {})


def spelled(tmp_path, path, **settings):
    source = SourceConfig(kind="jsonl", paths=(str(path),), min_words=1)
    return corpus(tmp_path, texts(300), source=source, **settings)


def test_spellings_of_a_path_are_one_corpus(tmp_path, monkeypatch):
    """Relative, absolute, through a link, in another directory under another name: prepared once, then reused."""
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path, texts(300))
    (tmp_path / "other").mkdir()
    shutil.copy("in.jsonl", "other/renamed.jsonl")
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    ways = ["in.jsonl", "./in.jsonl", tmp_path / "in.jsonl", "other/renamed.jsonl", "link.jsonl"]
    configs = [spelled(tmp_path, way) for way in ways]
    assert len({json.dumps(by_contents(config, tmp_path / "corpora")) for config in configs}) == 1
    digests, lines = set(), []
    for config in configs:
        digests.add(prepare(config, tmp_path / "corpora" / "x", workers=1, progress=lines.append).digest)
    assert len(digests) == 1
    assert sum(line.startswith("reusing") for line in lines) == len(ways) - 1


def test_other_contents_are_another_corpus(tmp_path):
    before = by_contents(corpus(tmp_path, texts(300)), tmp_path)
    identity._KNOWN.clear()
    assert by_contents(corpus(tmp_path, texts(301)), tmp_path) != before


def test_without_its_text_a_corpus_keeps_its_name(tmp_path):
    """On a laptop with the runs alone; in a directory that cannot be written to, nothing is remembered."""
    config = corpus(tmp_path, texts(50))
    there = by_contents(config, tmp_path)
    assert by_contents(config, tmp_path / "not there") == there
    (tmp_path / "in.jsonl").unlink()
    identity._KNOWN.clear()
    assert by_contents(config, tmp_path) == there
    assert by_contents(config, tmp_path / "elsewhere")["source"]["paths"] == [str(tmp_path / "in.jsonl")]


def test_documents_are_named_below_what_their_files_share(tmp_path):
    import pyarrow.parquet as pq

    for name in ("a/one.jsonl", "b/two.jsonl"):
        (tmp_path / "text" / name).parent.mkdir(parents=True)
        lines = [json.dumps({"text": f"{name} {text}"}) for text in texts(40)]
        (tmp_path / "text" / name).write_text("\n".join(lines))
    prepare(spelled(tmp_path, tmp_path / "text"), tmp_path / "x", workers=1, progress=lambda line: None)
    sources = set(pq.read_table(tmp_path / "x" / "documents.parquet")["source"].to_pylist())
    assert sources == {"a/one.jsonl", "b/two.jsonl"}


def test_a_tokenizer_is_named_by_its_contents(tmp_path):
    prepare(corpus(tmp_path, texts(200)), tmp_path / "x", workers=1, progress=lambda line: None)
    load(tmp_path / "x").save(tmp_path / "copy.json")
    ways = [str(tmp_path / "x"), str(tmp_path / "copy.json"), os.path.relpath(tmp_path / "copy.json")]
    configs = [corpus(tmp_path, texts(200), tokenizer=TokenizerConfig(kind="file", path=way)) for way in ways]
    assert len({json.dumps(by_contents(config, tmp_path)) for config in configs}) == 1
