"""Settings and parts of a source, and the filters that every document passes.

The reader of a kind has two functions. ``split`` divides the source into parts, in the order of the corpus, depending
only on the source; ``read`` returns the documents of one part. Worker processes and tasks of a SLURM array share the
parts, so that the corpus does not depend on their number.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError, nearest
from palimpsest.data.tokenizer import Tokenizer

Progress = Callable[[str], None]

FILE_KINDS = ("jsonl", "text", "parquet", "megatron", "olmo")
_PATTERNS = ("file", "line", "paragraph", "pattern")
_DTYPES = ("uint16", "uint32", "int32", "int64")


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus and its origin."""

    text: str
    source: str
    """File or module, independent of the location of the project and the environment."""
    row: str
    """Qualified name inside the source, or 1-based line number."""
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The whole row, for the filters."""
    ids: npt.NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """Token ids, (tokens,), of a tokenized source without the end-of-document token; ``text`` is decoded from them."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a source that one process reads. The reader defines the unit of ``start`` and ``stop``."""

    path: str
    start: int = 0
    stop: int = 0
    row: int = 1
    """Number of the row at ``start``."""
    size: int = 0
    """Approximate bytes to read, for dividing the work."""
    digest: str = ""
    """Digest of the whole file; empty if there is none."""
    label: str = ""
    """Name of the file in its documents: its path relative to the common directory of the source's files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Settings of a source of documents."""

    kind: str
    """Kind of source: ``installed_docs``, ``jsonl``, ``text``, ``parquet``, ``datasets``, ``megatron`` or ``olmo``."""
    paths: tuple[str, ...] = ()
    """Files, globs or directories, read in this order (sorted inside a glob or directory). ``datasets``: directories
    made by ``save_to_disk``, or names on the hub."""
    text_field: str = "text"
    """``jsonl``, ``parquet``, ``datasets``: the field that holds the text; ``content.text`` reaches inside."""
    min_words: int = 20
    """Documents of fewer words (separated by white space) are dropped and counted."""
    max_words: int | None = None
    """Documents of more words are dropped and counted."""
    keep: Mapping[str, tuple[str | int | float | bool, ...]] = field(default_factory=dict)
    """Field (``meta.source`` reaches inside) -> the values to keep; documents with another are dropped and counted."""
    languages: tuple[str, ...] = ()
    """Language tags to keep; ``en`` keeps ``en-GB`` and ``EN_us``, too. Empty: all."""
    language_field: str = "language"
    """The field with the language tag; read if ``languages`` are given."""
    bad_rows: str = "refuse"
    """``refuse`` stops at a row that cannot be read; ``drop`` drops and counts it. Damaged files are always refused."""
    packages: bool | tuple[str, ...] = True
    """``installed_docs``: true reads the packages installed beside the standard library, too; names, such as ``scipy``:
    only these, without the standard library."""
    documents: str = "file"
    """``text``: unit of a document: a ``file``, a ``line``, a ``paragraph`` (ended by blank lines), or the lines from
    one that matches ``pattern`` to the next."""
    pattern: str | None = None
    """``text``: regular expression of a document's first line."""
    dataset_name: str | None = None
    """``datasets``: the configuration of a data set on the hub."""
    dataset_split: str = "train"
    """``datasets``: the split."""
    revision: str | None = None
    """``datasets``: commit or tag on the hub; without it, the data may change."""
    streaming: bool = False
    """``datasets``: read from the hub without keeping a copy."""
    files: str = ""
    """``datasets``: pattern of the files below a directory in ``paths`` that is a local copy, such as
    ``en/c4-train.*.json.gz``. With such directories the source is of their kind, ``parquet`` or ``jsonl``."""
    max_files: int | None = None
    """Number of files (of a streamed data set: shards) to read, the first ones; None: all."""
    token_dtype: str = "uint16"
    """``olmo``: dtype of headerless token files."""
    eod_id: int | None = None
    """``olmo``: id that ends a document in them."""

    def __post_init__(self) -> None:
        if self.kind not in READERS:
            raise UserError(f"corpus.source.kind={self.kind!r} is unknown{nearest(self.kind, READERS)}")
        for name in ("paths", "languages"):
            if isinstance(value := getattr(self, name), str):
                raise UserError(f"corpus.source.{name}={value!r} is one string; give a list: [{value}]")
            object.__setattr__(self, name, tuple(map(str, value)))
        self._take_copies()
        object.__setattr__(self, "keep", {key: tuple(map(str, _list(v))) for key, v in self.keep.items()})
        if self.kind in (*FILE_KINDS, "datasets") and not self.paths:
            raise UserError(
                f"corpus.source.paths=[] is empty; corpus.source.kind={self.kind} needs at least one file, glob or "
                "directory"
            )
        if self.kind == "installed_docs" and self.paths:
            raise UserError(
                f"corpus.source.paths={list(self.paths)} has no effect with installed_docs; "
                "set corpus.source.kind=jsonl"
            )
        if not self.text_field:
            raise UserError("corpus.source.text_field='' is empty; name the field that holds the text")
        if self.min_words < 0:
            raise UserError(f"corpus.source.min_words={self.min_words} is negative; 0 keeps every text")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(
                f"corpus.source.max_words={self.max_words} is below corpus.source.min_words={self.min_words}; "
                "raise it, or null for no limit"
            )
        for name, value, known in (
            ("bad_rows", self.bad_rows, ("refuse", "drop")),
            ("documents", self.documents, _PATTERNS),
            ("token_dtype", self.token_dtype, _DTYPES),
        ):
            if value not in known:
                raise UserError(f"corpus.source.{name}={value!r} is unknown{nearest(value, known)}")
        if (self.kind == "olmo") != (self.eod_id is not None):
            raise UserError(
                f"corpus.source.eod_id={self.eod_id} does not go with corpus.source.kind={self.kind}; olmo needs the "
                "id that ends a document, and other kinds must not have one"
            )
        if (self.documents == "pattern") != (self.pattern is not None):
            raise UserError(
                f"corpus.source.pattern={self.pattern!r} does not go with corpus.source.documents={self.documents}; "
                "documents=pattern needs a pattern, and other kinds must not have one"
            )

    def _take_copies(self) -> None:
        """Settings of a source of files if the paths are local copies of a data set."""
        if self.kind == "datasets" and self.files and self.paths and all(map(_is_copy, self.paths)):
            own = {
                "kind": "parquet" if self.files.endswith(".parquet") else "jsonl",
                "paths": tuple(f"{glob.escape(path)}/{self.files}" for path in self.paths),
                "dataset_name": None,
                "revision": None,
                "streaming": False,
            }
            for name, value in own.items():
                object.__setattr__(self, name, value)
        if self.max_files is not None and (
            self.max_files < 1 or not (self.kind in FILE_KINDS or self.streaming)
        ):
            raise UserError(
                f"corpus.source.max_files={self.max_files} must be 1 or more, and needs corpus.source.streaming=true "
                f"or a corpus.source.kind of files ({', '.join(FILE_KINDS)}); correct it, or set null for all files"
            )


