"""Core attention over ``scaled_dot_product_attention``, for GPUs without Transformer Engine and for CPUs.

Shapes: S sequence, B batch, N query heads on this rank, K key/value heads on this rank, H head size.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn

from palimpsest.pretrain import cpu

_VARLEN = {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
"""True if PyTorch is new enough (2.12) for ``varlen_attn`` as it is called here."""


def takes_documents(query: Tensor) -> bool:
    """True if PyTorch's flash kernel for sequences of different lengths supports these queries, (..., H).

    It is called directly, so that its conditions are not checked by ``scaled_dot_product_attention``.
    """
    return (
        _VARLEN
        and query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def document_mask(starts: Tensor, batch: int, length: int) -> Tensor:
    """Attention mask of windows of documents: (B, 1, S, S) bool, True where a query (third axis) sees a key.

    Args:
        starts: ``Batch.documents``.
        batch: number of windows.
        length: of a window, tokens.
    """
    begins = starts.new_zeros(batch * length)
    begins[starts[:-1].long()] = 1
    document_BS = begins.cumsum(0).view(batch, length)
    same_BSS = document_BS[:, :, None] == document_BS[:, None, :]
    return same_BSS.tril()[:, None]


def kernel_name(
    heads: int, groups: int, size: int, *, length: int, masked: bool, dtype: torch.dtype, device: torch.device
) -> str:
    """Name of the kernel that ``CausalAttention`` uses, such as ``flash_attention``.

    Args:
        heads: of the queries.
        groups: heads of keys and values.
        size: of a head.
        length: of a window, tokens.
        masked: attention stays within documents.
        dtype: of queries, keys and values.
        device: they are on.
    """
    query = torch.empty(1, heads, length, size, dtype=dtype, device=device)
    if masked and takes_documents(query):
        return "varlen_attn (flash_attention document by document)"
    key = query.new_empty(1, groups, length, size)
    mask = torch.empty(1, 1, length, length, dtype=torch.bool, device=device) if masked else None
    choice = torch._fused_sdp_choice(
        query, key, key, attn_mask=mask, is_causal=not masked, enable_gqa=groups != heads
    )
    return SDPBackend(choice).name.lower()


class CausalAttention(torch.nn.Module):
    """Causal attention without dropout. PyTorch selects a flash kernel if one is available. It replaces megatron-core's
    ``DotProductAttention``, whose unfused softmax materialises a (B, N, S, S) tensor, and has the same constructor.
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
        self.ranks = config.context_parallel_size

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
        """Attention output.

        Args:
            query: (S, B, N, H).
            key: (S, B, K, H).
            value: (S, B, K, H).
            attention_mask: ``Batch.documents``, for attention within documents; None: over whole windows.

        Returns:
            (S, B, N * H).
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise NotImplementedError("this attention has neither bias nor packing")
        if self.ranks > 1:
            if attention_mask is not None:
                raise NotImplementedError("context parallelism has no masks by documents")
            return self._shared(query, key, value)
        if attention_mask is not None:
            return self._within_documents(query, key, value, attention_mask)
        if self.scale is None and cpu.attention_is_short(query, key):
            return cpu.short_attention(query, key, value)
        return self._attend(query, key, value, is_causal=True)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **mask: Any) -> Tensor:
        """Attention output, with the shapes of ``forward``; there may be more keys than queries."""
        out_BNSH = functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            scale=self.scale,
            enable_gqa=self.grouped,
            **mask,
        )
        return out_BNSH.permute(2, 0, 1, 3).flatten(2)

    def _within_documents(self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> Tensor:
        """Attention output by a flash kernel that reads no mask and skips other documents; where there is none, by a
        (B, 1, S, S) mask.
        """
        length, batch = query.shape[:2]
        if not takes_documents(query):
            return self._attend(query, key, value, attn_mask=document_mask(starts, batch, length))
        packed = (x.transpose(0, 1).flatten(0, 1) for x in (query, key, value))
        # The window's length is a bound of the documents', of which the CPU need not know the longest.
        out: Tensor = varlen_attn(
            *(*packed, starts, starts, length, length),
            scale=self.scale,
            window_size=(-1, 0),
            enable_gqa=self.grouped,
        )
        return out.unflatten(0, (batch, length)).transpose(0, 1).flatten(2)

    def _shared(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention output with the keys of all context-parallel ranks (Llama Team, 2024, section 3.3.2).

        Each rank has the queries of two of the sequence's blocks, an early and a late one (``share``), so that all
        ranks do equal work.
        """
        group = parallel_state.get_context_parallel_group()
        blocks = 2 * self.ranks
        # Gathered rank by rank: block k comes from rank k, and from the end likewise.
        places = [2 * k if k < self.ranks else 2 * (blocks - 1 - k) + 1 for k in range(blocks)]
        size = len(query) // 2

        def whole(part: Tensor) -> Tensor:
            gathered = gather_from_sequence_parallel_region(part.contiguous(), group=group)
            return gathered.unflatten(0, (blocks, size))[places].flatten(0, 1)

        key, value = whole(key), whole(value)
        outputs = []
        for half, block in zip(query.split(size), blocks_of(group.rank(), self.ranks), strict=True):
            visible = (block + 1) * size
            # Flash kernels know this mask by name: they read no (queries, keys) tensor, and skip what it hides.
            mask = causal_lower_right(size, visible)
            outputs.append(self._attend(half, key[:visible], value[:visible], attn_mask=mask))
        return torch.cat(outputs)


def blocks_of(rank: int, ranks: int) -> tuple[int, int]:
    """Indices of the two blocks that a context-parallel rank holds, of the ``2 * ranks`` equal blocks of a sequence."""
    return rank, 2 * ranks - 1 - rank


def share(whole_BT: Tensor, rank: int, ranks: int) -> Tensor:
    """Part of each window held by a context-parallel rank: (B, T, ...) -> (B, T / ranks, ...)."""
    if ranks == 1:
        return whole_BT
    blocks = whole_BT.chunk(2 * ranks, dim=1)
    return torch.cat([blocks[block] for block in blocks_of(rank, ranks)], dim=1)
