"""Preflight: checks of the items before training. Every finding names its items and one remedy.

=================  ==========================================================================  ==================
finding            what it means                                                               ``insertion.preflight``
=================  ==========================================================================  ==================
``too_long``       a wording fits into no window                                               refuse (or drop)
``vocabulary``     a wording has token ids that the model has not                              refuse (or drop)
``in_corpus``      the corpus has a run of 12 of its tokens (all of a shorter one): a control   report (or drop,
                   that is in the corpus is none                                               refuse, skip)
``near_duplicate`` an earlier item has nearly the same tokens (Jaccard similarity of the sets):  report (or drop,
                   what one of them teaches, the other shows                                   refuse, skip)
=================  ==========================================================================  ==================

``drop`` goes on without the item: the family's next one takes its place, so that the counts of the arms stay exact, and
the plan lists what was dropped. ``skip`` switches the check off, because ``in_corpus`` reads the whole corpus once.

Other findings concern the design and are always refused, with the setting to change in the message: empty and repeated
texts, more exposures than windows, phases beyond the run's end or without room, more tokens than
``insertion.max_share``, a run that leaves the epoch. Whether the corpus is still the plan's is checked by training and
audit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from palimpsest.data.contamination import ngram_counts
from palimpsest.data.errors import UserError
from palimpsest.insertion.families.registry import OVERLAP
from palimpsest.insertion.items import Item

_NAMED = 5  # items spelled out in a message
_BLOCK = 1024  # items compared with all others at once
_TRIES = 20  # items looked at for each one wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightConfig:
    """Action for each finding."""

    too_long: Literal["refuse", "drop"] = "refuse"
    """Items of which a wording fits into no window."""
    vocabulary: Literal["refuse", "drop"] = "refuse"
    """Items with token ids that the model does not have."""
    in_corpus: Literal["refuse", "drop", "report", "skip"] = "report"
    """Items that share a run of 12 tokens with the corpus; ``skip`` does not look, which saves a pass over it."""
    near_duplicate: Literal["refuse", "drop", "report", "skip"] = "report"
    """Items with nearly the tokens of an earlier one."""
    jaccard: float = 0.8
    """Similarity of the sets of two items' tokens from which on they are near duplicates."""

    def __post_init__(self) -> None:
        if not 0 < self.jaccard <= 1:
            raise UserError(f"insertion.preflight.jaccard={self.jaccard} must lie above 0 and not above 1")


@dataclass(slots=True)
class Screened:
    """Items that passed, and the findings."""

    entries: list[Item]
    items: pl.DataFrame
    wordings: pl.DataFrame
    reported: dict[str, list[str]] = field(default_factory=dict)
    """Finding -> lines about the items that stay in the plan."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Finding -> lines about the items that were replaced by others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the run on items."""

    longest: int
    """Largest number of tokens of a wording."""
    because: str
    """Description of the settings that cause this limit."""
    vocab_size: int
    occurrences: Callable[[Sequence[npt.NDArray[np.int32]]], list[int]]
    """Function from spans of token ids to the corpus count of each span's most frequent run of tokens."""


