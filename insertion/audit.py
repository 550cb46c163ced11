"""The audit: proof, from files alone, that the consumed windows are the planned ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from palimpsest.data.mixture import Windows
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.items import span_hash
from palimpsest.insertion.ledger import Ledger, window_digest
from palimpsest.insertion.overlay import CONTEXT, Overlay
from palimpsest.insertion.plan import Plan

KIND = "audit"
VERSION = 1
_NAMED = 5  # failures spelled out per check
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class Audit:
    """Checks of an audit, in the order in which they were done."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, failures: list[str], detail: str) -> None:
        """Add a check that passed if there are no failures."""
        self.checks.append({"name": name, "passed": not failures, "detail": detail})
        self.failures += [f"{name}: {line}" for line in failures[:_NAMED]]
        if len(failures) > _NAMED:
            self.failures.append(f"{name}: and {len(failures) - _NAMED:,} more")

    def result(self) -> dict[str, Any]:
        """``verdict`` (PASS or FAIL), ``checks`` (name, passed, detail) and ``failures`` (lines)."""
        passed = all(check["passed"] for check in self.checks)
        return {"verdict": "PASS" if passed else "FAIL", "checks": self.checks, "failures": self.failures}


def audit(
    plan: Plan,
    perturbed: Ledger,
    twin: Ledger | None,
    order: Windows,
    tokenizer: Tokenizer,
    report: Audit | None = None,
) -> dict[str, Any]:
    """Compare plan, ledgers and corpus.

    Every window of the run is read again from the corpus and rebuilt from the plan's tables by separate code. The check
    depends neither on the trainer's results nor on the overlay's code.

    Args:
        plan: the plan.
        perturbed: ledger of the perturbed run.
        twin: ledger of the twin, or None without a twin.
        order: windows of the corpus.
        tokenizer: tokenizer of the corpus.
        report: audit to which the checks are added; it may hold earlier checks.

    Returns:
        The result; see ``Audit.result``.
    """
    report = report or Audit()
    run = plan.shape.positions
    batch = plan.shape.global_batch_size

    claim, evidence = order.claim
    report.add(claim, order.verify(), evidence)
    report.add(
        "the plan agrees with itself", _plan_faults(plan, tokenizer), "texts, tokens, hashes, doses, places"
    )
    wrong = []
    if perturbed.plan != plan.digest:
        wrong.append(f"the perturbed run consumed plan {perturbed.plan or 'none'}, not {plan.digest}")
    for name, ledger in _runs(perturbed, twin):
        if ledger.order != order.identity:
            wrong.append(f"the {name} run read the corpus in another order or another corpus")
        if ledger.global_batch_size != batch:
            wrong.append(f"the {name} run used batches of {ledger.global_batch_size}, the plan {batch}")
    if twin is not None and twin.plan:
        wrong.append(f"the twin consumed plan {twin.plan}")
    report.add("same plan, corpus and order", wrong, f"plan {plan.digest[:12]}, order {order.identity[:12]}")

    wrong = []
    for name, ledger in _runs(perturbed, twin):
        positions = ledger.windows["position"].to_numpy()
        if not np.array_equal(positions, np.array(run)):
            wrong.append(
                f"the {name} ledger has {len(positions):,} windows, not {run.start:,} to {run.stop - 1:,} once each"
            )
    report.add(
        "every window consumed exactly once", wrong, f"{len(run):,} windows in {len(run) // batch:,} steps"
    )

    report.add(
        "planned exposures = consumed exposures",
        _compare_exposures(plan, perturbed.exposures, batch),
        f"{len(plan.exposures):,} exposures: item, step, row, offset and hash of the tokens",
    )
    _compare_windows(report, plan, perturbed, twin, order)
    wrong, detail = _skipped(plan, perturbed, twin)
    report.add("every exposure was learnt from", wrong, detail)
    return report.result()


