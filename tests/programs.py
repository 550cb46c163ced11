"""Programs of ``launch/`` started from a process that has imported what they import: each test saves those seconds.

Every program still runs in a process of its own, from its own file, with its own arguments; only ``import torch`` and
the like are done. :class:`Programs` is the client, this file run as a script the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

IMPORTED = (
    *("altair", "hydra", "pydantic", "scipy.stats", "torch.distributed.checkpoint", "wandb"),
    *("megatron.core.models.gpt", "megatron.core.dist_checkpointing", "megatron.core.optimizer"),
)


class Programs:
    """Starts programs in forks of one warm process, which ends with this one."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, command: list[str], cwd: Path, timeout: float) -> tuple[int, str]:
        """Status and output of ``python FILE ARGUMENTS``.

        Raises:
            subprocess.TimeoutExpired: after ``timeout`` seconds; the program is killed.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        with tempfile.NamedTemporaryFile("r") as out:
            asked = {"command": command, "cwd": str(cwd), "out": out.name, "timeout": timeout}
            self.server.stdin.write(json.dumps(asked) + "\n")
            self.server.stdin.flush()
            status = json.loads(self.server.stdout.readline())
            text = out.read()
        if status is None:
            raise subprocess.TimeoutExpired(command, timeout, text)
        return status, text

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def _serve() -> None:
    """Fork for each line of standard input, and answer with the fork's exit status, null where it took too long."""
    del sys.path[0]  # this directory's packages are tests
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    usual = warnings.filters[:]
    warnings.simplefilter("ignore")
    _import()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            answers.close()
            warnings.filters[:] = usual
            _become(**asked)
        answers.write(json.dumps(_ended(child, asked["timeout"])) + "\n")
        answers.flush()


def _import() -> None:
    """What takes the programs seconds to import, and starts no thread: a fork would lose it (Polars starts some)."""
    from pretrain import cpu

    cpu.install()
    for name in IMPORTED:
        __import__(name)


def _ended(child: int, timeout: float) -> int | None:
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        status = os.waitpid(child, 0)[1]
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status)


def _become(command: list[str], cwd: str, out: str, timeout: float) -> None:
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    status: object = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        status if isinstance(status, int) else status is not None
    )  # taking torch down would take a second


if __name__ == "__main__":
    _serve()
