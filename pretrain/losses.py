"""Forward pass and loss of a micro-batch, as megatron-core's schedules call them, and mean losses by group.

Shapes: B windows, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from palimpsest.pretrain.batches import Batch


def forward(groups: int, batches: Iterator[Batch], gpt: Any) -> tuple[Tensor, Callable[..., Any]]:
    """Run the model on the next micro-batch; returns its output and the function that computes the loss from it.

    Args:
        groups: number of groups of targets; 0: the loss function reports the sum of each window instead.
        batches: micro-batches of the step.
        gpt: a virtual pipeline stage of this rank.
    """
    batch = next(batches)
    losses = gpt(
        batch.tokens, batch.position_ids, batch.documents, labels=batch.labels, loss_mask=batch.loss_mask
    )
    return losses, partial(loss, batch.loss_mask, batch.groups, groups)


def loss(
    loss_mask_BT: Tensor, groups_BT: Tensor, groups: int, losses: Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weighted sum of the losses, number of targets that count, and figures for telemetry.

    Args:
        loss_mask_BT: weight of each target's loss, 0 if it does not count.
        groups_BT: group of each target.
        groups: number of groups; 0: report the sum of each window instead.
        losses: loss of each target, (B, T); or the weighted sum and the unweighted losses of each target.

    Returns:
        The sum; the number, int32; ``loss``: [unweighted sum, number, sums by group, numbers by group], or with
        ``groups=0`` the unweighted sum of each window, (B,).
    """
    whole, losses_BT = losses if isinstance(losses, tuple) else (None, losses)
    total = (losses_BT.float() * loss_mask_BT).sum() if whole is None else whole
    counted_BT = (loss_mask_BT != 0).float()
    plain_BT = losses_BT.detach().float() * counted_BT
    if not groups:
        return total, counted_BT.sum().to(torch.int), {"loss": plain_BT.sum(1)}
    by_group = torch.zeros(2, groups, device=total.device)
    by_group.index_add_(1, groups_BT.flatten(), torch.stack([plain_BT.flatten(), counted_BT.flatten()]))
    count = counted_BT.sum()
    figures = torch.cat([torch.stack([plain_BT.sum(), count]), by_group.flatten()])
    return total, count.to(torch.int), {"loss": figures}


def by_group(sums: Sequence[float], names: Sequence[str]) -> dict[str, float | None]:
    """Mean losses in nats per token, by log name; None for groups without targets in the step.

    Args:
        sums: [sum, number, sums by group, numbers by group], as :func:`loss` reports; group 0 is the corpus.
        names: names of groups 1, 2, ...
    """

    def mean(total: float, count: float) -> float | None:
        return total / count if count else None

    means = {"loss": mean(sums[0], sums[1])}
    if names:
        totals, counts = sums[2 : 3 + len(names)], sums[3 + len(names) :]
        means["loss_corpus"] = mean(totals[0], counts[0])
        means["loss_inserted"] = mean(sum(totals[1:]), sum(counts[1:]))
        means["tokens_inserted"] = sum(counts[1:])
        means |= {
            f"loss/{name}": mean(total, count)
            for name, total, count in zip(names, totals[1:], counts[1:], strict=True)
        }
    return means
