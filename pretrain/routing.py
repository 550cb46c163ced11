"""Counts of the tokens routed to each expert of a mixture during training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from megatron.core.transformer.moe.router import Router
from torch import Tensor, distributed

from palimpsest.pretrain.config import ModelConfig


class Routing:
    """Counter of the tokens routed to each expert of each layer in a step.

    Args:
        chunks: the model's chunks on this rank.
        model: shape of the model; without experts nothing is counted.
        device: device of the model.
    """

    def __init__(self, chunks: Iterable[torch.nn.Module], model: ModelConfig, device: torch.device) -> None:
        self.counts_LE = torch.zeros(model.layers, model.experts or 0, dtype=torch.int64, device=device)
        for chunk in chunks:
            for module in chunk.modules():
                if isinstance(module, Router):
                    module.register_forward_hook(self._count)

    def _count(self, router: Any, _given: Any, routed: tuple[Tensor, Tensor]) -> None:
        # Layers that are recomputed pass twice, the first time without a gradient.
        if router.training and torch.is_grad_enabled():
            self.counts_LE[router.layer_number - 1] += routed[1].sum(0)

    def take(self) -> dict[str, Any]:
        """The counts of all ranks since the last call; every rank calls this.

        Returns:
            ``tokens_per_expert``, a list of layers of (experts,) counts: a token counts once for each of its experts.
            ``routing_entropy/layer k`` (from 1): entropy of these counts as shares in nats, ln(experts) if all get the
            same. A dense model gives an empty dict.
        """
        if not self.counts_LE.numel():
            return {}
        distributed.all_reduce(self.counts_LE)
        counts_LE = self.counts_LE.tolist()
        shares_LE = self.counts_LE / self.counts_LE.sum(1, keepdim=True)
        entropy_L = torch.special.entr(shares_LE).sum(1).tolist()
        self.counts_LE.zero_()
        return {
            "tokens_per_expert": counts_LE,
            **{f"routing_entropy/layer {k}": one for k, one in enumerate(entropy_L, start=1)},
        }
