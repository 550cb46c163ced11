"""Corpus text to a corpus artefact: tokenizer, Megatron token files, held-out text, provenance.

The work is done in shards (``data.shards``), by several processes or by the tasks of a SLURM array. A killed run
continues after its last finished shard; the bytes do not depend on the division of the work. The memory of no step
grows with the corpus.
"""

from __future__ import annotations

import gc
import heapq
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from palimpsest.data import artifact, identity, shards, sources, tokenizer, tokens
from palimpsest.data.artifact import Manifest
from palimpsest.data.contamination import ngram_counts
from palimpsest.data.errors import UserError
from palimpsest.data.shards import DOCUMENTS, HELDOUT, TRAIN, CorpusConfig, Work
from palimpsest.data.sources import Part, Progress
from palimpsest.data.tokenizer import Tokenizer

__all__ = [
    "DOCUMENTS",
    "HELDOUT",
    "KIND",
    "SCHEMA_VERSION",
    "TRAIN",
    "CorpusConfig",
    "load_tokenizer",
    "prepare",
]

KIND = "corpus"
SCHEMA_VERSION = 2

_REPORT_SECONDS = 3.0
OVERLAP = 12
"""Length of a run of tokens that, if shared with the training text, counts a held-out document as overlapping."""
_SAMPLE, _COMPARED = 256, 1 << 28  # held-out documents, and training tokens, that are compared
_COPY = 1 << 24  # bytes copied at a time
_COUNTED = (
    *(
        "documents_read",
        "empty_dropped",
        "short_dropped",
        "long_dropped",
        "language_dropped",
        "unwanted_dropped",
    ),
    *(
        "bad_dropped",
        "duplicates_dropped",
        "near_duplicates_dropped",
        "like_heldout_dropped",
        "tokenless_dropped",
    ),
    *("contaminated_dropped", "contaminations_found"),
    *("files_read", "files_skipped", "heldout_documents", "heldout_words"),
    *("train_documents", "train_words", "train_bytes", "train_tokens"),
)


def prepare(config: CorpusConfig, directory: Path, *, workers: int, progress: Progress) -> Manifest:
    """Make the corpus in ``directory``, or reuse an existing one made from the same inputs.

    It holds ``tokenizer.json``; ``train.bin`` and ``train.idx``; ``heldout.parquet`` (text, source, row, and
    digest: 64-bit BLAKE2b of the text in hex); ``documents.parquet``, a row for each document of
    ``train.bin`` in its order (source, row, words, and tokens, end-of-document token included).

    Args:
        config: settings of the corpus.
        directory: directory of the corpus; an existing corpus made from other inputs is never replaced.
        workers: number of processes, at least 1.
        progress: function that receives progress lines.

    Returns:
        Manifest of the corpus, with counts in ``facts``.

    Raises:
        UserError: if an input is missing or damaged, nothing is left to train on, the tokenizer is unsuitable, or a
            finished corpus is damaged.
    """
    if workers < 1:
        raise UserError(f"workers={workers} is not possible; use at least 1")
    began = time.monotonic()
    place = work_directory(directory)
    with artifact.held(directory):
        work = survey(config, place, workers)
        settings, inputs = _identity(work)
        if (finished := _reusable(directory, settings, inputs, progress)) is not None:
            shutil.rmtree(place, ignore_errors=True)
            return finished
        try:
            _work(work, workers, (0, 1), progress)
        except UserError:
            read = [shards.finished(work, shards.READ, number) for number in range(len(work.shards))]
            # What is read is kept while a row is mended. An error about the whole of it asks for other settings,
            # which have a directory of their own.
            if not any(read) or (all(read) and not (place / shards.TOKENIZER).exists()):
                shutil.rmtree(place, ignore_errors=True)
            raise
        with artifact.writing(
            directory, kind=KIND, schema_version=SCHEMA_VERSION, config=settings, inputs=inputs
        ) as draft:
            draft.facts.update(_merge(work, draft.path))
        shutil.rmtree(place, ignore_errors=True)
    assert draft.manifest is not None
    facts = draft.manifest.facts
    progress(_left_out_line(facts))
    progress(_overlap_line(facts))
    progress(f"corpus of {facts['train_tokens']:,} tokens in {time.monotonic() - began:.0f} s: {directory}")
    return draft.manifest


