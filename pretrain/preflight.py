"""Rehearsal of a cluster without GPUs: memory and traffic of every pipeline stage of a topology.

For each stage :mod:`pretrain.rehearsal` runs the rank that needs most memory, in a process of its own.
"""

from __future__ import annotations

import importlib
import logging
import math
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing.connection import Connection, wait
from typing import Any

from palimpsest.data.errors import UserError
from palimpsest.pretrain import environment
from palimpsest.pretrain.config import padded_vocabulary
from palimpsest.pretrain.rehearsal import KINDS, Rehearsed, rehearse
from palimpsest.pretrain.settings import Settings

GIB = 2**30
GPU_GIB = 80.0
"""Memory of an H100 or A100, GiB."""
FRAGMENTATION = 1.06
"""Assumed ratio of the allocator's memory to the tensors in it; not measured."""
RUNTIME_GIB = 2.5
"""Assumed memory of CUDA's context and kernels, cuBLAS's workspaces and NCCL's buffers, GiB; not measured."""
TRIES = 4
"""Largest number of alternative settings rehearsed in search of one that fits."""


class Refused(UserError):
    """Error: the engine refuses a topology, or its shapes do not match."""


def needed(stage: Rehearsed) -> float:
    """Predicted memory in GiB of each GPU of a pipeline stage: rehearsed tensors, fragmentation, runtime."""
    return stage.total / GIB * FRAGMENTATION + RUNTIME_GIB


def check(settings: Settings, ranks: int) -> None:
    """Check the settings without building a model.

    Raises:
        UserError: naming the wrong setting.
    """
    if ranks < 1:
        raise UserError(f"preflight={ranks} must be above 0: the number of ranks, one a GPU")
    if settings.train.precision == "fp8":
        raise UserError(
            "train.precision=fp8 is Transformer Engine's, which is not rehearsed; rehearse train.precision=bf16, which "
            "needs a little less memory"
        )
    settings.parallel.check(ranks, settings.model, settings.train)


def stages(settings: Settings, vocab_size: int, ranks: int, only: Sequence[int] = ()) -> list[Rehearsed]:
    """Rehearse the rank of each pipeline stage that needs most memory, in parallel processes.

    Args:
        settings: model, optimizer, batches and topology.
        vocab_size: size of the tokenizer's vocabulary.
        ranks: number of ranks.
        only: stages to rehearse; empty: all.

    Raises:
        UserError: for a topology that does not divide.
        Refused: if megatron-core or PyTorch refuse the topology.
    """
    import torch

    check(settings, ranks)
    waiting = list(only or range(settings.parallel.pipeline))
    if torch.cuda.is_available():
        # CUDA does not outlive a fork, and megatron-core's import asks for it.
        context: Any = multiprocessing.get_context("spawn")
    else:
        # Each fork changes torch for itself, and none has to import it, nor the engine.
        importlib.import_module("palimpsest.pretrain.trainer")
        context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[Any, int]] = {}
    rehearsed: list[Rehearsed] = []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                mine, theirs = context.Pipe(duplex=False)
                stage = waiting.pop(0)
                process = context.Process(target=_answer, args=(theirs, settings, vocab_size, ranks, stage))
                with environment.variable("CUDA_VISIBLE_DEVICES", ""):  # nothing is computed there
                    process.start()
                theirs.close()
                running[mine] = process, stage
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                process, stage = running.pop(pipe)
                answer = _received(pipe, process, stage)
                if isinstance(answer, Exception):
                    raise answer
                rehearsed.append(answer)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    return sorted(rehearsed, key=lambda one: one.stage)


def _received(pipe: Connection, process: Any, stage: int) -> Any:
    """Result of a stage's process; raises the process's error."""
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        if process.exitcode < 0:
            return Refused(f"preflight: the process of stage {stage} was killed; is there memory left?")
        return RuntimeError(f"the rehearsal of stage {stage} broke; its traceback is above")
    finally:
        process.join()


def _answer(pipe: Connection, settings: Settings, vocab_size: int, ranks: int, stage: int) -> None:
    import torch
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
    )

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # threads do not outlive a fork, and there is nothing to compute
    try:
        pipe.send(rehearse(settings, vocab_size, ranks, stage))
    except UserError as error:
        pipe.send(error)
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
    ) as error:
        pipe.send(
            Refused(
                f"preflight: {error} needs data, which a rehearsal has not; it says nothing of this model"
            )
        )
    except (RuntimeError, ValueError, AssertionError, NotImplementedError, TypeError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:300] or "no reason given"
        pipe.send(
            Refused(
                f"preflight: stage {stage} fails as it would on the cluster: {message} "
                f"({type(error).__name__} in {os.path.basename(where.filename)}:{where.lineno})"  # noqa: PTH119
            )
        )


