"""Formatting of facts about the plan: single values as a list, nested values as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.analysis.report.answer import number
from palimpsest.analysis.report.table import Table

_SHOWN = 12
"""Largest number of printed entries of a list."""


def split_facts(facts: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[Table]]:
    """Facts as pairs of name and text, and facts as tables.

    A mapping of mappings becomes a table with one row per key, a list of mappings a table with one row per entry; other
    mappings are flattened. ``balance`` is left out, because the report has a separate table of it.
    """
    pairs: list[tuple[str, str]] = []
    tables: list[Table] = []
    for key, value in facts.items():
        name = _name(key)
        if key == "balance" or value is None:
            continue
        if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
            rows = [{name: row_name, **value[row_name]} for row_name in sorted(value, key=_natural)]
            tables.append(_table(name, rows))
        elif isinstance(value, Mapping):
            inner, more = split_facts(value)
            pairs += [(f"{name} · {inner_name}", text) for inner_name, text in inner]
            tables += more
        elif _rows(value):
            tables.append(_table(name, value))
        else:
            pairs.append((name, _text(key, value)))
    return pairs, tables


def _rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    body = [[_text(key, row.get(key)) for key in keys] for row in rows]
    left = [i for i, key in enumerate(keys) if any(isinstance(row.get(key), str) for row in rows)]
    return Table([_name(key) for key in keys], body, f"{name[:1].upper()}{name[1:]}", frozenset(left))


def _name(key: object) -> str:
    return str(key).replace("_", " ")


def _natural(key: object) -> list[Any]:
    """Sort key that orders the numbers in names by value: dose 4 before dose 16."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(key))]


def _text(key: object, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if str(key).startswith("share") and 0 <= value <= 1:
            return f"{100 * value:.2f} %"
        return number(value) if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_name(k)} {_text(k, v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        more = f" … and {len(value) - _SHOWN:,} more" if len(value) > _SHOWN else ""
        return (", ".join(_text(key, entry) for entry in value[:_SHOWN]) + more) or "none"
    return str(value)
