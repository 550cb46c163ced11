"""Settings of a run's length, batches, precision and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import check_seed, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Length of the run, batches, precision, and checkpoints."""

    steps: int
    """Number of steps of the whole run."""
    global_batch_size: int
    """Windows per step, over all ranks."""
    micro_batch_size: int
    """Windows per forward pass on one data-parallel rank."""
    sequence_length: int
    """Tokens predicted per window; a window holds one more."""
    seed: int
    """Seed of the initial weights and of the order of the windows."""
    precision: Literal["fp32", "bf16", "fp8"] = "fp32"
    """Precision of training. ``fp8``: bf16 except for the matrix products, which Transformer Engine computes in fp8;
    weights are saved in bf16."""
    deterministic: bool = False
    """Use only deterministic algorithms, so that two runs on the same machines end with bitwise equal weights.
    Otherwise the order of sums in some CUDA kernels varies; no effect on CPUs."""
    recompute: bool = False
    """Activation recomputation: the forward pass keeps only the input of each layer, and the backward pass recomputes
    the rest. This needs a third more computation and far less memory."""
    non_finite: Literal["stop", "skip"] = "stop"
    """Response to a step whose loss or gradient is NaN or infinite: ``stop`` before it, or ``skip`` the update and
    continue; the ledger records skipped steps and the audit reports them."""
    document_attention: bool = False
    """Intra-document attention mask: tokens attend only to their own document and the end-of-document token before it;
    otherwise to all earlier tokens of the window."""
    start_from: str | None = None
    """Checkpoint of another run (``.../checkpoints/step_00000100``) from which this run continues with its weights,
    optimizer state and step, at the same position of the same order."""
    stop_at: int | None = None
    """Number of finished steps at which the run ends, with the schedule of ``steps``, so that another run can continue
    from there. None: ``steps``."""
    checkpoint_every: int
    """Steps between regular checkpoints; steps 0, 1, 2, 4, 8, ... and the last are also saved."""
    checkpoint_at: tuple[int, ...] = ()
    """Further steps at which checkpoints are saved."""
    checkpoint_after_last: tuple[int, ...] = ()
    """Numbers of steps after each arm's last exposure at which checkpoints are saved, to measure forgetting."""
    checkpoint_keep: int | None = None
    """Number of newest regular checkpoints to keep; other checkpoints are always kept. None: all."""
    checkpoint_async: bool = False
    """Asynchronous checkpoints: other processes write while training continues. Needs memory for a copy."""

    def __post_init__(self) -> None:
        positive(
            "train",
            steps=self.steps,
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            sequence_length=self.sequence_length,
            checkpoint_every=self.checkpoint_every,
        )
        check_seed("train.seed", self.seed)
        for step in self.checkpoint_at:
            if not 0 <= step <= self.steps:
                raise UserError(
                    f"train.checkpoint_at: {step} must lie between 0 and train.steps={self.steps}"
                )
        for later in self.checkpoint_after_last:
            if later < 0:
                raise UserError(f"train.checkpoint_after_last: {later} must be 0 or above")
        if self.checkpoint_keep is not None:
            positive("train", checkpoint_keep=self.checkpoint_keep)
        if self.stop_at is not None and not 0 < self.stop_at <= self.steps:
            raise UserError(f"train.stop_at={self.stop_at} must lie between 1 and train.steps={self.steps}")
        if self.begin >= self.end:
            raise UserError(
                f"train.start_from={self.start_from} is at step {self.begin}, and the run ends at step {self.end}; "
                "raise train.steps (or train.stop_at), which count the steps before it, too"
            )

    @property
    def half_precision(self) -> bool:
        """True if weights and activations have 16 bits."""
        return self.precision != "fp32"

    @property
    def end(self) -> int:
        """Number of finished steps at which the run ends, those before ``start_from``'s checkpoint included."""
        return self.steps if self.stop_at is None else self.stop_at

    @property
    def begin(self) -> int:
        """Number of finished steps at the start: 0, or that of the checkpoint ``start_from``."""
        if self.start_from is None:
            return 0
        name = re.fullmatch(r"step_(\d+)", Path(self.start_from).name)
        if name is None:
            raise UserError(
                f"train.start_from={self.start_from} is no checkpoint; give its directory, such as "
                "runs/quickstart/run-1a2b3c4d/twin/checkpoints/step_00000100"
            )
        return int(name[1])

    @property
    def windows(self) -> int:
        """Number of windows consumed up to the end, including those before ``start_from``."""
        return self.end * self.global_batch_size

    def permanent_checkpoints(self, last_exposures: Iterable[int] = ()) -> set[int]:
        """Steps after which a checkpoint is written that is never deleted.

        Args:
            last_exposures: finished steps with which each arm had its last exposure.
        """
        powers = {self.begin + (1 << k) for k in range(self.steps.bit_length())}
        after = {step + later for step in last_exposures for later in self.checkpoint_after_last}
        asked = {self.begin, self.end} | powers | after | set(self.checkpoint_at)
        return {step for step in asked if step <= self.end}

    def checkpoint_steps(self, last_exposures: Iterable[int] = ()) -> list[int]:
        """Steps after which a checkpoint is written, ascending: the permanent and the regular ones."""
        regular = set(range(0, self.steps + 1, self.checkpoint_every))
        return sorted(self.permanent_checkpoints(last_exposures) | regular)

    def deletable_checkpoints(self, saved: Iterable[int], last_exposures: Iterable[int] = ()) -> list[int]:
        """Saved steps to delete: regular checkpoints beyond ``checkpoint_keep``, and those saved on a signal.

        The newest stays, because a run resumes from it.
        """
        saved = sorted(saved)
        regular = [step for step in saved if step % self.checkpoint_every == 0]
        keep = set(regular if self.checkpoint_keep is None else regular[-self.checkpoint_keep :])
        keep |= self.permanent_checkpoints(last_exposures) | set(saved[-1:])
        return [step for step in saved if step not in keep]
