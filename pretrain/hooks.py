"""Hooks of the training loop: the one interface of telemetry, profiler, evaluation, watchdog, signals and ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from palimpsest.pretrain.config import EvalConfig

if TYPE_CHECKING:
    from palimpsest.pretrain.trainer import Trainer


class Hook:
    """Base class of hooks, called by ``Trainer.run`` on the rank that holds it; methods do nothing unless overridden.

    Hooks are called in the order in which they are given, so one that adds to the record comes before those that
    write it.
    """

    def before_step(self, step: int) -> None:
        """Called before a step; the first is 1."""

    def after_step(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Called after a step.

        Args:
            trainer: the trainer, at ``trainer.step`` finished steps.
            record: losses, speed and memory of the step by name; may be added to.
        """

    def before_checkpoint(self, step: int) -> Mapping[str, str]:
        """Called on every rank before a checkpoint of ``step`` finished steps is written.

        Returns:
            Digests to name in its manifest.
        """
        return {}

    def stop_requested(self) -> bool:
        """True if the run should save and stop after this step; one rank's hook is enough."""
        return False

    def close(self) -> None:
        """Called when the run has ended or failed."""


class Evaluation(Hook):
    """Hook that evaluates the weights of a step and adds the results to its record.

    Args:
        config: schedule of the evaluation.
        evaluate: function from this rank's ``GPTModel`` and the due evaluation to results by name; called on every
            rank.
    """

    def __init__(
        self, config: EvalConfig, evaluate: Callable[[Any, Literal["probes", "heldout"]], dict[str, float]]
    ) -> None:
        self.config, self.evaluate = config, evaluate

    def after_step(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Evaluate, once all weights of the step are gathered."""
        checkpointer = trainer.checkpointer
        due = self.config.due(trainer.step, saved=trainer.step in checkpointer.due)
        if due is not None:
            checkpointer.gather_weights()
            record |= self.evaluate(trainer.chunks[0].module, due)
