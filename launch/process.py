"""Process of a program: exit statuses, output lines, and the lock on a run's directory."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from palimpsest.data.errors import UserError

INTEGRITY = 3
"""Exit status if an audit fails or a batch differs from the plan."""


STATUS = "PALIMPSEST_STATUS"
"""Environment variable with the path of a file for the exit status and error line of the first failed rank, because
torchrun itself always exits with 1."""


def say(line: str) -> None:
    """Log a line for the user, on the main rank alone."""
    logging.getLogger("palimpsest").info(line)


_GRACE = 3.0
"""Seconds that a silent rank waits before it ends: torchrun kills all ranks once one has ended."""


def end(line: str, status: int, rank: int = 0) -> NoReturn:
    """End the program with one line, which only the first of several ranks prints; see also ``STATUS``."""
    ranked = "RANK" in os.environ
    speaks = rank == 0 or not ranked
    if ranked and (path := os.environ.get(STATUS)):
        # Only the first to fail says why; the others fail because of it, or are killed before they can.
        speaks = False
        with contextlib.suppress(FileExistsError), Path(path).open("x") as file:
            file.write(f"{status}\n{line}")
            speaks = True
    if speaks:
        sys.stderr.write(f"palimpsest: {line}\n")
        sys.stderr.flush()
    else:
        time.sleep(_GRACE)
    sys.exit(status)


def end_with_parent(number: int) -> None:
    """Make Linux send this child process a signal when its parent dies; no effect on other systems."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a run's directory, so that two trainings cannot write to it.

    Raises:
        UserError: if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, never inherited by a child
        except OSError:
            raise UserError(
                f"{directory} is in use by another process; wait for it, or set another name=..."
            ) from None
        yield
