import json
import random
import shutil
from hashlib import blake2b

import pyarrow.parquet as pq
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from palimpsest.data import artifact
from palimpsest.data import shards as module
from palimpsest.data.errors import UserError
from palimpsest.data.prepare import CorpusConfig, load_tokenizer, prepare
from palimpsest.data.sources import SourceConfig
from palimpsest.data.tokenizer import TokenizerConfig, train
from palimpsest.data.tokens import read_lengths

WORDS = [
    "stone",
    "river",
    "light",
    "under",
    "old",
    "bridge",
    "seven",
    "quiet",
    "men",
    "kept",
    "watch",
    "héard",
]


def texts(count=300, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 30))) + f" number {i}" for i in range(count)]


def corpus(tmp_path, lines, name="in.jsonl", **settings):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    source = SourceConfig(kind="jsonl", paths=(str(path),), min_words=1)
    return CorpusConfig(
        **{
            "source": source,
            "tokenizer": TokenizerConfig(vocab_size=300),
            "heldout_fraction": 0.2,
            **settings,
        }
    )


def make(config, directory, lines=None):
    return prepare(config, directory, workers=1, progress=(lines if lines is not None else []).append)


def table(directory, name):
    return pq.read_table(directory / name).to_pylist()


def train_texts(directory):
    tokenizer = load_tokenizer(directory)
    dataset = IndexedDataset(str(directory / "train"))
    documents = [dataset[i] for i in range(len(dataset))]
    assert all(ids[-1] == tokenizer.eod and tokenizer.eod not in ids[:-1] for ids in documents)
    return [tokenizer.decode(ids[:-1]) for ids in documents]


def test_every_document_is_trained_on_or_held_out_exactly_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 1000)  # many batches
    lines = texts()
    manifest = make(corpus(tmp_path, lines), tmp_path / "out")
    held, trained = table(tmp_path / "out", "heldout.parquet"), train_texts(tmp_path / "out")
    assert sorted([row["text"] for row in held] + trained) == sorted(lines)
    assert trained == [line for line in lines if line in set(trained)]
    assert 30 <= len(held) <= 90
    for row in held:
        assert row["text"] == lines[int(row["row"]) - 1]
        assert row["digest"] == blake2b(row["text"].encode(), digest_size=8).hexdigest()
    artifact.verify(tmp_path / "out", manifest)
    assert sorted(manifest.contents) == [
        "documents.parquet", "heldout.parquet", "tokenizer.json", "train.bin", "train.idx",
    ]  # fmt: skip


def test_facts_and_the_table_of_documents_agree_with_the_tokens(tmp_path):
    lines = [*texts(), "", "  ", texts()[0]]
    manifest = make(corpus(tmp_path, lines), tmp_path / "out")
    facts, rows = manifest.facts, table(tmp_path / "out", "documents.parquet")
    trained = train_texts(tmp_path / "out")
    assert [row["tokens"] for row in rows] == read_lengths(tmp_path / "out" / "train").tolist()
    assert [row["words"] for row in rows] == [len(text.split()) for text in trained]
    assert [lines[int(row["row"]) - 1] for row in rows] == trained
    assert {row["source"] for row in rows} == {"in.jsonl"}
    tokenizer = load_tokenizer(tmp_path / "out")
    assert facts == {
        "documents_read": 303, "empty_dropped": 2, "short_dropped": 0, "duplicates_dropped": 1,
        "tokenless_dropped": 0, "files_read": 1, "files_skipped": 0,
        "heldout_documents": 300 - len(trained),
        "heldout_words": sum(len(r["text"].split()) for r in table(tmp_path / "out", "heldout.parquet")),
        "train_documents": len(trained), "train_words": sum(row["words"] for row in rows),
        "train_bytes": sum(len(text.encode()) for text in trained),
        "train_tokens": sum(row["tokens"] for row in rows),
        "vocab_size": 300, "eod": tokenizer.eod, "tokenizer_digest": tokenizer.digest,
        "long_dropped": 0, "language_dropped": 0, "unwanted_dropped": 0, "bad_dropped": 0,
        "contaminated_dropped": 0, "contaminations_found": 0,
        "like_heldout_dropped": 0, "heldout_compared_tokens": facts["train_tokens"],
        **{name: facts[name] for name in ("heldout_sampled", "heldout_overlapping")},  # see test_heldout.py
        "near_duplicates_dropped": 0, "shards_by_tokenizers": 0, "encoder": facts["encoder"],
    }  # fmt: skip
    assert "gigatoken" in facts["encoder"]
    assert "same ids as tokenizers" in facts["encoder"]


def test_the_split_depends_on_the_text_not_on_its_position(tmp_path):
    lines = texts()
    make(corpus(tmp_path, lines), tmp_path / "one")
    shuffled = random.Random(1).sample(lines, len(lines))
    make(corpus(tmp_path, ["something new first", *shuffled], "b.jsonl"), tmp_path / "two")
    one, two = ({r["text"] for r in table(tmp_path / d, "heldout.parquet")} for d in ("one", "two"))
    assert two - {"something new first"} == one


