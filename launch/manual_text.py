"""Markdown from docstrings and from comments of settings files, for the reference pages."""

from __future__ import annotations

import ast
import html
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$", re.MULTILINE)


def markdown(docstring: str | None) -> str:
    """A docstring's text as Markdown: code, references, lists and tables of reStructuredText are converted."""
    text = inspect.cleandoc(docstring or "")
    text = re.sub(r"^=[= ]+=\n.*?\n=[= ]+=\n(?:.*?\n=[= ]+=$)?", _table, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r":(?:func|mod|class|data|meth):`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return re.sub(r"(?<=[\w,:])\n((?:- |\* ))", r"\n\n\1", text)  # a list begins after an empty line


def _table(match: re.Match[str]) -> str:
    """A simple table of reStructuredText as one of Markdown."""
    head, *rows = match[0].splitlines()
    starts = [found.start() for found in re.finditer(r"=+", head)]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    cells: list[list[str]] = []
    for row in rows:
        if row.startswith("="):
            continue
        parts = [row[begin:end].strip() for begin, end in spans]
        if parts[0] or not cells:
            cells.append(parts)
        else:
            cells[-1] = [f"{above} {part}".strip() for above, part in zip(cells[-1], parts, strict=True)]
    return "\n".join(table(cells[0], cells[1:]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of Markdown."""
    lines = [head, ["---"] * len(head), *[[_cell(cell) for cell in row] for row in rows]]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    """A cell: one line, in which neither a ``|`` nor a ``<NAME>`` is taken for markup."""
    text = " ".join(text.split())
    text = re.sub(
        r"`([^`]*\|[^`]*)`", lambda span: f"<code>{html.escape(span[1], quote=False)}</code>", text
    ).replace("|", "&#124;")
    parts = re.split(r"(`[^`]*`|</?(?:code|br|a)\b[^>]*>)", text)
    return "".join(part if n % 2 else part.replace("<", "&lt;") for n, part in enumerate(parts))


def summary(docstring: str | None) -> str:
    """The first paragraph in one line."""
    return " ".join(markdown(docstring).split("\n\n")[0].split())


def body(docstring: str | None) -> str:
    """All paragraphs before the arguments."""
    return _SECTION.split(markdown(docstring))[0].strip()


def arguments(docstring: str | None) -> dict[str, str]:
    """Name -> meaning of each argument of a docstring."""
    parts = _SECTION.split(markdown(docstring))
    if "Args" not in parts:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(parts[parts.index("Args") + 1]).splitlines():
        if entry := re.match(r"(\w+): (.*)", line):
            name = entry[1]
            found[name] = entry[2]
        elif line.strip() and name:
            found[name] += f" {line.strip()}"
    return found


def documented(place: type | ModuleType) -> dict[str, str]:
    """Name -> docstring of each field of a class, or of each constant of a module: the string under it."""
    source = ast.parse(textwrap.dedent(inspect.getsource(place)))
    nodes = source.body
    if isinstance(place, type):
        assert isinstance(source.body[0], ast.ClassDef)
        nodes = source.body[0].body
    found: dict[str, str] = {}
    for node, after in pairwise(nodes):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        found |= dict.fromkeys(names, str(after.value.value))
    return found


def commented(path: Path) -> dict[str, str]:
    """Comments of a settings file: dotted name of the setting -> comment on its line."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if entry := re.match(r"( *)(\w+):(.*?)(?:(?<= )# (.*))?$", line):
            indent = len(entry[1])
            above = [*(part for part in above if part[0] < indent), (indent, entry[2])]
            last = ".".join(name for _, name in above)
            if entry[4]:
                found[last] = entry[4].strip()
        elif (more := re.match(r" +# (.*)$", line)) and last in found:
            found[last] += f" {more[1].strip()}"
    return found


def heading(path: Path) -> str:
    """The comment at the beginning of a settings file, in one line; empty if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:first])


def code(value: Any) -> str:
    """A value as it is typed on a command line, as code."""
    return f"`{typed(value)}`"


def typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}"
    return "null" if value is None else '""' if value == "" else str(value)
