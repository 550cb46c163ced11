"""Memory of one GPU of each pipeline stage, by formula: no GPU, no megatron-core.

All figures are bytes. The allocator's fragmentation and the buffers of CUDA and NCCL come on top, some 1 to 4 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.pretrain.config import ModelConfig, ParallelConfig, TrainConfig

LOSS_LOGITS = 2**28
"""Number of logits that the fused loss holds at once on a GPU (``kernels.LOGITS``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Bytes on each GPU of a pipeline stage at the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Activations of all micro-batches in flight, and the gradients of one layer's activations."""
    loss: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


def per_stage(
    model: ModelConfig,
    vocab_size: int,
    train: TrainConfig,
    parallel: ParallelConfig,
    world_size: int,
    *,
    optimizer_sharded: bool = True,
) -> list[StageMemory]:
    """The memory of each pipeline stage, first to last.

    Args:
        model: shape of the model.
        vocab_size: padded vocabulary size.
        train: batches, precision, recomputation.
        parallel: the topology.
        world_size: number of ranks.
        optimizer_sharded: false for an optimizer whose state data-parallel ranks always replicate (Muon).
    """
    data = parallel.data(world_size)
    replicas = data * parallel.context if parallel.distributed_optimizer and optimizer_sharded else 1
    width = 2 if train.half_precision else 4
    state = 12 if train.half_precision else 8  # Adam's two moments, and a float32 copy of weights in 16 bits
    stages = []
    for stage in range(parallel.pipeline):
        dense, experts = stage_parameters(model, vocab_size, train, parallel, stage)
        expert_replicas = max(replicas // parallel.expert, 1)
        stages.append(
            StageMemory(
                weights=width * (dense + experts),
                gradients=4 * (dense + experts),  # summed in float32
                optimizer=state * (dense / replicas + experts / expert_replicas),
                activations=_activations(model, train, parallel, data, stage),
                loss=_loss(model, vocab_size, train, parallel) if stage == parallel.pipeline - 1 else 0.0,
            )
        )
    return stages


def stage_parameters(
    model: ModelConfig, vocab_size: int, train: TrainConfig, parallel: ParallelConfig, stage: int
) -> tuple[float, float]:
    """Numbers of weights on one rank of a pipeline stage: outside the experts, and of its experts.

    Tensor parallelism divides matrices, and replicates norms, the biases that are added to the residual stream,
    routers and learned positions.
    """
    tensor, last = parallel.tensor, parallel.pipeline - 1
    layer = model.layer_parameters()
    layers = model.layers / parallel.pipeline
    dense = layers * (layer.divided / tensor + layer.replicated)
    embedding = vocab_size * model.hidden / tensor
    if stage == 0:
        dense += embedding
        if model.positions == "learned":
            dense += train.sequence_length * model.hidden
    if stage == last:
        dense += model.final_norm_parameters()
        if not model.tied_embeddings or last > 0:  # tied over stages, each of the two has a copy
            dense += embedding
    return dense, layers * layer.expert * (model.experts or 0) / (parallel.expert * tensor)


def in_flight(parallel: ParallelConfig, micro_batches: int, stage: int) -> float:
    """Number of micro-batches whose activations a pipeline stage holds at once, as passes through all of its layers.

    1F1B (Narayanan et al., 2021): the first stage holds as many as there are stages; interleaved, the schedule counts
    virtual stages, each a part of the layers.
    """
    ahead, chunks = parallel.pipeline - stage, parallel.virtual_pipeline
    if chunks == 1:
        return min(ahead, micro_batches)
    warm_up = 2 * (ahead - 1) + (chunks - 1) * parallel.pipeline
    return min(warm_up + 1, micro_batches * chunks) / chunks


def layer_activations(model: ModelConfig, parallel: ParallelConfig) -> tuple[float, float]:
    """Number of values that a layer keeps per token for the backward pass: (in all, of its input only).

    Inputs and outputs of both norms, which sequence parallelism alone divides; queries and keys as rotated, the joint
    output of their projection, of which the values are a view, and attention's output; outputs of the first matrices
    of the feed-forward block, and the activated product. No S x S matrix of attention is kept.
    """
    stream = model.hidden / (parallel.tensor if parallel.sequence else 1)
    queries, keys = model.head_dim * model.heads, model.head_dim * model.query_groups
    used = model.ffn * (1 if model.experts is None else model.experts_per_token)
    matrices = 3 if model.activation == "swiglu" else 2
    attention = (queries + keys) + (queries + 2 * keys) + queries
    return 4 * stream + (attention + matrices * used) / parallel.tensor, stream


def _activations(
    model: ModelConfig, train: TrainConfig, parallel: ParallelConfig, data: int, stage: int
) -> float:
    tokens = train.micro_batch_size * train.sequence_length / parallel.context
    width = 2 if train.half_precision else 4
    whole, entry = layer_activations(model, parallel)
    used = model.ffn * (1 if model.experts is None else model.experts_per_token)
    working = (
        2 * entry + 3 * used / parallel.tensor
    )  # gradients inside the layer that is gone through backwards
    layers = model.layers / parallel.pipeline
    micro_batches = max(train.global_batch_size // (train.micro_batch_size * data), 1)
    held = in_flight(parallel, micro_batches, stage) * layers
    numbers = held * entry + whole if train.recompute else held * whole
    return tokens * width * (numbers + working)


def _loss(model: ModelConfig, vocab_size: int, train: TrainConfig, parallel: ParallelConfig) -> float:
    """Bytes of the logits and of tensors computed from them: of one chunk if the loss is fused (on one rank), of all
    tokens if ranks divide the vocabulary.
    """
    tokens = train.micro_batch_size * train.sequence_length / parallel.context
    width = 2 if train.half_precision else 4
    if parallel.tensor > 1:
        return (4 + width) * tokens * vocab_size / parallel.tensor  # logits, and their softmax in float32
    gradients = (4 + width) * vocab_size * model.hidden + width * tokens * model.hidden
    return (4 + 2 * width) * min(LOSS_LOGITS, tokens * vocab_size) + gradients
