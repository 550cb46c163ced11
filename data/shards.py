"""Steps from sources to a corpus, each divided into shards that are written once and reused.

A shard is a run of the sources' parts; which ones depends on the sources alone. Under the work directory::

    read-00000/    documents.arrow (what passed the filters), keys.npy (to find duplicates), dropped.npy
    duplicates/    dropped.bin: a byte for each document of all shards
    tokenizer/     tokenizer.json, and which library encodes
    tokens-00000/  train.bin, train.idx, documents.parquet, heldout.parquet

Each is an artefact with a manifest of what it was made from: it is reused if that is unchanged, whoever made it and
whenever it was killed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from palimpsest.data import artifact, duplicates, encoder, sources, tokenizer, tokens
from palimpsest.data.artifact import Draft, Manifest
from palimpsest.data.contamination import DecontaminateConfig, Finder
from palimpsest.data.encoder import Encoder
from palimpsest.data.errors import UserError
from palimpsest.data.sources import Document, Part, SourceConfig
from palimpsest.data.tokenizer import Tokenizer, TokenizerConfig

TRAIN = "train"  # prefix of train.bin and train.idx
HELDOUT = "heldout.parquet"
DOCUMENTS = "documents.parquet"
SHUFFLED, STORED = "shuffled", "stored"
TOKEN_KINDS = ("megatron", "olmo")
READ, TOKENS, DUPLICATES, TOKENIZER = "read", "tokens", "duplicates", "tokenizer"
VERSION = 2

HELDOUT_SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "source", "row", "digest")])
"""Columns of held-out documents, one row per document: its text, the file or module it is from, its row there, and the
64-bit BLAKE2b digest of its text in hex."""
DOCUMENTS_SCHEMA = pa.schema(
    [("source", pa.string()), ("row", pa.string()), ("words", pa.int32()), ("tokens", pa.int32())]
)
"""Columns of training documents, one row per document of ``train.bin`` in its order; ``tokens`` counts the
end-of-document token, too."""
_SPOOL_SCHEMA = pa.schema(
    [
        *(("text", pa.string()), ("source", pa.string()), ("row", pa.string()), ("words", pa.int32())),
        *(("key", pa.binary(16)), ("ids", pa.list_(pa.int64()))),
    ]
)
_SPOOL, _KEYS, _DROPPED = "documents.arrow", "keys.npy", "dropped.npy"
_NEAR, _SPLIT = (
    "near.npy",
    "split.npy",
)  # bands of all documents, and the half of their keys that holds them out
_ALL_DROPPED = "dropped.bin"
_BATCH_CHARACTERS = 1 << 21  # about 100 bytes of memory a token while `tokenizers` holds a batch
_BATCH_DOCUMENTS = 1 << 14
_SMALLEST, _LARGEST, _SHARDS = 1 << 23, 1 << 30, 1 << 10  # bytes in a shard; shards to aim at
_SAMPLED = 16  # shards that the sample for the choice of the encoder comes from


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """Settings of a corpus: source, filters, tokenizer, held-out text."""

    source: SourceConfig
    order: str = SHUFFLED
    """``shuffled``; ``stored``: windows as they lie in the corpus; or the path of a file that lists window numbers
    (``data.stored``). Ready tokens are then taken over whole."""
    first_window: int = 0
    """Windows, or entries of that file, before the first that is read: of a released model, step times batch."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    heldout_fraction: float = 0.02
    """Share of the documents that neither tokenizer nor model sees, chosen by a hash of their text."""
    deduplicate: bool = True
    """Keep only the first of documents that are equal except for white space."""
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    heldout_apart: bool = True
    """Drop training documents that nearly equal a held-out one, so that no near copy of held-out text is trained on:
    MinHash as for ``near_duplicates``."""
    near_duplicates: bool = False
    """Drop documents that nearly equal an earlier one: MinHash over 5-word shingles, see ``data.duplicates``."""

    def __post_init__(self) -> None:
        self._check_order()
        if not 0 <= self.heldout_fraction < 1:
            raise UserError(f"corpus.heldout_fraction={self.heldout_fraction} must be at least 0 and below 1")
        if self.near_duplicates and not self.deduplicate:
            raise UserError(
                "corpus.near_duplicates=true needs corpus.deduplicate=true; equal documents are near duplicates, too"
            )

    def _check_order(self) -> None:
        if self.order == SHUFFLED and self.first_window:
            raise UserError(
                f"corpus.first_window={self.first_window} needs corpus.order=stored or a file of window numbers"
            )
        if self.first_window < 0:
            raise UserError(f"corpus.first_window={self.first_window} must be 0 or above")
        if not self.as_it_lies:
            return
        source = self.source
        for name, value, none in (
            ("heldout_fraction", self.heldout_fraction, 0),
            ("deduplicate", self.deduplicate, False),
            ("decontaminate.paths", list(self.decontaminate.paths), []),
            ("source.min_words", source.min_words, 0),
            ("source.max_words", source.max_words, None),
            ("source.keep", dict(source.keep), {}),
            ("source.languages", list(source.languages), []),
        ):
            if value != none:
                given, wanted = (json.dumps(one).replace('"', "") for one in (value, none))
                raise UserError(
                    f"corpus.{name}={given} leaves documents out, and the windows of corpus.order={self.order} would "
                    f"no longer be those of the files; set corpus.{name}={wanted}"
                )

    @property
    def as_it_lies(self) -> bool:
        """True if every document of tokenized files is kept as it is, so that the windows are those of the files."""
        return self.order != SHUFFLED and self.source.kind in TOKEN_KINDS

    @property
    def index_file(self) -> Path | None:
        """The file that lists window numbers."""
        return None if self.order in (SHUFFLED, STORED) else Path(self.order)

    @property
    def wanted(self) -> SourceConfig | None:
        """Source of the decontamination texts: documents that contain one are dropped; None without such texts."""
        rule = self.decontaminate
        if not rule.paths:
            return None
        return SourceConfig(kind="jsonl", paths=rule.paths, text_field=rule.text_field, min_words=0)

    @property
    def finds_like_heldout(self) -> bool:
        """True if training documents are compared with held-out ones (``near_duplicates`` does that, too)."""
        return self.heldout_apart and self.heldout_fraction > 0 and not self.near_duplicates


