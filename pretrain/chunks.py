"""This rank's part of a model, and megatron-core's schedule that runs micro-batches through it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from palimpsest.pretrain import model, optim
from palimpsest.pretrain.parallel import World
from palimpsest.pretrain.settings import Settings

log = logging.getLogger(__name__)


def build(
    settings: Settings,
    world: World,
    vocab_size: int,
    *,
    start: Mapping[str, Tensor] | None = None,
    drawn: bool = True,
) -> list[GPTModel]:
    """This rank's virtual pipeline stages on its device, in the order of the layers.

    Args:
        settings: model, training and topology.
        world: this process's place.
        vocab_size: of the tokenizer.
        start: whole weights under the names and shapes of a checkpoint; None: drawn.
        drawn: false leaves the weights unset, for a checkpoint to fill.
    """
    stages = settings.parallel.virtual_pipeline
    return [
        model.build(
            *(settings.model, vocab_size, settings.parallel, settings.train, start, vp_stage),
            attention=settings.attention,
            drawn=drawn,
        ).to(world.device)
        for vp_stage in (range(stages) if stages > 1 else [None])
    ]


def distributed(
    chunks: Sequence[GPTModel], settings: Settings, world: World
) -> list[DistributedDataParallel]:
    """The stages in megatron-core's wrapper, which sums gradients over data-parallel ranks."""
    parallel, distribute = settings.parallel, settings.shards_optimizer(world.data_size)
    config = DistributedDataParallelConfig(
        # Gradients are summed in float32, so that the sum does not depend on micro-batches or ranks.
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distribute,
        overlap_grad_reduce=parallel.overlap,
        overlap_param_gather=parallel.overlap and distribute,
    )
    return [DistributedDataParallel(gpt.config, config, gpt) for gpt in chunks]


def schedule(
    chunks: Sequence[DistributedDataParallel], optimizer: Any, settings: Settings, world: World
) -> Callable[..., Any]:
    """Give the model what megatron-core's schedule of micro-batches needs, log the topology; returns the schedule."""
    parallel = settings.parallel
    if world.size > 1 and world.main:
        updated = sum(one.numel() for one in optim.updated(optimizer))
        held = sum(one.numel() for chunk in chunks for one in chunk.parameters())
        log.info(
            "%d ranks (tensor %d, pipeline %d, context %d, data %d); each holds %s weights, and the optimizer's "
            "state of %s",
            *(world.size, parallel.tensor, parallel.pipeline, parallel.context, world.data_size),
            *(f"{number:,}" for number in (held, updated)),
        )
    config = chunks[0].config
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if parallel.overlap:  # gradients are exchanged after the last micro-batch alone
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    schedule: Callable[..., Any] = get_forward_backward_func()
    return schedule
