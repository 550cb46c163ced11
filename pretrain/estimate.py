"""What a run will cost, from its settings alone: no GPU, no megatron-core."""

from __future__ import annotations

from collections.abc import Iterator

from palimpsest.data.errors import UserError, nearest
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
    return 6 * weights + 12 * model.layers * model.hidden * sequence_length


def weight_bytes(parameters: int, train: TrainConfig) -> int:
    """Bytes of weights, gradients and Adam's state: 16 a parameter in fp32, 18 in bf16.

    In bf16: 2 for the weight, 4 for the gradient (summed in fp32), 4 for the fp32 copy, 8 for Adam.
    """
    return parameters * (18 if train.half_precision else 16)


def activation_bytes(model: ModelConfig, vocab_size: int, train: TrainConfig) -> int:
    """Bytes that one micro-batch keeps for the backward pass, without any S x S matrix of attention.

    Per layer and token: inputs and outputs of both norms, queries, keys, values, and attention's output; outputs of
    the first matrices of the feed-forward block, and the activated product. Then logits and their softmax in float32.
    With ``train.recompute`` one layer at a time is whole, and of the others there is the input.
    """
    tokens, width = train.micro_batch_size * train.sequence_length, 2 if train.half_precision else 4
    used = model.ffn * (1 if model.experts is None else model.experts_per_token)
    matrices = 3 if model.activation == "swiglu" else 2
    keys = 2 * model.hidden * model.query_groups // model.heads
    layer = tokens * width * (6 * model.hidden + keys + matrices * used)
    layers = model.layers * layer
    if train.recompute:
        layers = layer + (model.layers - 1) * tokens * width * model.hidden
    return layers + 2 * 4 * tokens * vocab_size


def checkpoint_bytes(parameters: int, train: TrainConfig) -> int:
    """Bytes of one checkpoint: weights and Adam's state, 12 a parameter in fp32, 14 in bf16."""
    return parameters * (14 if train.half_precision else 12)


def summary(
    model: ModelConfig,
    vocab_size: int,
    train: TrainConfig,
    parallel: ParallelConfig,
    *,
    device: str = "H100",
    utilisation: float = 0.4,
) -> Iterator[str]:
    """The run in lines.

    Args:
        model: its shape.
        vocab_size: padded.
        train: length, batches, precision.
        parallel: the topology.
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
    ranks = parallel.min_world_size
    active = model.parameters(vocab_size, train.sequence_length, active=True)
    yield f"parameters: {weights:,} with {vocab_size:,} rows of vocabulary" + (
        f", {active:,} used by a token" if active != weights else ""
    )
    yield f"training: {train.steps:,} steps of {train.global_batch_size:,} windows of {train.sequence_length:,} tokens"
    yield f"tokens: {tokens:,}, {tokens / weights:.1f} a parameter"
    yield f"FLOPs: {flops:.3g}"
    adam = weights * (12 if train.half_precision else 8)
    others = (
        parallel.context * parallel.expert if parallel.distributed_optimizer else 1
    )  # that share Adam's state
    whole = weight_bytes(weights, train) - adam + adam / others
    whole += activation_bytes(model, vocab_size, train) / parallel.context
    share = whole / (parallel.tensor * parallel.pipeline)
    yield (
        f"memory a GPU: about {share / 2**30:.1f} GiB of weights, gradients, Adam and activations "
        f"({parallel.tensor} x {parallel.pipeline} ranks share a model; {train.micro_batch_size} windows at once)"
    )
    for gpus in sorted({ranks, 8 * ranks, 64 * ranks}):
        days = flops / (gpus * PEAK_FLOPS[device] * utilisation) / 86_400
        yield f"time on {gpus} {device}: about {days:,.2f} days at {utilisation:.0%} of the peak"
    full = checkpoint_bytes(weights, train)
    last = (len(steps) - 1) * full + weights * (2 if train.half_precision else 4)
    yield f"checkpoints: {len(steps)} a run, {last / 2**30:,.2f} GiB; the first holds no optimizer state"