@dataclass(frozen=True, slots=True)
class _Change:
    """Alternative settings as command-line text, ordered by their cost in speed or effort."""

    settings: Settings
    arguments: tuple[str, ...]
    cost: float


def _on(now: bool) -> list[bool]:
    """Values of a switch to try: the current one, and true."""
    return [True] if now else [False, True]


def _changes(settings: Settings, ranks: int) -> list[_Change]:
    """Settings for the same model and batch that need less memory and that the topology allows, cheapest first.

    A smaller micro-batch, sequence parallelism and a distributed optimizer cost little, recomputation a third of the
    speed, and more model-parallel ranks more communication.
    """
    train, parallel = settings.train, settings.parallel
    halvings = range(int(math.log2(train.micro_batch_size)) + 1)
    changes = []
    for halve, tensor, pipeline, sequence, shared, recompute in product(
        halvings,
        range(4),
        range(4),
        _on(parallel.sequence),
        _on(parallel.distributed_optimizer),
        _on(train.recompute),
    ):
        micro, wide, deep = (
            train.micro_batch_size >> halve,
            parallel.tensor << tensor,
            parallel.pipeline << pipeline,
        )
        arguments, cost = [], 0.0
        for name, before, now, price in (
            ("parallel.distributed_optimizer", parallel.distributed_optimizer, shared, 1),
            ("parallel.sequence", parallel.sequence, sequence, 1),
            ("train.micro_batch_size", train.micro_batch_size, micro, 2 * halve),
            ("parallel.tensor", parallel.tensor, wide, 4 * tensor if wide <= 8 else 12 * tensor),
            ("parallel.pipeline", parallel.pipeline, deep, 5 * pipeline),
            ("train.recompute", train.recompute, recompute, 7),
        ):
            if before != now:
                arguments.append(f"{name}={str(now).lower()}")
                cost += price
        try:
            other = replace(
                settings,
                train=replace(train, micro_batch_size=micro, recompute=recompute),
                parallel=replace(
                    parallel, tensor=wide, pipeline=deep, sequence=sequence, distributed_optimizer=shared
                ),
            )
            check(other, ranks)
            settings.optimizer.check(other.train, other.model, other.parallel)
        except UserError:
            continue
        if arguments:
            changes.append(_Change(other, tuple(arguments), cost))
    return sorted(changes, key=lambda one: (one.cost, one.arguments))


def _guess(before: Settings, after: Settings, ranks: int, fullest: Rehearsed) -> float:
    """Memory, GiB, that the largest stage would need with other settings, estimated from its present need.

    Of a layer's activations tensor parallelism without sequence parallelism divides all but 10 of 34 parts
    (Korthikanti et al., 2022, table 2); recomputation keeps 2.
    """

    def activations(one: Settings) -> float:
        tensor = one.parallel.tensor
        parts = 34 / tensor if one.parallel.sequence else 10 + 24 / tensor
        if one.train.recompute:
            parts = (
                2 / (tensor if one.parallel.sequence else 1)
                + parts * one.parallel.pipeline / one.model.layers
            )
        return one.train.micro_batch_size * parts

    def weights(one: Settings) -> float:
        return 1 / (one.parallel.tensor * one.parallel.pipeline)

    def state(one: Settings) -> float:
        data = one.parallel.data(ranks)
        return weights(one) / (data * one.parallel.context if one.shards_optimizer(data) else 1)

    def loss(one: Settings) -> float:
        return one.train.micro_batch_size / one.parallel.tensor

    ratios = {
        "weights": weights,
        "gradients": weights,
        "optimizer": state,
        "activations": activations,
        "loss": loss,
    }
    bytes_ = sum(fullest.peak[kind] * ratio(after) / ratio(before) for kind, ratio in ratios.items())
    return bytes_ / GIB * FRAGMENTATION + RUNTIME_GIB


def nearest_that_fits(
    settings: Settings, vocab_size: int, ranks: int, gpu_gib: float, fullest: Rehearsed
) -> str | None:
    """Cheapest alternative settings with which every stage fits, as command-line text with their memory; None if there
    are none.

    Candidates that fit by estimate are rehearsed until one fits.
    """
    tried = 0
    for change in _changes(settings, ranks):
        if tried == TRIES or _guess(settings, change.settings, ranks, fullest) > gpu_gib:
            continue
        tried += 1
        try:
            most = max(needed(one) for one in stages(change.settings, vocab_size, ranks))
        except Refused:
            continue
        if most <= gpu_gib:
            return f"{' '.join(change.arguments)} ({most:.1f} GiB, rehearsed)"
    return None


