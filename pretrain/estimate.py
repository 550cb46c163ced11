"""Cost of a run from its settings alone: FLOPs, time, memory and checkpoints. Needs no GPU and no megatron-core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from palimpsest.data.errors import UserError, nearest
from palimpsest.pretrain import memory
from palimpsest.pretrain.config import ModelConfig, ParallelConfig, TrainConfig

PEAK_FLOPS = {
    "V100": 125e12,
    "A100": 312e12,
    "A6000": 154.8e12,
    "L40S": 362e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "B200": 2250e12,
}
"""Dense matrix FLOP/s in bf16 (V100: fp16), without sparsity, as NVIDIA's data sheets have them."""
UTILISATION = 0.4
"""Share of the peak FLOP/s that a training is assumed to reach."""
SCORING = 0.1
"""Share of a training's utilisation that scoring, whose batches are small, is assumed to reach."""


def peak_flops(device: str) -> float | None:
    """Peak dense FLOP/s of a device in bf16 (V100: fp16), by the name that CUDA gives it; None if it is not in
    :data:`PEAK_FLOPS`.
    """
    names = [name for name in PEAK_FLOPS if all(part in device for part in name.split())]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def flops_per_token(model: ModelConfig, vocab_size: int, sequence_length: int) -> float:
    """Forward and backward FLOPs of one token: 6 N + 12 L H Q T (Chowdhery et al., 2022, appendix B).

    N are the weights that a token is multiplied with: the output layer and the experts that it goes through, but
    neither the input embedding nor learned positions. As in that source, the causal mask saves nothing.
    """
    weights = model.parameters(vocab_size, sequence_length, active=True)
    if not model.tied_embeddings:
        weights -= vocab_size * model.hidden
    if model.positions == "learned":
        weights -= sequence_length * model.hidden
    return 6 * weights + 12 * model.layers * model.heads * model.head_dim * sequence_length


def checkpoint_bytes(parameters: int, train: TrainConfig) -> int:
    """Bytes of one checkpoint: weights and Adam's state, 12 a parameter in fp32, 14 in bf16."""
    return parameters * (14 if train.half_precision else 12)


def checkpoints_bytes(parameters: int, train: TrainConfig) -> int:
    """Bytes of all checkpoints of one training; the first holds no optimizer state."""
    rest = len(train.checkpoint_steps()) - 1
    return rest * checkpoint_bytes(parameters, train) + parameters * (2 if train.half_precision else 4)


