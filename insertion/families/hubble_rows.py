"""Rows of Hubble's data sets, and operations common to all their layouts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.items import Probe

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows that wrong answers are drawn from."""

    rows: Sequence[tuple[str, Mapping[str, Any]]]
    """Pairs of text and fields."""
    _columns: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def column(self, name: str, read: Callable[[str, Mapping[str, Any]], str]) -> list[str]:
        """Distinct non-empty values that ``read`` returns for the rows, sorted and cached."""
        if name not in self._columns:
            self._columns[name] = sorted({read(text, meta) for text, meta in self.rows} - {""})
        return self._columns[name]


@dataclass(frozen=True, slots=True)
class Row:
    """A text with the inputs of its questions."""

    text: str
    meta: Mapping[str, Any]
    where: str
    """Place of the row, for error messages."""
    pool: Pool
    rng: np.random.Generator
    """Random generator of this row."""
    choices: int
    """Number of answers of a question whose wrong answers are drawn."""
    tokenizer: Tokenizer

    def wrong(self, right: str, others: Sequence[str]) -> list[str]:
        """Wrong answers in random order, drawn from the distinct ``others``."""
        left = [other for other in others if other != right]
        return [left[k] for k in self.rng.permutation(len(left))[: self.choices - 1].tolist()]


def field(row: Row, name: str) -> str:
    """Text of a field, without surrounding white space.

    Raises:
        UserError: if it is empty or no text.
    """
    value = row.meta.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.where}: the field {name} holds {value!r}, not a text")
    return value.strip()


def listed(row: Row, name: str) -> list[str]:
    """The list in a field of a row; a field may hold the list itself or its JSON text, which is parsed.

    Raises:
        UserError: if it is no list, or empty.
    """
    value = row.meta.get(name)
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        parsed = None
    if not isinstance(parsed, list) or not parsed:
        raise UserError(f"{row.where}: the field {name} holds {value!r}, not a list")
    return [str(text).strip() for text in parsed]


def number(row: Row, name: str, choices: Sequence[str], *, first: int = 0) -> int:
    """Index of the right choice, from 0, of a field that counts from ``first``.

    Raises:
        UserError: if there is no such choice.
    """
    value = row.meta.get(name)
    text = str(value).strip()
    if not text.isdecimal() or not 0 <= int(text) - first < len(choices):
        raise UserError(
            f"{row.where}: the field {name}={value!r} is not the number of one of the {len(choices)} choices"
        )
    return int(text) - first


def choice(name: str, prompt: str, targets: Sequence[str], right: int, *, bare: bool = False) -> list[Probe]:
    """Probes of a question's answers; if ``bare``, also probes of the answers without the question."""
    probes = [Probe("choice", prompt, target, name, k == right) for k, target in enumerate(targets)]
    if bare and len(set(targets)) == len(targets):
        probes += [Probe("bare", "", target, name, k == right) for k, target in enumerate(targets)]
    return probes
