"""The machine, the profiler, and what is evaluated while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import not_negative, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Evaluation while training, on top of the scores that ``launch/score.py`` computes of checkpoints."""

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
        """Some evaluation is due while training."""
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
    """Steps to record with ``torch.profiler``."""

    steps: tuple[int, ...] = ()
    """The first and the last, counted from 1; the first rank records. Empty: none."""

    def __post_init__(self) -> None:
        if self.steps and (len(self.steps) != 2 or not 1 <= self.steps[0] <= self.steps[1]):
            raise UserError(
                f"profile.steps={list(self.steps)} must be the first and the last step, such as [10,12]"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine; nothing here changes what is computed beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads a process; 0 leaves it to PyTorch (and to torchrun's OMP_NUM_THREADS)."""
    workers: int = 2
    """Processes that read and tokenize text."""
    attention: Literal["auto", "te", "sdpa"] = "auto"
    """Layers and attention of Transformer Engine, or our own over ``scaled_dot_product_attention``. auto: Transformer
    Engine's on GPUs where it is installed and has the model's layers, unless ``train.document_attention`` is wanted,
    which only ours has."""
    cuda_graphs: bool = False
    """Capture each layer as a CUDA graph (megatron-core's) in the first step and replay it from then on. Helps small
    models, whose kernels end before the CPU has launched the next; takes memory."""
    hang_minutes: float = 60.0
    """Without a finished step before a training prints its stacks and ends; 0: it waits for ever."""

    def __post_init__(self) -> None:
        positive("runtime", workers=self.workers)
        not_negative("runtime", threads=self.threads, hang_minutes=self.hang_minutes)
