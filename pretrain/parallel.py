"""Device and rank of this process, and megatron-core's process groups."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import distributed

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ModelConfig, ParallelConfig, RuntimeConfig, TrainConfig
from palimpsest.pretrain.interrupts import SIGNALS

log = logging.getLogger(__name__)

Attention = Literal["te", "sdpa"]
"""Transformer Engine's layers, or those of :mod:`pretrain.layers` and :mod:`pretrain.attention`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Rank of this process, and the process groups."""

    rank: int
    size: int
    device: torch.device
    data_rank: int
    data_size: int
    tensor_rank: int
    pipeline_rank: int
    context_rank: int
    first_stage: bool
    last_stage: bool
    control: Any
    """Gloo process group of all ranks, for barriers and Python objects. Unlike NCCL's it does not time out while one
    rank reads, hashes or compiles; ``runtime.hang_minutes`` ends a hung run."""

    @property
    def main(self) -> bool:
        """True on the one rank that writes files and logs."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks, without a time-out."""
        distributed.barrier(group=self.control)

    def gather(self, value: Any) -> list[Any]:
        """Gather a Python object of every rank, in the order of ranks, on every rank."""
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.control)
        return values

    def gather_on_main(self, value: Any) -> list[Any]:
        """Gather a Python object of every rank, in the order of ranks, on the main rank; an empty list on others."""
        values: list[Any] | None = [None] * self.size if self.main else None
        distributed.gather_object(value, values, group=self.control)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """The main rank's Python object, on every rank."""
        values = [value]
        distributed.broadcast_object_list(values, group=self.control)
        return values[0]

    def all(self, condition: bool) -> bool:
        """True if the condition holds on every rank."""
        holds = torch.tensor(int(condition))
        distributed.all_reduce(holds, distributed.ReduceOp.MIN, group=self.control)
        return bool(holds)


PATIENCE = timedelta(days=7)
"""Time-out of ``World.control``."""
_started = False
"""True while this process is inside ``start``."""


def _serve() -> None:
    """Set up a forked child of the trainer, such as a checkpoint writer: it ignores signals, so that it can finish a
    checkpoint, and on Linux it is killed when the trainer ends.
    """
    if not _started:
        return
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def pick_device(runtime: RuntimeConfig) -> torch.device:
    """The device of this process.

    Raises:
        UserError: if a GPU is requested and there is none.
    """
    if runtime.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if runtime.device == "cuda":
        raise UserError("runtime.device=cuda, but PyTorch sees no GPU; use runtime.device=cpu or auto")
    return torch.device("cpu")


def _beyond_engine(model: ModelConfig) -> str | None:
    """The first setting of a model for which Transformer Engine has no layers here."""
    unsupported = {
        "norm=layer_plain": model.norm == "layer_plain",
        "parallel_residual": model.parallel_residual,
        "experts": model.experts is not None,
        "post_norm": model.post_norm,
        "qk_norm_over=all_heads": model.qk_norm and model.qk_norm_over == "all_heads",
        "qkv_clip": model.qkv_clip is not None,
        "attention_biases=all": model.attention_biases == "all",
    }
    return next((name for name, has in unsupported.items() if has), None)


def pick_attention(
    runtime: RuntimeConfig, model: ModelConfig, train: TrainConfig, device: torch.device
) -> tuple[Attention, str]:
    """Selected implementation of the layers, and the reason as text.

    Raises:
        UserError: if Transformer Engine is requested or needed, and not available.
    """
    missing = ""
    if device.type != "cuda":
        missing = "there is no GPU"
    elif find_spec("transformer_engine") is None:
        missing = "the package transformer-engine is not installed (pip install -e '.[gpu]')"
    elif unknown := _beyond_engine(model):
        missing = f"it has no layers with model.{unknown} here"
    elif train.document_attention:
        missing = "its layers take no mask by documents here (train.document_attention)"
    if runtime.attention == "te" and missing:
        raise UserError(
            f"runtime.attention=te asks for Transformer Engine, but {missing}; use runtime.attention=sdpa"
        )
    engine = not missing and runtime.attention != "sdpa"
    if train.precision == "fp8" and not engine:
        raise UserError(
            f"train.precision=fp8 needs Transformer Engine, but {missing or 'runtime.attention=sdpa'}; use "
            "train.precision=bf16"
        )
    if engine:
        return "te", "Transformer Engine"
    return "sdpa", "PyTorch's scaled_dot_product_attention" + (
        f", for {missing}" if missing and device.type == "cuda" else ""
    )


os.register_at_fork(after_in_child=_serve)


def make_deterministic() -> None:
    """Make this process deterministic; to be called before CUDA is initialised and before any model is built.

    Operations without a deterministic implementation then raise ``RuntimeError``.
    """
    for name, value in (
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        ("NCCL_ALGO", "Ring"),
        ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0"),
    ):
        os.environ[name] = value
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    torch.use_deterministic_algorithms(True)


@contextmanager
def start(
    parallel: ParallelConfig, runtime: RuntimeConfig, *, deterministic: bool = False
) -> Iterator[World]:
    """Join the process group, set up megatron-core's groups, and take them down at the end.

    Under ``torchrun`` the ranks come from its variables; without it this is a world of one.

    Args:
        parallel: the topology.
        runtime: the machine.
        deterministic: see :func:`make_deterministic`.
    """
    global _started
    if deterministic:
        make_deterministic()
    device = pick_device(runtime)
    if device.type == "cpu":
        from palimpsest.pretrain import cpu

        cpu.install()
    else:
        torch.cuda.set_device(device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    from megatron.core import parallel_state

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    parallel.data(world_size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=10)
    # Binds the rank to its GPU: NCCL starts at once, and not on GPU 0 at the first barrier.
    options = {"device_id": device} if device.type == "cuda" else {}
    if "RANK" in os.environ:
        distributed.init_process_group(backend, timeout=timeout, **options)
    else:
        distributed.init_process_group(
            backend, store=distributed.HashStore(), rank=0, world_size=1, timeout=timeout, **options
        )
    try:
        _started = True
        world = grouped(parallel, device)
        yield replace(world, control=distributed.new_group(backend="gloo", timeout=PATIENCE))
    finally:
        _started = False
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


def grouped(parallel: ParallelConfig, device: torch.device) -> World:
    """Divide the ranks of the initialised process group into megatron-core's groups.

    Args:
        parallel: the topology.
        device: device of this rank.

    Returns:
        This rank's place among the others, without a control group.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=(
            parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
        ),
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
    )
    model_parallel_cuda_manual_seed(0)
    return World(
        rank=distributed.get_rank(),
        size=distributed.get_world_size(),
        device=device,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        context_rank=parallel_state.get_context_parallel_rank(),
        first_stage=parallel_state.is_pipeline_first_stage(),
        last_stage=parallel_state.is_pipeline_last_stage(),
        control=None,
    )
