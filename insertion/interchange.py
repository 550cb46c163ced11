"""The perturbed corpus written out, for trainers that read token files or JSONL themselves.

A copy of the token files holds every changed window in its place. Neighbouring windows share a token (the last of one
is the first of the next), and a copy has it once: where the two differ, a token of an exposure wins, otherwise the
window that begins with it. Whatever a reader of the copy finds different from the overlay is an *exception*, and is
listed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from data.mixture import Windows
from data.tokens import bin_path, idx_path, read_tokens
from insertion.interventions import Layout
from insertion.plan import Plan

EXCEPTION_SCHEMA = pl.Schema(
    {"position": pl.Int64(), "offset": pl.Int32(), "planned": pl.Int32(), "exported": pl.Int32()}
)
"""One row a token of a window that the copy has otherwise than the overlay."""


def touched(plan: Plan) -> list[int]:
    """Positions of the windows that the plan changes."""
    return sorted({*plan.exposures["position"].to_list(), *plan.edits["position"].to_list()})


def write_tokens(plan: Plan, order: Windows, directory: Path) -> pl.DataFrame:
    """Write ``train.bin`` and ``train.idx``: the corpus with the plan carried out.

    The index is the corpus's: documents keep their lengths, so that the order of the windows stays, and end-of-document
    tokens may lie elsewhere than it says.

    Args:
        plan: what is inserted; its loss masks are no part of a token file.
        order: the corpus's windows.
        directory: that gets the two files.

    Returns:
        The exceptions (``EXCEPTION_SCHEMA``), ascending.
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
    """Write JSONL, a line a window of the run in training order: ``position``, ``tokens`` (L + 1 ids), ``items`` (ids).

    Returns:
        Lines.
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
