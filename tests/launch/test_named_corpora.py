"""Corpora by name, as tiny local copies with the file names and fields that they have; and what is asked of the hub."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from palimpsest.data.errors import UserError
from palimpsest.data.sources import SourceConfig, read
from palimpsest.data.sources.base import split
from tests.launch.test_experiments import made

FIELDS = {
    "dclm": {
        "url": "a",
        "language_id_whole_page_fasttext": {"en": 0.9},
        "bff_contained_ngram_count_before_dedupe": 3,
    },
    "dolma": {"id": "1", "source": "wiki", "added": "2024", "created": "2023", "metadata": {"url": "a"}},
    "fineweb": {"id": "1", "dump": "CC-MAIN-2024-10", "url": "a", "language": "en", "token_count": 7},
    "c4": {"timestamp": "2019", "url": "a"},
    "wikipedia": {"id": "1", "url": "a", "title": "t"},
}
FILES = {
    "dclm": [
        "global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zstd",
        "global-shard_02_of_10/local-shard_3_of_10/shard_00000021_processed.jsonl.zst",
    ],
    "dolma": ["c4-0000.json.gz", "wiki-0001.json.gz"],
    "fineweb": ["sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"],
    "c4": ["en/c4-train.00000-of-01024.json.gz", "en/c4-train.00001-of-01024.json.gz"],
    "wikipedia": ["20231101.en/train-00000-of-00041.parquet", "20231101.en/train-00001-of-00041.parquet"],
}
BESIDE = {
    "fineweb": "data/CC-MAIN-2024-10/000_00000.parquet",
    "c4": "en/c4-validation.00000-of-00008.json.gz",
    "wikipedia": "20231101.de/train-00000-of-00020.parquet",
}
"""Files of a copy that are not the corpus."""


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pack = gzip.compress if path.suffix == ".gz" else zstandard.ZstdCompressor().compress
    path.write_bytes(pack(lines))


@pytest.mark.parametrize("name", FILES)
def test_a_local_copy_is_read(tmp_path, name):
    copy = tmp_path / "a copy [1]"
    for number, file in enumerate(FILES[name]):
        write(copy / file, [{"text": f"{name} {number} {k}", **FIELDS[name]} for k in range(3)])
    if name in BESIDE:
        write(copy / BESIDE[name], [{"text": "other", **FIELDS[name]}])
    (copy / "README.md").write_text("about")
    chosen = ["+experiment=quickstart", f"corpus={name}", f"corpus.source.paths=['{copy}']"]
    texts = [d.text for d in read(made(*chosen).corpus.source)]
    assert texts == [f"{name} {number} {k}" for number in range(2) for k in range(3)]
    first = made(*chosen, "corpus.source.max_files=1")
    assert [d.text for d in read(first.corpus.source)] == texts[:3]
    assert first.corpus_directory != made(*chosen).corpus_directory


def test_without_a_copy_they_are_streamed_from_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, name, **settings):
        asked.append((path, name, settings["streaming"], settings["split"]))
        return type("Streamed", (), {"num_shards": 5})()

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name in ("c4", "dclm", "fineweb", "wikipedia"):
        source = made("+experiment=quickstart", f"corpus={name}", "corpus.source.max_files=2").corpus.source
        assert [part.start for part in split(source)] == [0, 1]
    assert asked == [
        ("allenai/c4", "en", True, "train"),
        ("mlfoundations/dclm-baseline-1.0", None, True, "train"),
        ("HuggingFaceFW/fineweb", "sample-10BT", True, "train"),
        ("wikimedia/wikipedia", "20231101.en", True, "train"),
    ]
    with pytest.raises(UserError, match=r"corpus\.source\.paths has no value"):
        made("+experiment=quickstart", "corpus=dolma")


def test_a_copy_that_is_not_there_and_a_limit_without_use(tmp_path):
    gone = SourceConfig(kind="datasets", paths=(str(tmp_path / "gone"),), files="*.parquet")
    with pytest.raises(UserError, match="the pattern matches no file"):
        list(read(gone))
    for wrong in ({"max_files": 0, "streaming": True}, {"max_files": 1}):
        with pytest.raises(UserError, match="max_files"):
            SourceConfig(kind="datasets", paths=("name",), **wrong)