def _is_copy(path: str) -> bool:
    """True for a directory of a data set's files (not of ``save_to_disk``), and for a path that cannot be a name on the
    hub.
    """
    saved = any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return not saved and (Path(path).is_dir() or path.startswith(("/", ".", "~")))


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | bool) else value


@dataclass(frozen=True, slots=True)
class Reader:
    """The two functions of a kind."""

    split: Callable[[SourceConfig, int], list[Part]]
    """Function from configuration and number of threads to the parts in the order of the corpus."""
    read: Callable[[SourceConfig, Part, Counter[str]], Iterator[Document]]
    """Function that reads the documents of a part, unfiltered, and counts ``files_read``, ``files_skipped`` and
    ``bad_dropped``."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of the files to read in a directory."""


READERS: dict[str, Reader] = {}
"""Kind of source -> its reader."""


def split(config: SourceConfig, workers: int = 1) -> list[Part]:
    """The parts of a source in the order of the corpus.

    Every file is read once, for its digest and for the line numbers of its parts.

    Args:
        config: settings of the source.
        workers: number of threads.

    Raises:
        UserError: if a path does not exist, or a file cannot be read.
    """
    parts = READERS[config.kind].split(config, workers)
    if config.kind not in FILE_KINDS:
        return parts
    labels = _labels(list(dict.fromkeys(part.path for part in parts)))
    return [replace(part, label=labels[part.path]) for part in parts]


