"""User-defined items: one JSONL, CSV or Parquet file with one item per row.

================  =====================================================================================
column            what it holds
================  =====================================================================================
``text``          what is inserted; the one column that must be there
``id``            unique; without it, a hash of the text
``wordings``      other wordings: a list of texts
``probes``        a list of objects: ``target`` (what is scored), ``prompt`` (context), ``kind`` (``cloze``, the
                  default, ``choice``, ``bare`` or ``foil``), ``name`` (what is asked; the answers of one choice share
                  it; see ``insertion.items.Probe``) and ``correct`` (false for a text that must never be
                  inserted)
``stratum``       a property known beforehand, over which the doses are balanced; also ``strata``, one or a list
``bits``          information in the item, if you claim any
``licence``       of the text
``cluster``       a name that items share which must get the same dose, such as the person that they are about
================  =====================================================================================

In CSV, ``wordings``, ``strata`` and ``probes`` are JSON. The likelihood of every text is asked anyway. A prompt and its
target are joined as they are: the space between them belongs to the target. ``table.jsonl``, beside this file, is a
template to copy. Sets of Hubble's layout (``text``, ``meta.duplicates``; Wei et al., 2025) are read as they are: rows
with the same text are one item, and its level of duplication is its stratum; doses are assigned at random here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.families import files
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "table"
_KINDS = ("cloze", "choice", "bare", "foil")


@family(NAME)
def make(context: FamilyContext, count: int, *, path: str = "", prefix: str = "table") -> Sequence[Item]:
    """Rows of a table, in an order drawn by the seed and the ids; the module's docstring has the columns.

    Args:
        context: what gives the seed.
        count: items; a table may have more rows.
        path: of the table; empty: the template.
        prefix: before each id.
    """
    with resources.as_file(
        resources.files("palimpsest.insertion.families").joinpath("table.jsonl")
    ) as template:
        rows = files.numbered(path or str(template), f"insertion.families.{NAME}.path")
    items: dict[str, Item] = {}
    for number, row in rows:
        where = f"insertion.families.{NAME}.path={path or 'the template'}: row {number}"
        item = _item(row, prefix, path or "template", where)
        earlier = items.setdefault(item.id, item)
        if earlier.text != item.text:
            raise UserError(f"{where} has the id {item.id}, as another text has; make ids unique")
        if earlier != item:
            raise UserError(f"{where} has the text of another row, but not its other columns; remove one")
    ids = list(items)
    files.need(ids, count, f"insertion.families.{NAME}", "give more rows or lower insertion.items_per_dose")
    return [items[ids[k]] for k in files.draw(ids, context.seed)[:count]]


def _item(row: dict[str, Any], prefix: str, path: str, where: str) -> Item:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} has no text in the column text")
    wordings, strata = (nested(row.get(name), name, where) for name in ("wordings", "strata"))
    labels = [str(label) for label in ([row["stratum"]] if row.get("stratum") else []) + strata]
    meta = row.get("meta")
    if isinstance(meta, dict) and meta.get("duplicates") is not None:
        labels.append(f"duplicates{meta['duplicates']}")
    if not all(isinstance(wording, str) for wording in wordings):
        raise UserError(f"{where}: wordings must be a list of texts")
    if isinstance(row.get("id"), float | bool | list | dict):
        raise UserError(f"{where}: id={row['id']} must be a text or a whole number; write it in quotes")
    name = str(row["id"]) if row.get("id") is not None else files.text_id(text)
    return Item(
        f"{prefix}-{name}",
        NAME,
        text,
        (Probe("verbatim", "", text), *probes_of(row.get("probes"), where)),
        f"{path}, row {name}",
        tuple(wordings),
        stratum=" ".join(labels),
        bits=bits_of(row.get("bits"), where),
        licence=str(row.get("licence") or "unstated"),
        cluster=str(row.get("cluster") or ""),
    )


def bits_of(value: Any, where: str) -> float | None:
    """Value of the column ``bits``."""
    if value in (None, ""):
        return None
    try:
        bits = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: bits={value} must be a number") from None
    if not 0 <= bits < math.inf:
        raise UserError(f"{where}: bits={value} must be a number, 0 or above")
    return bits


def probes_of(value: Any, where: str) -> tuple[Probe, ...]:
    """Probes in the column ``probes``."""
    return tuple(_probe(given, where) for given in nested(value, "probes", where))


def nested(value: Any, name: str, where: str) -> list[Any]:
    """List in a column; in CSV, a list written as JSON. Strata may be a single text."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            if name != "strata":
                raise UserError(f"{where}: {name} must be a list in JSON") from None
            return [value]
    if not isinstance(value, list):
        if name == "strata":
            return [value]
        raise UserError(f"{where}: {name} must be a list")
    return value


def _probe(given: Any, where: str) -> Probe:
    known = ("kind", "prompt", "target", "name", "correct")
    if not isinstance(given, dict) or not isinstance(given.get("target"), str) or not given["target"]:
        raise UserError(f"{where}: a probe is an object with a target")
    for key in given:
        if key not in known:
            raise UserError(f"{where}: a probe has no '{key}'{nearest(key, known)}")
    values = {key: value for key, value in given.items() if value is not None}
    kind = values.setdefault("kind", "cloze")
    if kind not in _KINDS:
        raise UserError(f"{where}: there is no probe of kind '{kind}'{nearest(str(kind), _KINDS)}")
    if not isinstance(values.setdefault("prompt", ""), str) or not isinstance(values.get("name", ""), str):
        raise UserError(f"{where}: prompt and name of a probe must be texts")
    if not isinstance(values.get("correct", True), bool):
        raise UserError(f"{where}: correct={values['correct']} must be true or false")
    return Probe(**values)
