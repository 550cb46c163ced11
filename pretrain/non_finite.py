"""Response to a step whose loss or gradient is NaN or infinite: find the windows, record them, stop or skip."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import TrainConfig

log = logging.getLogger(__name__)

MAX_SKIPS = 3
"""Largest number of consecutive steps skipped (``train.non_finite=skip``); beyond it the data cannot be the cause."""


class NonFinite(UserError):
    """Exception: the loss or its gradient is NaN or infinite. No optimizer step was taken."""


class NonFiniteGuard:
    """Handler that stops at or skips non-finite steps, and writes them to a file.

    Args:
        path: path of the file, ``non_finite.json``.
        train: batch size, and ``non_finite``.
        writes: true on the rank that writes files.
    """

    def __init__(self, path: Path, train: TrainConfig, *, writes: bool) -> None:
        self.path, self.train, self.writes = path, train, writes
        self.skipped: list[int] = []
        """Steps (from 0) that were skipped, ascending."""

    def accepts(
        self, step: int, figures: dict[str, float], losses_by_window: Callable[[], list[float]]
    ) -> bool:
        """True if the update of a step is to be applied; every rank passes the same figures.

        Args:
            step: from 0.
            figures: loss and gradient norm, by name.
            losses_by_window: function that reads the step's windows again and returns their losses in the order of
                positions.

        Raises:
            NonFinite: if steps are not to be skipped, or if the ``MAX_SKIPS`` steps before were all skipped.
        """
        name = next((name for name, value in figures.items() if not math.isfinite(value)), None)
        if name is None:
            return True
        losses = losses_by_window()
        first, last = step * self.train.global_batch_size, (step + 1) * self.train.global_batch_size - 1
        offending = [first + row for row, loss in enumerate(losses) if not math.isfinite(loss)]
        in_a_row = self.skipped[-MAX_SKIPS:] == list(range(step - MAX_SKIPS, step))
        skip = self.train.non_finite == "skip" and not in_a_row
        if self.writes:
            self._write(
                {
                    "step": step,
                    "skipped": skip,
                    "what": name,
                    "value": str(figures[name]),
                    "windows": [first, last],
                    "offending": offending,
                    "losses": [str(loss) for loss in losses],
                }
            )
        line = (
            f"the {name} is {figures[name]} in step {step} (windows {first} to {last}, of which "
            f"{len(offending)} have a loss that is not finite: {self.path})"
        )
        if not skip:
            before = f", nor were the {MAX_SKIPS} before it" if in_a_row else ""
            raise NonFinite(
                f"{line}; the step was not taken{before}. Lower optimizer.learning_rate or optimizer.clip_grad"
                + ("" if in_a_row else ", or go on without such steps: train.non_finite=skip")
            )
        log.warning("%s; skipped, as train.non_finite=skip asks", line)
        self.skipped.append(step)
        return False

    def _write(self, event: dict[str, object]) -> None:
        """Add an event to the file, replacing events of an earlier attempt at the same or later steps."""
        events = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        artifact.write_json(self.path, [one for one in events if one["step"] < event["step"]] + [event])
