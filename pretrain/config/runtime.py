"""Settings of the machine, the profiler, and evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import not_negative, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Settings of evaluation during training, in addition to the scores of checkpoints by ``launch/score.py``."""

    heldout_every: int | None = None
    """Steps between losses on held-out documents; None: never."""
    probes_every: int | Literal["checkpoint"] | None = None
    """Steps between losses on all probes of the plan, by family and dose, or ``checkpoint``: whenever one is saved."""

    def __post_init__(self) -> None:
        for name in ("heldout_every", "probes_every"):
            value = getattr(self, name)
            if isinstance(value, int):
                positive("eval", **{name: value})

    @property
    def enabled(self) -> bool:
        """True if there is any evaluation during training."""
        return self.heldout_every is not None or self.probes_every is not None

    def due(self, step: int, *, saved: bool) -> Literal["probes", "heldout"] | None:
        """The evaluation due after a step: all probes, only those of held-out documents, or nothing.

        Args:
            step: finished steps.
            saved: whether a checkpoint is saved with it.
        """
        if (
            saved
            if self.probes_every == "checkpoint"
            else self.probes_every and step % self.probes_every == 0
        ):
            return "probes"
        return "heldout" if self.heldout_every and step % self.heldout_every == 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """Settings of ``torch.profiler``."""

    steps: tuple[int, ...] = ()
    """First and last step to record, counted from 1, on the first rank. Empty: none."""

    def __post_init__(self) -> None:
        if self.steps and (len(self.steps) != 2 or not 1 <= self.steps[0] <= self.steps[1]):
            raise UserError(
                f"profile.steps={list(self.steps)} must be the first and the last step, such as [10,12]"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Settings of the machine, which change results only by rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; ``auto``: the GPU if there is one."""
    threads: int = 0
    """Number of CPU threads per process; 0: PyTorch's default (or torchrun's OMP_NUM_THREADS)."""
    workers: int = 2
    """Number of processes that read and tokenize text."""
    attention: Literal["auto", "te", "sdpa"] = "auto"
    """Implementation of layers and attention: Transformer Engine's, or our own with ``scaled_dot_product_attention``.
    ``auto``: Transformer Engine's on GPUs if it is installed and supports the model's layers; our own with
    ``train.document_attention``, which only it supports."""
    hang_minutes: float = 60.0
    """Time without a finished step after which a training prints its stacks and ends, minutes; 0: no limit."""

    def __post_init__(self) -> None:
        positive("runtime", workers=self.workers)
        not_negative("runtime", threads=self.threads, hang_minutes=self.hang_minutes)
