"""Settings and parts of a source, and the filters that every document passes.

A reader of a kind gives two functions. ``split`` cuts the source into parts, in the order of the corpus and by
nothing but the source itself; ``read`` gives the documents of one part. Parts are what worker processes and the
tasks of a SLURM array share out, so the corpus does not depend on how many of them there are.
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
    """One text of the corpus and where it was found."""

    text: str
    source: str
    """File or module, independent of where the project or the environment lies on disk."""
    row: str
    """Qualified name inside the source, or 1-based line number."""
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The whole row, for the filters."""
    ids: npt.NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """Ready token ids (tokens,) without the end-of-document token; ``text`` is then decoded from them."""


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
    """Digest of the whole file; empty where there is none."""
    label: str = ""
    """Name of the file that documents carry: its path below the directory that all files of the source share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Settings of a source of documents."""

    kind: str
    """``installed_docs``, ``jsonl``, ``text``, ``parquet``, ``datasets``, ``megatron`` or ``olmo``."""
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
    packages: bool = True
    """``installed_docs``: read the packages installed beside the standard library, too."""
    documents: str = "file"
    """``text``: what is a document: a ``file``, a ``line``, a ``paragraph`` (blank lines end it), or what begins at a
    line that matches ``pattern``."""
    pattern: str | None = None
    """``text``: regular expression of a document's first line."""
    dataset_name: str | None = None
    """``datasets``: the configuration of a data set on the hub."""
    dataset_split: str = "train"
    """``datasets``: the split."""
    revision: str | None = None
    """``datasets``: commit or tag on the hub; what is read there can change without it."""
    streaming: bool = False
    """``datasets``: read from the hub without keeping a copy."""
    files: str = ""
    """``datasets``: pattern of the files below a directory in ``paths`` that is a local copy, such as
    ``en/c4-train.*.json.gz``. With such directories the source is of their kind, ``parquet`` or ``jsonl``."""
    max_files: int | None = None
    """Read the first so many files (of a streamed data set: shards) alone."""
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
                "id that ends a document, and nothing else has one"
            )
        if (self.documents == "pattern") != (self.pattern is not None):
            raise UserError(
                f"corpus.source.pattern={self.pattern!r} does not go with corpus.source.documents={self.documents}; "
                "documents=pattern needs a pattern, and nothing else has one"
            )

    def _take_copies(self) -> None:
        """Become a source of files where the paths are local copies of a data set."""
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
                f"corpus.source.max_files={self.max_files} must be 1 or more, and goes with files and with "
                "corpus.source.streaming=true"
            )


def _is_copy(path: str) -> bool:
    """True for a directory of a data set's files (not of ``save_to_disk``), and for what is no name on the hub."""
    made = any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return not made and (Path(path).is_dir() or path.startswith(("/", ".", "~")))


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | bool) else value


@dataclass(frozen=True, slots=True)
class Reader:
    """The two functions of a kind."""

    split: Callable[[SourceConfig, int], list[Part]]
    """Config, worker threads -> the parts in the order of the corpus."""
    read: Callable[[SourceConfig, Part, Counter[str]], Iterator[Document]]
    """The documents of a part, unfiltered; counts ``files_read``, ``files_skipped`` and ``bad_dropped``."""
    suffixes: tuple[str, ...] = ()
    """Of the files to look for in a directory."""


READERS: dict[str, Reader] = {}
"""Every kind of source."""


def split(config: SourceConfig, workers: int = 1) -> list[Part]:
    """The parts of a source in the order of the corpus.

    Files are read through once, for their digests and to number the lines of what is cut.

    Args:
        config: what to read.
        workers: threads to read with.

    Raises:
        UserError: if a path leads to nothing, or a file cannot be read.
    """
    parts = READERS[config.kind].split(config, workers)
    if config.kind not in FILE_KINDS:
        return parts
    labels = _labels(list(dict.fromkeys(part.path for part in parts)))
    return [replace(part, label=labels[part.path]) for part in parts]


def _labels(paths: list[str]) -> dict[str, str]:
    """Path of each file below the directory that all of them share: independent of where that lies."""
    whole = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - links stay as they are
    shared = os.path.commonpath([os.path.dirname(path) for path in whole]) if whole else ""  # noqa: PTH120
    return {path: Path(full).relative_to(shared).as_posix() for path, full in zip(paths, whole, strict=True)}


def inputs(parts: list[Part]) -> dict[str, str]:
    """Digest of each file, by its number in the corpus: contents name a corpus, not paths.

    Installed documentation has none: what was extracted once is a snapshot, and stays valid when another
    package is installed later.
    """
    digests = {part.path: part.digest for part in parts if part.digest}
    return {f"file {number}": digest for number, digest in enumerate(digests.values())}