def _labels(paths: list[str]) -> dict[str, str]:
    """Path of each file relative to their common directory."""
    whole = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - links stay as they are
    shared = os.path.commonpath([os.path.dirname(path) for path in whole]) if whole else ""  # noqa: PTH120
    return {path: Path(full).relative_to(shared).as_posix() for path, full in zip(paths, whole, strict=True)}


def inputs(parts: list[Part]) -> dict[str, str]:
    """Digest of each file by its index in the corpus, because a corpus is identified by contents, not by paths.

    Installed documentation has no digests: a corpus made from it is a snapshot, which stays valid when packages are
    installed later.
    """
    digests = {part.path: part.digest for part in parts if part.digest}
    return {f"file {number}": digest for number, digest in enumerate(digests.values())}


def read_part(
    config: SourceConfig,
    part: Part,
    counts: Counter[str],
    tokenizer: Tokenizer | None = None,
    whole: bool = False,
) -> Iterator[Document]:
    """The documents of a part that pass the filters, in their stable order.

    Args:
        config: settings of the source.
        part: one of ``split(config)``.
        counts: counter to which ``files_read``, ``files_skipped``, ``documents_read`` and, for each reason,
            ``..._dropped`` are added. Dropped documents also count as read.
        tokenizer: tokenizer of a tokenized source.
        whole: keep every document of a tokenized source, also one with end-of-document ids inside (a packed row).

    Raises:
        UserError: if an input is damaged (naming file and row).
    """
    languages = {tag.lower() for tag in config.languages}
    for document in READERS[config.kind].read(config, part, counts):
        counts["documents_read"] += 1
        if document.ids is not None:
            if tokenizer is None:
                raise UserError(
                    f"corpus.source.kind={config.kind} holds ready tokens; set corpus.tokenizer.kind=file or hub to "
                    "the tokenizer that made them"
                )
            document = _decoded(document, document.ids, tokenizer, whole)
            if whole:
                yield replace(document, source=part.label or document.source)
                continue
        if (reason := _unwanted(document, config, languages)) is not None:
            counts[f"{reason}_dropped"] += 1
        else:
            source = part.label or document.source
            yield Document(document.text, source, document.row, document.fields, document.ids)


def _decoded(document: Document, ids: npt.NDArray[np.int64], tokenizer: Tokenizer, whole: bool) -> Document:
    if len(ids) and ids[-1] == tokenizer.eod:
        ids = ids[:-1]
    where = f"{document.source} document {document.row}"
    try:
        text = tokenizer.decode(ids)
    except UserError as error:
        raise UserError(f"{where}: {error}; set corpus.tokenizer to the one that made these tokens") from None
    if whole and not (len(ids) and document.fields["ended"]):
        lacks = "is not ended by corpus.source.eod_id" if len(ids) else "has no tokens"
        raise UserError(
            f"{where}: {lacks}; unless corpus.order=shuffled, every document needs tokens, and the end-of-document id "
            "as its last one"
        )
    if not whole and (ids == tokenizer.eod).any():
        raise UserError(
            f"{where}: holds the end-of-document id {tokenizer.eod} before its end; set corpus.tokenizer.eod to the "
            "token that ends documents here, or corpus.order=stored for rows of packed documents"
        )
    return Document(text, document.source, document.row, document.fields, ids)


def _unwanted(document: Document, config: SourceConfig, languages: set[str]) -> str | None:
    if not document.text or document.text.isspace():
        return "empty"
    if config.min_words and len(document.text.split(None, config.min_words)) < config.min_words:
        return "short"
    if config.max_words is not None and len(document.text.split(None, config.max_words)) > config.max_words:
        return "long"
    if languages:
        tag = str(_field(document, config.language_field)).lower().replace("_", "-")
        if tag not in languages and tag.split("-")[0] not in languages:
            return "language"
    if any(str(_field(document, name)) not in values for name, values in config.keep.items()):
        return "unwanted"
    return None


