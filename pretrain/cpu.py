"""CPU-only code: redirection of megatron-core's CUDA calls, and attention over short windows in bf16.

megatron-core has no CPU mode, but uses CUDA only in a few ways: it creates tensors with ``device="cuda"``, reads the
current device, and compares type names such as ``torch.cuda.FloatTensor``. :func:`install` redirects these to the CPU.
It is called only for ``runtime.device=cpu``, before any other part of megatron-core runs, and affects only this
process.

Shapes: S sequence, B batch, N heads, H head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_FACTORIES = (
    "zeros",
    "ones",
    "empty",
    "full",
    "tensor",
    "arange",
    "rand",
    "randn",
    "zeros_like",
    "empty_like",
)
_CPU = torch.device("cpu")
_installed = False


def _redirect(device: Any) -> Any:
    """The CPU for ``cuda``, ``cuda:0``, ``torch.device('cuda')`` or an index; any other value is unchanged."""
    if isinstance(device, int) and not isinstance(device, bool):
        return _CPU
    if isinstance(device, str | torch.device) and str(device).startswith("cuda"):
        return _CPU
    return device


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if "device" in keywords:
            keywords["device"] = _redirect(keywords["device"])
        keywords.pop("pin_memory", None)  # there is no GPU to copy to
        return function(*arguments, **keywords)

    return call


class _Stream:
    """Stand-in for a CUDA stream that is always finished; it is a class, because libraries use ``torch.cuda.Stream`` in
    annotations.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _other: Any) -> None:
        return

    def record_event(self) -> _Stream:
        """Event whose ``synchronize`` does nothing."""
        return self

    def synchronize(self) -> None:
        return


def _as_if_moved(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Copy to NumPy, which megatron-core makes only of GPU tensors; gloo refuses CPU tensors as sizes."""
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


def install() -> None:
    """Redirect megatron-core's CUDA calls to the CPU, once in this process."""
    global _installed
    if _installed:
        return
    _installed = True
    # torch.compile would ask for a C++ compiler at run time; megatron-core decorates small functions with it.
    import torch._dynamo

    torch._dynamo.config.disable = True

    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    tensor_type, tensor_to = torch.Tensor.type, torch.Tensor.to

    def type_name(self: torch.Tensor, dtype: Any = None, *rest: Any, **keywords: Any) -> Any:
        if dtype is None:  # megatron-core checks for torch.cuda.FloatTensor and its like
            return tensor_type(self).replace("torch.", "torch.cuda.", 1)
        return tensor_type(self, dtype, *rest, **keywords)

    def to(self: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if arguments and not isinstance(arguments[0], torch.dtype | torch.Tensor):
            arguments = (_redirect(arguments[0]), *arguments[1:])
        if "device" in keywords:
            keywords["device"] = _redirect(keywords["device"])
        return tensor_to(self, *arguments, **keywords)

    torch.Tensor.type = type_name
    torch.Tensor.to = to
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self

    cuda: Any = torch.cuda
    stream = _Stream()
    cuda.current_device = lambda: _CPU
    cuda.synchronize = lambda *_: None
    cuda.empty_cache = lambda: None
    cuda.Stream = _Stream
    cuda.current_stream = lambda *_: stream
    cuda.default_stream = lambda *_: stream
    cuda.manual_seed = lambda seed: None
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda *_: None

    from megatron.core.tensor_parallel import random as tensor_parallel_random
    from megatron.core.transformer.moe import token_dispatcher

    dispatcher: Any = token_dispatcher
    dispatcher.maybe_move_tensor_to_cpu = _as_if_moved
    patched: Any = tensor_parallel_random
    patched._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    patched._set_cuda_rng_state = lambda *_, **__: None


SHORT = 512
"""Longest window, tokens, for which attention on CPUs in bf16 materialises S x S matrices, because PyTorch's flash
kernel is slow there."""


class _ShortAttention(torch.autograd.Function):
    """Causal attention by matrix products, with the softmax computed in float32 and rounded."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length, batch, heads, size = context.shape = query.shape
        q, k, v = (x.permute(1, 2, 0, 3).reshape(batch * heads, length, size) for x in (query, key, value))
        future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu_(1)
        scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=size**-0.5)
        weights = torch.softmax(scores, -1)
        context.save_for_backward(q, k, v, weights)
        return (weights @ v).view(batch, heads, length, size).permute(2, 0, 1, 3).flatten(2)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = context.saved_tensors
        length, batch, heads, size = context.shape
        out = gradient.view(length, batch, heads, size).permute(1, 2, 0, 3)
        out = out.reshape(batch * heads, length, size)
        for_v = weights.transpose(1, 2) @ out
        for_weights = out @ v.transpose(1, 2)
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype).mul_(size**-0.5)
        gradients = (for_scores @ k, for_scores.transpose(1, 2) @ q, for_v)
        for_q, for_k, for_v = (x.view(batch, heads, length, size).permute(2, 0, 1, 3) for x in gradients)
        return for_q, for_k, for_v


def attention_is_short(query: Tensor, key: Tensor) -> bool:
    """True if :func:`short_attention` supports queries and keys of these shapes, (S, B, N, H)."""
    return query.is_cpu and query.dtype == torch.bfloat16 and len(query) <= SHORT and query.shape == key.shape


def short_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention with as many key/value heads as query heads: (S, B, N, H) -> (S, B, N * H)."""
    attended: Tensor = _ShortAttention.apply(query, key, value)
    return attended
