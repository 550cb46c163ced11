"""Exchange with other tools: the perturbed corpus written out, and their insertions read in.

The written token files contain every changed window at its place. Neighbouring windows share a token (the last of one
is the first of the next), which the files contain once: if the two windows differ in it, the token of an exposure is
written, otherwise that of the window that begins with it. Tokens at which the files differ from the overlay are listed
as *exceptions*.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows
from palimpsest.data.tokens import bin_path, idx_path, read_tokens
from palimpsest.insertion.families import files, table
from palimpsest.insertion.interventions import Layout
from palimpsest.insertion.placement import explicit
from palimpsest.insertion.plan import Plan

EXCEPTION_SCHEMA = pl.Schema(
    {"position": pl.Int64(), "offset": pl.Int32(), "planned": pl.Int32(), "exported": pl.Int32()}
)
"""One row for each token of a window at which the copy differs from the overlay."""


def touched(plan: Plan) -> list[int]:
    """Positions of the windows that the plan changes."""
    return sorted({*plan.exposures["position"].to_list(), *plan.edits["position"].to_list()})


def write_tokens(plan: Plan, order: Windows, directory: Path) -> pl.DataFrame:
    """Write ``train.bin`` and ``train.idx``: the corpus with the plan applied.

    The index is that of the corpus: documents keep their lengths, so that the order of the windows is unchanged;
    end-of-document tokens may therefore differ from the index.

    Args:
        plan: the plan; its loss masks cannot be written to a token file.
        order: windows of the corpus.
        directory: directory for the two files.

    Returns:
        One row for each token at which a window of the file differs from the window with its insertions
        (``EXCEPTION_SCHEMA``), by ascending position and offset.
    """
    layout = Layout(order)
    order = layout.order
    copy = directory / "train"
    shutil.copyfile(bin_path(order.prefix), bin_path(copy))
    shutil.copyfile(idx_path(order.prefix), idx_path(copy))
    tokens = np.memmap(bin_path(copy), dtype=read_tokens(order.prefix).dtype, mode="r+")
    overlay, size = plan.overlay(), order.sequence_length
    changed = touched(plan)
    last: list[tuple[int, int]] = []
    for position in changed:
        window, at = overlay.apply(position, order.window(position)), layout.window(position)
        tokens[at[:size]] = window[:size]
        if any(span.offset + span.length > size for span in overlay.spans(position)):
            last.append((int(at[size]), int(window[size])))
    for place, token in last:
        tokens[place] = token
    tokens.flush()
    rows = []
    for position in sorted({near for one in changed for near in layout.neighbours(one)}):
        window = overlay.apply(position, order.window(position))
        exported = tokens[layout.window(position)]
        for offset in np.flatnonzero(window != exported).tolist():
            rows.append((position, offset, int(window[offset]), int(exported[offset])))
    return pl.DataFrame(rows, schema=EXCEPTION_SCHEMA, orient="row")


def write_lines(plan: Plan, order: Windows, path: Path) -> int:
    """Write JSONL with one line per window of the run, in training order: ``position``, ``tokens`` (L + 1 ids),
    ``items`` (ids).

    Returns:
        Number of lines.
    """
    overlay, names = plan.overlay(), plan.items["item_id"].to_list()
    with path.open("w", encoding="utf-8") as file:
        for position in plan.shape.positions:
            line = {
                "position": position,
                "tokens": overlay.apply(position, order.window(position)).tolist(),
                "items": [names[span.item] for span in overlay.spans(position)],
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    return len(plan.shape.positions)


@dataclass(frozen=True, slots=True)
class Foreign:
    """Insertions that another tool made."""

    rows: list[dict[str, Any]]
    """Rows for the family ``table``, one per item: the inserted items in the order of the files, then the others."""
    placements: pl.DataFrame
    """``explicit.SCHEMA``."""
    displace: str
    """Setting for the removed corpus tokens: ``around`` or ``overwrite`` from a ledger; ``tail`` if places are drawn
    here."""

    @property
    def doses(self) -> dict[int, int]:
        """Dose -> items, ascending."""
        counts = Counter(self.placements["item_id"].to_list())
        return dict(sorted(Counter(counts[item_id(row["text"])] for row in self.rows).items()))


def item_id(text: str) -> str:
    """Id of the item that the family ``table`` makes of a text."""
    return f"{table.NAME}-{files.text_id(text)}"


def read_duplicated(documents: Sequence[Path], never: Sequence[Path], ledger: Path | None = None) -> Foreign:
    """Read insertions of another tool: texts with their numbers of repeats and, from a ledger of Hubble's, their
    places.

    Args:
        documents: files, in ``.jsonl`` or another format of ``files.rows``, with one row and its ``text`` per
            insertion.
        never: files of texts that were not inserted, in the same formats; texts also in ``documents`` are ignored.
        ledger: ``..._perturbation_info.json``, one JSON object a line.

    Raises:
        UserError: for files that cannot be read or are inconsistent with each other.
    """
    texts = {path.stem: _texts(path) for path in documents}
    if len(texts) < len(documents):
        raise UserError("two files of documents have the same name; a ledger could not tell them apart")
    inserted = dict.fromkeys(text for of_file in texts.values() for text in of_file)
    others = [text for path in never for text in _texts(path) if text not in inserted]
    rows = [{"text": text, "id": files.text_id(text)} for text in dict.fromkeys([*inserted, *others])]
    if ledger is not None:
        places, displace = _read_ledger(ledger, texts)
        return Foreign(rows, places, displace)
    ids = [item_id(text) for of_file in texts.values() for text in of_file]
    return Foreign(rows, pl.DataFrame([{"item_id": one} for one in ids], schema=explicit.SCHEMA), "tail")


def _texts(path: Path) -> list[str]:
    rows = files.rows(str(path), "file")
    for number, row in enumerate(rows):
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise UserError(f"{path}: row {number} has no text in the field text")
    return [row["text"] for row in rows]


def _read_ledger(ledger: Path, texts: Mapping[str, list[str]]) -> tuple[pl.DataFrame, str]:
    """Places of a ledger of Hubble's injector (Wei et al., 2025; ``perturb_hubble.py``).

    A line says that row ``perturbation_idx`` of ``perturbation_file`` went into window ``pt_loc`` in training order,
    before its ``pt_injection_pos``-th piece of a document (``orig_doc_seq_sizes`` are the sizes), after
    ``pt_window_offset`` tokens of the head had been cut; it was ``pt_injection_len`` tokens long, with the
    end-of-document token. Without those fields (``seq_start``) it lies over the window's first tokens.
    """
    try:
        lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [_place(line) | {"text": _text_of(line, texts, ledger)} for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{ledger} is no ledger of Hubble's injector: {type(error).__name__} {error}"
        ) from None
    twice = Counter((line["perturbation_file"], line["perturbation_idx"]) for line in lines)
    total = sum(map(len, texts.values()))
    if len(twice) < len(lines) or len(lines) != total:
        raise UserError(
            f"{ledger} has {len(lines):,} insertions, {len(twice):,} of them different, but the documents have "
            f"{total:,} rows; give all files that it was made from and no others (a dry run of Hubble's injector "
            "overwrites it with a part)"
        )
    kinds = {row["overwrite"] for row in rows}
    if len(kinds) > 1:
        raise UserError(
            f"{ledger}: some insertions shift the corpus's text behind them, others overwrite it; a plan displaces "
            "text in one way: inject all with the same overwrite"
        )
    placements = pl.DataFrame([row | {"item_id": item_id(row["text"])} for row in rows])
    places = placements.select(explicit.SCHEMA.keys()).cast(explicit.SCHEMA)
    return places, "overwrite" if kinds == {True} else "around"


def _text_of(line: Mapping[str, Any], texts: Mapping[str, list[str]], ledger: Path) -> str:
    """The text that a line inserts. Token files are named after the JSONL, with an ending of Megatron's."""
    name, row = line["perturbation_file"], line["perturbation_idx"]
    own = texts.get(name, texts.get(name.removesuffix("_text_document")))
    if own is None:
        raise UserError(f"{ledger} names {name}, which is none of the documents {', '.join(texts)}")
    if not 0 <= row < len(own):
        raise UserError(f"{ledger} names row {row} of {name}, which has {len(own)} rows")
    text: str = own[row]
    return text


def _place(line: Mapping[str, Any]) -> dict[str, Any]:
    if "pt_injection_pos" not in line:
        return (
            {"position": line["pt_loc"], "offset": 0, "cut": 0, "length": None} | _BARE | {"overwrite": True}
        )
    cut = line["pt_window_offset"]
    before = sum(line["orig_doc_seq_sizes"][: line["pt_injection_pos"]])
    return {
        "position": line["pt_loc"],
        "offset": before - cut,
        "cut": cut,
        "length": line["pt_injection_len"],
        **_BARE,
    }


_BARE = {"lead": False, "overwrite": False}