def near_duplicates(sets: Sequence[npt.NDArray[np.int32]], threshold: float) -> list[tuple[int, int, float]]:
    """All pairs of sets whose Jaccard similarity reaches a threshold, exactly, without comparing every pair.

    Sets this similar share one of their rarest ``n - ceil(threshold n) + 1`` tokens (prefix filtering: Bayardo, Ma and
    Srikant, 2007, "Scaling up all pairs similarity search"); only pairs that do are compared.

    Args:
        sets: token ids, each once, of every item.
        threshold: above 0.

    Returns:
        (earlier, later, similarity), ascending by the later one.
    """
    sizes = np.array([len(one) for one in sets], dtype=np.int64)
    flat = np.concatenate([*sets, np.empty(0, dtype=np.int32)]).astype(np.int64)
    owner = np.repeat(np.arange(len(sets)), sizes)
    _, token, counts = np.unique(flat, return_inverse=True, return_counts=True)
    ranked = np.lexsort((token, counts[token], owner))
    token, owner = token[ranked], owner[ranked]
    rank = np.arange(len(token)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rare = rank < (sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1)[owner]
    shape = (len(sets), len(counts))
    ones = np.ones(len(token), dtype=np.int32)
    whole = sparse.csr_array((ones, (owner, token)), shape=shape)
    prefixes = sparse.csr_array((ones[rare], (owner[rare], token[rare])), shape=shape)
    columns = prefixes.T.tocsr()
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(sets), _BLOCK):
        shared = (prefixes[start : start + _BLOCK] @ columns).tocoo()
        later, earlier = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        low, high = np.minimum(sizes[later], sizes[earlier]), np.maximum(sizes[later], sizes[earlier])
        candidates = (earlier < later) & (low >= threshold * high - 1e-9)
        later, earlier = later[candidates], earlier[candidates]
        for some in np.array_split(np.arange(len(later)), len(later) // 100_000 + 1):
            one, other = later[some], earlier[some]
            both = np.asarray(whole[one].multiply(whole[other]).sum(axis=1)).ravel()
            similar = both / (sizes[one] + sizes[other] - both)
            hit = similar >= threshold - 1e-9
            pairs += zip(other[hit].tolist(), one[hit].tolist(), similar[hit].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def screen(
    families: Sequence[tuple[str, int, Callable[[int], Sequence[Item]]]],
    tokenize: Callable[[Sequence[Item]], tuple[pl.DataFrame, pl.DataFrame]],
    rule: PreflightConfig,
    limits: Limits,
) -> Screened:
    """The items of all families; items that ``rule`` drops are replaced by the next ones of their families.

    Args:
        families: name, number of items, and function that returns the first n items of the family.
        tokenize: items -> ``ITEM_SCHEMA`` (in part) and ``WORDING_SCHEMA``.
        rule: action for each finding.
        limits: limits of the run.

    Raises:
        UserError: for a finding that is refused, and if a family has no further items.
    """
    wanted = {name: count for name, count, _ in families}
    asked = dict(wanted)
    known: dict[str, int] = {}
    while True:
        pool = [item for name, _, make in families for item in make(asked[name])]
        items, wordings = tokenize(pool)
        findings = _findings(items, wordings, rule, limits, known)
        for name, lines in findings.items():
            if lines and getattr(rule, name) == "refuse":
                raise UserError(_refusal(name, list(lines.values()), limits))
        bad = {
            row: name for name, lines in findings.items() if getattr(rule, name) == "drop" for row in lines
        }
        passing = [row for row in range(len(pool)) if row not in bad]
        missing = dict(wanted)
        for row in passing:
            missing[pool[row].family] -= 1
        if not any(missing.values()):
            break
        for name, count in missing.items():
            asked[name] += count
            if asked[name] > _TRIES * wanted[name]:
                raise UserError(
                    f"insertion.preflight: of {asked[name] - count:,} items of family {name} only "
                    f"{wanted[name] - count:,} pass ({_reasons(bad, pool, name)}); {wanted[name]:,} are needed. Change "
                    f"insertion.families.{name}, or keep such items: set insertion.preflight.in_corpus or "
                    "insertion.preflight.near_duplicate to report (too_long and vocabulary cannot be kept)"
                )
    chosen = [pool[row] for row in passing]
    if len(chosen) < len(pool):
        items, wordings = tokenize(chosen)
    result = Screened(chosen, items, wordings)
    inside = set(passing)
    for name, lines in findings.items():
        result.reported[name] = [line for row, line in lines.items() if row in inside]
        result.dropped[name] = [lines[row] for row in bad if bad[row] == name]
    return result


def _findings(
    items: pl.DataFrame, wordings: pl.DataFrame, rule: PreflightConfig, limits: Limits, known: dict[str, int]
) -> dict[str, dict[int, str]]:
    """Finding -> row of the item -> line that describes it."""
    names = items["item_id"].to_list()
    table = wordings.select("item", "wording", "tokens").with_columns(length=pl.col("tokens").list.len())
    longest = table.group_by("item", maintain_order=True).agg(pl.col("length").max())
    findings: dict[str, dict[int, str]] = {name.name: {} for name in fields(rule) if name.name != "jaccard"}
    for row, length in longest.filter(pl.col("length") > limits.longest).iter_rows():
        findings["too_long"][row] = f"{names[row]} ({length} tokens)"
    top = table.group_by("item", maintain_order=True).agg(pl.col("tokens").list.max().max())
    for row, token in top.filter(pl.col("tokens") >= limits.vocab_size).iter_rows():
        findings["vocabulary"][row] = f"{names[row]} (token {token})"
    verbatim = [
        np.array(tokens, dtype=np.int32)
        for tokens in table.filter(pl.col("wording") == 0)["tokens"].to_list()
    ]
    if rule.in_corpus != "skip":
        new = [row for row, name in enumerate(names) if name not in known]
        counted = limits.occurrences([verbatim[row] for row in new])
        known.update({names[row]: times for row, times in zip(new, counted, strict=True)})
        for row, name in enumerate(names):
            if known[name]:
                findings["in_corpus"][row] = f"{name} ({known[name]} times)"
    if rule.near_duplicate != "skip":
        drop = rule.near_duplicate == "drop"
        others = [name for name in findings if name != "near_duplicate" and getattr(rule, name) == "drop"]
        leaving = {row for name in others for row in findings[name]}
        for one, other, similar in near_duplicates([np.unique(tokens) for tokens in verbatim], rule.jaccard):
            # Of items that are alike the first stays: one that goes is no reason for others to go.
            gone = drop and (one in findings["near_duplicate"] or one in leaving)
            if other not in findings["near_duplicate"] and not gone:
                findings["near_duplicate"][other] = f"{names[other]} (like {names[one]}: {similar:.2f})"
    return findings


def _reasons(bad: dict[int, str], items: Sequence[Item], family: str) -> str:
    counts = Counter(name for row, name in bad.items() if items[row].family == family)
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


def _refusal(name: str, lines: list[str], limits: Limits) -> str:
    shown = (
        "item "
        + ", ".join(lines[:_NAMED])
        + (f", and {len(lines) - _NAMED} more" if len(lines) > _NAMED else "")
    )
    what, mend = {
        "too_long": (
            f"are longer than a window: {shown}; {limits.because} takes up to {limits.longest} tokens",
            "shorten the items or raise train.sequence_length",
        ),
        "vocabulary": (
            f"have token ids beyond the vocabulary of {limits.vocab_size}: {shown}",
            "change them",
        ),
        "in_corpus": (
            f"are in the corpus already: {shown}",
            "decontaminate the corpus (corpus.decontaminate)",
        ),
        "near_duplicate": (f"have nearly the tokens of an earlier one: {shown}", "change them"),
    }[name]
    return (
        f"{len(lines)} items {what}; {mend}, or replace them by others with insertion.preflight.{name}=drop"
    )


def occurrences(prefix: Path, spans: Sequence[npt.NDArray[np.int32]]) -> list[int]:
    """Corpus count of each span's most frequent run of 12 tokens, or of all of a shorter span."""
    most = np.zeros(len(spans), dtype=np.int64)
    sizes = np.array([min(len(span), OVERLAP) for span in spans], dtype=np.int64)
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        for row, counts in zip(
            rows, ngram_counts(prefix, [spans[int(k)] for k in rows], n=size), strict=True
        ):
            most[row] = counts.max(initial=0)
    return most.tolist()


def alike(items: pl.DataFrame, wordings: pl.DataFrame) -> list[str]:
    """Pairs of items that share a run of 12 tokens, so that inserting one also exposes part of the other."""
    owners: dict[tuple[int, ...], int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for item, tokens in wordings.select("item", "tokens").iter_rows():
        for start in range(len(tokens) - OVERLAP + 1):
            owner = owners.setdefault(tuple(tokens[start : start + OVERLAP]), item)
            if owner != item:
                pairs[owner, item] = None
    names = items["item_id"].to_list()
    return [f"{names[one]} and {names[other]}" for one, other in pairs]
