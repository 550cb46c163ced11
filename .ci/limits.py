"""The limits of CONTRIBUTING that no linter knows: lines of a file and of a function. Run by ``make lint``."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE, FUNCTION = 600, 80
"""Largest number of lines, docstrings and comments included."""


def measured(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, lines and limit of a file and of each of its functions."""
    text = path.read_text(encoding="utf-8")
    yield str(path), len(text.splitlines()), FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield f"{path}:{node.name}", node.end_lineno - first + 1, FUNCTION


def main() -> int:
    """Print what is too long; 1 if there is anything."""
    listed = subprocess.run(["git", "ls-files", "*.py"], check=True, capture_output=True, text=True)
    paths = [path for name in listed.stdout.split() if (path := Path(name)).is_file()]
    wrong = [
        f"{name}: {lines} lines; at most {limit}"
        for path in paths
        for name, lines, limit in measured(path)
        if lines > limit
    ]
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