def size(stored: float) -> str:
    """Bytes as text, in GiB or, from 1 TiB on, in TiB."""
    return f"{stored / 2**40:,.2f} TiB" if stored >= 2**40 else f"{stored / 2**30:,.2f} GiB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """GPU hours and bytes that one experiment is estimated to take: two trainings, perturbed and twin, and scoring."""

    gpus: int
    """GPUs of one training."""
    training_hours: float
    """GPU hours of both trainings."""
    scoring_hours: float
    """GPU hours of scoring every checkpoint of both."""
    scoring_jobs: int
    """Jobs, of one GPU each, that share the scoring."""
    stored: int
    """Bytes of all checkpoints of both trainings."""

    @property
    def days(self) -> float:
        """Duration of one training, days."""
        return self.training_hours / 2 / self.gpus / 24

    @property
    def scoring_days(self) -> float:
        """Duration of the scoring, days."""
        return self.scoring_hours / self.scoring_jobs / 24


def pair(
    model: ModelConfig,
    vocab_size: int,
    train: TrainConfig,
    *,
    gpus: int,
    probe_tokens: float,
    scoring_jobs: int = 1,
    device: str = "H100",
    utilisation: float = UTILISATION,
) -> Cost:
    """Estimate the cost of the perturbed run, its twin and their scores.

    Args:
        model: shape of the model.
        vocab_size: padded vocabulary size.
        train: length, batches, precision.
        gpus: number of GPUs of one training.
        probe_tokens: tokens of all probes, scored at every checkpoint by a forward pass, a third of a training step's
            cost.
        scoring_jobs: number of jobs, of one GPU each, that share the scoring.
        device: a key of ``PEAK_FLOPS``.
        utilisation: assumed share of the peak FLOP/s; in scoring ``SCORING`` of it.
    """
    a_token = flops_per_token(model, vocab_size, train.sequence_length)
    tokens = (train.end - train.begin) * train.global_batch_size * train.sequence_length
    an_hour = PEAK_FLOPS[device] * utilisation * 3600
    asked = probe_tokens * len(train.checkpoint_steps())
    return Cost(
        gpus=gpus,
        training_hours=2 * a_token * tokens / an_hour,
        scoring_hours=2 * a_token / 3 * asked / (an_hour * SCORING),
        scoring_jobs=scoring_jobs,
        stored=2 * checkpoints_bytes(model.parameters(vocab_size, train.sequence_length), train),
    )


def total(costs: Sequence[Cost], device: str = "H100", utilisation: float = UTILISATION) -> str:
    """Total cost of all runs with its assumptions, in one line."""
    runs = len(costs)
    longest = f"{_duration(max(one.days for one in costs))} {'the longest' if runs > 1 else 'each'}"
    hours, scoring = sum(one.training_hours for one in costs), sum(one.scoring_hours for one in costs)
    gpus = "/".join(map(str, sorted({one.gpus for one in costs})))
    of = (
        f"{runs} runs, {2 * runs} trainings (each perturbed and twin)"
        if runs > 1
        else "both trainings of the pair"
    )
    jobs = "/".join(map(str, sorted({one.scoring_jobs for one in costs})))
    slowest = f"{_duration(max(one.scoring_days for one in costs))} a pair on {jobs} at a time"
    return (
        f"in all: {of} on {gpus} {device} each, {longest}: {_hours(hours)} {device} hours; "
        f"then scoring, {slowest}: {_hours(scoring)}; together {_hours(hours + scoring)} {device} hours; "
        f"checkpoints {size(sum(one.stored for one in costs))} "
        f"(assumed: {utilisation:.0%} of the peak FLOP/s in training and {utilisation * SCORING:.0%} in scoring; "
        "probes as long as a window until there is a plan)"
    )


def _duration(days: float) -> str:
    """Days as text in a unit that fits."""
    for unit, a_day in (("days", 1), ("hours", 24), ("minutes", 24 * 60)):
        if days * a_day >= 1:
            return f"about {days * a_day:,.{2 if unit == 'days' else 0}f} {unit}"
    return "under a minute"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}" if hours >= 0.01 else "under 0.01"


def summary(
    model: ModelConfig,
    vocab_size: int,
    train: TrainConfig,
    parallel: ParallelConfig,
    *,
    world_size: int | None = None,
    optimizer_sharded: bool = True,
    device: str = "H100",
    utilisation: float = UTILISATION,
) -> Iterator[str]:
    """Description of the run's cost, in lines.

    Args:
        model: shape of the model.
        vocab_size: padded vocabulary size.
        train: length, batches, precision.
        parallel: the topology.
        world_size: number of ranks; None: the smallest that the topology allows.
        optimizer_sharded: false for an optimizer whose state data-parallel ranks always replicate (Muon).
        device: a key of ``PEAK_FLOPS``.
        utilisation: assumed share of the peak FLOP/s.

    Raises:
        UserError: for a device that is not in the table.
    """
    if device not in PEAK_FLOPS:
        raise UserError(
            f"device={device}: its peak FLOP/s is not in the table{nearest(device, list(PEAK_FLOPS))}"
        )
    weights = model.parameters(vocab_size, train.sequence_length)
    tokens = train.windows * train.sequence_length
    flops = flops_per_token(model, vocab_size, train.sequence_length) * tokens
    steps = train.checkpoint_steps()
    ranks = world_size or parallel.min_world_size
    active = model.parameters(vocab_size, train.sequence_length, active=True)
    yield f"parameters: {weights:,} with {vocab_size:,} rows of vocabulary" + (
        f", {active:,} used by a token" if active != weights else ""
    )
    yield f"training: {train.steps:,} steps of {train.global_batch_size:,} windows of {train.sequence_length:,} tokens"
    yield f"tokens: {tokens:,}, {tokens / weights:.1f} a parameter"
    yield f"FLOPs: {flops:.3g}"
    stages = memory.per_stage(model, vocab_size, train, parallel, ranks, optimizer_sharded=optimizer_sharded)
    yield (
        f"memory a GPU of {ranks} (tensor {parallel.tensor}, pipeline {parallel.pipeline}, context "
        f"{parallel.context}, data {parallel.data(ranks)}; micro-batches of {train.micro_batch_size} windows), without "
        "CUDA's, NCCL's and the allocator's own 1 to 4 GiB:"
    )
    for stage in sorted({0, len(stages) - 1}):
        yield "  " + _memory_line(stages[stage], f"stage {stage + 1} of {len(stages)}")
    for gpus in sorted({ranks, 8 * ranks, 64 * ranks}):
        days = flops / (gpus * PEAK_FLOPS[device] * utilisation) / 86_400
        yield f"time on {gpus} {device}: {_duration(days)} at {utilisation:.0%} of the peak"
    stored = checkpoints_bytes(weights, train)
    yield f"checkpoints: {len(steps)} a training, {size(stored)}; the first holds no optimizer state"


def _memory_line(stage: memory.StageMemory, name: str) -> str:
    parts = ("weights", "gradients", "optimizer", "activations", "loss")
    sizes = ", ".join(f"{part} {getattr(stage, part) / 2**30:.1f}" for part in parts)
    return f"{name}: about {stage.total / 2**30:.1f} GiB ({sizes})"
