"""Optimizer and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import not_negative, positive
from palimpsest.pretrain.config.model import ModelConfig
from palimpsest.pretrain.config.parallel import ParallelConfig
from palimpsest.pretrain.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, or Muon for the blocks' matrices, with linear warm-up and a decay."""

    kind: Literal["adamw", "muon"] = "adamw"
    """``muon``: orthogonalised momentum (Jordan et al., 2024) for the matrices of the layers, in megatron-core's layout
    (queries, keys and values joined; gate and up joined); AdamW for embeddings and norms. Updates are scaled to the
    size of AdamW's (Liu et al., 2025), so that learning rates carry over."""
    law: Literal["step_law"] | None = None
    """Scaling law that sets the learning rates (:mod:`pretrain.laws`); None: use the values given here."""
    learning_rate: float
    """Peak learning rate."""
    min_learning_rate: float
    """Learning rate at the last step."""
    warmup_steps: int
    """Steps of linear warm-up; fewer than ``train.steps``."""
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """Decay after the warm-up. ``wsd`` stays at the peak and decays over the last ``decay_steps`` as 1 - sqrt (Haegele
    et al., 2024); ``constant`` never decays."""
    decay_steps: int | None = None
    """Steps of the decay of ``wsd``."""
    initial_learning_rate: float = 0.0
    """Learning rate at the start of the warm-up; above 0 for re-warming a model that was trained before."""
    weight_decay: float = 0.1
    """Weight decay, decoupled from the gradient."""
    beta1: float = 0.9
    """Decay of the mean of the gradients; of AdamW."""
    beta2: float = 0.95
    """Decay of the mean of their squares; of AdamW."""
    epsilon: float = 1e-8
    """Number added to the root of the mean square; of AdamW."""
    clip_grad: float = 1.0
    """Gradients are clipped to this global norm; 0: no clipping."""

    def __post_init__(self) -> None:
        positive("optimizer", learning_rate=self.learning_rate, epsilon=self.epsilon)
        not_negative(
            "optimizer",
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            clip_grad=self.clip_grad,
        )
        if not 0 <= self.initial_learning_rate <= self.learning_rate:
            raise UserError(
                f"optimizer.initial_learning_rate={self.initial_learning_rate} must be 0 to "
                f"optimizer.learning_rate={self.learning_rate}"
            )
        if (self.schedule == "wsd") != (self.decay_steps is not None):
            raise UserError(
                f"optimizer.decay_steps={self.decay_steps} does not go with "
                f"optimizer.schedule={self.schedule}; set it with wsd only"
            )
        if self.decay_steps is not None:
            positive("optimizer", decay_steps=self.decay_steps)
        if self.schedule == "constant" and self.min_learning_rate != self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate={self.min_learning_rate} is never reached with "
                f"optimizer.schedule=constant; set it to {self.learning_rate}"
            )
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise UserError(f"optimizer.{name}={beta} must lie between 0 and 1, 1 excluded")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate={self.min_learning_rate} must be 0 to "
                f"optimizer.learning_rate={self.learning_rate}"
            )

    def check(self, train: TrainConfig, model: ModelConfig, parallel: ParallelConfig) -> None:
        """Check the schedule against the length of the run, and Muon against model and topology.

        Raises:
            UserError: if the learning rate would never decay, or matrices would be sharded with Muon.
        """
        if self.kind == "muon":
            for setting, unsupported in (
                (f"parallel.tensor={parallel.tensor}", parallel.tensor > 1),
                (f"model.experts={model.experts}", model.experts is not None),
            ):
                if unsupported:
                    raise UserError(
                        f"optimizer.kind=muon does not support {setting}: each matrix must be whole on one rank, and "
                        "mixtures of experts are not covered; use optimizer=adamw, or parallel.tensor=1 and "
                        "model.experts=null"
                    )
        if self.warmup_steps >= train.steps:
            raise UserError(
                f"optimizer.warmup_steps={self.warmup_steps} must be below train.steps={train.steps}; lower the "
                "one or raise the other"
            )
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > train.steps:
            raise UserError(
                f"optimizer.decay_steps={self.decay_steps} and optimizer.warmup_steps={self.warmup_steps} do not fit "
                f"into train.steps={train.steps}; lower one"
            )
