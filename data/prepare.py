"""Corpus text to a corpus artefact: tokenizer, Megatron token files, held-out text, provenance.

The text passes once from the sources into a spool on disk, then from there through the tokenizer: it may
be larger than memory. Only a digest of each document is kept, to find duplicates.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import artifact, sources, tokenizer, tokens
from data.artifact import Manifest
from data.errors import UserError
from data.sources import Document, Progress, SourceConfig
from data.tokenizer import Tokenizer, TokenizerConfig

_log = logging.getLogger(__name__)

KIND = "corpus"
SCHEMA_VERSION = 1
TRAIN = "train"  # prefix of train.bin and train.idx
HELDOUT = "heldout.parquet"
DOCUMENTS = "documents.parquet"

_HELDOUT_SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "source", "row", "digest")])
_DOCUMENTS_SCHEMA = pa.schema(
    [("source", pa.string()), ("row", pa.string()), ("words", pa.int32()), ("tokens", pa.int32())]
)
_SPOOL_SCHEMA = pa.schema(
    [("text", pa.string()), ("source", pa.string()), ("row", pa.string()), ("words", pa.int32())]
)
_BATCH_CHARACTERS = 1 << 21  # about 100 bytes of memory a token while `tokenizers` holds a batch
_BATCH_DOCUMENTS = 1 << 14
_REPORT_SECONDS = 3.0
_COUNTED = (
    *("documents_read", "empty_dropped", "short_dropped", "duplicates_dropped", "tokenless_dropped"),
    *("files_read", "files_skipped", "heldout_documents", "heldout_words"),
    *("train_documents", "train_words", "train_bytes", "train_tokens"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """What a corpus is made of."""

    source: SourceConfig
    tokenizer: TokenizerConfig
    heldout_fraction: float = 0.02
    """Share of the documents that neither tokenizer nor model sees, chosen by a hash of their text."""
    deduplicate: bool = True
    """Keep the first of documents that are equal but for white space."""

    def __post_init__(self) -> None:
        if not 0 <= self.heldout_fraction < 1:
            raise UserError(
                f"corpus.heldout_fraction={self.heldout_fraction} is no share; choose from 0 up to below 1"
            )


def prepare(config: CorpusConfig, directory: Path, *, workers: int, progress: Progress) -> Manifest:
    """Make the corpus in ``directory``, or reuse the one that is there if it was made from the same.

    It holds ``tokenizer.json``; ``train.bin`` and ``train.idx``; ``heldout.parquet`` (text, source, row, and
    digest: 64-bit BLAKE2b of the text in hex); ``documents.parquet``, a row for each document of
    ``train.bin`` in order (source, row, words int32, tokens int32: the end-of-document token included).

    Args:
        config: what to make it of.
        directory: where; a corpus there that differs is replaced at the end, and what differs is reported.
        workers: processes to read the sources with.
        progress: gets short lines for a person.

    Returns:
        The manifest. Its facts count ``documents_read``, ``empty_dropped``, ``short_dropped``,
        ``duplicates_dropped``, ``tokenless_dropped``, ``files_read``, ``files_skipped``,
        ``heldout_documents``, ``heldout_words``, ``train_documents``, ``train_words``, ``train_bytes``
        (UTF-8) and ``train_tokens`` (with end-of-document tokens), and give ``vocab_size``, ``eod`` and
        ``tokenizer_digest``.

    Raises:
        UserError: if an input is missing or damaged, nothing is left to train on, the tokenizer does not
            serve, or a finished corpus is there but damaged.
    """
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    inputs = {**sources.inputs(config.source), **tokenizer.inputs(config.tokenizer)}
    if (finished := _reusable(directory, settings, inputs, progress)) is not None:
        return finished
    began = time.monotonic()
    with artifact.writing(
        directory, kind=KIND, schema_version=SCHEMA_VERSION, config=settings, inputs=inputs
    ) as draft:
        counts = Counter(dict.fromkeys(_COUNTED, 0))
        spool = draft.path / "spool.arrow"
        _split(config, draft.path, spool, counts, workers, progress)
        spooled = time.monotonic()
        if not (left := _spooled_documents(spool)):
            raise UserError(
                f"the corpus has no training documents: all {counts['heldout_documents']} are held out by "
                f"corpus.heldout_fraction={config.heldout_fraction}; lower it or add text"
            )
        progress(f"{left:,} documents to train on in {spooled - began:.0f} s; now the tokenizer")
        ours = tokenizer.build(_texts(spool), config.tokenizer)
        ours.save(draft.path / tokenizer.FILE)
        progress(f"tokenizer of {ours.vocab_size} ids in {time.monotonic() - spooled:.0f} s; now the tokens")
        _tokenize(spool, ours, draft.path, counts, progress)
        spool.unlink()
        draft.facts.update(counts, vocab_size=ours.vocab_size, eod=ours.eod, tokenizer_digest=ours.digest)
    progress(f"corpus of {counts['train_tokens']:,} tokens in {time.monotonic() - began:.0f} s: {directory}")
    assert draft.manifest is not None
    return draft.manifest


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
    for difference in differences:
        progress(f"making {directory} again: {difference}")
    if differences:
        return None
    _check_sizes(directory, manifest)
    progress(f"reusing {directory}: {manifest.facts['train_tokens']:,} tokens")
    return manifest


def _check_sizes(directory: Path, manifest: Manifest) -> None:
    """What can be checked of a finished corpus without reading all of it."""
    facts = manifest.facts
    try:
        tokens.check(directory / TRAIN, facts["vocab_size"])
        load_tokenizer(directory)
        for name, rows in ((HELDOUT, facts["heldout_documents"]), (DOCUMENTS, facts["train_documents"])):
            path = directory / name
            if not path.is_file():
                raise UserError(f"{path} is missing; prepare the corpus again")
            try:
                found = pq.read_metadata(path).num_rows
            except pa.ArrowException as error:
                raise UserError(f"{path} is damaged ({error}); prepare the corpus again") from None
            if found != rows:
                raise UserError(f"{path} has {found} rows, not {rows}; prepare the corpus again")
    except UserError as error:
        raise UserError(f"{error} (delete {directory} first)") from None


def _split(
    config: CorpusConfig, place: Path, spool: Path, counts: Counter[str], workers: int, progress: Progress
) -> None:
    """Read the sources; write held-out documents to their table and the others to the spool."""
    seen: set[bytes] = set()
    limit = int(config.heldout_fraction * 2**64)
    documents = sources.read(config.source, workers, progress, counts)
    with (
        pq.ParquetWriter(place / HELDOUT, _HELDOUT_SCHEMA, compression="zstd") as heldout_table,
        pa.ipc.new_file(str(spool), _SPOOL_SCHEMA) as spool_table,
    ):
        for batch in _batches(documents):
            heldout: list[dict[str, Any]] = []
            train: list[dict[str, Any]] = []
            for document in batch:
                words = document.text.split()
                # Copies that differ in white space alone must not fall on both sides of the split.
                key = blake2b(" ".join(words).encode(), digest_size=16).digest()
                if config.deduplicate:
                    if key in seen:
                        counts["duplicates_dropped"] += 1
                        continue
                    seen.add(key)
                row = {"text": document.text, "source": document.source, "row": document.row}
                if int.from_bytes(key[:8], "big") < limit:
                    digest = blake2b(document.text.encode(), digest_size=8).hexdigest()
                    heldout.append({**row, "digest": digest})
                    counts["heldout_words"] += len(words)
                else:
                    train.append({**row, "words": len(words)})
            counts["heldout_documents"] += len(heldout)
            if heldout:
                heldout_table.write_table(pa.Table.from_pylist(heldout, _HELDOUT_SCHEMA))
            if train:
                spool_table.write_table(pa.Table.from_pylist(train, _SPOOL_SCHEMA))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents so that a group fits in memory whatever their length."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _spooled(spool: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(spool)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _spooled_documents(spool: Path) -> int:
    return sum(batch.num_rows for batch in _spooled(spool))


def _texts(spool: Path) -> Iterator[str]:
    for batch in _spooled(spool):
        yield from batch["text"].to_pylist()


def _tokenize(spool: Path, ours: Tokenizer, place: Path, counts: Counter[str], progress: Progress) -> None:
    """Tokenize the spool into the token files and the table of documents."""
    last = time.monotonic()
    with (
        tokens.TokenWriter(place / TRAIN, ours.vocab_size, ours.eod) as writer,
        pq.ParquetWriter(place / DOCUMENTS, _DOCUMENTS_SCHEMA, compression="zstd") as table,
    ):
        for batch in _spooled(spool):
            texts = batch["text"].to_pylist()
            encoded = ours.encode_batch(texts)
            kept = [number for number, ids in enumerate(encoded) if len(ids)]
            counts["tokenless_dropped"] += len(encoded) - len(kept)
            writer.add([encoded[number] for number in kept])
            columns = batch.select(["source", "row", "words"]).take(pa.array(kept, pa.int64()))
            lengths = pa.array([len(encoded[number]) + 1 for number in kept], pa.int32())
            table.write_batch(
                pa.RecordBatch.from_arrays([*columns.columns, lengths], schema=_DOCUMENTS_SCHEMA)
            )
            counts["train_words"] += sum(columns["words"].to_pylist())
            counts["train_bytes"] += sum(len(texts[number].encode()) for number in kept)
            if time.monotonic() - last > _REPORT_SECONDS:
                last = time.monotonic()
                progress(f"{writer.documents:,} documents, {writer.tokens:,} tokens")
        counts["train_documents"], counts["train_tokens"] = writer.documents, writer.tokens
