"""Tokenization in shards: killed at any moment, shared out, by either library, the bytes are the same."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data import duplicates, encoder, prepare, shards
from palimpsest.data.sources import lines
from palimpsest.data.tokenizer import TokenizerConfig, train
from tests.data.test_prepare import WORDS, make, table, texts
from tests.data.test_prepare import corpus as corpus_of

PROGRAM = """
import sys
from pathlib import Path
from palimpsest.data import prepare, shards
from palimpsest.data.sources import SourceConfig, lines
from palimpsest.data.tokenizer import TokenizerConfig
if __name__ == "__main__":
    shards._SMALLEST = 20_000
    config = prepare.CorpusConfig(
        source=SourceConfig(kind="jsonl", paths=(sys.argv[1],), min_words=1),
        tokenizer=TokenizerConfig(vocab_size=300), near_duplicates=True, heldout_fraction=0.1,
    )
    share = sys.argv[3:]
    if share:
        prepare.prepare_share(
            config, Path(sys.argv[2]), share=(int(share[0]), int(share[1])), workers=1, progress=print
        )
    else:
        prepare.prepare(config, Path(sys.argv[2]), workers=2, progress=print)
"""


def run(text, out, *share, wait=True):
    command = [sys.executable, "-c", PROGRAM, str(text), str(out), *map(str, share)]
    if wait:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve files with copies inside and across them, and the corpus of an undisturbed run."""
    place = tmp_path_factory.mktemp("shards")
    (place / "text").mkdir()
    documents = [*texts(1500), *texts(200), *texts(300, seed=4)]
    random.Random(2).shuffle(documents)
    for number in range(12):
        piece = documents[number::12]
        (place / "text" / f"{number:02}.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in piece)
        )
    run(place / "text", place / "whole")
    return place


def contents(directory):
    return json.loads((directory / "manifest.json").read_text())["contents"]


def made(work):
    """Finished shards -> when their files were written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in work.glob("[a-z]*/manifest.json")}


def children_of(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in listed.split()]


def alive(pid):
    """True if a worker process of that id is still at it."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.slow
def test_killed_at_ten_random_moments_then_rerun(folder, tmp_path):
    """Five kills at moments of the clock, and five a moment after another shard was finished."""
    rng = random.Random(11)
    out, went_on = tmp_path / "out", 0
    work = prepare.work_directory(out)
    for number in range(10):
        before = made(work)
        process = run(folder / "text", out, wait=False)
        if number % 2:
            patience = time.monotonic() + 60
            while process.poll() is None and len(made(work)) <= len(before) and time.monotonic() < patience:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
        else:
            time.sleep(rng.uniform(0.3, 5.0))
        workers = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        patience = time.monotonic() + 60
        while any(map(alive, workers)) and time.monotonic() < patience:
            time.sleep(0.05)  # they notice that their parent is gone
        assert not any(map(alive, workers))
        if (out / "manifest.json").exists():  # it was faster than the kill: begin again
            assert contents(out) == contents(folder / "whole")
            shutil.rmtree(out)
            shutil.rmtree(work, ignore_errors=True)
            continue
        now = made(work)
        assert before.items() <= now.items()  # what was finished is untouched
        went_on += len(now) > len(before) > 0
    assert went_on
    run(folder / "text", out)
    assert contents(out) == contents(folder / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]  # no lock, no leftover


@pytest.mark.parametrize("step", ["read", "tokenize", "find_duplicates", "_merge"])
def test_finished_shards_are_never_redone(tmp_path, monkeypatch, step):
    """Stopped in the third shard of a step, or while the shards are put together."""
    monkeypatch.setattr(shards, "_SMALLEST", 500)
    for number in range(6):
        (tmp_path / f"{number}.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in texts(20, number))
        )
    config = corpus_of(tmp_path, texts(5))
    config = shards.CorpusConfig(
        source=shards.SourceConfig(kind="jsonl", paths=(str(tmp_path / "*.jsonl"),), min_words=1),
        tokenizer=config.tokenizer,
    )
    make(config, tmp_path / "whole")
    module = prepare if step == "_merge" else shards
    real = getattr(module, step)

    def failing(work, *arguments):
        if arguments[:1] in ((), (2,)) or step == "_merge":
            raise KeyboardInterrupt
        return real(work, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, failing)
        with pytest.raises(KeyboardInterrupt):
            make(config, tmp_path / "out")
    work = prepare.work_directory(tmp_path / "out")
    before = made(work)
    assert len(before) >= 2
    stale = work / ".read-00003.abcdefgh.tmp"
    stale.mkdir()
    seen = {}
    with monkeypatch.context() as patch:

        def merging(*arguments, real=prepare._merge):
            seen.update(made(work))
            assert step != "read" or not stale.exists()
            return real(*arguments)

        patch.setattr(prepare, "_merge", merging)
        make(config, tmp_path / "out")
    assert before.items() <= seen.items()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not work.exists()


