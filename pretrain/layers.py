"""Layers that megatron-core lacks or has only for GPUs: norms, SwiGLU, and the parallel residual.

Shapes: S sequence, B batch, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor
from torch import Tensor
from torch.nn import functional

from palimpsest.pretrain import kernels


class Norm(torch.nn.Module):
    """RMSNorm or LayerNorm over the last dimension, computed by PyTorch's fused kernels.

    Takes the place of megatron-core's wrapper around ``torch.nn``, which refuses sequence parallelism, and whose
    constructor it follows. ``gain=False`` leaves out gain and bias.
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
        """Normalise: (..., size) -> (..., size)."""
        if self.rms:
            return functional.rms_norm(x, self.size, self.weight, self.eps)
        return functional.layer_norm(x, self.size, self.weight, self.bias, self.eps)


class PlainNorm(Norm):
    """LayerNorm without gain and bias (OLMo)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config, hidden_size, eps, gain=False)


class FeedForward(MLP):
    """megatron-core's, with SwiGLU in one step."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """(S, B, D) -> (S, B, D), and the bias that is yet to be added."""
        x, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(kernels.swiglu(x if bias is None else x + bias))


class Layer(TransformerLayer):
    """megatron-core's, which replays its CUDA graph (``runtime.cuda_graphs``) where it learns, and nowhere else.

    A graph has one shape and holds the backward pass, too; probes of the plan have neither.
    """

    def _should_call_local_cudagraph(self, *args: Any, **kwargs: Any) -> bool:
        replays: bool = super()._should_call_local_cudagraph(*args, **kwargs)
        return replays and torch.is_grad_enabled()


class ParallelLayer(Layer):
    """x + attention(norm(x)) + feed_forward(norm'(x)), as in GPT-NeoX and Pythia."""

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
