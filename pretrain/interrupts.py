"""Hooks that end a run: a scheduler's signals, after saving, and the watchdog, when it hangs."""

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
"""Exit status of a run that was told to stop and saved (EX_TEMPFAIL): run the same command again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """The run was told to stop; it finished its step and saved a checkpoint."""


class Interrupts(Hook):
    """Requests a stop when the process receives a signal; a second signal ends it at once without saving."""

    def __init__(self) -> None:
        self.requested = False

    def stop_requested(self) -> bool:
        """A signal came."""
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
    """Prints the stacks of all threads and ends the process when no step is finished for too long.

    The clock is a thread of the C library's, so that it runs even while Python hangs in a collective call.

    Args:
        minutes: without a finished step or checkpoint before it ends the process; 0: never.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60

    def feed(self) -> None:
        """Start the clock again."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or 2)

    def before_step(self, step: int) -> None:
        """Start the clock again."""
        self.feed()

    def after_step(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Start the clock again."""
        self.feed()

    def before_checkpoint(self, step: int) -> Mapping[str, str]:
        """Start the clock again."""
        self.feed()
        return {}

    def close(self) -> None:
        """Stop the clock."""
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
