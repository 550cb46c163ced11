"""Text to token files: this project against Megatron-LM's way, on the same documents in one process tree.

    taskset -c 0,1 python benchmarks/tokenization.py --out results/tokenize_2026-11-21.md

Megatron-LM's way (tools/preprocess_data.py): a pool of workers, each line of JSON parsed and its text tokenized by one
call, the ids sent back to the parent, which adds them with IndexedDatasetBuilder.add_document. Their worker calls
through transformers; here it calls ``tokenizers`` directly, which is faster. Each round times everything in turn, from
JSONL on disk to .bin/.idx on disk, processes started and manifests flushed; figures are medians over rounds.
"""

import argparse
import contextlib
import filecmp
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil

from palimpsest.data import encoder, sources, tokens
from palimpsest.data.prepare import CorpusConfig, prepare
from palimpsest.data.sources import SourceConfig
from palimpsest.data.tokenizer import FILE, TokenizerConfig, load, train

WORKERS = 2
_tokenizer = None


def make_text(place, documents):
    """Documentation installed beside this Python in one JSONL file, and a tokenizer trained on a tenth of it.

    There is too little of it to see past what starting up costs, so each document comes four times, its lines rotated
    by 0 to 3 quarters.
    """
    config = SourceConfig(kind="installed_docs", min_words=20)
    texts = []
    for document in sources.read(config):
        rows = document.text.split("\n")
        cuts = [len(rows) * quarter // 4 for quarter in range(4)]
        texts += ["\n".join(rows[cut:] + rows[:cut]) for cut in cuts]
        if len(texts) >= documents:
            break
    with (place / "text.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    train(texts[::40], TokenizerConfig(vocab_size=16_384)).save(place / FILE)
    return len(texts)


def corpus(place, source, **settings):
    return CorpusConfig(
        source=SourceConfig(kind="jsonl", paths=(str(source),), min_words=0),
        tokenizer=TokenizerConfig(kind="file", path=str(place / FILE)),
        heldout_fraction=0.0,
        **settings,
    )


def ours(place, library):
    real = encoder._gigatoken
    if library == "tokenizers":
        encoder._gigatoken = _refuse
    try:
        config = corpus(place, place / "text.jsonl", deduplicate=False)
        manifest = prepare(config, place / library, workers=WORKERS, progress=lambda line: None)
    finally:
        encoder._gigatoken = real
    assert manifest.facts["encoder"].startswith(library), manifest.facts["encoder"]
    return place / library / "train"


def _refuse(tokenizer):
    raise ImportError("left out for the comparison")


def _start(path):
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = load(path)


def _encode(line):
    ids = _tokenizer.backend.encode(json.loads(line)["text"], add_special_tokens=False).ids
    if ids:
        ids.append(_tokenizer.eod)
    return ids


def megatron(place):
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    (place / "megatron").mkdir()
    prefix = place / "megatron" / "train"
    vocab_size = load(place / FILE).vocab_size
    with (
        (place / "text.jsonl").open() as lines,
        multiprocessing.Pool(WORKERS, _start, (place / FILE,)) as pool,
    ):
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
        for ids in pool.imap(_encode, lines, 32):
            if ids:
                builder.add_document(ids, [len(ids)])
        builder.finalize(f"{prefix}.idx")
    return prefix


def compare(place, documents, rounds):
    ways = {
        "Megatron-LM's way": lambda: megatron(place),
        "ours, gigatoken": lambda: ours(place, "gigatoken"),
        "ours, tokenizers only": lambda: ours(place, "tokenizers"),
    }
    times = {name: [] for name in ways}
    for _ in range(rounds):
        prefixes = []
        for name, way in ways.items():
            began = time.perf_counter()
            prefixes.append(way())
            times[name].append(time.perf_counter() - began)
        for prefix in prefixes[1:]:
            for suffix in ("bin", "idx"):
                assert filecmp.cmp(f"{prefixes[0]}.{suffix}", f"{prefix}.{suffix}", shallow=False)
        for prefix in prefixes:
            shutil.rmtree(prefix.parent)
    base = times["Megatron-LM's way"]
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        each = ", ".join(f"{s:.1f}" for s in seconds)
        rows.append(f"| {name} | {documents / statistics.median(seconds):,.0f} | {ratio:.1f} | {each} |")
    return rows


def index(place, documents, rounds):
    rng = np.random.default_rng(1)
    lengths = [rng.integers(1, 4000, documents // 100, dtype=np.int32) for _ in range(100)]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        tokens.write_index(place / "index", lengths, tokens.dtype_for(16_384))
        seconds.append(time.perf_counter() - began)
        size = tokens.idx_path(place / "index").stat().st_size
        tokens.idx_path(place / "index").unlink()
    return seconds, size


def memory(place, documents):
    """Largest resident memory of this process and of its workers while a corpus with duplicates is prepared."""
    rng = random.Random(documents)
    words = [f"{rng.getrandbits(40):x}" for _ in range(50_000)]
    with (place / "many.jsonl").open("w") as file:
        for number in range(documents):
            text = " ".join(rng.choices(words, k=12)) if number % 10 else f"copy {number % 1000}"
            file.write(json.dumps({"text": text}) + "\n")
    seen = {}
    threading.Thread(target=_watch, args=(seen,), daemon=True).start()
    manifest = prepare(
        corpus(place, place / "many.jsonl"), place / "many", workers=WORKERS, progress=lambda line: None
    )
    own = seen.pop(os.getpid())
    sys.stdout.write(json.dumps([manifest.facts["train_documents"], own, max(seen.values())]))


def _watch(seen):
    """Largest resident memory, MB, of this process and its children; ru_maxrss would begin with the parent's."""
    while True:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                seen[process.pid] = max(seen.get(process.pid, 0), process.memory_info().rss / 2**20)
        time.sleep(0.02)


def _cpuinfo():
    return Path("/proc/cpuinfo").read_text().splitlines()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=160_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--index", type=int, default=100_000_000)
    parser.add_argument("--memory", type=int, nargs="*", default=[1_000_000, 2_000_000, 4_000_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure-memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure_memory:
        memory(given.place, given.measure_memory)
        return
    with tempfile.TemporaryDirectory(dir=given.place) as name:
        place = Path(name)
        documents = make_text(place, given.documents)
        size = (place / "text.jsonl").stat().st_size
        rows = compare(place, documents, given.rounds)
        seconds, index_bytes = index(place, given.index, given.rounds)
        peaks = []
        for count in given.memory:
            command = [sys.executable, __file__, "--measure-memory", str(count), "--place", str(place)]
            kept, parent, worker = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
            peaks.append(f"| {count:,} | {kept:,} | {parent:.0f} | {worker:.0f} |")
            shutil.rmtree(place / "many")
    commit = subprocess.check_output(
        ["git", "rev-parse", "HEAD"], text=True, cwd=Path(__file__).parent
    ).strip()
    versions = ", ".join(
        f"{p} {metadata.version(p)}" for p in ("gigatoken", "tokenizers", "megatron-core", "numpy")
    )
    cpu = next((x.split(":")[1].strip() for x in _cpuinfo() if x.startswith("model name")), "?")
    report = "\n".join(
        [
            f"# Tokenization, {time.strftime('%Y-%m-%d')}",
            "",
            "`taskset -c 0,1 python benchmarks/tokenization.py` (what it compares is said at its top).",
            f"{len(os.sched_getaffinity(0))} cores of {cpu}; load {os.getloadavg()[1]:.1f} over 5 minutes, so compare "
            f"ratios; Python {platform.python_version()}, {versions}; commit {commit}.",
            "",
            f"{documents:,} documents, {size / 1e6:.0f} MB of JSONL, byte-level BPE of 16,384 ids, {WORKERS} worker "
            f"processes, medians of {given.rounds} rounds; `.bin` and `.idx` byte-identical in every round.",
            "",
            "| | documents/s | times Megatron-LM's way (median of the rounds) | seconds, each round |",
            "|---|---:|---:|---|",
            *rows,
            "",
            f"`.idx` of {given.index:,} documents ({index_bytes / 1e9:.1f} GB): median "
            f"{statistics.median(seconds):.1f} s ({', '.join(f'{s:.1f}' for s in seconds)}).",
            "",
            "Largest resident memory of one process, MB; short documents, a tenth of them copies that are dropped:",
            "",
            "| documents | kept | parent | largest worker |",
            "|---:|---:|---:|---:|",
            *peaks,
            "",
        ]
    )
    print(report)
    if given.out:
        given.out.write_text(report)


if __name__ == "__main__":
    main()