def summary(
    settings: Settings, vocab_size: int, ranks: int, gpu_gib: float = GPU_GIB, *, known: str = "given"
) -> Iterator[str]:
    """Description of the rehearsal of a topology, in lines, stage by stage.

    Args:
        settings: model, optimizer, batches and topology.
        vocab_size: size of the tokenizer's vocabulary.
        ranks: number of ranks, one per GPU.
        gpu_gib: memory of a GPU, GiB.
        known: text that names the source of the vocabulary size.

    Raises:
        UserError: for a topology that does not divide, that the engine refuses, or that does not fit; in the last case
            with the cheapest settings that fit.
    """
    if gpu_gib <= RUNTIME_GIB:
        raise UserError(f"gpu_gib={gpu_gib:g} must be above {RUNTIME_GIB}, which CUDA and NCCL take")
    check(settings, ranks)
    yield (
        f"preflight: {settings.model.name} on {ranks:,} GPUs of {gpu_gib:g} GiB (gpu_gib): "
        f"{_topology(settings, ranks)}"
    )
    yield (
        f"vocabulary: {vocab_size:,} ({known}), padded to {padded_vocabulary(vocab_size):,}; layers and attention of "
        "PyTorch, not of Transformer Engine"
    )
    if settings.model.experts is not None:
        yield (
            f"assumed: each of the {settings.model.experts} experts gets equally many tokens; a rank whose experts get "
            "more needs more activations"
        )
    rehearsed = stages(settings, vocab_size, ranks)
    yield from _table(rehearsed)
    fullest = max(rehearsed, key=needed)
    if needed(fullest) <= gpu_gib:
        yield f"fits: the fullest stage, {fullest.stage}, needs {needed(fullest):.1f} of {gpu_gib:g} GiB"
        return
    kind = max(KINDS, key=lambda one: fullest.peak[one])
    instead = nearest_that_fits(settings, vocab_size, ranks, gpu_gib, fullest)
    raise UserError(
        f"stage {fullest.stage} needs {needed(fullest):.1f} GiB, most of it {kind}, and a GPU has gpu_gib={gpu_gib:g}; "
        + (
            f"what fits: {instead}"
            if instead
            else "nothing tried with these ranks fits; raise preflight=RANKS, the number of ranks (one a GPU)"
        )
    )


def _topology(settings: Settings, ranks: int) -> str:
    train, parallel = settings.train, settings.parallel
    data = parallel.data(ranks)
    sizes = {
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "virtual pipeline": parallel.virtual_pipeline,
        "context": parallel.context,
        "expert": parallel.expert,
    }
    switches = {"sequence parallelism": parallel.sequence, "recomputation": train.recompute}
    parts = [f"{name} {size}" for name, size in sizes.items() if size > 1] + [f"data {data}"]
    parts += [name for name, on in switches.items() if on]
    batches = train.global_batch_size // (train.micro_batch_size * data)
    return (
        f"{', '.join(parts)}; {batches:,} micro-batches of {train.micro_batch_size} x {train.sequence_length:,} tokens "
        f"a step, {train.precision}"
    )


def _table(rehearsed: Sequence[Rehearsed]) -> Iterator[str]:
    """Lines of the stages' memory at their peaks, and of their traffic."""
    columns = (*KINDS, "peak", "needed")
    yield f"{'stage':>5} {'parameters':>15} {' '.join(f'{one:>11}' for one in columns)}  GiB at the peak, in the"
    for one in rehearsed:
        figures = [one.peak[kind] / GIB for kind in KINDS] + [one.total / GIB, needed(one)]
        cells = " ".join(f"{figure:>11.2f}" for figure in figures)
        yield f"{one.stage:>5} {one.parameters:>15,} {cells}  {one.when}"
    yield (
        f"needed: the peak, {FRAGMENTATION - 1:.0%} for fragmentation and {RUNTIME_GIB} GiB for CUDA and NCCL, both "
        "assumed"
    )
    for one in rehearsed:
        cells = ", ".join(
            f"{axis} {name} {size / GIB:.3f}" for (axis, name), size in one.sent.items() if size
        )
        yield f"stage {one.stage} sends a GPU and step, GiB: {cells or 'nothing'}"
    yield f"rehearsed in {', '.join(f'{one.seconds:.0f}' for one in rehearsed)} s"
