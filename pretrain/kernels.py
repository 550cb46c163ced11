"""SwiGLU that keeps only its input for the backward pass, and the cross-entropy loss without the logits of all tokens.

On GPUs ``torch.compile`` fuses each into one Triton kernel; on CPUs nothing is compiled. Both equal the plain formulas
within rounding. megatron-core is not needed.

Shapes: N tokens, D hidden, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from subprocess import CalledProcessError
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOGITS = {"cpu": 2**19, "cuda": 2**28}
"""Number of logits held in float32 at once: on CPUs few enough for the cache, on GPUs enough for efficient matrix
products."""
PRODUCTS = {"cpu": 32, "cuda": 1}
"""Ratio of the number of logits held in the weights' precision, for one product with the hidden states, to that held in
float32."""


log = logging.getLogger(__name__)


def _compiles(x: Tensor) -> bool:
    """True if operations on this tensor should use ``torch.compile``: it is on a GPU and a compiler is available."""
    return x.is_cuda and _compiler_works(x.device)


@cache
def _compiler_works(device: torch.device) -> bool:
    """Compile and run a small function: Triton also needs a C compiler and Python's headers, which images may lack."""
    if find_spec("triton") is None:
        return False
    try:
        torch.compile(_plain_swiglu)(torch.zeros(2, 64, device=device))
    except (RuntimeError, OSError, ImportError, CalledProcessError) as error:  # torch's own are RuntimeErrors
        reason = " ".join(str(error).split())[:200]
        log.warning("torch.compile does not work here, SwiGLU and the loss are not fused: %s", reason)
        return False
    return True


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        gate, up = x.chunk(2, -1)
        for_x = torch.empty_like(x)
        for_gate, for_up = for_x.chunk(2, -1)
        torch.mul(gradient, functional.silu(gate), out=for_up)
        torch.ops.aten.silu_backward(gradient * up, gate, grad_input=for_gate)
        return for_x


def fused(function: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
    """``function(x, ...)``, compiled into one kernel where that is possible.

    Args:
        function: elementwise operations, and moves of elements.
        x: whose device decides.
        rest: further arguments.
        named: further arguments.
    """
    output: Tensor = (_compiled(function) if _compiles(x) else function)(x, *rest, **named)
    return output


def swiglu(x: Tensor) -> Tensor:
    """SwiGLU, SiLU(first half) * second half (Shazeer, 2020), recomputed in the backward pass: (..., 2F) -> (...,
    F).
    """
    product: Tensor = _compiled(_plain_swiglu)(x) if _compiles(x) else _SwiGLU.apply(x)
    return product


def _plain_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


def _losses_and_errors(
    logits_BV: Tensor, targets_B: Tensor, mask_B: Tensor, real: int
) -> tuple[Tensor, Tensor]:
    """Losses, (B,) float32, and the gradient of their masked sum, in the precision of the logits."""
    logits_BV[:, real:] = -torch.inf
    log_p = torch.log_softmax(logits_BV, -1, dtype=torch.float32)
    losses_B = -log_p.gather(1, targets_B[:, None])[:, 0]
    hit_BV = torch.arange(logits_BV.shape[1], device=logits_BV.device) == targets_B[:, None]
    return losses_B, ((log_p.exp() - hit_BV.float()) * mask_B[:, None]).to(logits_BV.dtype)


def _rows(count: int, wide: int, device: str) -> int:
    """Number of rows of a chunk of a (count, wide) matrix of logits.

    On GPUs chunks have equal sizes if possible, because a shorter last chunk is compiled again. Multiples of 128 fill
    the tiles of matrix products.
    """
    limit = LOGITS[device]
    if device == "cpu":
        return max(16, limit // wide)
    chunks = -(-count * wide // limit)
    if chunks <= 1:
        return max(1, count)
    for parts in range(chunks, 2 * chunks + 1):
        if count % (128 * parts) == 0:
            return count // parts
    return max(128, count // chunks // 128 * 128)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden_ND: Tensor, weight: Tensor, targets_N: Tensor, mask_N: Tensor, real: int
    ) -> tuple[Tensor, Tensor]:
        count, wide = len(hidden_ND), len(weight)
        rows = _rows(count, wide, weight.device.type)
        block = rows * PRODUCTS[weight.device.type]
        learning = any(context.needs_input_grad)
        losses_N = torch.empty(count, device=weight.device)
        for_hidden, for_weight = torch.empty_like(hidden_ND) if learning else hidden_ND, None
        for first in range(0, count, block):
            some = slice(first, min(first + block, count))
            if learning and _compiles(weight):
                logits = functional.linear(hidden_ND[some], weight)
                losses_N[some], error_BV = _compiled(_losses_and_errors)(
                    logits, targets_N[some], mask_N[some], real
                )
                starts = range(0)
            else:
                starts = range(first, some.stop, rows)
                error_BV = torch.empty(
                    some.stop - first if learning else 0, wide, dtype=weight.dtype, device=weight.device
                )
            for start in starts:
                few = slice(start, min(start + rows, some.stop))
                logits = functional.linear(hidden_ND[few], weight)
                logits[:, real:] = -torch.inf
                log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
                target = targets_N[few, None]
                losses_N[few] = -log_p.gather(1, target)[:, 0]
                if learning:
                    # The gradient of -ln p(target) is p less 1 at the target.
                    log_p.exp_()[torch.arange(len(target), device=target.device), target[:, 0]] -= 1.0
                    error_BV[few.start - first : few.stop - first] = log_p.mul_(mask_N[few, None])
            if learning:
                for_hidden[some] = error_BV @ weight
                part = error_BV.T @ hidden_ND[some]
                # Several parts are summed in float32.
                for_weight = (
                    part if count <= block else part.float() if for_weight is None else for_weight.add_(part)
                )
        if for_weight is not None:
            context.save_for_backward(for_hidden, for_weight.to(weight.dtype))
        context.mark_non_differentiable(losses_N)
        return (losses_N * mask_N).sum(), losses_N

    @staticmethod
    def backward(context: Any, gradient: Tensor, _losses: Tensor | None) -> tuple[Tensor | None, ...]:
        for_hidden, for_weight = context.saved_tensors
        return (
            for_hidden * gradient.to(for_hidden.dtype),
            for_weight * gradient.to(for_weight.dtype),
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, real: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy loss from the last hidden states, without storing the logits of all tokens.

    Both gradients are computed in the forward pass, a few tokens at a time, from the same logits (Hsu et al., 2024,
    Liger Kernel); softmax and loss are computed in float32.

    Args:
        hidden: (..., D).
        weight: (V, D) output matrix.
        targets: (...) int64.
        mask: (...) float, weight of each target.
        real: number of rows of the matrix that can be predicted; the rows beyond get probability 0. None: all.

    Returns:
        Sum of the weighted losses, for the backward pass, and the unweighted losses by target, (...), nats.
    """
    total, losses = _LinearCrossEntropy.apply(
        hidden.flatten(0, -2), weight, targets.flatten(), mask.flatten(), real or len(weight)
    )
    return total, losses.view(targets.shape)
