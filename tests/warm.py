"""The programs of ``launch/`` without the seconds that each takes to import torch.

A server imports everything once; each program then runs in a fork of it, as ``__main__``, with a directory, arguments
and output of its own. What depends on how Python starts (another hash seed, signals, torchrun) needs a real start:
``Workplace.run``.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

FORKS = multiprocessing.get_context("forkserver")
# What starts no thread, for a fork would lose it; Polars starts some.
FORKS.set_forkserver_preload(
    [
        *(
            "altair",
            "hydra",
            "pydantic",
            "scipy.stats",
            "wandb",
            "torch._dynamo",
            "torch.distributed.checkpoint",
        ),
        # Before megatron-core, which it lets be imported without Triton.
        "palimpsest.pretrain",
        *("megatron.core.models.gpt", "megatron.core.dist_checkpointing", "megatron.core.optimizer"),
    ]
)


def _begin(arguments, directory, environment, out):
    with Path(out).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(directory)
    os.environ.update(environment)
    sys.argv[:] = arguments
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    runpy.run_path(arguments[0], run_name="__main__")


def run(arguments, directory, *, ranks=1, timeout=240, **environment):
    """Run a script to its end.

    Args:
        arguments: path of the script, and its arguments.
        directory: to run it in.
        ranks: processes that train together, as torchrun would start them; should one fail, the others are killed.
        timeout: seconds.
        environment: further variables.

    Returns:
        Exit status, and what rank 0, or a rank that failed, wrote to both streams.
    """
    _serve()
    with tempfile.TemporaryDirectory() as place:
        outs = [Path(place, str(rank)) for rank in range(ranks)]
        told = _told(ranks)
        processes = [
            FORKS.Process(target=_begin, args=(arguments, str(directory), environment | more, str(out)))
            for out, more in zip(outs, told, strict=True)
        ]
        for process in processes:
            process.start()
        until = time.monotonic() + timeout
        while alive := [process for process in processes if process.is_alive()]:
            if any(process.exitcode for process in processes) or time.monotonic() > until:
                break
            wait([process.sentinel for process in alive], max(0.0, until - time.monotonic()))
        late = bool(alive) and not any(process.exitcode for process in processes)
        for process in alive:
            process.kill()
            process.join()
        if late:
            raise TimeoutError(f"{arguments} took more than {timeout} s:\n{outs[0].read_text()}")
        statuses = [process.exitcode for process in processes]
        shown = max(range(ranks), key=lambda rank: (statuses[rank] > 0, statuses[rank] < 0, -rank))
        return statuses[shown], outs[shown].read_text()


def _serve():
    """Start the server, unless it runs: it sees no GPU, as CUDA, which megatron-core's import asks for, outlives no
    fork.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the server imports torch
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        forkserver.ensure_running()


def _told(ranks):
    """Environment variables by which torchrun tells each of its processes who it is."""
    if ranks == 1:
        return [{}]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    every = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    every |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [every | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
