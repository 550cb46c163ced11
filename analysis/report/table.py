"""A table of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; the template escapes every cell."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: frozenset[int] = frozenset({0})
    """Columns with text, which are aligned left; the others hold numbers."""
    deciding: frozenset[int] = frozenset()
    """Columns that the verdict is based on, shown in bold."""
    note: str = ""
    """Note under the table."""
