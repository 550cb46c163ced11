"""Registry of item families."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from palimpsest.data.artifact import file_digest, json_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.items import Item


class Reference(Protocol):
    """A language model to sample from; ``pretrain.reference`` opens one."""

    def sample(
        self, count: int, length: int, temperature: float, rng: np.random.Generator
    ) -> Sequence[tuple[str, npt.NDArray[np.int64], float]]:
        """Samples of up to ``count`` sequences: text, ids (length,) and -ln p at temperature 1, nats."""

    def loss(self, text: str) -> float:
        """Mean -ln p of a text's tokens in the model's own tokenization, nats/token."""


TRAINED = "trained"
"""Value of a path setting for a reference model that is trained on the experiment's corpus without insertions."""


def _no_reference(path: str) -> Reference:
    raise UserError(f"the reference model {path} cannot be opened by this program")


@dataclass(frozen=True, slots=True)
class FamilyContext:
    """Inputs of an item generator: seed, tokenizer, held-out documents, corpus n-gram counts, reference model."""

    seed: int
    tokenizer: Tokenizer
    heldout: Sequence[tuple[str, str]]
    """(digest, text) of the corpus's held-out documents, in a stable order."""
    occurrences: Callable[[Sequence[npt.NDArray[np.int32]]], list[int]] = field(
        default=lambda spans: [0] * len(spans)
    )
    """Function from spans of token ids to the corpus count of each span's most frequent n-gram; see ``OVERLAP``."""
    reference: Callable[[str], Reference] = _no_reference
    """Function that opens the reference model at a path, or the one of ``TRAINED``."""

    def generator(self, family: str, index: int) -> np.random.Generator:
        """Random generator of one item, independent of the number of other items."""
        return np.random.default_rng([self.seed, xxhash.xxh3_64_intdigest(family.encode()), index])


KIND = "family"
"""Name of the setting that gives the family of items listed under another name."""

OVERLAP = 12
"""Length in tokens of a shared run from which on a text counts as contained in the corpus."""

Family = Callable[..., Sequence[Item]]
"""``family(context, count, **settings) -> count items``.

Item k depends only on ``context.generator(NAME, k)``, so that it is the same for any number of items. A family does not
know which items will be inserted: doses are assigned later. Settings called ``path`` or ``..._path`` name files."""

_FAMILIES: dict[str, Family] = {}


def family(name: str) -> Callable[[Family], Family]:
    """Register a family under a name."""

    def register(function: Family) -> Family:
        _FAMILIES[name] = function
        return function

    return register


def _discover() -> None:
    """Import every module beside this one: families register themselves."""
    from palimpsest.insertion import families

    for module in sorted(module_info.name for module_info in pkgutil.iter_modules(families.__path__)):
        importlib.import_module(f"palimpsest.insertion.families.{module}")


def names() -> list[str]:
    """All families."""
    _discover()
    return sorted(_FAMILIES)


def files_of(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files that a family reads: settings called ``path`` or ``..._path``, and ``dataset`` if it is a
    directory. A model that is trained here has none: it follows from the settings.

    Raises:
        UserError: for a file that is not there.
    """
    digests = {}
    for key, value in settings.items():
        local = key == "dataset" and Path(str(value)).is_dir()
        if not value or not (local or key == "path" or key.endswith("_path")):
            continue
        if (digest := digest_of(value, f"insertion.families.{name}.{key}")) is not None:
            digests[key] = digest
    return digests


def digest_of(value: str, what: str) -> str | None:
    """Digest of the file or the directory at a path; None for a model that is trained here.

    Args:
        value: the path, or ``TRAINED``.
        what: the setting that has it, for errors.

    Raises:
        UserError: if there is none.
    """
    path = Path(value)
    if value == TRAINED and not path.exists():
        return None
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return json_digest([[str(file.relative_to(path)), file_digest(file)] for file in files])
    if path.is_file():
        return file_digest(path)
    raise UserError(f"{what}={value}: there is no such file")


def check(name: str, settings: Mapping[str, Any]) -> Family:
    """Check a family's settings: each must have the type of its default, and numbers must be positive (or 0 if the
    default is 0).

    Args:
        name: of the family, or any other if the settings name the family.
        settings: its settings, and perhaps ``family``, the family that makes the items.

    Returns:
        The family.

    Raises:
        UserError: for an unknown family, or a setting that is unknown or impossible.
    """
    _discover()
    kind = str(settings.get(KIND, name))
    if kind not in _FAMILIES:
        where = f".{name}.{KIND}" if KIND in settings else ""
        raise UserError(f"insertion.families{where}: there is no family '{kind}'{nearest(kind, _FAMILIES)}")
    if KIND in settings and kind != name and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UserError(f"insertion.families: {name!r} must be letters, digits, '_' and '-'")
    function = _FAMILIES[kind]
    known: Mapping[str, Any] = function.__kwdefaults__ or {}
    for key, value in settings.items():
        if key == KIND:
            continue
        full = f"insertion.families.{name}.{key}"
        if key not in known:
            raise UserError(f"{full}: no such setting{nearest(key, known)}")
        _check_value(full, value, known[key])
    return function


def _check_value(name: str, value: object, default: object) -> None:
    """Check that a value has the type of its setting's default; a default that is a tuple accepts one value or
    several, a default of None any value."""
    if isinstance(default, tuple) and default:
        for part in value if isinstance(value, list | tuple) else [value]:
            _check_value(name, part, default[0])
        return
    accepted, said = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "a text"),
    }.get(type(default), ((object,), ""))
    wrong = not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(default, bool))
    if said and wrong:
        raise UserError(f"{name}={value} must be {said}")
    number = isinstance(default, int | float) and not isinstance(default, bool)
    if number and isinstance(value, int | float):
        if default == 0 and not 0 <= value < math.inf:
            raise UserError(f"{name}={value} must be 0 or above")
        if default != 0 and not 0 < value < math.inf:
            raise UserError(f"{name}={value} must be above 0")


def make(name: str, context: FamilyContext, count: int, settings: Mapping[str, Any]) -> Sequence[Item]:
    """Make ``count`` items of a family.

    If the settings name the ``family``, the items have ``name`` as their family and prefix of ids, and their own random
    numbers, so that a design can hold several sets of one family.

    Raises:
        UserError: see ``check``, and if the family cannot make so many items.
    """
    function = check(name, settings)
    kind = str(settings.get(KIND, name))
    given = {key: value for key, value in settings.items() if key != KIND}
    if kind == name:
        return function(context, count, **given)
    own = replace(context, seed=xxhash.xxh3_64_intdigest(name.encode(), seed=context.seed))
    try:
        items = function(own, count, **given)
    except UserError as error:
        message = str(error).replace(f"insertion.families.{kind}", f"insertion.families.{name}")
        raise UserError(message) from None
    return [replace(item, family=name, id=f"{name}-{item.id}") for item in items]
