"""Processes: which device, which ranks, and megatron-core's process groups."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from data.errors import UserError
from pretrain.config import ParallelConfig, RuntimeConfig
from pretrain.interrupts import SIGNALS

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where this process stands."""

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

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes files and logs."""
        return self.rank == 0


_started = False
"""Whether this process is inside ``start``."""


def _serve() -> None:
    """Make a forked child of a training, such as a writer of checkpoints, a helper.

    Signals are its parent's business, which needs it to save. It is killed with its parent, by Linux; other systems
    go without.
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
        UserError: if a GPU is asked for and there is none.
    """
    if runtime.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if runtime.device == "cuda":
        raise UserError("runtime.device=cuda, but PyTorch sees no GPU; use runtime.device=cpu or auto")
    return torch.device("cpu")


os.register_at_fork(after_in_child=_serve)


def make_deterministic() -> None:
    """Let this process compute the same bits again; must come before CUDA starts and before any model is built.

    An operation that cannot raises ``RuntimeError`` when it is used.
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
        from pretrain import cpu

        cpu.install()
    else:
        torch.cuda.set_device(device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    parallel.data(world_size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=10)
    if "RANK" in os.environ:
        distributed.init_process_group(backend, timeout=timeout)
    else:
        distributed.init_process_group(
            backend, store=distributed.HashStore(), rank=0, world_size=1, timeout=timeout
        )
    try:
        _started = True
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
        yield World(
            rank=distributed.get_rank(),
            size=world_size,
            device=device,
            data_rank=parallel_state.get_data_parallel_rank(),
            data_size=parallel_state.get_data_parallel_world_size(),
            tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
            context_rank=parallel_state.get_context_parallel_rank(),
            first_stage=parallel_state.is_pipeline_first_stage(),
            last_stage=parallel_state.is_pipeline_last_stage(),
        )
    finally:
        _started = False
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()