def prepare_share(
    config: CorpusConfig, directory: Path, *, share: tuple[int, int], workers: int, progress: Progress
) -> None:
    """Do every n-th shard, starting at shard k, of the next step; ``prepare`` then joins the shards.

    Run it twice for every k in 0..n-1 (two SLURM arrays, the second after the first): the first reads, the second
    tokenizes. ``prepare`` does any missing shards itself.

    Args:
        config: settings of the corpus.
        directory: directory of the corpus; the shards are in ``work_directory(directory)``.
        share: (k, n).
        workers: number of processes.
        progress: function that receives progress lines.

    Raises:
        UserError: as ``prepare``.
    """
    number, of = share
    if not 0 <= number < of:
        raise UserError(f"shard={number}/{of} is not possible; k/n has k from 0 to n - 1")
    work = survey(config, work_directory(directory), workers)
    _work(work, workers, share, progress)


def work_directory(directory: Path) -> Path:
    """Path, beside a corpus's ``directory``, of its finished shards until they are joined."""
    return directory.with_name(f".{directory.name}.work")


def survey(config: CorpusConfig, place: Path, workers: int) -> Work:
    """List the pieces of the sources that workers read, or reuse the stored list if no file's size or modification time
    changed.

    Raises:
        UserError: if a source cannot be found or read.
    """
    path = place / "survey.json"
    with artifact.held(place):
        known = _recall(path, config)
        if known is None:
            stats = _stats(config)
            known = sources.split(config.source, workers)
            place.mkdir(parents=True, exist_ok=True)
            saved = {
                "source": asdict(config.source),
                "stats": stats,
                "parts": [asdict(part) for part in known],
            }
            artifact.write_json(path, saved)
    return Work(place, config, shards.cut(known))


def _stats(config: CorpusConfig) -> dict[str, list[int]]:
    """Input file -> its size (bytes) and modification time (ns)."""
    if config.source.kind not in sources.FILE_KINDS:
        return {}
    stats = {str(path): path.stat() for path in sources.files(config.source)}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def _recall(path: Path, config: CorpusConfig) -> list[Part] | None:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    source = json.loads(json.dumps(asdict(config.source)))
    if saved["source"] != source or not saved["stats"] or saved["stats"] != _stats(config):
        return None
    return [Part(**part) for part in saved["parts"]]


def _identity(work: Work) -> tuple[dict[str, Any], dict[str, str]]:
    settings = identity.without_paths(work.config)
    parts = [part for shard in work.shards for part in shard]
    return settings, sources.inputs(parts) | work.tokenizer_inputs | work.wanted_inputs


def load_tokenizer(corpus: Path) -> Tokenizer:
    """The tokenizer of a finished corpus.

    Raises:
        UserError: if the corpus is missing, or its ``tokenizer.json`` was changed.
    """
    manifest = artifact.read(corpus, kind=KIND, schema_version=SCHEMA_VERSION)
    path = corpus / tokenizer.FILE
    if path.is_file() and artifact.file_digest(path) != manifest.contents[tokenizer.FILE]:
        raise UserError(f"{path} was changed since the corpus was tokenized with it; prepare {corpus} again")
    return tokenizer.load(path, manifest.config["tokenizer"]["eod"])


def _reusable(
    directory: Path, settings: dict[str, Any], inputs: dict[str, str], progress: Progress
) -> Manifest | None:
    if not (directory / artifact.MANIFEST).is_file():
        return None
    manifest = artifact.read(directory, kind=KIND, schema_version=SCHEMA_VERSION)
    differences = artifact.differences(manifest, config=settings, inputs=inputs)
    if differences:
        # Never replaced: finished runs rest on it, and without it could not be audited.
        raise UserError(
            f"corpus {directory} was made from other inputs ({differences[0]}); it is not replaced, "
            f"because runs may depend on it: remove it, or restore the text and put the new text at another path"
        )
    _check_sizes(directory, manifest)
    progress(
        f"reusing {directory}: {manifest.facts['train_tokens']:,} tokens; {_overlap_line(manifest.facts)}"
    )
    return manifest


