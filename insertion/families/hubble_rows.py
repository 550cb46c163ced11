"""Rows of Hubble's data sets, and what all of their layouts do with them."""

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
    """Texts and fields."""
    _columns: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def column(self, name: str, read: Callable[[str, Mapping[str, Any]], str]) -> list[str]:
        """The different values, not empty, that ``read`` finds in the rows; sorted, and read once."""
        if name not in self._columns:
            self._columns[name] = sorted({read(text, meta) for text, meta in self.rows} - {""})
        return self._columns[name]


@dataclass(frozen=True, slots=True)
class Row:
    """A text and all that its questions are made of."""

    text: str
    meta: Mapping[str, Any]
    where: str
    """For errors."""
    pool: Pool
    rng: np.random.Generator
    """Random numbers of this row alone."""
    choices: int
    """Answers of a question whose wrong ones are drawn."""
    tokenizer: Tokenizer

    def wrong(self, right: str, others: Sequence[str]) -> list[str]:
        """Wrong answers in random order, from ``others``, which are all different."""
        left = [other for other in others if other != right]
        return [left[k] for k in self.rng.permutation(len(left))[: self.choices - 1].tolist()]


def field(row: Row, name: str) -> str:
    """A field that is a text, without white space around it.

    Raises:
        UserError: if it is empty or no text.
    """
    value = row.meta.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.where}: the field {name} holds {value!r}, not a text")
    return value.strip()


def listed(row: Row, name: str) -> list[str]:
    """A field that is a list, perhaps written as JSON.

    Raises:
        UserError: if it is none, or empty.
    """
    value = row.meta.get(name)
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise UserError(f"{row.where}: the field {name} holds {value!r}, not a list")
    return [str(text).strip() for text in found]


def number(row: Row, name: str, choices: Sequence[str], *, first: int = 0) -> int:
    """Number of the right choice, which a field counts from ``first``.

    Raises:
        UserError: if it is the number of none.
    """
    value = row.meta.get(name)
    text = str(value).strip()
    if not text.isdecimal() or not 0 <= int(text) - first < len(choices):
        raise UserError(
            f"{row.where}: the field {name}={value!r} is the number of none of {len(choices)} choices"
        )
    return int(text) - first


def choice(name: str, prompt: str, targets: Sequence[str], right: int, *, bare: bool = False) -> list[Probe]:
    """A question with its answers; ``bare`` ones, too, for their likelihood without the question."""
    probes = [Probe("choice", prompt, target, name, k == right) for k, target in enumerate(targets)]
    if bare and len(set(targets)) == len(targets):
        probes += [Probe("bare", "", target, name, k == right) for k, target in enumerate(targets)]
    return probes
