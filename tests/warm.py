"""The programs of ``launch/`` without the seconds that each takes to import torch.

A server imports everything once; each program then runs in a fork of it, as ``__main__``, with a directory, arguments
and output of its own. What depends on how Python starts (another hash seed, signals, torchrun) needs a real start:
``Workplace.run``.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

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


def run(arguments, directory, *, timeout=240, **environment):
    """Run a script to its end.

    Args:
        arguments: path of the script, and its arguments.
        directory: to run it in.
        timeout: seconds.
        environment: further variables.

    Returns:
        Exit status, and what it wrote to both streams.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the server imports torch
    with tempfile.NamedTemporaryFile() as out:
        process = FORKS.Process(target=_begin, args=(arguments, str(directory), environment, out.name))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments} took more than {timeout} s:\n{Path(out.name).read_text()}")
        return process.exitcode, Path(out.name).read_text()