def _check_sizes(directory: Path, manifest: Manifest) -> None:
    """Check a finished corpus as far as possible without reading all of it."""
    facts = manifest.facts
    try:
        tokens.check(directory / TRAIN, facts["vocab_size"])
        load_tokenizer(directory)
        for name, rows in ((HELDOUT, facts["heldout_documents"]), (DOCUMENTS, facts["train_documents"])):
            path = directory / name
            if not path.is_file():
                raise UserError(f"{path} is missing; prepare the corpus again")
            try:
                stored_rows = pq.read_metadata(path).num_rows
            except pa.ArrowException as error:
                raise UserError(f"{path} is damaged ({error}); prepare the corpus again") from None
            if stored_rows != rows:
                raise UserError(f"{path} has {stored_rows} rows, not {rows}; prepare the corpus again")
    except UserError as error:
        raise UserError(f"{error} (delete {directory} first)") from None


def _work(work: Work, workers: int, share: tuple[int, int], progress: Progress) -> None:
    """Do the shards of a share in every step whose inputs exist."""
    with _Crew(workers, progress) as crew:
        _steps(work, crew, share, progress)


def _steps(work: Work, crew: _Crew, share: tuple[int, int], progress: Progress) -> None:
    number, of = share
    mine = list(range(number, len(work.shards), of))
    began = time.monotonic()
    for counts in crew.each(shards.read, work, mine):
        if counts.facts.get("files_skipped"):
            progress(f"skipped {counts.facts['files_skipped']} files that do not parse")
    progress(f"read {len(mine)} of {len(work.shards)} shards in {time.monotonic() - began:.0f} s")
    unread = [n for n in range(len(work.shards)) if not shards.finished(work, shards.READ, n)]
    if unread:
        progress(f"{len(unread)} shards are still unread; run the same again when all shares are done")
        return
    if of > 1:
        crew.each(shards.read, work, [n for n in range(len(work.shards)) if n % of != number])
    shards.find_duplicates(work)
    began = time.monotonic()
    facts = shards.make_tokenizer(work).facts
    progress(
        f"tokenizer of {facts['vocab_size']} ids in {time.monotonic() - began:.0f} s; {facts['version']} encodes "
        f"({facts['reason']})"
    )
    began = time.monotonic()
    crew.each(shards.tokenize, work, mine)
    progress(f"tokenized {len(mine)} of {len(work.shards)} shards in {time.monotonic() - began:.0f} s")


class _Crew:
    """Runner of shards in this process, or in worker processes from the first step with several shards on.

    Args:
        workers: number of processes.
        progress: function that receives progress lines.
    """

    def __init__(self, workers: int, progress: Progress) -> None:
        self._workers, self._progress = workers, progress
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if (
            self._pool is not None
        ):  # idle workers end by themselves; busy ones must not outlive what they write to
            self._pool.shutdown(wait=error is not None, cancel_futures=True)

    def each(self, step: Callable[[Work, int], Manifest], work: Work, numbers: list[int]) -> list[Manifest]:
        """Do some shards of a step; returns their manifests in order."""
        done: Iterator[Manifest] = (step(work, number) for number in numbers)
        if self._workers > 1 and len(numbers) > 1:
            if self._pool is None:
                # spawn: the caller may have threads (torch, tokenizers), which a fork would copy in mid-step
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_start_worker)
            futures = [self._pool.submit(step, work, number) for number in numbers]
            done = (future.result() for future in futures)
        manifests, last = [], time.monotonic()
        for manifest in done:
            manifests.append(manifest)
            if time.monotonic() - last > _REPORT_SECONDS:
                last = time.monotonic()
                self._progress(f"{step.__name__}: {len(manifests)} of {len(numbers)} shards")
        return manifests


