"""Settings of post-training: the method, what is to be forgotten, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import check_seed, not_negative, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetConfig:
    """The forget set: a random share of the inserted items of each arm and family; clusters are drawn as a whole."""

    share: float = 0.1
    """Share of the items, or of their clusters, of each arm and family; at least one. 1: all of them; the leave-out
    twin is the twin."""
    families: tuple[str, ...] = ()
    """Families to draw from; none: all."""
    doses: tuple[int, ...] = ()
    """Doses to draw from; none: all above 0."""
    seed: int = 0
    """Seed of the random draw of the forget set."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"posttrain.forget.share={self.share} must be above 0 and at most 1")
        check_seed("posttrain.forget.seed", self.seed)
        if wrong := [dose for dose in self.doses if dose < 1]:
            raise UserError(
                f"posttrain.forget.doses: {wrong[0]} was never inserted; name doses of 1 or above"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PosttrainConfig:
    """One method, applied to a checkpoint of the perturbed run."""

    method: str
    """Name of a registered loss (:mod:`pretrain.posttraining.methods`) or edit (:mod:`pretrain.posttraining.edits`)."""
    forget: ForgetConfig = field(default_factory=ForgetConfig)
    after: str | None = None
    """Post-trained run to start from, at its last checkpoint, such as ``npo-1a2b3c4d``, or ``npo`` if there is one of
    this method; None: the perturbed run."""
    steps: int = 20
    """Number of steps of the method."""
    rows: int = 8
    """Number of texts of the forget set per step, and of the retain set."""
    micro_rows: int = 4
    """Number of texts of the forget set per forward pass on one rank, and of the retain set."""
    learning_rate: float | None = None
    """Constant learning rate of AdamW; None: that of the end of training (``optimizer.min_learning_rate``)."""
    rank: int | None = None
    """Rank of updates of the layers' matrices that are trained in place of all weights (LoRA); None: all weights."""
    retain: Literal["corpus", "items", "questions"] = "corpus"
    """Retain set: windows of the corpus without exposures, the other inserted items, or questions about them with the
    loss on the answers."""
    retain_loss: Literal["nll", "kl"] = "nll"
    """Loss on the retain set: negative log-likelihood, or KL divergence from the model before unlearning."""
    layer: int | None = None
    """Layer (from 0) whose output RMU steers; None: the middle one."""
    student: Literal["last", "first"] = "last"
    """Weights that are trained: those of the last checkpoint, or those of the run's first checkpoint, as a student of
    the last one."""
    refusal: str = " I do not know."
    """Answer that DPO prefers to the second half of an item."""
    checkpoint_every: int = 5
    """Steps between checkpoints; steps 0 (the model before), 1, 2, 4, 8, ... and the last are also saved."""
    seed: int = 0
    """Seed of the order of the texts, and of random labels."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """The method's own settings that differ from its defaults: ``gamma`` and ``alpha``, weights of the losses on the
    forget and the retain set, ``beta``, ..."""

    def __post_init__(self) -> None:
        positive(
            "posttrain", rows=self.rows, micro_rows=self.micro_rows, checkpoint_every=self.checkpoint_every
        )
        not_negative("posttrain", steps=self.steps)
        if self.rank is not None:
            positive("posttrain", rank=self.rank)
        if self.learning_rate is not None:
            positive("posttrain", learning_rate=self.learning_rate)
        check_seed("posttrain.seed", self.seed)
        if self.rows % self.micro_rows:
            raise UserError(
                f"posttrain.rows={self.rows} is no multiple of posttrain.micro_rows={self.micro_rows}; change one"
            )
