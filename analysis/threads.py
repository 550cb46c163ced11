"""Independent batches on several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

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
