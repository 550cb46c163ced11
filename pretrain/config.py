"""Settings of a training run, as frozen dataclasses that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data.errors import UserError

SEEDS = 2**32
"""Seeds lie below this."""


def _positive(owner: str, **values: int | float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:  # nan is neither
            raise UserError(f"{owner}.{name}={value} must be above 0")


def _not_negative(owner: str, **values: int | float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{owner}.{name}={value} must be 0 or above")


def check_seed(name: str, value: int) -> None:
    """Check that every generator takes a seed.

    Raises:
        UserError: naming the field.
    """
    if not 0 <= value < SEEDS:
        raise UserError(f"{name}={value} must lie between 0 and {SEEDS - 1}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a GPT: RMSNorm before each block, SwiGLU, rotary positions, no biases, no dropout."""

    name: str
    """Name of the preset, for logs."""
    layers: int
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int | None = None
    """Key/value heads; fewer than ``heads`` is grouped-query attention. None: as many as ``heads``."""
    ffn: int
    """Inner width of the SwiGLU block."""
    tied_embeddings: bool = True
    """Whether the output layer is the input embedding."""
    rotary_base: int = 10_000
    init_std: float = 0.02
    """Standard deviation of the initial weights; output projections get it over sqrt(2 * layers)."""
    norm_epsilon: float = 1e-5
    weights: str | None = None
    """Directory of a Hugging Face model whose weights training starts from; None: drawn from ``train.seed``."""

    def __post_init__(self) -> None:
        _positive(
            "model",
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            ffn=self.ffn,
            rotary_base=self.rotary_base,
            init_std=self.init_std,
            norm_epsilon=self.norm_epsilon,
        )
        if self.kv_heads is not None:
            _positive("model", kv_heads=self.kv_heads)
        if self.hidden % self.heads:
            raise UserError(f"model.hidden={self.hidden} must be a multiple of model.heads={self.heads}")
        if (self.hidden // self.heads) % 2:
            raise UserError(f"model.hidden / model.heads = {self.hidden // self.heads} must be even (rotary)")
        if self.heads % self.groups:
            raise UserError(f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}")

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    def parameters(self, vocab_size: int) -> int:
        """Number of weights for a (padded) vocabulary."""
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.groups)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = vocab_size * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * layer + embeddings + self.hidden


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float
    """Peak."""
    min_learning_rate: float
    """At the last step."""
    warmup_steps: int
    """Fewer than ``train.steps``."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 clips nothing."""

    def __post_init__(self) -> None:
        _positive("optimizer", learning_rate=self.learning_rate, epsilon=self.epsilon)
        _not_negative(
            "optimizer",
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            clip_grad=self.clip_grad,
        )
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise UserError(f"optimizer.{name}={beta} must lie between 0 and 1, 1 excluded")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate={self.min_learning_rate} must lie between 0 and "
                f"optimizer.learning_rate={self.learning_rate}"
            )

    def check(self, train: TrainConfig) -> None:
        """Check the schedule against the length of the run.

        Raises:
            UserError: if the learning rate would never decay.
        """
        if self.warmup_steps >= train.steps:
            raise UserError(
                f"optimizer.warmup_steps={self.warmup_steps} must be below train.steps={train.steps}; lower the "
                "one or raise the other"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, on what batches, and when to save."""

    steps: int
    global_batch_size: int
    """Windows a step, over all ranks."""
    micro_batch_size: int
    """Windows a forward pass on one data-parallel rank."""
    sequence_length: int
    """Tokens predicted per window; a window holds one more."""
    seed: int
    """Of the initial weights and of the order of the windows."""
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int
    """Steps between checkpoints; steps 0, 1, 2, 4, 8, ... and the last are saved besides."""

    def __post_init__(self) -> None:
        _positive(
            "train",
            steps=self.steps,
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            sequence_length=self.sequence_length,
            checkpoint_every=self.checkpoint_every,
        )
        check_seed("train.seed", self.seed)

    @property
    def windows(self) -> int:
        """Windows consumed by the whole run."""
        return self.steps * self.global_batch_size

    def checkpoint_steps(self) -> list[int]:
        """Steps after which a checkpoint is written: 0, powers of two, every N, the last; ascending."""
        powers = {1 << k for k in range(self.steps.bit_length())}
        regular = set(range(0, self.steps + 1, self.checkpoint_every))
        return sorted(step for step in powers | regular | {self.steps} if step <= self.steps)


_VOCABULARY_MULTIPLE = 128
"""``pretrain.model.VOCABULARY_MULTIPLE``; a copy, because that module takes seconds to import."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the ranks share the work. Data-parallel size is what remains of the world size."""

    tensor: int = 1
    """Ranks that share each matrix; a divisor of the heads, of the inner width and of 128."""
    pipeline: int = 1
    """Ranks that share the layers."""

    def __post_init__(self) -> None:
        _positive("parallel", tensor=self.tensor, pipeline=self.pipeline)
        if _VOCABULARY_MULTIPLE % self.tensor:
            raise UserError(
                f"parallel.tensor={self.tensor} must divide {_VOCABULARY_MULTIPLE}, of which the padded "
                "vocabulary is a multiple"
            )

    def data(self, world_size: int) -> int:
        """Data-parallel size.

        Raises:
            UserError: if the world size is no multiple of tensor x pipeline.
        """
        model = self.tensor * self.pipeline
        if world_size % model:
            raise UserError(
                f"parallel.tensor={self.tensor} x parallel.pipeline={self.pipeline} = {model} does not divide "
                f"the world size {world_size}; start a multiple of {model} processes "
                f"(torchrun --nproc-per-node {model})"
            )
        return world_size // model

    def check(self, world_size: int, model: ModelConfig, train: TrainConfig) -> None:
        """Check the topology against the model and the batch.

        With a world of ``tensor * pipeline`` ranks this says what no number of ranks could mend.

        Raises:
            UserError: naming the field, the value and what would fit.
        """
        data = self.data(world_size)
        for name, size in (("heads", model.heads), ("kv_heads", model.groups), ("ffn", model.ffn)):
            if size % self.tensor:
                raise UserError(f"parallel.tensor={self.tensor} must divide model.{name}={size}")
        if model.layers % self.pipeline:
            raise UserError(f"parallel.pipeline={self.pipeline} must divide model.layers={model.layers}")
        if train.global_batch_size % (train.micro_batch_size * data):
            raise UserError(
                f"train.global_batch_size={train.global_batch_size} must be a multiple of "
                f"train.micro_batch_size={train.micro_batch_size} x {data} data-parallel ranks"
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

    def __post_init__(self) -> None:
        _positive("runtime", workers=self.workers)
        _not_negative("runtime", threads=self.threads)