def read_part(
    config: SourceConfig, part: Part, counts: Counter[str], tokenizer: Tokenizer | None = None
) -> Iterator[Document]:
    """The documents of a part that pass the filters, in their stable order.

    Args:
        config: what to read.
        part: one of ``split(config)``.
        counts: is filled with ``files_read``, ``files_skipped``, ``documents_read`` and, for each reason,
            ``..._dropped``. A document dropped is also one read.
        tokenizer: that made them, for sources of ready tokens.

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
            document = _decoded(document, document.ids, tokenizer)
        if (reason := _unwanted(document, config, languages)) is not None:
            counts[f"{reason}_dropped"] += 1
        else:
            source = part.label or document.source
            yield Document(document.text, source, document.row, document.fields, document.ids)


def _decoded(document: Document, ids: npt.NDArray[np.int64], tokenizer: Tokenizer) -> Document:
    if len(ids) and ids[-1] == tokenizer.eod:
        ids = ids[:-1]
    where = f"{document.source} document {document.row}"
    try:
        text = tokenizer.decode(ids)
    except UserError as error:
        raise UserError(f"{where}: {error}; set corpus.tokenizer to the one that made these tokens") from None
    if (ids == tokenizer.eod).any():
        raise UserError(
            f"{where}: holds the end-of-document id {tokenizer.eod} before its end; set corpus.tokenizer.eod to the "
            "token that ends documents here"
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
                f"{document.source} row {document.row}: has no field {name!r}{known}; mend corpus.source.keep or "
                "corpus.source.language_field"
            )
        value = value[key]
    return value


def read(
    config: SourceConfig, counts: Counter[str] | None = None, tokenizer: Tokenizer | None = None
) -> Iterator[Document]:
    """Every document that passes the filters, one part after the other, in this process.

    Raises:
        UserError: if an input is damaged, or nothing is left to read.
    """
    counts = Counter() if counts is None else counts
    kept = False
    for part in split(config):
        for document in read_part(config, part, counts, tokenizer):
            kept = True
            yield document
    if not kept:
        raise nothing(config, counts)


def nothing(config: SourceConfig, counts: Mapping[str, int]) -> UserError:
    """Error line for a source that has no documents left."""
    dropped = ", ".join(
        f"{v} {k.replace('_', ' ')}" for k, v in counts.items() if k.endswith("_dropped") and v
    )
    return UserError(
        f"the corpus is empty: corpus.source.kind={config.kind} corpus.source.paths={list(config.paths)} holds "
        f"{counts.get('documents_read', 0)} documents, none of at least corpus.source.min_words={config.min_words} "
        f"words that passes the other filters ({dropped or 'none dropped'}); give other paths or relax them"
    )


def files(config: SourceConfig) -> list[Path]:
    """The files behind ``config.paths``, each once, in their stable order.

    Raises:
        UserError: naming the path that leads to no file.
    """
    suffixes = READERS[config.kind].suffixes
    found = dict.fromkeys(chain.from_iterable(_expand(path, suffixes) for path in config.paths))
    return list(found)[: config.max_files]


def all_files(config: SourceConfig) -> list[Path]:
    """As ``files``, with those that lie beside them: of Megatron's ``.idx``, the ``.bin``."""
    paths = files(config)
    if config.kind != "megatron":
        return paths
    prefixes = [path.with_name(path.name.removesuffix(".bin").removesuffix(".idx")) for path in paths]
    return [prefix.with_name(prefix.name + end) for prefix in prefixes for end in (".bin", ".idx")]


def _expand(text: str, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = [f for f in path.rglob("*") if f.is_file() and f.name.endswith(suffixes)]
        hint = f"; it holds no {', '.join(suffixes[:8])}{', ...' if len(suffixes) > 8 else ''}"
    elif path.is_file():
        return [path]
    elif any(sign in text for sign in "*?["):
        anchor = Path(path.anchor)  # Path().glob refuses absolute patterns
        found = [f for f in anchor.glob(str(path.relative_to(anchor))) if f.is_file()]
        hint = "; the pattern matches no file"
    elif ".idx" in suffixes and (prefixes := [Path(f"{text}{end}") for end in (".idx", ".bin")])[0].is_file():
        return [prefixes[0]]
    elif ".idx" in suffixes and prefixes[1].is_file():
        raise UserError(f"corpus.source.paths: {prefixes[1]} has no index; put {prefixes[0].name} beside it")
    else:
        raise UserError(f"corpus.source.paths: {text} does not exist (relative paths start at {Path.cwd()})")
    if not found:
        raise UserError(f"corpus.source.paths: nothing to read in {text}{hint}")
    return sorted(found, key=lambda f: f.as_posix())
