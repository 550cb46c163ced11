"""Descriptions of a plan in words: a summary, one item's exposures, one step's windows, a family's items."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from palimpsest.data.errors import UserError
from palimpsest.data.inspect import pieces
from palimpsest.data.mixture import Windows
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.items import Item, tokenize_probes
from palimpsest.insertion.ledger import Ledger, window_digest
from palimpsest.insertion.plan import Plan

_BLOCKS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 60


def _by_numbers(arm: str) -> list[tuple[float, str]]:
    """Sort key by which dose 4 comes before dose 16."""
    return [(float(part), "") if part.isdigit() else (-1.0, part) for part in re.split(r"(\d+)", arm)]


def summary(plan: Plan) -> Iterator[str]:
    """Arms, and a picture of each one's exposures over training (a column is a stretch of steps)."""
    shape = plan.shape
    first, steps = shape.begin, shape.steps - shape.begin
    facts = plan.manifest.facts
    yield (
        f"{facts['items']:,} items, {facts['exposures']:,} exposures in {facts['windows_perturbed']:,} of "
        f"{facts['windows']:,} windows, {facts['share_of_tokens_inserted']:.2%} of the tokens"
    )
    exposures = plan.exposures.join(
        plan.items.with_row_index("item").select(pl.col("item").cast(pl.Int32), "arm"), on="item"
    )
    width = max(len(arm) for arm in facts["arms"])
    columns = min(_COLUMNS, steps)
    yield f"{'arm':{width}}  {'items':>6} {'exposures':>10}  steps {first} to {shape.steps - 1}, exposures a column"
    for arm, counts in sorted(facts["arms"].items(), key=lambda named: _by_numbers(named[0])):
        position = exposures.filter(pl.col("arm") == arm)["position"].to_numpy()
        step = position // shape.global_batch_size - first
        heights = np.bincount(step * columns // steps, minlength=columns)
        top = heights.max(initial=1) or 1
        bars = "".join(_BLOCKS[int(np.ceil(h / top * (len(_BLOCKS) - 1)))] for h in heights)
        yield f"{arm:{width}}  {counts['items']:6,} {counts['exposures']:10,}  |{bars}|"
    last = int(plan.exposures["position"].max() or 0) // shape.global_batch_size  # type: ignore[arg-type]
    yield (
        "steps are counted from 0: the checkpoint step_S has seen the exposures of the steps below S; "
        f"step_{last + 1} is the first that has seen all"
    )


def item(
    plan: Plan,
    name: str,
    order: Windows,
    tokenizer: Tokenizer,
    *,
    until: int | None = None,
    earlier: Sequence[tuple[Plan, int]] = (),
) -> Iterator[str]:
    """Every exposure of an item, in training order.

    Args:
        plan: the plan.
        name: id of the item.
        order: the corpus's windows.
        tokenizer: the corpus's.
        until: finished steps of a checkpoint; its exposures come with how long ago they were, others are left out.
        earlier: plans of the runs that this one goes on from, the first one first, and the step at which each was left.

    Raises:
        UserError: if there is no such item.
    """
    name = plan.item_named(name)
    row = plan.items.filter(pl.col("item_id") == name).row(0, named=True)
    yield f"{name} ({row['family']}), {row['arm']}, stratum {row['stratum']}; {row['provenance']}"
    yield f"  {row['text']!r}"
    for before, end in earlier:
        stop = end if until is None else min(end, until)
        for line in _exposures(before, name, order, tokenizer, stop, until):
            yield f"{line}  (in the run before)"
    yield from _exposures(plan, name, order, tokenizer, plan.shape.steps if until is None else until, until)


def _exposures(
    plan: Plan, name: str, order: Windows, tokenizer: Tokenizer, stop: int, until: int | None
) -> Iterator[str]:
    """A line for every exposure of an item in the steps below ``stop``."""
    batch = plan.shape.global_batch_size
    overlay = plan.overlay()
    named = plan.exposures.with_columns(name=plan.items["item_id"][plan.exposures["item"]])
    for exposure in named.filter(pl.col("name") == name).iter_rows(named=True):
        position, offset = exposure["position"], exposure["offset"]
        step = position // batch
        if step >= stop:
            continue
        window = overlay.apply(position, order.window(position))
        length = len(overlay.wording_tokens(exposure["wording"]))
        before = tokenizer.decode(window[max(0, offset - 12) : offset])
        inside = tokenizer.decode(window[offset : offset + length])
        after = tokenizer.decode(window[offset + length : offset + length + 12])
        ago = (
            f", {until - step - 1} steps before the checkpoint"
            if until is not None
            else f", seen from step_{step + 1} on"
        )
        yield f"  step {step}, row {position % batch}, offset {offset}{ago}: {before!r} >>{inside!r}<< {after!r}"


def step(
    plan: Plan, number: int, order: Windows, tokenizer: Tokenizer, corpora: Sequence[Path]
) -> Iterator[str]:
    """Contents of a step's windows: for every row its documents and its insertions.

    Args:
        plan: the plan.
        number: of the step, from 0.
        order: the corpus's windows.
        tokenizer: the corpus's.
        corpora: their directories.

    Raises:
        UserError: if the run has no such step.
    """
    if not plan.shape.begin <= number < plan.shape.steps:
        raise UserError(f"step={number}: the run has steps {plan.shape.begin} to {plan.shape.steps - 1}")
    overlay, batch = plan.overlay(), plan.shape.global_batch_size
    names = plan.items["item_id"].to_list()
    for position in range(number * batch, (number + 1) * batch):
        yield f"step {number}, row {position % batch} (window {position})"
        for piece in pieces(order, corpora, tokenizer, range(position, position + 1)):
            yield f"    corpus tokens {piece.offset} to {piece.end - 1}: {piece.source} {piece.row}"
        window = overlay.apply(position, order.window(position))
        for span in overlay.spans(position):
            text = tokenizer.decode(window[span.offset : span.offset + span.length])
            yield f"  > inserted at {span.offset}: {names[span.item]} {text!r}"
        yield f"    reads {tokenizer.decode(window)!r}"


def consumed(plan: Plan, ledger: Ledger) -> Plan:
    """A copy of a plan with only the exposures recorded in a ledger."""
    names = plan.items["item_id"]
    exposures = plan.exposures.with_columns(item_id=names[plan.exposures["item"]]).join(
        ledger.exposures.select("position", "item_id", "offset"),
        on=["position", "item_id", "offset"],
        how="semi",
    )
    return replace(plan, exposures=exposures.drop("item_id"))


def same(plan: Plan, ledger: Ledger, number: int, order: Windows) -> str:
    """Compare a step's windows according to the plan with those in the ledger.

    Raises:
        UserError: if the ledger ends before the step, or has other windows.
    """
    if not ledger.begin <= number < ledger.steps:
        raise UserError(f"step={number}: the ledger has steps {ledger.begin} to {ledger.steps - 1}")
    overlay, batch = plan.overlay(), plan.shape.global_batch_size
    digests = dict(ledger.windows.filter(pl.col("position") // batch == number).iter_rows())
    for position in range(number * batch, (number + 1) * batch):
        window = overlay.apply(position, order.window(position))
        weights = overlay.loss_mask(position, plan.shape.sequence_length)
        flags = np.ones(plan.shape.sequence_length, dtype=np.bool_)
        if window_digest(window, flags if weights is None else weights) != digests[position]:
            raise UserError(
                f"step={number}: row {position % batch} of the ledger is another window than corpus and plan make; run "
                "launch/audit.py"
            )
    return f"the ledger has these {batch} windows, by their digests"


def family(items: Sequence[Item], tokenizer: Tokenizer) -> Iterator[str]:
    """Items with their wordings and probes; the target of each probe is marked.

    Args:
        items: of one family.
        tokenizer: for checking that targets begin on token boundaries.
    """
    asked = [(item.id, item.family, probe) for item in items for probe in item.probes]
    table, left_out = tokenize_probes(asked, tokenizer)
    for item in items:
        about = [
            item.stratum,
            "" if item.bits is None else f"{item.bits:.2f} bits",
            item.provenance,
            item.licence,
        ]
        yield f"{item.id}  ({'; '.join(part for part in about if part)})"
        yield f"  text: {item.text!r}"
        for wording in item.paraphrases:
            yield f"  wording: {wording!r}"
        for kind, name, correct, text, start in (
            table.filter(pl.col("item_id") == item.id)
            .select("kind", "name", "correct", "text", "target_char")
            .iter_rows()
        ):
            label = f"{kind} {name}".strip() + ("" if correct else " (decoy)")
            yield f"  {label}: {text[:start]!r} >>{text[start:]!r}<<"
    yield from (f"left out: {line}" for line in left_out)
