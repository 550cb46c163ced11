"""Settings of post-training: the method, what is to be forgotten, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config.checks import check_seed, not_negative, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetConfig:
    """The forget set: a random share of the inserted items of each arm and family."""

    share: float = 0.1
    """Of the items of each arm and family, at least one. 1: everything inserted, and the twin is the leave-out twin."""
    families: tuple[str, ...] = ()
    """Families to draw from; none: all."""
    doses: tuple[int, ...] = ()
    """Doses to draw from; none: all above 0."""
    seed: int = 0
    """Of the draw."""

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
    """Go on from the last checkpoint of this post-trained run, such as ``npo-1a2b3c4d``; None: of the perturbed run."""
    steps: int = 20
    """Number of steps of the method."""
    rows: int = 8
    """Texts of the forget set a step; as many of the retain set."""
    micro_rows: int = 4
    """Texts of the forget set a forward pass on one rank; as many of the retain set."""
    learning_rate: float | None = None
    """Of AdamW, constant; None: the last one of training (``optimizer.min_learning_rate``)."""
    retain: Literal["corpus", "items", "questions"] = "corpus"
    """Retain set: windows of the corpus without exposures, the other inserted items, or questions about them with the
    loss on the answers."""
    retain_loss: Literal["nll", "kl"] = "nll"
    """Loss on the retain set: likelihood, or divergence from the model before."""
    layer: int | None = None
    """Layer (from 0) whose output RMU steers; None: the middle one."""
    student: Literal["last", "first"] = "last"
    """Weights that are trained: those of the last checkpoint, or of the run's first, which the last one teaches."""
    refusal: str = " I do not know."
    """Answer that DPO prefers to the second half of an item."""
    checkpoint_every: int = 5
    """Steps between checkpoints; the first, which is the model before, and the last are saved besides."""
    seed: int = 0
    """Order of the texts, and random labels."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """The method's own settings that differ from its defaults: ``gamma`` and ``alpha``, weights of the losses on the
    forget and the retain set, ``beta``, ..."""

    def __post_init__(self) -> None:
        positive(
            "posttrain", rows=self.rows, micro_rows=self.micro_rows, checkpoint_every=self.checkpoint_every
        )
        not_negative("posttrain", steps=self.steps)
        if self.learning_rate is not None:
            positive("posttrain", learning_rate=self.learning_rate)
        check_seed("posttrain.seed", self.seed)
        if self.rows % self.micro_rows:
            raise UserError(
                f"posttrain.rows={self.rows} is no multiple of posttrain.micro_rows={self.micro_rows}; change one"
            )
