"""Batches of a rank: windows at its positions, with the overlay applied, recorded for the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from palimpsest.data.mixture import Windows
from palimpsest.insertion.ledger import Recorder
from palimpsest.insertion.overlay import Overlay, Span
from palimpsest.insertion.plan import Plan
from palimpsest.pretrain.attention import share
from palimpsest.pretrain.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of B windows with L predicted tokens each."""

    tokens: Tensor
    """(B, L) int64."""
    labels: Tensor
    """(B, L) int64."""
    loss_mask: Tensor
    """(B, L) float32, weight of each target's loss: 1 unless the plan masks it (0)."""
    position_ids: Tensor
    """(B, L) int64, 0..L-1."""
    groups: Tensor
    """(B, L) int64, group of each target; see ``Groups``."""
    documents: Tensor | None
    """(n + 1,) int32, first tokens of the n documents among the B * L tokens, and B * L, for attention within
    documents; None: tokens attend to all earlier ones of their window."""


def document_starts(tokens_BL: Tensor, eod: int) -> Tensor:
    """First tokens of the documents in these windows: ``Batch.documents``.

    A document begins with the end-of-document token before it, like a probe in scoring; no document crosses windows.
    """
    begins_BL = tokens_BL == eod
    begins_BL[:, 0] = True
    starts = begins_BL.flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([tokens_BL.numel()])]).int()


class Groups:
    """Groups of targets whose mean losses are logged separately: the corpus, and inserted tokens by family and dose.

    Args:
        plan: the plan, or None for the twin.
    """

    def __init__(self, plan: Plan | None) -> None:
        self.names: list[str] = []
        """Names of groups 1, 2, ...; group 0 is the corpus."""
        self.of_item = np.zeros(0, dtype=np.int64)
        """(items,) group of each item."""
        if plan is not None:
            keys = list(zip(plan.items["family"], plan.items["dose"], strict=True))
            ranked = sorted({key for key in keys if key[1]})
            self.names = [f"{family}/dose {dose}" for family, dose in ranked]
            number = {key: k for k, key in enumerate(ranked, start=1)}
            self.of_item = np.array([number.get(key, 0) for key in keys], dtype=np.int64)

    def of_targets(self, spans: list[Span], length: int) -> np.ndarray:
        """Group of each of the ``length`` targets of a window, int64: 0 for corpus text, else that of the item.

        Target k is the window's token k + 1. The groups are those of ``names``: one for each family and dose.
        """
        groups = np.zeros(length, dtype=np.int64)
        for span in spans:
            groups[max(span.offset - 1, 0) : span.offset + span.length - 1] = self.of_item[span.item]
        return groups


def positions_of(step: int, train: TrainConfig, data_rank: int, data_size: int) -> list[np.ndarray]:
    """Sample indices that a data-parallel rank reads in a step, one int64 array per micro-batch.

    The step's windows are cut into blocks of ``micro_batch_size * data_size``; every rank takes its contiguous
    share of each, as Megatron-LM does. All ranks together read the step's windows once each, whatever the topology.
    """
    block = train.micro_batch_size * data_size
    first = step * train.global_batch_size + data_rank * train.micro_batch_size
    return [
        np.arange(start, start + train.micro_batch_size)
        for start in range(first, (step + 1) * train.global_batch_size, block)
    ]


class Batches:
    """Training batches of one rank: corpus windows with the planned insertions, each recorded for the ledger.

    Args:
        order: corpus windows in training order.
        overlay: planned insertions by window; empty for the twin.
        recorder: checks every window against the plan and records it.
        groups: gives each predicted token the group whose loss is logged on its own, such as inserted text.
        train: training settings, of which the batch sizes are read.
        data_rank: index of this data-parallel rank.
        data_size: number of data-parallel ranks.
        device: device of the batches.
        context: index of this context-parallel rank, and the number of these ranks; they split the tokens of a window,
            and each records the whole window.
    """

    def __init__(
        self,
        order: Windows,
        overlay: Overlay,
        recorder: Recorder,
        groups: Groups,
        train: TrainConfig,
        *,
        data_rank: int,
        data_size: int,
        device: torch.device,
        context: tuple[int, int] = (0, 1),
    ) -> None:
        self.order, self.overlay, self.recorder, self.train = order, overlay, recorder, train
        self.data_rank, self.data_size, self.device, self.groups = data_rank, data_size, device, groups
        self.context = context

    def step(self, step: int, *, record: bool = True) -> Iterator[Batch]:
        """Micro-batches of a step for this rank, checked against the plan and recorded.

        Args:
            step: from 0.
            record: false to read windows again without recording them.

        Raises:
            PlanViolation: before the offending micro-batch reaches the model.
        """
        read = positions_of(step, self.train, self.data_rank, self.data_size)
        # The next micro-batch is read while the model has this one. Nothing is read ahead across steps, between which
        # checkpoints fork.
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self._read, read[0])
            for positions, following in zip_longest(read, read[1:]):
                batch = pending.result()
                if following is not None:
                    pending = ahead.submit(self._read, following)
                # What is recorded is read back from the tensors that the model gets.
                if record:
                    self.recorder.record(
                        positions, batch.tokens.numpy(), batch.labels.numpy(), batch.loss_mask.numpy()
                    )
                yield self._to_device(batch)

    def _read(self, positions: np.ndarray) -> Batch:
        """Micro-batch of the given positions, in CPU memory."""
        windows = np.stack([self.overlay.apply(int(p), self.order.window(int(p))) for p in positions])
        tokens, labels = windows[:, :-1], windows[:, 1:]
        loss_mask = np.ones(tokens.shape, dtype=np.float32)
        for row, position in enumerate(positions):
            if (counted := self.overlay.loss_mask(int(position), tokens.shape[1])) is not None:
                loss_mask[row] = counted
        groups = [self.groups.of_targets(self.overlay.spans(int(p)), tokens.shape[1]) for p in positions]
        return Batch(
            torch.from_numpy(np.ascontiguousarray(tokens)),
            torch.from_numpy(np.ascontiguousarray(labels)),
            torch.from_numpy(loss_mask),
            torch.arange(tokens.shape[1]).expand(len(tokens), -1),
            torch.from_numpy(np.stack(groups)),
            document_starts(torch.from_numpy(tokens), self.order.eod)
            if self.train.document_attention
            else None,
        )

    def _to_device(self, batch: Batch) -> Batch:
        """This context-parallel rank's part, on its device; copies to a GPU do not wait for it."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            part = share(tensor, *self.context)
            if self.device.type == "cuda":
                part = part.contiguous().pin_memory()
            return part.to(self.device, non_blocking=True)

        return Batch(*(moved(getattr(batch, name)) for name in Batch.__slots__))
