"""Core attention over ``scaled_dot_product_attention``, for GPUs without Transformer Engine and for CPUs.

Shapes: S sequence, B batch, N query heads on this rank, K key/value heads on this rank, H head size.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional


class CausalAttention(torch.nn.Module):
    """Causal attention without dropout; picks PyTorch's flash kernel by itself where there is one.

    Takes the place of megatron-core's ``DotProductAttention``, whose constructor it follows and whose unfused
    softmax materialises a B x N x S x S tensor.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        if attn_mask_type != AttnMaskType.causal:
            raise NotImplementedError(f"only causal attention is offered here, not {attn_mask_type}")
        self.scale = softmax_scale
        self.grouped = config.num_query_groups != config.num_attention_heads

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (S, B, N, H).
            key: (S, B, K, H).
            value: (S, B, K, H).
            attention_mask: must be None; the mask is causal.

        Returns:
            (S, B, N * H).
        """
        if attention_mask is not None or attention_bias is not None or packed_seq_params is not None:
            raise NotImplementedError("this attention is plainly causal: no mask, bias or packing")
        out_BNSH = functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.scale,
            enable_gqa=self.grouped,
        )
        return out_BNSH.permute(2, 0, 1, 3).flatten(2)
