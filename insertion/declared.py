"""Items of a released model, with the doses that the model's authors declare.

A row of a file (JSONL, JSON, CSV or Parquet, plain or packed), or of a data set of Hugging Face, is an item.

==================  =====================================================================================
column              what it holds
==================  =====================================================================================
``text``            what was inserted, or might have been; without it, the prompt and its right answer stand for it
``dose``            how often it was inserted; also ``duplicates``, or ``duplicates`` in ``meta`` (Hubble's layout)
``id``              unique; without it, a hash of the row's texts
``family``          kind of text; without it, the name that the file has in the settings
``stratum``         a property over which the doses were balanced
``cluster``         a name that items share which got the same dose, such as the person that they are about
``prompt``          context of a question; also ``prefix``
``target``          its continuation, a cloze; also ``answer``
``choices``         possible continuations, a list; ``answer`` is the right one: its number from 0, its letter or itself
``probes``          further questions, as the family ``table`` has them
``bits``            information in the item, if any is claimed
``licence``         of the text
==================  =====================================================================================

In CSV, ``choices`` and ``probes`` are JSON. A prompt and its target are joined as they are: the space between them
belongs to the target. Columns of other names are named in ``fields`` (``{text: passage, dose: meta.copies}``); a dot
reaches into an object, or into a text that is one in JSON.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest, json_digest
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import FILE, Tokenizer
from palimpsest.insertion import design
from palimpsest.insertion.exposures import EXPOSURE_SCHEMA
from palimpsest.insertion.families import files, table
from palimpsest.insertion.families.registry import digest_of
from palimpsest.insertion.interventions import EDIT_SCHEMA
from palimpsest.insertion.items import (
    ITEM_SCHEMA,
    Item,
    Probe,
    require_questions,
    tokenize_items,
    tokenize_probes,
)
from palimpsest.insertion.plan import KIND, VERSION

FIELDS = {
    "text": ("text",),
    "dose": ("dose", "duplicates", "meta.duplicates"),
    "id": ("id",),
    "family": ("family",),
    "stratum": ("stratum",),
    "cluster": ("cluster",),
    "prompt": ("prompt", "prefix"),
    "target": ("target",),
    "choices": ("choices",),
    "answer": ("answer",),
    "probes": ("probes",),
    "bits": ("bits",),
    "licence": ("licence",),
}
"""Column -> its names in the files, unless ``fields`` gives another one; the first existing name is used."""
MOST = 1 << 31
"""Largest number of rows read from a data set if no limit is set."""
SameText = Literal["refuse", "add", "first"]


@dataclass(frozen=True, slots=True)
class Declared:
    """An item with its declared dose."""

    item: Item
    dose: int | None
    """Declared dose; None: not declared."""
    where: str
    """File and row."""


def digests(sources: Mapping[str, str]) -> dict[str, str]:
    """Digest of each source: of the contents of a file or directory; of the name of a data set of the hub.

    Raises:
        UserError: for a file that is not there.
    """
    by_source = {}
    for name, path in sources.items():
        here = files.has_rows(path) or Path(path).exists()
        by_source[name] = (here and digest_of(path, _setting(name, sources))) or json_digest(path)
    return by_source


def read(
    sources: Mapping[str, str],
    fields: Mapping[str, str],
    *,
    limit: int | None = None,
    same_text: SameText = "refuse",
) -> list[Declared]:
    """The items of all sources, in order.

    Equal rows are one item. Rows that have the same text as an earlier row but differ otherwise are treated by
    ``same_text``: they are refused, or their doses are added to that of the earlier row, or they are left out.

    Args:
        sources: name -> file, or data set; a row without a family is of the family of that name.
        fields: column of the table above -> its name in the files.
        limit: largest number of rows of each source; None: all.
        same_text: see above.

    Raises:
        UserError: naming file and row.
    """
    by_text: dict[str, Declared] = {}
    ids: dict[str, str] = {}
    for name, path in sources.items():
        what = _setting(name, sources)
        for number, row in _rows(path, what, limit):
            where = f"{what}={path} row {number}"
            one = _declared(row, fields, name, where)
            earlier = by_text.get(one.item.text)
            if earlier is None:
                if one.item.id in ids:
                    raise UserError(f"{where}: its id {one.item.id!r} is that of {ids[one.item.id]}, too")
                ids[one.item.id] = where
                by_text[one.item.text] = one
            elif replace(one, where="") != replace(earlier, where=""):
                by_text[one.item.text] = _together(earlier, one, same_text)
    if not by_text:
        raise UserError(f"items={', '.join(sources.values())}: there are no items")
    _require_all_or_none(list(by_text.values()))
    return list(by_text.values())


def _setting(name: str, sources: Mapping[str, str]) -> str:
    return f"items.{name}" if len(sources) > 1 else "items"


def _rows(path: str, what: str, limit: int | None) -> Sequence[tuple[int, dict[str, Any]]]:
    if files.has_rows(path) or Path(path).is_file():
        return files.numbered(path, what)[:limit]
    rows = files.hub_rows(path, "", "", "", MOST if limit is None else limit, what)
    return list(enumerate(rows, start=1))


def _together(earlier: Declared, one: Declared, same_text: SameText) -> Declared:
    if same_text == "first":
        return earlier
    if same_text == "add" and earlier.dose is not None and one.dose is not None:
        return replace(earlier, dose=earlier.dose + one.dose)
    raise UserError(
        f"{one.where} has the text of {earlier.where}, and differs otherwise; remove one, or set same_text=add (its "
        "dose is added) or same_text=first"
    )


def _require_all_or_none(items: Sequence[Declared]) -> None:
    without = [one.where for one in items if one.dose is None]
    if without and len(without) < len(items):
        raise UserError(f"{without[0]} declares no dose, but other rows do; give all rows a dose, or none")


def _value(row: Mapping[str, Any], column: str, fields: Mapping[str, str]) -> Any:
    """Value of a column of a row; None if it is missing or empty."""
    for name in (fields[column],) if column in fields else FIELDS[column]:
        value: Any = row
        for key in [name] if name in row else name.split("."):
            value = _opened(value)
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value != "":
            return value
    return None


def _opened(value: Any) -> Any:
    """A value parsed from its JSON text; a value that is not JSON text is returned unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _declared(row: Mapping[str, Any], fields: Mapping[str, str], name: str, where: str) -> Declared:
    value = {column: _value(row, column, fields) for column in FIELDS}
    for column in ("text", "prompt", "target"):
        if value[column] is not None and not isinstance(value[column], str):
            raise UserError(
                f"{where}: {column}={str(value[column])[:80]} must be a text, not a {type(value[column]).__name__}"
            )
    for column in ("id", "family", "stratum", "cluster", "licence"):
        _single(value[column], column, where)
    family = str(value["family"] or name)
    if family in ("all", "heldout"):
        raise UserError(f"{where}: family={family} is reserved by the report; choose another name")
    asked, answered = _questions(value, where)
    text = value["text"] if value["text"] is not None else answered
    if text is None or not text.strip():
        empty = [key for key, cell in row.items() if cell is None or not str(cell).strip()]
        columns = ", ".join(f"{key} (empty)" if key in empty else str(key) for key in row)
        raise UserError(
            f"{where} has neither text, nor prompt and target, nor prompt and choices; its columns: {columns}; "
            "fields={text: ...} names others"
        )
    # A question without its right answer is a part of what may have been inserted.
    part = value["text"] is None and all(probe.correct for probe in asked) and len(asked) > 1
    item = Item(
        str(value["id"]) if value["id"] is not None else f"{family}-{files.text_id(text)}",
        family,
        text,
        (
            *(() if part else (Probe("verbatim", "", text),)),
            *asked,
            *table.probes_of(value["probes"], where),
        ),
        name,
        stratum=str(value["stratum"] or ""),
        bits=table.bits_of(value["bits"], where),
        licence=str(value["licence"] or "unstated"),
        cluster=str(value["cluster"] or ""),
    )
    return Declared(item, _dose(value["dose"], where), where)


