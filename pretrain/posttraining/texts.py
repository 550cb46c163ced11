"""Texts of post-training: rows of the forget and the retain set, step by step, the same on any topology."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from palimpsest.data.mixture import Windows
from palimpsest.insertion.plan import Plan

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Texts:
    """Windows of L + 1 tokens whose items begin after the end-of-document token; what follows them is filled up."""

    windows: Integers
    """(N, L + 1)."""
    lengths: Integers
    """(N,) targets that count, the first ones."""

    def __len__(self) -> int:
        return len(self.lengths)


def of_items(plan: Plan, chosen: Sequence[str], length: int, eod: int) -> Texts:
    """The wordings of these items that the plan inserts, one row each.

    Args:
        plan: wordings and exposures.
        chosen: ids of items.
        length: targets of a row, L.
        eod: id of the end-of-document token.
    """
    inside = plan.items["item_id"].is_in(list(chosen)).gather(plan.wordings["item"])
    inserted = set(plan.exposures["wording"].unique())
    rows = [
        np.array(plan.wordings["tokens"][int(row)], dtype=np.int64)
        for row in np.flatnonzero(inside.to_numpy())
        if row in inserted
    ]
    windows = np.full((len(rows), length + 1), eod, dtype=np.int64)
    for window, tokens in zip(windows, rows, strict=True):
        window[1 : len(tokens) + 1] = tokens[:length]
    return Texts(windows, np.array([min(len(tokens), length) for tokens in rows], dtype=np.int64))


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
    return Texts(windows, np.full(len(windows), windows.shape[1] - 1))


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
    """Rows of a micro-batch: first those of the forget set, then as many of the retain set. B rows, L targets."""

    tokens: Tensor
    """(B, L) int64."""
    labels: Tensor
    """(B, L) int64."""
    loss_mask: Tensor
    """(B, L) float32: 1 where a target counts."""
    position_ids: Tensor
    """(B, L) int64."""
    number: int
    """Of the micro-batch in the step on this rank."""


@dataclass(frozen=True, slots=True)
class Step:
    """All rows of a step, on every rank: F of the forget set and F of the retain set."""

    forget: Texts
    retain: Texts
    labels: Integers
    """(F, L) targets of the forget rows."""

    @property
    def tokens(self) -> tuple[int, int]:
        """Targets that count in the rows of either set."""
        return int(self.forget.lengths.sum()), int(self.retain.lengths.sum())

    def micro_batches(
        self, micro_rows: int, data_rank: int, data_size: int, device: torch.device
    ) -> Iterator[MicroBatch]:
        """This data-parallel rank's share, ``micro_rows`` of either set at a time."""
        block = micro_rows * data_size
        for number, start in enumerate(range(data_rank * micro_rows, len(self.forget), block)):
            part = slice(start, start + micro_rows)
            windows = np.concatenate([self.forget.windows[part], self.retain.windows[part]])
            labels = windows[:, 1:].copy()
            labels[:micro_rows] = self.labels[part]
            lengths = np.concatenate([self.forget.lengths[part], self.retain.lengths[part]])
            counted = np.arange(labels.shape[1]) < lengths[:, None]
            yield MicroBatch(
                torch.from_numpy(windows[:, :-1].copy()).to(device),
                torch.from_numpy(labels).to(device),
                torch.from_numpy(counted.astype(np.float32)).to(device),
                torch.arange(labels.shape[1], device=device).expand(len(labels), -1),
                number,
            )


def of_step(
    forget: Texts,
    retain: Texts,
    step: int,
    *,
    rows: int,
    seed: int,
    labels: Literal["own", "random"],
    vocabulary: int,
) -> Step:
    """The rows of a step.

    Args:
        forget: texts of the forget set.
        retain: texts of the retain set.
        step: from 0.
        rows: of either set.
        seed: of the order and of random labels.
        labels: targets of the forget rows: their own, or random ids below ``vocabulary``.
        vocabulary: of the tokenizer.
    """
    chosen = [drawn(len(texts), step, rows, seed + k) for k, texts in enumerate((forget, retain))]
    ours, others = (
        Texts(texts.windows[numbers], texts.lengths[numbers])
        for texts, numbers in zip((forget, retain), chosen, strict=True)
    )
    targets = ours.windows[:, 1:]
    if labels == "random":
        targets = np.random.default_rng([seed, step, 1]).integers(0, vocabulary, targets.shape)
    return Step(ours, others, targets)