def test_shares_of_an_array_give_the_same_corpus(folder, tmp_path):
    out = tmp_path / "out"
    for _ in ("read", "tokenize"):
        said = [run(folder / "text", out, number, 3) for number in range(3)]
    assert "still unread" not in "".join(said)
    assert not out.exists()
    tokenized = [p for p in made(prepare.work_directory(out)) if p.startswith("tokens")]
    assert len(tokenized) == len([p for p in made(prepare.work_directory(out)) if p.startswith("read")]) > 3
    run(folder / "text", out)
    assert contents(out) == contents(folder / "whole")


def test_the_cut_into_stretches_and_shards_does_not_show(tmp_path, monkeypatch):
    config = corpus_of(tmp_path, [*texts(400), "\n x \r\n", *texts(100)])
    make(config, tmp_path / "whole")
    for stretch, block in ((700, 64), (1000, 1 << 20), (123, 1000)):
        monkeypatch.setattr(lines, "_STRETCH", stretch)
        monkeypatch.setattr(lines, "_BLOCK", block)
        monkeypatch.setattr(shards, "_SMALLEST", 1000)
        make(config, tmp_path / f"cut{stretch}")
        for name in ("train.bin", "train.idx", "tokenizer.json"):
            assert contents(tmp_path / f"cut{stretch}")[name] == contents(tmp_path / "whole")[name]
        for name in ("documents.parquet", "heldout.parquet"):  # their row groups follow the shards
            assert table(tmp_path / f"cut{stretch}", name) == table(tmp_path / "whole", name)


@given(st.lists(st.integers(0, 12), max_size=60), st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=60, deadline=None)
def test_duplicates_across_shards_equal_a_plain_set(tmp_path_factory, values, cuts):
    place = tmp_path_factory.mktemp("keys")
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    texts = [f"{WORDS[value % 12]} {value}" for value in values]
    paths, counts, inside = [], [], [np.empty(0, dtype=np.uint8)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        found = b"".join(duplicates.key_of(text)[0] for text in texts[start:stop])
        keys = np.frombuffer(found, dtype=">u8").reshape(-1, 2)
        paths.append(place / f"{number}.npy")
        counts.append(stop - start)
        inside.append(
            duplicates.write_keys(paths[-1], keys.astype(np.uint64), np.arange(stop - start), stop - start)
        )
    dropped = np.concatenate(inside)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_AT_ONCE", 5)
        duplicates.across(paths, counts, dropped)
    assert dropped.tolist() == [int(value in values[:k]) for k, value in enumerate(values)]


def test_near_duplicates_are_dropped_and_others_kept(tmp_path):
    rng = random.Random(5)
    vocabulary = [f"w{n}" for n in range(3000)]
    originals = [rng.choices(vocabulary, k=200) for _ in range(60)]
    nearly = [[*words[:100], "CHANGED", *words[101:]] for words in originals]
    documents = [" ".join(words) for words in [*originals, *nearly]]
    make(corpus_of(tmp_path, documents, near_duplicates=False), tmp_path / "all")
    facts = make(corpus_of(tmp_path, documents, near_duplicates=True), tmp_path / "out").facts
    assert (
        facts["near_duplicates_dropped"] >= 58
    )  # one word of 200: similarity 0.95, found with probability 0.9998
    assert facts["train_documents"] + facts["heldout_documents"] >= 60
    unrelated = [" ".join(rng.choices(vocabulary, k=200)) for _ in range(120)]
    facts = make(corpus_of(tmp_path, unrelated, near_duplicates=True), tmp_path / "unrelated").facts
    assert facts["near_duplicates_dropped"] == 0


def test_both_libraries_give_the_same_corpus_and_the_manifest_says_which(tmp_path, monkeypatch):
    config = corpus_of(tmp_path, [*texts(), "a <|endoftext|> b \x00 é \u2028"])
    fast = make(config, tmp_path / "fast")
    assert fast.facts["encoder"].startswith("gigatoken ")
    monkeypatch.setattr(encoder, "_gigatoken", lambda tokenizer: (_ for _ in ()).throw(ImportError()))
    slow = make(config, tmp_path / "slow")
    assert slow.facts["encoder"].startswith("tokenizers ")
    assert slow.contents == fast.contents


def test_a_library_that_disagrees_is_not_used(monkeypatch):
    ours = train(texts(), TokenizerConfig(vocab_size=300))
    assert encoder.choose(ours, texts(3))[0] == "gigatoken"
    other = train(texts(seed=3), TokenizerConfig(vocab_size=290))
    real = encoder._gigatoken
    monkeypatch.setattr(encoder, "_gigatoken", lambda tokenizer: real(other))
    assert encoder.choose(ours, texts(3)) == ("tokenizers", "gigatoken gave other ids on the sample")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=5))
@settings(max_examples=150, deadline=None)
def test_gigatoken_equals_tokenizers_on_any_text(texts_):
    ours = _trained()
    ids, lengths = encoder.Encoder(ours, "gigatoken").encode(texts_)
    theirs, their_lengths = ours.encode_flat(texts_)
    assert ids.tolist() == theirs.tolist()
    assert lengths.tolist() == their_lengths.tolist()


def _trained(cache=[]):  # noqa: B006
    if not cache:
        cache.append(train(texts(), TokenizerConfig(vocab_size=300)))
    return cache[0]
