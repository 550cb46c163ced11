"""Layers that megatron-core lacks or has only for GPUs: norms, their placement, SwiGLU, and the parallel residual.

Shapes: S sequence, B batch, D hidden, N heads on this rank, H head size.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import make_viewless_tensor
from torch import Tensor, distributed
from torch.nn import functional

from palimpsest.pretrain import kernels


class Norm(torch.nn.Module):
    """RMSNorm or LayerNorm over the last dimension, computed by PyTorch's fused kernels.

    It replaces megatron-core's wrapper around ``torch.nn``, which does not support sequence parallelism, and has the
    same constructor. ``gain=False`` leaves out gain and bias.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        gain: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        self.size, self.eps, self.rms = (hidden_size,), eps, config.normalization == "RMSNorm"
        self.weight: torch.nn.Parameter | None = None
        self.bias: torch.nn.Parameter | None = None
        if gain:
            self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        if gain and not self.rms:
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        for parameter in self.parameters():
            # megatron-core then sums the gradient over the ranks that each saw a part of the sequence.
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Normalised input, (..., size) -> (..., size)."""
        if self.rms:
            return functional.rms_norm(x, self.size, self.weight, self.eps)
        return functional.layer_norm(x, self.size, self.weight, self.bias, self.eps)


class PlainNorm(Norm):
    """LayerNorm without gain and bias (OLMo)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config, hidden_size, eps, gain=False)


class _SumOverRanks(torch.autograd.Function):
    """Sum over the tensor-parallel ranks in the forward pass; gradients are summed, too, because each rank's loss
    depends on the sum.
    """

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(x: Tensor) -> Tensor:
    x = x.clone()
    distributed.all_reduce(x, group=parallel_state.get_tensor_model_parallel_group())
    return x


class TokenNorm(torch.nn.Module):
    """RMSNorm over all heads of a token together (OLMo 2, OLMoE), also with tensor parallelism.

    Args:
        config: configuration of the model.
        hidden_size: dimensions of a head.
        eps: constant added to the mean square.
        heads: number of heads on all ranks.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, *, heads: int, **_: Any
    ) -> None:
        super().__init__()
        self.size, self.eps, self.ranks = heads * hidden_size, eps, config.tensor_model_parallel_size
        self.weight = torch.nn.Parameter(torch.ones(self.size // self.ranks, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised input, (S, B, N, H) -> (S, B, N, H)."""
        flat = x.flatten(2)
        if self.ranks == 1:
            return functional.rms_norm(flat, (self.size,), self.weight, self.eps).view_as(x)
        wide = flat.float()
        square: Tensor = _SumOverRanks.apply(wide.square().sum(-1, keepdim=True))
        return (self.weight * (wide * torch.rsqrt(square / self.size + self.eps))).to(x.dtype).view_as(x)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Sharded state dict of this rank's part of the weight."""
        tensors: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, {"weight": 0}, sharded_offsets
        )
        return tensors


class ClippedAttention(SelfAttention):
    """megatron-core's self-attention with queries, keys and values clipped after their norms (OLMo)."""

    def __init__(self, *args: Any, clip: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clip = clip

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Queries, keys and values of this rank, each (S, B, heads, H)."""
        projected = super().get_query_key_value_tensors(*args, **kwargs)
        return tuple(one.clamp(-self.clip, self.clip) for one in projected)


class FeedForward(MLP):
    """megatron-core's MLP with SwiGLU as one fused operation."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """Output, (S, B, D) -> (S, B, D), and the bias that the caller adds."""
        x, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(kernels.swiglu(x if bias is None else x + bias))


class BiaslessFeedForward(FeedForward):
    """MLP of a model that has biases in attention only."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        config = copy(config)
        config.add_bias_linear = False
        super().__init__(config, *args, **kwargs)


class ParallelLayer(TransformerLayer):
    """Layer with parallel residual, ``x + attention(norm(x)) + feed_forward(norm'(x))``, as in GPT-NeoX and Pythia."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """One layer: (S, B, D) -> (S, B, D). There is no dropout."""
        attended, attended_bias = self.self_attention(
            self.input_layernorm(hidden_states), attention_mask, rotary_pos_emb=rotary_pos_emb
        )
        fed, fed_bias = self.mlp(self.pre_mlp_layernorm(hidden_states))
        out = hidden_states + attended + fed
        for bias in (attended_bias, fed_bias):
            if bias is not None:
                out = out + bias
        return make_viewless_tensor(out, requires_grad=out.requires_grad, keep_graph=True), None


class PostNormLayer(TransformerLayer):
    """Layer with norms of outputs, ``x + norm(attention(x))``, then ``x + norm'(feed_forward(x))``, as in OLMo 2."""

    def __init__(
        self, config: TransformerConfig, submodules: TransformerLayerSubmodules, *args: Any, **kwargs: Any
    ) -> None:
        norm = submodules.input_layernorm
        without = replace(submodules, input_layernorm=IdentityOp, pre_mlp_layernorm=IdentityOp)
        super().__init__(config, without, *args, **kwargs)
        size, eps = config.hidden_size, config.layernorm_epsilon
        self.post_attention_norm = build_module(norm, config=config, hidden_size=size, eps=eps)
        self.post_mlp_norm = build_module(norm, config=config, hidden_size=size, eps=eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """One layer: (S, B, D) -> (S, B, D). There is no dropout."""
        attended, bias = self.self_attention(hidden_states, attention_mask, rotary_pos_emb=rotary_pos_emb)
        middle = hidden_states + self.post_attention_norm(attended if bias is None else attended + bias)
        fed, _none = self.mlp(middle)
        out = middle + self.post_mlp_norm(fed)
        return make_viewless_tensor(out, requires_grad=out.requires_grad, keep_graph=True), None