def test_copies_never_straddle_the_split(tmp_path):
    lines = [form for text in texts(100) for form in (text, text.replace(" ", "\n  "))]
    kept = make(corpus(tmp_path, lines), tmp_path / "deduplicated")
    assert kept.facts["duplicates_dropped"] == 100
    everything = make(corpus(tmp_path, lines, deduplicate=False), tmp_path / "all")
    assert everything.facts["duplicates_dropped"] == 0
    held = {" ".join(row["text"].split()) for row in table(tmp_path / "all", "heldout.parquet")}
    assert everything.facts["heldout_documents"] == 2 * len(held)
    assert not held & {" ".join(text.split()) for text in train_texts(tmp_path / "all")}


def test_the_tokenizer_never_sees_what_is_held_out(tmp_path):
    config = corpus(tmp_path, texts())
    make(config, tmp_path / "out")
    expected = train(train_texts(tmp_path / "out"), config.tokenizer)
    assert load_tokenizer(tmp_path / "out").digest == expected.digest


def test_the_same_input_gives_the_same_corpus(tmp_path):
    config = corpus(tmp_path, texts())
    assert make(config, tmp_path / "a").digest == make(config, tmp_path / "b").digest


def test_a_finished_corpus_is_reused_and_never_replaced(tmp_path):
    """Finished runs rest on it: what would make another one is refused, and the old one stays."""
    config, out = corpus(tmp_path, texts()), tmp_path / "out"
    first = make(config, out)
    stamp = (out / "train.bin").stat().st_mtime_ns
    lines = []
    assert make(config, out, lines) == first
    assert lines[-1].startswith("reusing")
    with pytest.raises(UserError, match=r"setting heldout_fraction: .*is not replaced, because"):
        make(corpus(tmp_path, texts(), heldout_fraction=0.0), out)
    changed = corpus(tmp_path, texts(seed=5))  # same path, other text
    with pytest.raises(UserError, match=r"input file 0: .*is not replaced, because"):
        make(changed, out)
    assert (out / "train.bin").stat().st_mtime_ns == stamp
    shutil.rmtree(out)
    assert make(changed, out).digest != first.digest


@pytest.mark.parametrize(
    "name", ["train.bin", "train.idx", "tokenizer.json", "heldout.parquet", "documents.parquet"]
)
@pytest.mark.parametrize("damage", ["cut", "remove"])
def test_a_damaged_corpus_is_not_reused(tmp_path, name, damage):
    config, out = corpus(tmp_path, texts(40)), tmp_path / "out"
    make(config, out)
    if damage == "cut":
        (out / name).write_bytes((out / name).read_bytes()[:-3])
    else:
        (out / name).unlink()
    with pytest.raises(UserError, match=rf"{name}.*delete .*out first"):
        make(config, out)


def test_a_bad_row_leaves_nothing_behind(tmp_path):
    config = corpus(tmp_path, texts(20))
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match=r"in\.jsonl row 21"):
        make(config, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_ready_tokenizer_is_taken_and_its_change_noticed(tmp_path):
    brought = train(texts(50, seed=9), TokenizerConfig(vocab_size=280))
    brought.save(tmp_path / "tokenizer.json")
    config = corpus(tmp_path, texts(50), tokenizer=TokenizerConfig(kind="file", path=str(tmp_path)))
    manifest = make(config, tmp_path / "out")
    assert manifest.facts["tokenizer_digest"] == load_tokenizer(tmp_path / "out").digest == brought.digest
    assert manifest.facts["vocab_size"] == 280
    train(texts(50, seed=8), TokenizerConfig(vocab_size=290)).save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"input tokenizer: .*is not replaced"):
        make(config, tmp_path / "out")
    assert make(config, tmp_path / "other").facts["vocab_size"] == 290


def test_text_that_spells_the_end_of_document_stays_text(tmp_path):
    lines = [*texts(50), "before <|endoftext|> after"]
    make(corpus(tmp_path, lines, heldout_fraction=0.0), tmp_path / "out")
    assert train_texts(tmp_path / "out")[-1] == lines[-1]


def test_nothing_to_train_on_is_refused(tmp_path):
    config = corpus(tmp_path, ["a single document"], heldout_fraction=1 - 1e-15)
    with pytest.raises(UserError, match=r"no training documents.*heldout_fraction"):
        make(config, tmp_path / "out")
    with pytest.raises(UserError, match="corpus is empty"):
        make(corpus(tmp_path, []), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    for fraction in (1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="heldout_fraction="):
            corpus(tmp_path, [], heldout_fraction=fraction)


def test_loading_from_no_corpus_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "gone")
