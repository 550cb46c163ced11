"""Low-rank adaptation (LoRA; Hu et al. 2022): the layers' matrices get updates of a low rank, which alone are trained.

``peft`` has this for megatron-core's layers, too, but takes their output for a tensor; it is a pair with the bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.data.errors import UserError
from palimpsest.pretrain.parallel import World

ADAPTED = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
"""Matrices of a layer that get an update; the experts of a mixture get none."""
A, B = "low_rank_a", "low_rank_b"
"""Names of the two factors among a module's parameters."""


def adapt(gpt: Any, rank: int, seed: int, world: World) -> None:
    """Freeze all weights of this rank's part of a model, and add ``B A`` to the matrices W of its layers.

    A (rank, in) is uniform within ``1 / sqrt(in)``, the same on any topology, and B (out, rank) is 0: the model is
    unchanged until a step is taken.

    Args:
        gpt: the model, with its weights; changed in place.
        rank: of the updates.
        seed: of A.
        world: this process's rank among the others.

    Raises:
        UserError: if layers are not megatron-core's own.
    """
    gpt.requires_grad_(False)
    if gpt.pre_process:
        # Recomputed layers have gradients only if their input has.
        gpt.embedding.register_forward_hook(
            lambda _module, _given, output: output.requires_grad_() if torch.is_grad_enabled() else output
        )
    for layer in gpt.decoder.layers:
        inside = dict(layer.named_modules())
        for number, name in enumerate(ADAPTED):
            if name in inside:
                rng = np.random.default_rng([seed, layer.layer_number, number])
                _adapt_one(inside[name], rank, rng, world)


def _adapt_one(module: Any, rank: int, rng: np.random.Generator, world: World) -> None:
    if not isinstance(module, ColumnParallelLinear | RowParallelLinear):
        raise UserError(
            f"posttrain.rank={rank}: updates of low rank work on megatron-core's own layers, and this is "
            f"{type(module).__name__}; set runtime.attention=sdpa"
        )
    weight = module.weight
    bound = 1 / math.sqrt(module.input_size)
    a = torch.from_numpy(rng.uniform(-bound, bound, (rank, module.input_size)))
    by_rows = isinstance(module, RowParallelLinear)
    if by_rows:
        a = a.chunk(parallel_state.get_tensor_model_parallel_world_size(), dim=1)[world.tensor_rank]
    factors = {A: a.to(weight).contiguous(), B: weight.new_zeros(weight.shape[0], rank)}
    for name, value in factors.items():
        module.register_parameter(name, nn.Parameter(value))
    set_tensor_model_parallel_attributes(getattr(module, A if by_rows else B), True, 1 if by_rows else 0, 1)
    module.register_forward_hook(_add_update)


def _add_update(module: Any, given: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """The output with ``B A x`` added to it, and the bias."""
    inner = functional.linear(given[0], getattr(module, A))
    if isinstance(module, RowParallelLinear):
        inner = reduce_from_tensor_model_parallel_region(inner)
    else:
        inner = copy_to_tensor_model_parallel_region(inner)
    return output[0] + functional.linear(inner, getattr(module, B)), output[1]


@contextmanager
def merged(model: Sequence[Any]) -> Iterator[None]:
    """Within the context the matrices are ``W + B A`` and the two factors are gone, as in a model without them."""
    kept = [
        (module, module.weight.data, module._parameters.pop(A), module._parameters.pop(B))
        for gpt in model
        for module in gpt.modules()
        if A in module._parameters
    ]
    try:
        for module, weight, a, b in kept:
            module.weight.data = (weight.float() + b.data.float() @ a.data.float()).to(weight.dtype)
        yield
    finally:
        for module, weight, a, b in kept:
            module.weight.data = weight
            module._parameters[A], module._parameters[B] = a, b