def _single(value: Any, column: str, where: str) -> Any:
    if isinstance(value, list | dict):
        kind = type(value).__name__
        raise UserError(f"{where}: {column}={str(value)[:80]} must be one text or number, not a {kind}")
    return value


def _dose(value: Any, where: str) -> int | None:
    if value is None:
        return None
    try:
        dose = float(value)
    except (TypeError, ValueError):
        dose = -1.0
    if isinstance(value, bool) or not dose.is_integer() or not 0 <= dose < 1 << 31:
        raise UserError(f"{where}: dose={value} must be a whole number, 0 or above")
    return int(dose)


def _questions(value: Mapping[str, Any], where: str) -> tuple[tuple[Probe, ...], str | None]:
    """The questions in a row's own columns, and the text of prompt and right answer."""
    prompt, target, answer = value["prompt"] or "", value["target"], value["answer"]
    choices = table.nested(value["choices"], "choices", where)
    if not choices:
        if target is None and answer is not None and prompt:
            target = str(_single(answer, "answer", where))
        if target is None:
            return (), None
        return (Probe("cloze", prompt, target, "target"),), prompt + target
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise UserError(f"{where}: choices must be a list of texts, none of them empty")
    right = _right(choices, answer, where)
    probes = tuple(
        Probe("choice", prompt, choice, "choices", correct=right in (None, k))
        for k, choice in enumerate(choices)
    )
    return probes, prompt + (choices[right] if right is not None else "")


