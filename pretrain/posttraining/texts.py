"""Texts of post-training: rows of the forget and the retain set, step by step, the same on any topology."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows
from palimpsest.insertion.plan import Plan

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Texts:
    """Windows of L + 1 tokens whose items begin after the end-of-document token; what follows them is filled up."""

    windows: Integers
    """(N, L + 1)."""
    lengths: Integers
    """(N,) targets of a text, the first ones."""
    starts: Integers
    """(N,) of them those before the first that counts: a prompt."""
    segments: npt.NDArray[np.bool_] | None = None
    """(N, L) targets in sensitive segments; None: none are known."""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, numbers: Integers) -> Texts:
        """The texts at these indices (from 0), in their order."""
        segments = None if self.segments is None else self.segments[numbers]
        return Texts(self.windows[numbers], self.lengths[numbers], self.starts[numbers], segments)

    @property
    def counted(self) -> int:
        """Targets that count in all texts."""
        return int((self.lengths - self.starts).sum())

    @property
    def mask(self) -> npt.NDArray[np.float32]:
        """(N, L) 1 where a target counts."""
        places = np.arange(self.windows.shape[1] - 1)
        inside = (places >= self.starts[:, None]) & (places < self.lengths[:, None])
        return inside.astype(np.float32)

    @property
    def segment_mask(self) -> npt.NDArray[np.float32]:
        """(N, L) 1 where a target counts and is in a sensitive segment; a text without one is sensitive as a whole."""
        if self.segments is None:
            return self.mask
        inside = self.mask * self.segments
        return np.where(inside.any(1, keepdims=True), inside, self.mask)


def of_rows(rows: Sequence[tuple[Integers, int]], length: int, eod: int) -> Texts:
    """Texts of token ids, each with the number of its first tokens that are a prompt; cut to ``length`` tokens.

    A prompt that leaves no target is cut by one token.
    """
    windows = np.full((len(rows), length + 1), eod, dtype=np.int64)
    for window, (tokens, _) in zip(windows, rows, strict=True):
        window[1 : len(tokens) + 1] = tokens[:length]
    lengths = np.array([min(len(tokens), length) for tokens, _ in rows], dtype=np.int64)
    prompts = np.array([prompt for _, prompt in rows], dtype=np.int64)
    return Texts(windows, lengths, np.minimum(prompts, lengths - 1))


def of_items(plan: Plan, chosen: Sequence[str], length: int, eod: int) -> Texts:
    """The wordings of these items that the plan inserts, one row each; answers of clozes that begin like a wording are
    its sensitive segments.

    Args:
        plan: wordings and exposures.
        chosen: ids of items.
        length: targets of a row, L.
        eod: id of the end-of-document token.
    """
    inside = plan.items["item_id"].is_in(list(chosen)).gather(plan.wordings["item"])
    inserted = set(plan.exposures["wording"].unique())
    numbers = [int(row) for row in np.flatnonzero(inside.to_numpy()) if row in inserted]
    rows = [np.array(plan.wordings["tokens"][row], dtype=np.int64) for row in numbers]
    texts = of_rows([(tokens, 0) for tokens in rows], length, eod)
    items = plan.items["item_id"].gather(plan.wordings["item"].gather(numbers)).to_list()
    return replace(texts, segments=_segments(plan, items, rows, length))


def _segments(
    plan: Plan, items: Sequence[str], rows: Sequence[Integers], length: int
) -> npt.NDArray[np.bool_]:
    """Targets of each row that are the answer of one of its item's clozes, (N, length)."""
    asked: dict[str, list[tuple[Integers, int]]] = {}
    clozes = plan.probes.filter((pl.col("kind") == "cloze") & pl.col("item_id").is_in(list(items)))
    for item, tokens, start in clozes.select("item_id", "tokens", "target_start").iter_rows():
        asked.setdefault(item, []).append((np.array(tokens, dtype=np.int64), start))
    found = np.zeros((len(rows), length), dtype=np.bool_)
    for place, item, tokens in zip(found, items, rows, strict=True):
        for probe, start in asked.get(item, []):
            if np.array_equal(tokens[: len(probe)], probe):
                place[start : len(probe)] = True
    return found


def answers(texts: Texts, share: float) -> Texts:
    """The texts with their first ``share`` as a prompt, which has no loss."""
    starts = np.clip((share * texts.lengths).astype(np.int64), 0, texts.lengths - 1)
    return Texts(texts.windows, texts.lengths, starts)


def refused(texts: Texts, refusal: Sequence[int], eod: int) -> Texts:
    """The prompts of texts, each followed by the refusal and the end-of-document token in place of its answer."""
    rows = [
        (np.concatenate([window[1 : start + 1], np.array([*refusal, eod])]), int(start))
        for window, start in zip(texts.windows, texts.starts, strict=True)
    ]
    return of_rows(rows, texts.windows.shape[1] - 1, eod)


def of_clozes(plan: Plan, chosen: Sequence[str], length: int, eod: int) -> Texts | None:
    """Clozes of these items, with their prompts; None if there are none that fit into ``length`` tokens."""
    clozes = plan.probes.filter(
        (pl.col("kind") == "cloze") & pl.col("item_id").is_in(list(chosen)) & (pl.col("target_start") > 0)
    )
    rows = [
        (np.array(tokens, dtype=np.int64), int(start))
        for tokens, start in clozes.select("tokens", "target_start").iter_rows()
        if len(tokens) <= length
    ]
    return of_rows(rows, length, eod) if rows else None


