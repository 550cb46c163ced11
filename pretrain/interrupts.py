"""Hooks that end a run: one saves and stops on a scheduler's signal, one (the watchdog) ends a run that hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from palimpsest.pretrain.hooks import Hook

if TYPE_CHECKING:
    from palimpsest.pretrain.trainer import Trainer

REQUEUE = 75
"""Exit status of a run that saved and stopped on a signal (EX_TEMPFAIL); the same command resumes it."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """Exception: the run was told to stop; it finished its step and saved a checkpoint."""


class Interrupts(Hook):
    """Hook that requests a stop when the process receives a signal; a second signal ends the process without saving."""

    def __init__(self) -> None:
        self.requested = False

    def stop_requested(self) -> bool:
        """True if a signal was received."""
        return self.requested

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True


@contextmanager
def listening() -> Iterator[Interrupts]:
    """Handle SIGTERM and SIGUSR1 while training, and restore the previous handlers at the end."""
    interrupts = Interrupts()
    before = {number: signal.signal(number, interrupts._receive) for number in SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watchdog(Hook):
    """Hook that prints the stacks of all threads and ends the process if no step is finished for too long.

    The clock is a C thread, which runs even while Python hangs in a collective call.

    Args:
        minutes: time without a finished step or checkpoint after which the process ends; 0: no limit.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60

    def feed(self) -> None:
        """Restart the countdown after which the process ends."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or 2)

    def before_step(self, step: int) -> None:
        """Restart the countdown after which the process ends."""
        self.feed()

    def after_step(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Restart the countdown after which the process ends."""
        self.feed()

    def before_checkpoint(self, step: int) -> Mapping[str, str]:
        """Restart the countdown after which the process ends."""
        self.feed()
        return {}

    def close(self) -> None:
        """Stop the countdown, which would end the process if no step is finished in time."""
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
