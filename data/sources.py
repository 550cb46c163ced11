"""Where documents come from: readers by kind, each giving them in an order that depends on nothing local."""

from __future__ import annotations

import ast
import gzip
import inspect
import json
import logging
import multiprocessing
import os
import sysconfig
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import zstandard

from data.artifact import file_digest
from data.errors import UserError, nearest

_log = logging.getLogger(__name__)

Progress = Callable[[str], None]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_BLOCK = 1 << 20  # bytes read at a time
_CHUNK = 24  # Python files handed to a worker at a time: short enough to balance, long enough to amortise
_TESTS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"})
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus and where it was found."""

    text: str
    source: str
    """File or module, independent of where the project or the environment lies on disk."""
    row: str
    """Qualified name inside the source, or 1-based line number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """What to read."""

    kind: str
    """A registered reader: ``installed_docs`` or ``jsonl``."""
    paths: tuple[str, ...] = ()
    """``jsonl``: files, globs or directories, read in this order (sorted inside a glob or directory)."""
    text_field: str = "text"
    """``jsonl``: the field that holds the text."""
    min_words: int = 20
    """Documents of fewer words (separated by white space) are dropped and counted."""
    packages: bool = True
    """``installed_docs``: read the packages installed beside the standard library, too."""

    def __post_init__(self) -> None:
        if self.kind not in _READERS:
            raise UserError(f"corpus.source.kind={self.kind!r} is unknown{nearest(self.kind, _READERS)}")
        if isinstance(self.paths, str):  # type: ignore[unreachable]
            raise UserError(f"corpus.source.paths={self.paths!r} is one string; give a list: [{self.paths}]")
        object.__setattr__(self, "paths", tuple(map(str, self.paths)))
        if self.kind == "jsonl" and not self.paths:
            raise UserError(
                "corpus.source.paths=[] is empty; corpus.source.kind=jsonl needs at least one file, glob or directory"
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


Reader = Callable[[SourceConfig, int, Progress, Counter[str]], Iterator[Document]]
_READERS: dict[str, Reader] = {}


def reader(kind: str) -> Callable[[Reader], Reader]:
    """Register a reader under ``SourceConfig.kind``. It filters nothing by length; ``read`` does."""

    def register(function: Reader) -> Reader:
        _READERS[kind] = function
        return function

    return register


def read(
    config: SourceConfig, workers: int, progress: Progress, counts: Counter[str] | None = None
) -> Iterator[Document]:
    """Read the documents in their stable order.

    Args:
        config: what to read.
        workers: processes to read with, at least 1.
        progress: gets short lines for a person.
        counts: if given, is filled with ``files_read``, ``files_skipped``, ``documents_read``,
            ``empty_dropped`` and ``short_dropped``. A document dropped is also one read.

    Raises:
        UserError: if nothing is there to read, or an input is damaged (naming file and row).
    """
    if workers < 1:
        raise UserError(f"workers={workers} is not possible; use at least 1")
    counts = Counter() if counts is None else counts
    kept = False
    for document in _READERS[config.kind](config, workers, progress, counts):
        counts["documents_read"] += 1
        if not document.text.strip():
            counts["empty_dropped"] += 1
        elif len(document.text.split(None, config.min_words)) < config.min_words:
            counts["short_dropped"] += 1
        else:
            kept = True
            yield document
    if not kept:
        raise UserError(
            f"the corpus is empty: corpus.source.kind={config.kind} corpus.source.paths={list(config.paths)} holds "
            f"{counts['documents_read']} documents, none of at least corpus.source.min_words={config.min_words} "
            "words; give other paths or lower it"
        )


def inputs(config: SourceConfig) -> dict[str, str]:
    """Path -> digest of each file that ``config.paths`` names.

    Installed documentation has none: what was extracted once is a snapshot, and stays valid when another
    package is installed later.

    Raises:
        UserError: if a path leads to nothing.
    """
    return {str(path): file_digest(path) for path in files(config)}


def files(config: SourceConfig) -> list[Path]:
    """The files behind ``config.paths``, each once, in their stable order.

    Raises:
        UserError: naming the path that leads to no file.
    """
    return list(dict.fromkeys(chain.from_iterable(_expand(path) for path in config.paths)))


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = [f for f in path.rglob("*") if f.is_file() and f.name.endswith(_SUFFIXES)]
        hint = f"; it holds no {', '.join(_SUFFIXES)}"
    elif path.is_file():
        return [path]
    elif any(sign in text for sign in "*?["):
        anchor = Path(path.anchor)  # Path().glob refuses absolute patterns
        found = [f for f in anchor.glob(str(path.relative_to(anchor))) if f.is_file()]
        hint = "; the pattern matches no file"
    else:
        raise UserError(f"corpus.source.paths: {text} does not exist (relative paths start at {Path.cwd()})")
    if not found:
        raise UserError(f"corpus.source.paths: nothing to read in {text}{hint}")
    return sorted(found, key=lambda f: f.as_posix())


@reader("jsonl")
def _read_jsonl(
    config: SourceConfig, workers: int, progress: Progress, counts: Counter[str]
) -> Iterator[Document]:
    """One JSON object a line; blank lines are no rows."""
    del workers  # one pass over a file does not split; issue 5 reads files side by side
    for path in files(config):
        progress(f"reading {path}")
        counts["files_read"] += 1
        for number, line in enumerate(_lines(_blocks(path)), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield Document(_text(line, config.text_field, f"{path} row {number}"), str(path), str(number))


def _text(line: bytes, field: str, where: str) -> str:
    """The text in one row.

    Raises:
        UserError: starting with ``where``.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); write one JSON object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds a {type(row).__name__}, not an object; write one JSON object a line")
    if field not in row:
        raise UserError(f"{where}: has no field {field!r}{nearest(field, row)}; set source.text_field")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} holds a {type(text).__name__}, not a string; mend it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds a lone surrogate at character {error.start}, which no "
            "tokenizer can take; remove it"
        ) from None
    return text


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Split blocks of bytes at newlines; a line of any length costs its own length once."""
    head: list[bytes] = []
    for block in blocks:
        first, *rest = block.split(b"\n")
        head.append(first)
        if rest:
            yield b"".join(head)
            yield from rest[:-1]
            head = [rest[-1]]
    if last := b"".join(head):
        yield last


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed by its suffix.

    Raises:
        UserError: if it cannot be read, or its archive is corrupt or cut off.
    """
    try:
        if path.suffix == ".zst":
            yield from _zstd_blocks(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"{path}: corrupt archive ({error}); fetch or compress it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    # Not stream_reader: it takes a cut-off frame for the end of the file, and documents would go missing.
    with path.open("rb") as file:
        frame = None
        while block := file.read(_BLOCK):
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame is not None:
            raise EOFError("it ends inside a frame")


@reader("installed_docs")
def _read_docs(
    config: SourceConfig, workers: int, progress: Progress, counts: Counter[str]
) -> Iterator[Document]:
    """Docstrings of the running Python's standard library and, if asked for, of its site-packages."""
    sources = _python_files(config.packages)
    chunks = [sources[start : start + _CHUNK] for start in range(0, len(sources), _CHUNK)]
    progress(f"reading the documentation in {len(sources)} Python files with {workers} workers")
    for number, (documents, skipped) in enumerate(_extract_all(chunks, workers), start=1):
        yield from documents
        counts["files_read"] += len(chunks[number - 1]) - len(skipped)
        counts["files_skipped"] += len(skipped)
        for reason in skipped:
            _log.info("skipped: %s", reason)
        if number % 100 == 0:
            progress(f"read {number * _CHUNK} of {len(sources)} files")
    if counts["files_skipped"]:
        progress(f"skipped {counts['files_skipped']} files that do not parse")


_Extract = tuple[list[Document], list[str]]


def _extract_all(chunks: list[list[tuple[str, str]]], workers: int) -> Iterator[_Extract]:
    if workers == 1:
        yield from map(_extract, chunks)
        return
    # spawn: the caller may have threads (torch, tokenizers), which a fork would copy in mid-step
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(_extract, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _python_files(packages: bool) -> list[tuple[str, str]]:
    """(name such as ``lib/json/decoder.py``, path) of each file, sorted by name; the library comes first."""
    roots = [("lib", sysconfig.get_path("stdlib"))]
    if packages:
        places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        roots += [("site-packages", place) for place in places]
    found: dict[str, str] = {}
    for label, root in roots:
        for directory, below, names in os.walk(root):
            below[:] = [name for name in below if name not in _TESTS]
            for name in names:
                if name.endswith(".py"):
                    path = Path(directory, name)
                    found.setdefault(f"{label}/{path.relative_to(root).as_posix()}", str(path))
    return sorted(found.items())


def _extract(chunk: list[tuple[str, str]]) -> _Extract:
    """Documents of some Python files in order, and a line for each file that does not parse."""
    documents: list[Document] = []
    skipped = []
    for name, path in chunk:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's code
                tree = ast.parse(Path(path).read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            skipped.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if name == "lib/pydoc_data/topics.py":
            documents += _topics(tree, name)
        for row, text in _docstrings(tree):
            # a docstring may spell a lone surrogate by its escape, which no UTF-8 can hold: "?" stands for it
            clean = text.encode("utf-8", "replace").decode() if not _is_unicode(text) else text
            documents.append(Document(inspect.cleandoc(clean), name, row))
    return documents, skipped


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of the module, then its classes and functions in order of appearance."""
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        node, scope = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                scope = f"{scope}.{node.name}" if scope else node.name
            if (text := ast.get_docstring(node, clean=False)) is not None:
                yield scope or "<module>", text
        inner = chain.from_iterable(getattr(node, block, ()) for block in _BLOCKS)
        # expressions and simple statements hold no definitions; lambdas have a body that is no list
        waiting += [(child, scope) for child in inner if hasattr(child, "body")][::-1]


def _topics(tree: ast.Module, name: str) -> list[Document]:
    """The language reference that ``help()`` shows: one document a topic."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return [Document(inspect.cleandoc(text), name, topic) for topic, text in topics.items()]
    return []