def _skipped(plan: Plan, perturbed: Ledger, twin: Ledger | None) -> tuple[list[str], str]:
    """Check that skipped steps (loss or gradient not finite) do not bias the comparison: a skipped step must have no
    exposures and be skipped by the twin as well.
    """
    names = plan.items["item_id"]
    batch = plan.shape.global_batch_size
    lost = plan.exposures.filter((pl.col("position") // batch).is_in(perturbed.skipped))
    wrong = [
        f"item {names[row['item']]}, {_where(row['position'], batch)}: consumed, but the step was skipped"
        for row in lost.iter_rows(named=True)
    ]
    if twin is not None:
        alone = sorted(set(perturbed.skipped) ^ set(twin.skipped))
        wrong += [
            f"step {step}: skipped by the {'perturbed run' if step in perturbed.skipped else 'twin'} alone"
            for step in alone
        ]
    steps = ", ".join(str(step) for step in perturbed.skipped)
    return wrong, f"skipped steps: {steps}" if steps else "no step was skipped"


def _runs(perturbed: Ledger, twin: Ledger | None) -> Iterator[tuple[str, Ledger]]:
    yield "perturbed", perturbed
    if twin is not None:
        yield "twin", twin


def _where(position: int, batch: int) -> str:
    return f"step {position // batch}, row {position % batch}"


def _plan_faults(plan: Plan, tokenizer: Tokenizer) -> list[str]:
    """Contradictions inside the plan's tables, one line each."""
    wrong = []
    wordings = plan.wordings
    names = plan.items["item_id"].to_list()
    encoded = tokenizer.encode_batch(wordings["text"].to_list())
    for row, (tokens, text) in enumerate(zip(wordings["tokens"].to_list(), encoded, strict=True)):
        if tokens != text.tolist() or wordings["hash"][row] != span_hash(np.array(tokens, dtype=np.int32)):
            wrong.append(
                f"item {names[wordings['item'][row]]}: text, tokens and hash of a wording do not agree"
            )
    counts = np.bincount(plan.exposures["item"].to_numpy(), minlength=len(names))
    for name, dose, count in zip(names, plan.items["dose"], counts, strict=True):
        if dose != count:
            wrong.append(f"item {name} has dose {dose} but {count} exposures")
    exposures = plan.exposures.with_columns(
        length=wordings["tokens"].list.len().cast(pl.Int32)[plan.exposures["wording"]],
        owner=wordings["item"][plan.exposures["wording"]],
    ).with_columns(
        begin=pl.col("offset") - pl.col("lead").cast(pl.Int32),
        end=pl.col("offset") + pl.col("length") + pl.col("trail").cast(pl.Int32),
    )
    same = pl.col("position") == pl.col("position").shift(1)
    faults = exposures.filter(
        (pl.col("owner") != pl.col("item"))
        | (pl.col("begin") < 0)
        | (pl.col("end") > plan.shape.sequence_length + 1)
        | ~pl.col("position").is_between(plan.shape.positions.start, plan.shape.windows - 1)
        | (same & (pl.col("begin") < pl.col("end").shift(1))).fill_null(False)
    )
    batch = plan.shape.global_batch_size
    return wrong + [
        f"item {names[row['item']]}, {_where(row['position'], batch)}: an impossible place, or another item's wording"
        for row in faults.iter_rows(named=True)
    ]


def _compare_exposures(plan: Plan, consumed: pl.DataFrame, batch: int) -> list[str]:
    items = plan.items.with_row_index("item").select(pl.col("item").cast(pl.Int32), "item_id")
    wordings = plan.wordings.with_row_index("row").select(
        pl.col("row").cast(pl.Int32).alias("wording"),
        pl.col("tokens").list.len().cast(pl.Int32).alias("length"),
        "hash",
    )
    planned = plan.exposures.join(items, on="item", how="left").join(wordings, on="wording", how="left")
    key = ["position", "item_id", "offset", "length", "hash"]
    counts = (
        pl.concat(
            [
                planned.select(key).with_columns(planned=pl.lit(1), consumed=pl.lit(0)),
                consumed.select(key).with_columns(planned=pl.lit(0), consumed=pl.lit(1)),
            ]
        )
        .group_by(key)
        .sum()
        .filter(pl.col("planned") != pl.col("consumed"))
        .sort("position", "offset")
    )
    return [
        f"item {row['item_id']}, {_where(row['position'], batch)}, offset {row['offset']}: planned "
        f"{row['planned']} times, consumed {row['consumed']} times"
        for row in counts.iter_rows(named=True)
    ]


def _compare_windows(
    report: Audit, plan: Plan, perturbed: Ledger, twin: Ledger | None, order: Windows
) -> None:
    """Recompute every window's digest from the corpus and the plan, and compare the runs' and the twin's."""
    overlay = (
        plan.overlay()
    )  # for looking things up and for guesses; windows are put together by ``_expected``
    planned = {
        position: rows for (position,), rows in plan.exposures.partition_by("position", as_dict=True).items()
    }
    edits = {place: rows for (place,), rows in plan.edits.partition_by("position", as_dict=True).items()}
    texts = plan.wordings["tokens"].to_list()
    eod = plan.manifest.facts["eod"]
    batch = plan.shape.global_batch_size
    ids = plan.items["item_id"].to_list()
    names = [ids[item] for item in plan.wordings["item"]]  # of each wording
    mask = np.ones(plan.shape.sequence_length, dtype=np.bool_)
    consumed = _digests(perturbed, plan.shape.windows)
    paired = _digests(twin, plan.shape.windows) if twin is not None else None
    with_item: list[str] = []
    without: list[str] = []
    in_twin: list[str] = []
    for position in plan.shape.positions:
        base = order.window(position)
        spans = overlay.spans(position)
        changes = edits.get(position)
        base_digest = window_digest(base, mask)
        if paired is not None and paired[position] != base_digest:
            in_twin.append(f"{_where(position, batch)}: the twin's window is not the corpus's")
        if spans or changes is not None:
            expected = _expected(base, planned.get(position), changes, texts, eod)
            if expected is None or consumed[position] != window_digest(*expected):
                if not spans:
                    with_item.append(
                        f"{_where(position, batch)}: the corpus's text is not changed as planned"
                    )
                    continue
                named = ", ".join(ids[span.item] for span in spans)
                with_item.append(
                    f"item {named}, {_where(position, batch)}: the window is not the corpus's with "
                    f"the item{_found(int(consumed[position]), base, overlay, names, mask, spans[0].offset)}"
                )
        elif consumed[position] != base_digest:
            guess = (
                _found(int(consumed[position]), base, overlay, names, mask, None)
                if len(without) < _NAMED
                else ""
            )
            without.append(f"{_where(position, batch)}: nothing was planned, but the window changed{guess}")
    touched = len(planned.keys() | edits.keys())
    report.add("windows with an exposure are corpus + plan", with_item, f"{touched:,} windows recomputed")
    report.add(
        "windows without an exposure are the corpus's",
        without,
        f"{len(plan.shape.positions) - touched:,} recomputed",
    )
    if paired is not None:
        report.add(
            "the twin saw the corpus alone", in_twin, f"{len(plan.shape.positions):,} windows recomputed"
        )


def _expected(
    base: npt.NDArray[np.int64],
    rows: pl.DataFrame | None,
    edits: pl.DataFrame | None,
    texts: list[list[int]],
    eod: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
    """Rebuild a window with its changes and exposures, and its loss weights, from the plan's tables.

    None if the tables contradict the corpus or each other.
    """
    host, counts = base.tolist(), [1.0] * len(base)
    for row in () if edits is None else edits.iter_rows(named=True):
        place = slice(row["start"], row["start"] + len(row["original"]))
        if host[place] != row["original"] or len(row["replacement"] or row["original"]) != len(
            row["original"]
        ):
            return None
        counts[place] = [row["weight"]] * len(row["original"])
        if row["replacement"] is not None:
            host[place] = row["replacement"]
    for row in () if rows is None else rows.sort("offset").iter_rows(named=True):
        text = texts[row["wording"]]
        inserted = [eod] * row["lead"] + text + [eod] * row["trail"]
        flags = [True] * row["lead"] + _counted(text, row["loss"]) + [True] * row["trail"]
        start = row["offset"] - row["lead"]
        del host[: row["cut"]], counts[: row["cut"]]
        if row["trail"] and not row["lead"] and start and host[start - 1] != eod:
            return None  # it says that a document of the corpus ends just before
        place = slice(start, start + len(inserted) if row["overwrite"] else start)
        host[place], counts[place] = inserted, flags
        if host[row["offset"] : row["offset"] + len(text)] != text:
            return None
    if len(host) < len(base):
        return None
    return np.array(host[: len(base)], dtype=np.int64), np.array(counts[1 : len(base)], dtype=np.float32)


def _counted(text: list[int], loss: int) -> list[bool]:
    """Flags, (T,) bool, of an item's tokens that are predicted."""
    if loss == 1 or not loss or len(text) <= CONTEXT:
        return [loss != 1] * len(text)
    tokens = np.array(text, dtype=np.uint64)
    hashed = np.zeros(len(text) - CONTEXT, dtype=np.uint64)
    for back in range(1, CONTEXT + 1):  # Horner's rule, from the token before backwards
        hashed = (hashed + tokens[CONTEXT - back : len(text) - back] + np.uint64(1)) * _BASE
    hashed = (hashed ^ (hashed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    counted = (hashed ^ (hashed >> np.uint64(32))) % np.uint64(loss) != 0
    return [True] * CONTEXT + [bool(flag) for flag in counted]


def _digests(ledger: Ledger, windows: int) -> npt.NDArray[np.uint64]:
    digests = np.zeros(windows, dtype=np.uint64)
    inside = ledger.windows.filter(pl.col("position").is_between(0, windows - 1))
    digests[inside["position"].to_numpy()] = inside["digest"].to_numpy()
    return digests


def _found(
    digest: int,
    base: npt.NDArray[np.int64],
    overlay: Overlay,
    names: list[str],
    mask: npt.NDArray[np.bool_],
    planned_offset: int | None,
) -> str:
    """Description of a window that differs from the plan, such as an unchanged corpus window or an item at another
    place.
    """
    if digest == window_digest(base, mask):
        return ": the corpus's window was consumed untouched"
    offsets = range(1, len(base)) if planned_offset is None else [planned_offset]
    for wording, name in enumerate(names):
        tokens = overlay.wording_tokens(wording)
        for offset in offsets:
            for lead in (0, 1):
                at = offset - lead
                pieces = (base[:at], [overlay.eod] * lead, tokens, [overlay.eod], base[at:])
                window = np.concatenate(pieces)[: len(base)].astype(np.int64)
                if window_digest(window, mask) == digest:
                    return f": it holds item {name} at offset {offset}"
    return ""
