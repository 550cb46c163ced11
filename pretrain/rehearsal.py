"""Rehearsal of one rank of any topology: megatron-core's own model, schedule and optimizer on fake tensors.

No GPU and no other process: tensors have shapes and no data (``FakeTensorMode``), and collectives return at once. Fused
GPU kernels are replaced by functions that save the same tensors for the backward pass. This changes torch and
megatron-core for the whole process; :mod:`pretrain.preflight` runs it in processes of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from palimpsest.pretrain.meter import Meter
from palimpsest.pretrain.parallel import World, grouped
from palimpsest.pretrain.settings import Settings

KINDS = ("weights", "gradients", "optimizer", "activations", "loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsed:
    """Memory and traffic of one rank of a pipeline stage."""

    stage: int
    """Index of the stage, from 0."""
    parameters: int
    """Number of weights on this rank."""
    peak: Mapping[str, int]
    """Bytes by kind (``KINDS``) at the peak of their sum in a step. ``activations`` includes the gradients of
    activations, ``loss`` the logits and tensors computed from them, ``optimizer`` the temporary tensors of its step."""
    when: str
    """Part of the step in which the peak occurs."""
    sent: Mapping[tuple[str, str], int]
    """Bytes that this rank sends in a step, by (name of the group of ranks, collective)."""
    seconds: float
    """Duration of the rehearsal, seconds."""

    @property
    def total(self) -> int:
        """Memory in use on this rank at the peak of a step, bytes: the sum of ``peak``."""
        return sum(self.peak.values())


class _Attention(torch.autograd.Function):
    """Stand-in for fused attention (Dao et al., 2022): saves inputs, output, and a float32 for each query and head."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        batch, heads, length, size = query.shape
        out = query.new_empty(batch, length, heads, size).transpose(1, 2)
        statistics = query.new_empty(query.shape[:3], dtype=torch.float32)
        context.save_for_backward(query, key, value, out, statistics, bias)
        return out

    @staticmethod
    def backward(context: Any, _gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(torch.empty_like(one) for one in context.saved_tensors[:3]), None


class _RMSNorm(torch.autograd.Function):
    """Stand-in for the fused norm: saves input, gain, and a float32 for each row."""

    @staticmethod
    def forward(context: Any, x: Tensor, gain: Tensor) -> Tensor:
        context.save_for_backward(x, gain, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(context: Any, _gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, _ = context.saved_tensors
        return torch.empty_like(x), torch.empty_like(gain)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **_: Any) -> Tensor:
    bias = None if attn_mask is None else _bias(query, attn_mask)
    output: Tensor = _Attention.apply(query, key, value, bias)
    return output


def _attend_by_document(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stand-in for ``varlen_attn``: (T, heads, H) -> (T, heads, H)."""
    output: Tensor = _Attention.apply(*(x.transpose(0, 1)[None] for x in (query, key, value)), None)
    return output[0].transpose(0, 1)


def _bias(query: Tensor, mask: Tensor) -> Tensor:
    """Additive bias that ``scaled_dot_product_attention`` creates from a boolean mask, and keeps for each layer."""
    return query.new_empty(mask.shape)


def _rms_norm(x: Tensor, _size: Any, gain: Tensor, _epsilon: float | None = None) -> Tensor:
    output: Tensor = _RMSNorm.apply(x, gain)
    return output


def _in_bf16(gpt: torch.nn.Module) -> torch.nn.Module:
    """``Module.bfloat16``, which cannot exchange the data of a fake tensor: exchanges the parameters instead."""
    for module in gpt.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dtype == torch.float32:
                low = torch.nn.Parameter(weight.detach().bfloat16())
                low.__dict__.update(weight.__dict__)  # megatron-core's marks
                setattr(module, name, low)
    return gpt


def _route_evenly(dispatcher: Any, routing_map: Tensor) -> np.ndarray:
    """Stand-in for ``MoEAlltoAllTokenDispatcher.preprocess`` that sends equally many tokens to every expert."""
    tokens, experts = routing_map.shape
    chosen = tokens * dispatcher.config.moe_router_topk
    each = chosen // experts + (np.arange(experts) < chosen % experts)
    ep, tp, local = dispatcher.ep_size, dispatcher.tp_size, dispatcher.num_local_experts
    here = each[dispatcher.local_expert_indices]
    dispatcher.num_out_tokens = chosen
    if ep * tp > 1:
        dispatcher.input_splits = each.reshape(ep, local).sum(1)
        dispatcher.output_splits = np.full(ep, here.sum())
        dispatcher.output_splits_tp = np.full(tp, ep * here.sum())
    dispatcher.num_global_tokens_per_local_expert = np.tile(here, (ep * tp, 1))
    chunks = np.arange(experts * tp)
    dispatcher.sort_input_by_local_experts = chunks.reshape(-1, local).T.ravel()
    dispatcher.restore_output_by_local_experts = chunks.reshape(local, -1).T.ravel()
    return here * ep * tp


class _RoutedMeter(Meter):
    """Mode that supplies the number of tokens that a mixture's router selects, which operators cannot read from fake
    tensors.
    """

    def __init__(self, experts_per_token: int) -> None:
        super().__init__()
        self.experts_per_token = experts_per_token

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make ``masked_select`` with a map of (experts, tokens) select a fixed number of experts per token."""
        if func is torch.ops.aten.masked_select.default:
            output = args[0].new_empty(args[1].shape[1] * self.experts_per_token)
            self._count(output)
            return output
        return super().__torch_dispatch__(func, types, args, kwargs)


def _stand_in(meter: Meter) -> None:
    """Set up this process to compute without data, devices or other ranks."""
    import torch.optim.adam as adam  # by its module: torch.optim has no such attribute
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    from palimpsest.pretrain import attention, cpu, kernels, model

    cpu.install()
    cpu.attention_is_short = lambda *_: False
    masks: Any = attention
    masks.causal_lower_right = lambda *_: None  # fused kernels know that mask without having it
    masks.takes_documents, masks.varlen_attn = lambda query: query.dtype != torch.float32, _attend_by_document
    patched: Any = functional
    patched.scaled_dot_product_attention, patched.rms_norm = _attend, _rms_norm
    kernels.LOGITS["cpu"], kernels.PRODUCTS["cpu"] = kernels.LOGITS["cuda"], kernels.PRODUCTS["cuda"]
    patched = model
    patched.initialize = lambda *_, **__: None
    patched = model.GPT
    patched.bfloat16, patched.to = _in_bf16, lambda gpt, *_, **__: gpt
    patched._postprocess = _with_loss_counted(patched._postprocess, meter)
    patched = random
    patched.CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()  # there is no dropout
    patched._get_all_rng_states, patched._set_all_rng_states = tuple, lambda *_: None
    patched = adam
    patched._get_value = lambda value: value if isinstance(value, float) else 1.0  # the number of the step
    MoEAlltoAllTokenDispatcher.preprocess = _route_evenly
    new_group = distributed.new_group
    patched = distributed
    patched.new_group = lambda ranks=None, *_, **__: new_group(ranks, backend="fake")
    patched.all_gather_object = _gather_mine


def _gather_mine(gathered: list[Any], mine: Any, *_: Any, **__: Any) -> None:
    gathered[:] = [mine] * len(gathered)


def _with_loss_counted(postprocess: Any, meter: Meter) -> Any:
    """Count the allocations of the output layer and the loss, forward and backward, as ``loss``."""

    def enter(kind: str) -> Any:
        return lambda _gradient: setattr(meter, "kind", kind)

    def counted(gpt: Any, hidden_states: Tensor, *rest: Any, **more: Any) -> Any:
        if not gpt.post_process:
            return postprocess(gpt, hidden_states, *rest, **more)
        with meter.counting("loss"):
            result = postprocess(gpt, hidden_states, *rest, **more)
        total = result[0] if isinstance(result, tuple) else result
        if total.requires_grad and hidden_states.requires_grad:
            total.register_hook(enter("loss"))
            hidden_states.register_hook(enter("activations"))
        return result

    return counted


def _join(settings: Settings, ranks: int, rank: int) -> World:
    """Initialise a process group without other ranks, and megatron-core's groups."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    return grouped(settings.parallel, torch.device("cpu"))


def _axes() -> dict[str, str]:
    """Name of each of this rank's process groups -> kind of parallelism."""
    from megatron.core import parallel_state as state

    axes = {}
    for axis, get in (
        ("all", lambda: distributed.group.WORLD),
        ("model", state.get_model_parallel_group),
        ("tensor and context", state.get_tensor_and_context_parallel_group),
        ("expert, tensor and pipeline", state.get_expert_tensor_model_pipeline_parallel_group),
        ("expert and tensor", state.get_expert_tensor_and_model_parallel_group),
        ("first and last stage", state.get_embedding_group),
        ("data", state.get_data_parallel_group),
        ("data and context", lambda: state.get_data_parallel_group(with_context_parallel=True)),
        ("expert data", state.get_expert_data_parallel_group),
        ("expert tensor", state.get_expert_tensor_parallel_group),
        ("expert", state.get_expert_model_parallel_group),
        ("context", state.get_context_parallel_group),
        ("pipeline", state.get_pipeline_model_parallel_group),
        ("tensor", state.get_tensor_model_parallel_group),
    ):
        with contextlib.suppress(AssertionError):  # megatron-core made no such group for this rank
            if (group := get()) is not None:
                axes[group.group_name] = axis
    return axes


def _trainer(settings: Settings, world: World, vocab_size: int, meter: Meter) -> Any:
    """``Trainer`` without corpus, ledger and checkpoints."""
    from palimpsest.pretrain import chunks, optim
    from palimpsest.pretrain.trainer import Trainer

    trainer: Any = object.__new__(Trainer)
    trainer.settings, trainer.world, trainer.step = settings, world, 0
    trainer.groups = SimpleNamespace(names=[])
    trainer.batches = SimpleNamespace(step=lambda *_, **__: _batches(settings))
    distribute = settings.shards_optimizer(world.data_size)
    with meter.counting("weights"):
        built = chunks.build(settings, world, vocab_size, drawn=False)
        trainer.chunks = chunks.distributed(built, settings, world)
    for chunk in trainer.chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            meter.relabel(buffer.grad_data, "gradients")
    with meter.counting("optimizer"):
        trainer.optimizer, trainer.scheduler = optim.build(
            trainer.chunks, settings.optimizer, settings.train, distributed=distribute
        )
        trainer.forward_backward = chunks.schedule(trainer.chunks, trainer.optimizer, settings, world)
        for part in optim._parts(trainer.optimizer):
            inner = part.optimizer
            for group in inner.param_groups if isinstance(inner, torch.optim.AdamW) else ():
                group["fused"] = True  # as on GPUs
        _update(trainer)  # makes Adam's state
    return trainer


def _batches(settings: Settings) -> Iterator[Any]:
    """Endless micro-batches like those of ``Batches.step``."""
    from palimpsest.pretrain.batches import Batch

    train, ranks = settings.train, settings.parallel.context
    shape = train.micro_batch_size, train.sequence_length // ranks
    while True:
        ids_BL = torch.zeros(shape, dtype=torch.int64)
        documents = torch.zeros(2, dtype=torch.int32) if train.document_attention else None
        numbers_BL = torch.zeros(shape, dtype=torch.int64)
        yield Batch(ids_BL, ids_BL.clone(), torch.ones(shape), numbers_BL, numbers_BL.clone(), documents)


def _update(trainer: Any) -> None:
    trainer.optimizer.prepare_grads()
    trainer._update(1e9)  # a norm that is clipped


def few_micro_batches(settings: Settings, data: int) -> int:
    """Number of micro-batches of a rehearsed step: as many as reach the schedule's peak of memory, instead of all."""
    train, parallel = settings.train, settings.parallel
    needed = 2 * parallel.pipeline if parallel.virtual_pipeline > 1 else parallel.pipeline + 1
    return min(train.global_batch_size // (train.micro_batch_size * data), needed)


def rehearse(settings: Settings, vocab_size: int, ranks: int, stage: int) -> Rehearsed:
    """Build and step the rank of a pipeline stage that needs most memory; once per process.

    It is the last tensor-parallel rank, whose part of the vocabulary includes the masked padding, and the first
    context-parallel rank, whose queries see the longest block of keys.

    Args:
        settings: model, optimizer, batches and topology.
        vocab_size: size of the tokenizer's vocabulary.
        ranks: number of ranks.
        stage: index of the pipeline stage, from 0.
    """
    began = time.monotonic()
    parallel, train = settings.parallel, settings.train
    data = parallel.data(ranks)
    batches, few = (
        train.global_batch_size // (train.micro_batch_size * data),
        few_micro_batches(settings, data),
    )
    settings = replace(
        settings,
        model=replace(settings.model, weights=None, revision=None),
        train=replace(train, global_batch_size=few * train.micro_batch_size * data),
    )
    meter = _RoutedMeter(settings.model.experts_per_token)
    _stand_in(meter)
    world = _join(settings, ranks, stage * (ranks // parallel.pipeline) + parallel.tensor - 1)
    axes = _axes()
    peaks = {}
    with FakeTensorMode(allow_non_fake_inputs=True), meter:
        trainer = _trainer(settings, world, vocab_size, meter)
        meter.sent.clear()
        for chunk in trainer.chunks:
            chunk.zero_grad_buffer()
        trainer.optimizer.zero_grad()
        _count_finalizing_apart(trainer, meter)
        meter.reset_peak()
        meter.every = "micro-batch"
        with meter.counting("activations"):
            trainer._forward_backward(1, forward_only=False)
        meter.every = "step"
        peaks["forward and backward pass"] = meter.peak
        meter.reset_peak()
        with meter.counting("optimizer"):
            _update(trainer)
        peaks["optimizer's step"] = meter.peak
    when = max(peaks, key=lambda name: sum(peaks[name].values()))
    sent: dict[tuple[str, str], int] = {}
    for (every, group, collective), size in meter.sent.items():
        axis = axes.get(group, "other")
        repeated = every == "micro-batch" and "data" not in axis
        key = axis, collective
        sent[key] = sent.get(key, 0) + (size * batches // few if repeated else size)
    return Rehearsed(
        stage=stage,
        parameters=sum(one.numel() for chunk in trainer.chunks for one in chunk.parameters()),
        peak={kind: peaks[when].get(kind, 0) for kind in KINDS},
        when=when,
        sent=dict(sorted(sent.items())),
        seconds=time.monotonic() - began,
    )


def _count_finalizing_apart(trainer: Any, meter: Meter) -> None:
    """Count the collectives that megatron-core calls after the last micro-batch as once per step."""
    config = trainer.chunks[0].config
    finalize = config.finalize_model_grads_func

    def once(chunks: Any, _tokens: Any = None, *rest: Any, **keywords: Any) -> None:
        meter.every = "step"
        finalize(chunks, None, *rest, **keywords)  # it would read the number of tokens to divide by

    config.finalize_model_grads_func = once