@dataclass(frozen=True, slots=True)
class Work:
    """Description of a corpus being made, identical in all processes that take part."""

    place: Path
    config: CorpusConfig
    shards: tuple[tuple[Part, ...], ...]

    @property
    def tokenizer_inputs(self) -> dict[str, str]:
        """Digest of the tokenizer file that ``corpus.tokenizer.path`` gives; empty without one."""
        return tokenizer.inputs(self.config.tokenizer)

    @property
    def heldout_limit(self) -> np.uint64:
        """Threshold of the first half of a document's key, below which the document is held out."""
        return np.uint64(int(self.config.heldout_fraction * 2**64))

    @property
    def wanted(self) -> SourceConfig | None:
        """Source of the decontamination texts: documents that contain one are dropped; None without such texts."""
        return self.config.wanted

    @property
    def wanted_inputs(self) -> dict[str, str]:
        """Digests of the files that hold them."""
        if self.wanted is None:
            return {}
        return {f"decontaminate {k}": v for k, v in sources.inputs(sources.split(self.wanted)).items()}

    def shard(self, step: str, number: int) -> Path:
        """Directory of a shard of a step."""
        return self.place / f"{step}-{number:05}"


def cut(parts: list[Part]) -> tuple[tuple[Part, ...], ...]:
    """Parts grouped into about a thousand shards, each of 8 MiB to 1 GiB if the parts' sizes allow it."""
    size = min(max(sum(part.size for part in parts) // _SHARDS, _SMALLEST), _LARGEST)
    shards: list[list[Part]] = []
    filled = 0
    for part in parts:
        if not shards or (filled and filled + part.size > size):
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += part.size
    return tuple(map(tuple, shards))


def _make(
    directory: Path, config: Mapping[str, Any], inputs: Mapping[str, str], fill: Callable[[Draft], None]
) -> Manifest:
    """The artefact in ``directory``, created by ``fill`` if it does not exist; only one process creates it."""
    kind = f"corpus {directory.name.partition('-')[0]}"
    settings = json.loads(json.dumps(config))
    with artifact.held(directory):
        done, _ = artifact.reuse(directory, kind=kind, schema_version=VERSION, config=settings, inputs=inputs)
        if done is not None:
            return done
        with artifact.writing(
            directory, kind=kind, schema_version=VERSION, config=settings, inputs=inputs
        ) as draft:
            fill(draft)
    assert draft.manifest is not None
    return draft.manifest


def finished(work: Work, step: str, number: int) -> bool:
    """True if this step has finished this shard, even if from other inputs than the present ones."""
    return (work.shard(step, number) / artifact.MANIFEST).is_file()


def _digest(directory: Path) -> str:
    """Digest of a step's artefact, from its manifest."""
    kind = f"corpus {directory.name.partition('-')[0]}"
    return artifact.read(directory, kind=kind, schema_version=VERSION).digest


# ---- read ----


def read(work: Work, number: int) -> Manifest:
    """Read a shard's parts; write the documents that pass the filters to ``documents.arrow``, and their keys to files
    next to it.

    Raises:
        UserError: if an input is damaged (naming file and row).
    """
    parts = work.shards[number]
    config = {
        "source": asdict(work.config.source),
        "parts": [asdict(part) for part in parts],
        "near_duplicates": work.config.near_duplicates,
        "like_heldout": work.config.finds_like_heldout,
    }
    if work.config.as_it_lies:
        config["as_it_lies"] = True

    def fill(draft: Draft) -> None:
        counts: Counter[str] = Counter()
        keys = [np.empty((0, 2), dtype=np.uint64)]
        near, owners, documents = list(keys), [np.empty(0, dtype=np.int64)], 0
        ready = work.config.source.kind in TOKEN_KINDS
        decoder = (
            tokenizer.build((), work.config.tokenizer)
            if ready and work.config.tokenizer.kind != "train"
            else None
        )
        whole = work.config.as_it_lies
        read = (
            d for part in parts for d in sources.read_part(work.config.source, part, counts, decoder, whole)
        )
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            pa.OSFile(str(draft.path / _SPOOL), "wb") as file,
            pa.ipc.new_file(file, _SPOOL_SCHEMA, options=options) as out,
        ):
            for batch in _batches(read):
                # Copies that differ in white space alone must not fall on both sides of the split.
                exact, words = zip(*(duplicates.key_of(document.text) for document in batch), strict=True)
                keys.append(np.frombuffer(b"".join(exact), dtype=">u8").reshape(-1, 2).astype(np.uint64))
                if work.config.near_duplicates or work.config.finds_like_heldout:
                    bands = [duplicates.near_keys(document.text) for document in batch]
                    near.extend(bands)
                    owners += [np.full(len(b), documents + k, dtype=np.int64) for k, b in enumerate(bands)]
                documents += len(batch)
                out.write_batch(_spooled(batch, words, exact))
        everything, owner = np.concatenate(keys), np.arange(documents, dtype=np.int64)
        if work.config.finds_like_heldout:
            duplicates.write_near(draft.path / _NEAR, np.concatenate(near), np.concatenate(owners))
            np.save(draft.path / _SPLIT, everything[:, 0])
        else:
            everything, owner = np.concatenate([everything, *near]), np.concatenate([owner, *owners])
        dropped = duplicates.write_keys(draft.path / _KEYS, everything, owner, documents)
        np.save(draft.path / _DROPPED, dropped)
        draft.facts.update(counts, documents=documents)

    return _make(work.shard(READ, number), config, sources.inputs(list(parts)) | work.tokenizer_inputs, fill)


def _spooled(batch: list[Document], words: Sequence[int], keys: Sequence[bytes]) -> pa.RecordBatch:
    ids, ready = pa.list_(pa.int64()), batch[0].ids is not None
    columns = [
        pa.array([d.text for d in batch], pa.string()),
        pa.array([d.source for d in batch], pa.string()),
        pa.array([d.row for d in batch], pa.string()),
        pa.array(words, pa.int32()),
        pa.array(keys, pa.binary(16)),
        pa.array([d.ids for d in batch], ids) if ready else pa.nulls(len(batch), ids),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SPOOL_SCHEMA)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups of documents that fit in memory for documents of any length."""
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


# ---- duplicates ----


def read_counts(work: Work) -> list[Counter[str]]:
    """Stored counts of every shard: ``documents`` that passed the filters, and those read and dropped, by reason."""
    kind = f"corpus {READ}"
    shards = range(len(work.shards))
    return [
        Counter(artifact.read(work.shard(READ, n), kind=kind, schema_version=VERSION).facts) for n in shards
    ]


def find_duplicates(work: Work) -> Manifest:
    """Mark every document to be dropped because it repeats one before it, in its own shard or another, or resembles a
    held-out one; the texts of all shards have been read by then.

    Returns:
        The manifest of a directory with one flag a document, in the order of the corpus.
    """
    config = {"deduplicate": work.config.deduplicate, "near_duplicates": work.config.near_duplicates}
    if work.config.finds_like_heldout:
        config["heldout_fraction"] = work.config.heldout_fraction  # type: ignore[assignment]
    places = [work.shard(READ, number) for number in range(len(work.shards))]

    def fill(draft: Draft) -> None:
        counts = [shard["documents"] for shard in read_counts(work)]
        if not (total := sum(counts)):
            (draft.path / _ALL_DROPPED).write_bytes(b"")
            return
        dropped = np.memmap(draft.path / _ALL_DROPPED, dtype=np.uint8, mode="w+", shape=(total,))
        if work.config.deduplicate:
            start = 0
            for place, count in zip(places, counts, strict=True):
                dropped[start : start + count] = np.load(place / _DROPPED)
                start += count
            duplicates.across([place / _KEYS for place in places], counts, dropped)
        if work.config.finds_like_heldout:
            duplicates.like_heldout([p / _NEAR for p in places], counts, _heldout(work, counts), dropped)
        dropped.flush()

    return _make(work.place / DUPLICATES, config, {p.name: _digest(p) for p in places}, fill)


def _heldout(work: Work, counts: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Flags of held-out documents, (documents,) bool, by their keys; copies are included."""
    return np.concatenate(
        [np.load(work.shard(READ, number) / _SPLIT) < work.heldout_limit for number in range(len(counts))]
    )


def _dropped(work: Work, number: int) -> npt.NDArray[np.uint8]:
    counts = [int(shard["documents"]) for shard in read_counts(work)[: number + 1]]
    if not counts[-1]:
        return np.empty(0, dtype=np.uint8)
    return np.fromfile(
        work.place / DUPLICATES / _ALL_DROPPED, dtype=np.uint8, count=counts[-1], offset=sum(counts[:-1])
    )


# ---- what is left: training documents and held-out ones ----


@dataclass(frozen=True, slots=True)
class _Kept:
    """Batch of a shard's documents without duplicates."""

    train: pa.RecordBatch
    heldout: pa.RecordBatch


def _kept(work: Work, number: int) -> Iterator[_Kept]:
    """Batches of a shard without duplicates, split by a hash of the words."""
    dropped, start = _dropped(work, number), 0
    with pa.memory_map(str(work.shard(READ, number) / _SPOOL)) as file:
        reader = pa.ipc.open_file(file)
        for place in range(reader.num_record_batches):
            batch = reader.get_batch(place)
            keep = dropped[start : start + batch.num_rows] == 0
            start += batch.num_rows
            held = _key_half(batch, 0) < work.heldout_limit
            yield _Kept(batch.filter(pa.array(keep & ~held)), batch.filter(pa.array(keep & held)))


def _key_half(batch: pa.RecordBatch, half: int) -> npt.NDArray[np.uint64]:
    """First or second 64 bits of the documents' keys: (D,) uint64."""
    column = batch["key"]
    raw = np.frombuffer(column.buffers()[1], dtype=">u8")[2 * column.offset :][: 2 * len(column)]
    return raw.reshape(-1, 2)[:, half].astype(np.uint64)


def _training_texts(work: Work) -> Iterator[str]:
    """Training text of the tokenizer: all documents or, if these are too many, a sample drawn by a hash of their
    words.
    """
    sizes = sum(part.size for shard in work.shards for part in shard)
    share = work.config.tokenizer.train_megabytes * 1e6 / max(sizes, 1)
    for number in range(len(work.shards)):
        for shard in _kept(work, number):
            batch = shard.train
            if share < 1:
                batch = batch.filter(pa.array(_key_half(batch, 1) < np.uint64(int(share * 2**64))))
            yield from batch["text"].to_pylist()


# ---- tokenizer ----


def make_tokenizer(work: Work) -> Manifest:
    """Train or load the tokenizer, and choose the library that encodes.

    Raises:
        UserError: if there is nothing to train on, or the tokenizer is unsuitable.
    """
    config = asdict(work.config.tokenizer) | {"heldout_fraction": work.config.heldout_fraction}
    inputs = {"duplicates": _digest(work.place / DUPLICATES), **work.tokenizer_inputs}

    def fill(draft: Draft) -> None:
        numbers = np.unique(np.linspace(0, len(work.shards) - 1, _SAMPLED).astype(int)).tolist()
        firsts = [next((k for k in _kept(work, n) if k.train.num_rows), None) for n in numbers]
        texts = encoder.sample([batch.train["text"].to_pylist() for batch in firsts if batch is not None])
        if not texts and next(_training_texts(work), None) is None:
            raise _all_held_out(work)
        ours = tokenizer.build(_training_texts(work), work.config.tokenizer)
        ours.save(draft.path / tokenizer.FILE)
        library, reason = encoder.choose(ours, texts)
        draft.facts.update(library=library, reason=reason, version=encoder.version(library))
        draft.facts.update(vocab_size=ours.vocab_size, eod=ours.eod, digest=ours.digest)

    return _make(work.place / TOKENIZER, config, inputs, fill)


def _all_held_out(work: Work) -> UserError:
    counts = sum(read_counts(work), Counter())
    if not counts["documents"]:
        return sources.nothing(work.config.source, counts)
    return UserError(
        f"the corpus has no training documents: all {counts['documents']} are held out by "
        f"corpus.heldout_fraction={work.config.heldout_fraction}, like held-out ones (corpus.heldout_apart) or "
        "duplicates; lower corpus.heldout_fraction or add text"
    )


# ---- tokens ----


def tokenize(work: Work, number: int) -> Manifest:
    """Tokenize a shard, and write its token files, its table of documents and its held-out texts.

    Raises:
        UserError: if a source of tokens (``token_files``) has one outside the vocabulary.
    """
    tokenizer_manifest = artifact.read(
        work.place / TOKENIZER, kind=f"corpus {TOKENIZER}", schema_version=VERSION
    )
    config = {
        "heldout_fraction": work.config.heldout_fraction,
        "library": tokenizer_manifest.facts["version"],
        "decontaminate": asdict(work.config.decontaminate),
    }
    inputs = {
        **work.wanted_inputs,
        "read": _digest(work.shard(READ, number)),
        "duplicates": _digest(work.place / DUPLICATES),
        "tokenizer": tokenizer_manifest.digest,
    }

    def fill(draft: Draft) -> None:
        path = work.place / TOKENIZER / tokenizer.FILE
        ours, fast = _loaded(
            path, work.config.tokenizer.eod, tokenizer_manifest.facts["library"], tokenizer_manifest.digest
        )
        marks = _dropped(work, number)
        counts = Counter(
            duplicates_dropped=int((marks == duplicates.EXACT).sum()),
            near_duplicates_dropped=int((marks == duplicates.NEAR).sum()),
            like_heldout_dropped=int((marks == duplicates.LIKE_HELDOUT).sum()),
        )
        with (
            tokens.TokenWriter(draft.path / TRAIN, ours.vocab_size, ours.eod) as writer,
            pq.ParquetWriter(draft.path / DOCUMENTS, DOCUMENTS_SCHEMA, compression="zstd") as table,
            pq.ParquetWriter(draft.path / HELDOUT, HELDOUT_SCHEMA, compression="zstd") as heldout,
        ):
            finder = _finder(work, ours)
            encode: Encoder | None = None
            for batch in _kept(work, number):
                _hold_out(batch.heldout, heldout, counts)
                if not batch.train.num_rows:
                    continue
                if encode is None:
                    encode, counts["shards_by_tokenizers"] = _encoder(ours, fast, batch.train)
                _write_tokens(batch.train, encode, finder, writer, table, counts)
            counts["train_documents"], counts["train_tokens"] = writer.documents, writer.tokens
        draft.facts.update(counts)

    return _make(work.shard(TOKENS, number), config, inputs, fill)


@lru_cache(maxsize=1)
def _loaded(path: Path, eod: str, library: str, digest: str) -> tuple[Tokenizer, Encoder]:
    """The corpus's tokenizer and encoder, loaded once for all shards of a process."""
    del digest  # of the file: part of the key alone
    ours = tokenizer.load(path, eod)
    return ours, Encoder(ours, library)


def _encoder(ours: Tokenizer, chosen: Encoder, batch: pa.RecordBatch) -> tuple[Encoder, int]:
    """Encoder of a shard: that of the corpus, unless gigatoken fails on a sample of the shard. Also returns 1 if it
    failed, else 0.
    """
    if chosen.library == "gigatoken":
        texts = encoder.sample([batch["text"].to_pylist()], encoder.SAMPLE_CHARACTERS // 16)
        if encoder.disagreement(chosen, ours, texts) is not None:
            return Encoder(ours, "tokenizers"), 1
    return chosen, 0


def _finder(work: Work, ours: Tokenizer) -> Finder | None:
    if work.wanted is None:
        return None
    texts = [document.text for document in sources.read(work.wanted)]
    return Finder(ours.encode_batch(texts), work.config.decontaminate)


def _hold_out(batch: pa.RecordBatch, table: pq.ParquetWriter, counts: Counter[str]) -> None:
    if batch.num_rows:
        texts = batch["text"].to_pylist()
        digests = pa.array([blake2b(text.encode(), digest_size=8).hexdigest() for text in texts])
        columns = [batch["text"], batch["source"], batch["row"], digests]
        table.write_batch(pa.RecordBatch.from_arrays(columns, schema=HELDOUT_SCHEMA))
        counts["heldout_documents"] += batch.num_rows
        counts["heldout_words"] += int(np.sum(batch["words"].to_numpy(), dtype=np.int64))


def _write_tokens(
    batch: pa.RecordBatch,
    encode: Encoder,
    finder: Finder | None,
    writer: tokens.TokenWriter,
    table: pq.ParquetWriter,
    counts: Counter[str],
) -> None:
    """Tokenize a batch into the token files and the table of documents."""
    if batch["ids"].null_count == 0:  # ready tokens are taken as they are
        ids: npt.NDArray[np.integer[Any]] = batch["ids"].flatten().to_numpy()
        lengths = batch["ids"].value_lengths().to_numpy().astype(np.int64)
    else:
        ids, lengths = encode.encode(batch["text"].to_pylist())
    some = lengths > 0
    counts["tokenless_dropped"] += int((~some).sum())
    if finder is not None:
        texts, documents = finder.find(ids, np.cumsum(lengths))
        counts["contaminations_found"] += len(texts)
        clean = np.ones(len(lengths), dtype=bool)
        clean[documents] = False
        counts["contaminated_dropped"] += int((some & ~clean).sum())
        ids, some = ids[np.repeat(clean, lengths)], some & clean
    batch, lengths = batch.filter(pa.array(some)), lengths[some]
    if not len(lengths):
        return
    try:
        writer.add_flat(ids, lengths)
    except UserError as error:
        raise UserError(f"{batch['source'][0]} at or after row {batch['row'][0]}: {error}") from None
    columns = [batch["source"], batch["row"], batch["words"], pa.array(lengths + 1, pa.int32())]
    table.write_batch(pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS_SCHEMA))
    counts["train_words"] += int(np.sum(batch["words"].to_numpy(), dtype=np.int64))
    counts["train_bytes"] += _bytes(batch["text"])


def _bytes(texts: pa.StringArray) -> int:
    """UTF-8 bytes of an array of strings."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset :][: len(texts) + 1]
    return int(offsets[-1] - offsets[0])