def _start_worker() -> None:
    """Set up a worker process: single-threaded, and killed with its parent, so that a killed run leaves no workers
    writing.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.set_threshold(
        1_000_000
    )  # syntax trees and rows are many objects without cycles: each scan is for nothing
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _merge(work: Work, place: Path) -> dict[str, Any]:
    """Join the shards, one at a time.

    Returns:
        The facts of the corpus.
    """
    tokenizer_manifest = artifact.read(
        work.place / shards.TOKENIZER, kind="corpus tokenizer", schema_version=shards.VERSION
    )
    shutil.copyfile(work.place / shards.TOKENIZER / tokenizer.FILE, place / tokenizer.FILE)
    directories = [work.shard(shards.TOKENS, number) for number in range(len(work.shards))]
    counts = sum(shards.read_counts(work), Counter(dict.fromkeys(_COUNTED, 0)))
    with tokens.bin_path(place / TRAIN).open("wb") as target:
        for directory in directories:
            counts.update(artifact.read(directory, kind="corpus tokens", schema_version=shards.VERSION).facts)
            with tokens.bin_path(directory / TRAIN).open("rb") as source:
                shutil.copyfileobj(source, target, _COPY)
    if not counts["train_documents"]:
        raise UserError(
            f"the corpus has no training documents: {counts['heldout_documents']} are held out, "
            f"{counts['like_heldout_dropped']} are like them, {counts['contaminated_dropped']} contain a text of "
            f"corpus.decontaminate.paths and {counts['tokenless_dropped']} have no token; add text, or give fewer "
            "texts in corpus.decontaminate.paths"
        )
    lengths = [tokens.map_lengths(directory / TRAIN) for directory in directories]
    tokens.write_index(place / TRAIN, lengths, tokens.dtype_for(tokenizer_manifest.facts["vocab_size"]))
    for name, schema in ((DOCUMENTS, shards.DOCUMENTS_SCHEMA), (HELDOUT, shards.HELDOUT_SCHEMA)):
        with pq.ParquetWriter(place / name, schema, compression="zstd") as table:
            for directory in directories:
                for batch in pq.ParquetFile(directory / name).iter_batches():
                    table.write_batch(batch)
    ours = tokenizer.load(place / tokenizer.FILE, work.config.tokenizer.eod)
    return {
        **_overlap(place, directories, ours),
        **{name: counts[name] for name in _COUNTED},
        **{name: tokenizer_manifest.facts[name] for name in ("vocab_size", "eod")},
        "tokenizer_digest": tokenizer_manifest.facts["digest"],
        "encoder": f"{tokenizer_manifest.facts['version']}: {tokenizer_manifest.facts['reason']}",
        "shards_by_tokenizers": counts["shards_by_tokenizers"],
    }


def _overlap(place: Path, directories: Sequence[Path], ours: Tokenizer) -> dict[str, int]:
    """Number of held-out documents of a sample that share a run of ``OVERLAP`` tokens with the training text.

    Args:
        place: directory of the corpus; its held-out documents with the smallest digests are the sample.
        directories: directories of the shards; the first ones, up to ``_COMPARED`` tokens, are searched.
        ours: tokenizer of the corpus.
    """
    rows = (
        (row["digest"], row["text"])
        for batch in pq.ParquetFile(place / HELDOUT).iter_batches(columns=["digest", "text"])
        for row in batch.to_pylist()
    )
    sample = heapq.nsmallest(_SAMPLE, rows)
    spans = [ids for ids in ours.encode_batch([text for _, text in sample]) if len(ids) >= OVERLAP]
    shared, looked_at = np.zeros(len(spans), dtype=bool), 0
    for directory in directories:
        if not spans or looked_at >= _COMPARED:
            break
        prefix = directory / TRAIN
        looked_at += len(tokens.read_tokens(prefix))
        shared |= [bool(counts.any()) for counts in ngram_counts(prefix, spans, n=OVERLAP)]
    return {
        "heldout_sampled": len(spans),
        "heldout_overlapping": int(shared.sum()),
        "heldout_compared_tokens": looked_at,
    }


_LEFT_OUT = {
    "bad_dropped": "unreadable",
    "empty_dropped": "empty",
    "short_dropped": "too short",
    "long_dropped": "too long",
    "language_dropped": "in another language",
    "unwanted_dropped": "not kept by corpus.source.keep",
    "duplicates_dropped": "duplicates",
    "near_duplicates_dropped": "near duplicates",
    "contaminated_dropped": "with a text of corpus.decontaminate.paths",
    "tokenless_dropped": "without tokens",
}
"""Count in the corpus's facts -> the reason in words."""


def _left_out_line(facts: Mapping[str, Any]) -> str:
    counts = [f"{facts[name]:,} {why}" for name, why in _LEFT_OUT.items() if facts.get(name)]
    return f"{facts['documents_read']:,} documents read; left out: {', '.join(counts) or 'none'}"


def _overlap_line(facts: Mapping[str, Any]) -> str:
    sampled, shared = facts["heldout_sampled"], facts["heldout_overlapping"]
    share = f" ({shared / sampled:.0%})" if sampled else ""
    return (
        f"{facts['like_heldout_dropped']:,} training documents like held-out ones dropped; {shared} of {sampled} "
        f"held-out documents{share} share {OVERLAP} tokens in a row with the training text"
    )