def _field(document: Document, name: str) -> Any:
    value: Any = document.fields
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = nearest(key, value) if isinstance(value, Mapping) else ""
            raise UserError(
                f"{document.source} row {document.row}: has no field {name!r}{known}; correct corpus.source.keep or "
                "corpus.source.language_field"
            )
        value = value[key]
    return value


def read(
    config: SourceConfig, counts: Counter[str] | None = None, tokenizer: Tokenizer | None = None
) -> Iterator[Document]:
    """Every document that passes the filters, read in this process, part by part.

    Raises:
        UserError: if an input is damaged, or nothing is left to read.
    """
    counts = Counter() if counts is None else counts
    any_kept = False
    for part in split(config):
        for document in read_part(config, part, counts, tokenizer):
            any_kept = True
            yield document
    if not any_kept:
        raise nothing(config, counts)


def nothing(config: SourceConfig, counts: Mapping[str, int]) -> UserError:
    """Error text for a source without documents after filtering."""
    dropped = ", ".join(
        f"{v} {k.replace('_', ' ')}" for k, v in counts.items() if k.endswith("_dropped") and v
    )
    return UserError(
        f"the corpus is empty: corpus.source.kind={config.kind} corpus.source.paths={list(config.paths)} holds "
        f"{counts.get('documents_read', 0)} documents, none of at least corpus.source.min_words={config.min_words} "
        f"words that passes the other filters ({dropped or 'none dropped'}); give other paths or change these filters"
    )


def files(config: SourceConfig) -> list[Path]:
    """The files behind ``config.paths``, each once, in their stable order.

    Raises:
        UserError: naming a path without files.
    """
    suffixes = READERS[config.kind].suffixes
    paths = dict.fromkeys(chain.from_iterable(_expand(path, suffixes) for path in config.paths))
    return list(paths)[: config.max_files]


def all_files(config: SourceConfig) -> list[Path]:
    """As ``files``, with the files that belong to them, such as the ``.bin`` of Megatron's ``.idx``."""
    paths = files(config)
    if config.kind != "megatron":
        return paths
    prefixes = [path.with_name(path.name.removesuffix(".bin").removesuffix(".idx")) for path in paths]
    return [prefix.with_name(prefix.name + end) for prefix in prefixes for end in (".bin", ".idx")]


def _of_other_kinds(folder: Path) -> str:
    """Hint that names the kind of corpus that reads most of a directory's files; empty if none reads any."""
    names = [file.name for file in folder.rglob("*") if file.is_file()]
    readable = {kind: sum(name.endswith(READERS[kind].suffixes) for name in names) for kind in FILE_KINDS}
    kind = max(readable, key=lambda name: readable[name])
    return f"; corpus={kind} reads {readable[kind]} of its {len(names)} files" if readable[kind] else ""


def _expand(text: str, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        matches = [f for f in path.rglob("*") if f.is_file() and f.name.endswith(suffixes)]
        hint = f"; it holds no {', '.join(suffixes[:8])}{', ...' if len(suffixes) > 8 else ''}" + (
            "" if matches else _of_other_kinds(path)
        )
    elif path.is_file():
        return [path]
    elif any(sign in text for sign in "*?["):
        anchor = Path(path.anchor)  # Path().glob refuses absolute patterns
        matches = [f for f in anchor.glob(str(path.relative_to(anchor))) if f.is_file()]
        hint = "; the pattern matches no file"
    elif ".idx" in suffixes and (prefixes := [Path(f"{text}{end}") for end in (".idx", ".bin")])[0].is_file():
        return [prefixes[0]]
    elif ".idx" in suffixes and prefixes[1].is_file():
        raise UserError(f"corpus.source.paths: {prefixes[1]} has no index; put {prefixes[0].name} beside it")
    else:
        raise UserError(f"corpus.source.paths: {text} does not exist (relative paths start at {Path.cwd()})")
    if not matches:
        raise UserError(f"corpus.source.paths: nothing to read in {text}{hint}")
    return sorted(matches, key=lambda f: f.as_posix())
