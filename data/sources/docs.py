"""Source of the running Python's documentation: docstrings of the standard library and of installed packages."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from palimpsest.data.errors import UserError
from palimpsest.data.sources.base import READERS, Document, Part, Reader, SourceConfig

_log = logging.getLogger(__name__)

_CHUNK = 64  # Python files in a part
_TESTS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"})
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
_SEPARATOR = "\n"  # between the names in a part's path


def _split(config: SourceConfig, workers: int) -> list[Part]:
    del workers  # listing directories is quick
    files = _python_files(config.packages)
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    return [
        Part(_SEPARATOR.join(name for name, _ in chunk), size=sum(_size(path) for _, path in chunk))
        for chunk in chunks
    ]


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # it is gone or out of reach: reading it counts it as skipped
        return 0


def _read(config: SourceConfig, part: Part, counts: Counter[str]) -> Iterator[Document]:
    """Docstrings of the running Python's standard library and, optionally, of its site-packages."""
    roots = _roots(config.packages)
    for name in part.path.split(_SEPARATOR):
        documents, skipped = _extract(name, roots)
        if skipped is None:
            counts["files_read"] += 1
            yield from documents
        else:
            counts["files_skipped"] += 1
            _log.info("skipped: %s", skipped)


def _roots(packages: bool | tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of label and directory; the standard library comes first, and is left out if packages are named."""
    roots = [] if isinstance(packages, tuple) else [("lib", sysconfig.get_path("stdlib"))]
    if packages:
        places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        roots += [("site-packages", place) for place in places]
    return roots


def _python_files(packages: bool | tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of name (such as ``lib/json/decoder.py``) and path of each file, sorted by name; the standard library comes
    first.

    Raises:
        UserError: for a named package that is not installed.
    """
    named = packages if isinstance(packages, tuple) else ()
    roots = _roots(packages)
    places = [(label, root, root) for label, root in roots if not named]
    for name in named:
        owners = [(label, root) for label, root in roots if Path(root, name).is_dir()]
        if not owners:
            raise UserError(
                f"corpus.source.packages: the package {name} is not installed beside palimpsest; install it, or leave "
                "it out"
            )
        places += [(label, root, str(Path(root, name))) for label, root in owners]
    files: dict[str, str] = {}
    for label, root, top in places:
        for directory, below, names in os.walk(top):
            below[:] = [name for name in below if name not in _TESTS]
            for name in names:
                if name.endswith(".py"):
                    path = Path(directory, name)
                    files.setdefault(f"{label}/{path.relative_to(root).as_posix()}", str(path))
    return sorted(files.items())


def _extract(name: str, roots: list[tuple[str, str]]) -> tuple[list[Document], str | None]:
    """Documents of a Python file, in order; or no documents and the reason why the file cannot be parsed."""
    label, _, below = name.partition("/")
    path = next(
        (Path(r, below) for known, r in roots if known == label and Path(r, below).is_file()), Path(name)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [], f"{name}: {type(error).__name__}: {error}"
    documents = _topics(tree, name) if name == "lib/pydoc_data/topics.py" else []
    for row, text in _docstrings(tree):
        # a docstring may spell a lone surrogate by its escape, which no UTF-8 can hold: "?" stands for it
        clean = text.encode("utf-8", "replace").decode() if not _is_unicode(text) else text
        documents.append(Document(inspect.cleandoc(clean), name, row))
    return documents, None


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Pairs of qualified name and docstring: the module, then its classes and functions in order of appearance."""
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
    """The language reference of ``help()``, one document per topic."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return [Document(inspect.cleandoc(text), name, topic) for topic, text in topics.items()]
    return []


READERS["installed_docs"] = Reader(_split, _read)