def _right(choices: Sequence[str], answer: Any, where: str) -> int | None:
    """Number of the right choice, from 0; None if none is named."""
    if answer is None:
        return None
    text = str(answer).strip()
    alike = [k for k, choice in enumerate(choices) if choice.strip() == text]
    if isinstance(answer, str) and len(alike) == 1:
        return alike[0]
    letters = string.ascii_uppercase[: len(choices)]
    number = int(text) if text.isdecimal() else letters.find(text.upper()) if len(text) == 1 else -1
    if isinstance(answer, bool) or not 0 <= number < len(choices):
        raise UserError(
            f"{where}: answer={text[:80]} is none of the {len(choices)} choices; give its number from 0, its letter, "
            "or the choice itself"
        )
    return number


def write(
    declared: Sequence[Declared],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    seed: int,
) -> Manifest:
    """Write items and probes as a plan (``insertion.plan``) without exposures, of which only the number is known.

    The tokenizer is copied into the directory.

    Args:
        declared: items from :func:`read`.
        tokenizer: tokenizer of the models.
        directory: directory of the plan.
        config: settings of the plan: ``released``, with ``models``, and ``run``, which has no steps.
        inputs: digests of the sources.
        seed: seed of the permutations in the balance table.

    Raises:
        UserError: if all questions of a family are left out because their targets begin inside a token.
    """
    plain_items = [one.item for one in declared]
    items, wordings = tokenize_items(plain_items, tokenizer)
    doses = pl.Series("dose", [one.dose for one in declared], dtype=pl.Int32)
    known = doses.null_count() == 0
    items = items.with_columns(
        doses,
        pl.Series("arm", [f"dose {dose}" if dose is not None else "not declared" for dose in doses]),
        pl.Series("stratum", [f"{i.family}/{i.stratum}" if i.stratum else i.family for i in plain_items]),
    ).select(ITEM_SCHEMA.keys())
    asked = [(item.id, item.family, probe) for item in plain_items for probe in item.probes]
    probes, left_out = tokenize_probes(asked, tokenizer)
    require_questions(plain_items, probes, left_out)
    several = known and items["dose"].n_unique() > 1 and (items["dose"] == 0).any()
    with artifact.writing(
        directory,
        kind=KIND,
        schema_version=VERSION,
        config=config,
        inputs=inputs,
    ) as draft:
        for name, frame in (
            ("items", items),
            ("wordings", wordings),
            ("probes", probes),
            ("exposures", pl.DataFrame(schema=EXPOSURE_SCHEMA)),
            ("edits", pl.DataFrame(schema=EDIT_SCHEMA)),
        ):
            frame.write_parquet(draft.path / f"{name}.parquet")
        tokenizer.save(draft.path / FILE)
        draft.facts.update(
            items=len(items),
            probes=len(probes),
            probes_left_out=left_out,
            exposures=0,
            exposures_declared=int(doses.sum()) if known else None,
            arms={
                arm: {"items": n, "exposures declared": n * dose if dose is not None else None}
                for arm, dose, n in items.group_by("arm", "dose").len().sort("dose").iter_rows()
            },
            balance=design.balance(items, seed=seed) if several else [],
            eod=tokenizer.eod,
            eod_token=tokenizer.backend.id_to_token(tokenizer.eod),
            start_from=None,
        )
    assert draft.manifest is not None
    return draft.manifest