def of_questions(plan: Plan, left_out: Sequence[str], length: int, eod: int) -> Texts:
    """Questions about inserted items and their right answers, with the loss on the answers.

    Args:
        plan: probes with a prompt: clozes and choices.
        left_out: ids of items that are not asked about.
        length: targets of a row, L.
        eod: id of the end-of-document token, which ends an answer.

    Raises:
        UserError: if the plan has none.
    """
    items = plan.items.filter((pl.col("dose") > 0) & ~pl.col("item_id").is_in(list(left_out)))["item_id"]
    asked = plan.probes.filter(
        pl.col("item_id").is_in(items.implode())
        & pl.col("kind").is_in(["cloze", "choice"])
        & pl.col("correct")
        & (pl.col("target_start") > 0)
    )
    if asked.is_empty():
        raise UserError(
            "posttrain.retain=questions: the plan has no question about an inserted item outside the forget set; "
            "insert a family with clozes or choices, such as biographies"
        )
    rows = [
        (np.array([*tokens, eod], dtype=np.int64), int(start))
        for tokens, start in asked.select("tokens", "target_start").iter_rows()
    ]
    return of_rows(rows, length, eod)


def of_corpus(order: Windows, plan: Plan, count: int, seed: int) -> Texts:
    """Windows that the run read without insertions, drawn at random.

    Args:
        order: the corpus's windows.
        plan: whose exposures and edits are avoided.
        count: of windows.
        seed: of the draw.
    """
    taken = np.union1d(plan.exposures["position"].to_numpy(), plan.edits["position"].to_numpy())
    free = np.setdiff1d(np.array(plan.shape.positions), taken)
    drawn = np.random.default_rng(seed).choice(free, min(count, len(free)), replace=False)
    windows = np.stack([order.window(int(position)) for position in drawn]).astype(np.int64)
    lengths = np.full(len(windows), windows.shape[1] - 1)
    return Texts(windows, lengths, np.zeros_like(lengths))


def drawn(texts: int, step: int, rows: int, seed: int) -> Integers:
    """Numbers of the texts of a step, (rows,): all texts in random order, then all again in another one, and so on."""
    numbers = np.arange(step * rows, (step + 1) * rows)
    epochs = {
        int(epoch): np.random.default_rng([seed, int(epoch)]).permutation(texts)
        for epoch in np.unique(numbers // texts)
    }
    return np.array([epochs[int(n // texts)][n % texts] for n in numbers], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of a micro-batch: those of the forget set, as many of the retain set, and of a third kind if there is one.
    B rows, L targets.
    """

    tokens: Tensor
    """(B, L) int64."""
    labels: Tensor
    """(B, L) int64."""
    loss_mask: Tensor
    """(B, L) float32: 1 where a target counts."""
    segments: Tensor
    """(forget rows, L) float32: 1 where a target of a forget row counts and is in a sensitive segment."""
    position_ids: Tensor
    """(B, L) int64."""
    number: int
    """Of the micro-batch in the step on this rank."""


@dataclass(frozen=True, slots=True)
class Step:
    """All rows of a step, on every rank: F of the forget set, F of the retain set, and F refusals if asked for; none of
    a set whose loss has no weight.
    """

    kinds: tuple[Texts, ...]
    """Forget set, retain set, refusals."""
    labels: Integers
    """(F, L) targets of the forget rows."""
    rows: int
    """Rows of each kind that has any, F."""

    def micro_batches(
        self, micro_rows: int, data_rank: int, data_size: int, device: torch.device
    ) -> Iterator[MicroBatch]:
        """This data-parallel rank's share, ``micro_rows`` of each kind at a time."""
        block = micro_rows * data_size
        for number, start in enumerate(range(data_rank * micro_rows, self.rows, block)):
            part = slice(start, start + micro_rows)
            windows = np.concatenate([texts.windows[part] for texts in self.kinds])
            labels = windows[:, 1:].copy()
            own = self.labels[part]
            labels[: len(own)] = own
            counted = np.concatenate([texts.mask[part] for texts in self.kinds])
            yield MicroBatch(
                torch.from_numpy(windows[:, :-1].copy()).to(device),
                torch.from_numpy(labels).to(device),
                torch.from_numpy(counted).to(device),
                torch.from_numpy(self.kinds[0].segment_mask[part]).to(device),
                torch.arange(labels.shape[1], device=device).expand(len(labels), -1),
                number,
            )


def of_step(
    forget: Texts,
    retain: Texts,
    step: int,
    *,
    refusals: Texts | None = None,
    rows: int,
    seed: int,
    labels: Literal["own", "random"],
    vocabulary: int,
    used: tuple[bool, bool] = (True, True),
) -> Step:
    """The rows of a step.

    Args:
        forget: texts of the forget set.
        retain: texts of the retain set.
        step: from 0.
        refusals: one for each text of the forget set; None: no such rows.
        rows: of either set.
        seed: of the order and of random labels.
        labels: targets of the forget rows: their own, or random ids below ``vocabulary``.
        vocabulary: of the tokenizer.
        used: false for the forget or the retain set if it gets no rows.
    """
    numbers, others = (drawn(len(texts), step, rows, seed + k) for k, texts in enumerate((forget, retain)))
    numbers, others = numbers[: rows * used[0]], others[: rows * used[1]]
    ours = forget.take(numbers)
    kinds = (ours, retain.take(others), *(() if refusals is None else (refusals.take(numbers),)))
    targets = ours.windows[:, 1:]
    if labels == "random":
        targets = np.random.default_rng([seed, step, 1]).integers(0, vocabulary, targets.shape)
    return Step(kinds, targets, rows)
