"""Cost of a run from its settings alone: FLOPs, time, memory and checkpoints. Needs no GPU and no megatron-core."""

from __future__ import annotations

from collections.abc import Iterator

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


def peak_flops(device: str) -> float | None:
    """Peak of a device by the name that CUDA gives it, FLOP/s; None if it is not in the table."""
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


def summary(
    model: ModelConfig,
    vocab_size: int,
    train: TrainConfig,
    parallel: ParallelConfig,
    *,
    world_size: int | None = None,
    optimizer_sharded: bool = True,
    device: str = "H100",
    utilisation: float = 0.4,
) -> Iterator[str]:
    """The run in lines.

    Args:
        model: its shape.
        vocab_size: padded.
        train: length, batches, precision.
        parallel: the topology.
        world_size: ranks in all; None: the fewest that the topology allows.
        optimizer_sharded: false for an optimizer whose state data-parallel ranks always replicate (Muon).
        device: a key of ``PEAK_FLOPS``.
        utilisation: share of the peak that is assumed to be reached.

    Raises:
        UserError: for a device that is not in the table.
    """
    if device not in PEAK_FLOPS:
        raise UserError(f"the peak of {device!r} is unknown{nearest(device, list(PEAK_FLOPS))}")
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
        yield f"time on {gpus} {device}: about {days:,.2f} days at {utilisation:.0%} of the peak"
    full = checkpoint_bytes(weights, train)
    last = (len(steps) - 1) * full + weights * (2 if train.half_precision else 4)
    yield f"checkpoints: {len(steps)} a run, {last / 2**30:,.2f} GiB; the first holds no optimizer state"


def _memory_line(stage: memory.StageMemory, name: str) -> str:
    parts = ("weights", "gradients", "optimizer", "activations", "loss")
    sizes = ", ".join(f"{part} {getattr(stage, part) / 2**30:.1f}" for part in parts)
    return f"{name}: about {stage.total / 2**30:.1f} GiB ({sizes})"
