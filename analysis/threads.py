"""Independent batches on several threads, and room that each thread keeps."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Job = TypeVar("Job")
Found = TypeVar("Found")


def each(work: Callable[[Job], Found], jobs: Sequence[Job], device: torch.device) -> list[Found]:
    """The work on every job, in order, without gradients.

    On CPUs a thread takes one job at a time and computes alone: that wastes less than sharing out each small operation,
    and what is computed does not depend on the number of threads.
    """

    def untracked(job: Job) -> Found:
        with torch.inference_mode():  # each thread's own setting
            return work(job)

    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(jobs) < 2:
        return [untracked(job) for job in jobs]
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            return list(pool.map(untracked, jobs))
    finally:
        torch.set_num_threads(threads)


class _Kept(threading.local):
    """By name."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[np.float32]] = {}


_kept = _Kept()


def space(name: str, *shape: int) -> NDArray[np.float32]:
    """Room that is this thread's own and is kept from call to call, for the system's new pages cost time.

    It begins where a line of the cache does, and has in it what was left there; who asks for the same name again, in
    whatever shape, is given the same room.
    """
    count = math.prod(shape)
    if name not in _kept.arrays or _kept.arrays[name].size < count:
        array = np.empty(count + 15, np.float32)
        start = -array.ctypes.data % 64 // array.itemsize
        _kept.arrays[name] = array[start : start + count]
    return _kept.arrays[name][:count].reshape(shape)
