"""Topology: division of model, windows and optimizer among the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.data.errors import UserError, together
from palimpsest.pretrain.config.checks import divisors, positive
from palimpsest.pretrain.config.model import VOCABULARY_MULTIPLE, ModelConfig
from palimpsest.pretrain.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Topology. The data-parallel size is the world size divided by the other sizes."""

    tensor: int = 1
    """Tensor-parallel size: ranks that share each matrix; a divisor of the heads, of the inner width and of 128."""
    pipeline: int = 1
    """Pipeline-parallel size: stages among which the layers are divided."""
    virtual_pipeline: int = 1
    """Virtual pipeline stages per rank; above 1 is interleaved 1F1B (Narayanan et al., 2021), which has smaller
    pipeline bubbles and more communication."""
    sequence: bool = False
    """Sequence parallelism: tensor-parallel ranks also divide the sequence between matrices (Korthikanti et al.,
    2022)."""
    context: int = 1
    """Context-parallel size: ranks that divide the tokens of each window in all layers."""
    expert: int = 1
    """Expert-parallel size: data-parallel ranks among which the experts of a mixture are divided."""
    distributed_optimizer: bool = True
    """Shard the optimizer's state over the data-parallel ranks (ZeRO, stage 1) instead of replicating it, as is always
    done with ``optimizer.kind=muon``."""
    overlap: bool = False
    """Overlap the data-parallel reduction of gradients with the backward pass, and with ``distributed_optimizer`` the
    gathering of weights with the forward pass."""

    def __post_init__(self) -> None:
        positive(
            "parallel",
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual_pipeline=self.virtual_pipeline,
            context=self.context,
            expert=self.expert,
        )
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise UserError(
                f"parallel.virtual_pipeline={self.virtual_pipeline} needs parallel.pipeline above 1"
            )
        if self.sequence and self.tensor == 1:
            raise UserError("parallel.sequence=true needs parallel.tensor above 1")
        if VOCABULARY_MULTIPLE % self.tensor:
            raise UserError(
                f"parallel.tensor={self.tensor} must divide {VOCABULARY_MULTIPLE}, of which the padded "
                f"vocabulary is a multiple; {divisors(VOCABULARY_MULTIPLE)}"
            )

    @property
    def min_world_size(self) -> int:
        """Smallest world size that the settings allow."""
        return self.tensor * self.pipeline * self.context * self.expert

    @property
    def sequence_shards(self) -> int:
        """Number of ranks that hold different tokens of the same window outside the matrices."""
        return self.context * (self.tensor if self.sequence else 1)

    def data(self, world_size: int) -> int:
        """Data-parallel size.

        Raises:
            UserError: if the world size is not a multiple of tensor x pipeline x context.
        """
        model = self.tensor * self.pipeline * self.context
        if world_size % model:
            context = f" x parallel.context={self.context}" if self.context > 1 else ""
            raise UserError(
                f"parallel.tensor={self.tensor} x parallel.pipeline={self.pipeline}{context} = {model} does not "
                f"divide the world size {world_size}; start a multiple of {model} processes "
                f"(torchrun --nproc-per-node {model})"
            )
        return world_size // model

    def check(self, world_size: int, model: ModelConfig, train: TrainConfig) -> None:
        """Check the topology against the model and the batch.

        With a world of ``min_world_size`` ranks it refuses topologies that no world size allows.

        Raises:
            UserError: naming the field, the value and possible values.
        """
        data = self.data(world_size)
        together(
            lambda: self._check_layers(model),
            lambda: self._check_experts(world_size, data, model),
            lambda: self._check_sequence(train),
            lambda: self._check_batch(data, train),
        )

    def _check_layers(self, model: ModelConfig) -> None:
        """Check tensor and pipeline parallelism against the shape of the model."""
        for name, size in (("heads", model.heads), ("kv_heads", model.query_groups), ("ffn", model.ffn)):
            if size % self.tensor:
                fit = divisors(model.heads, model.query_groups, model.ffn, VOCABULARY_MULTIPLE)
                raise UserError(f"parallel.tensor={self.tensor} must divide model.{name}={size}; {fit}")
        if model.layers % self.pipeline:
            raise UserError(
                f"parallel.pipeline={self.pipeline} must divide model.layers={model.layers}; "
                f"{divisors(model.layers)}"
            )
        stage = model.layers // self.pipeline
        if stage % self.virtual_pipeline:
            raise UserError(
                f"parallel.virtual_pipeline={self.virtual_pipeline} must divide the {stage} layers of each of the "
                f"{self.pipeline} pipeline ranks; {divisors(stage)}"
            )

    def _check_experts(self, world_size: int, data: int, model: ModelConfig) -> None:
        """Check expert parallelism against the mixture and the ``data`` data-parallel ranks."""
        if self.expert > 1 and model.experts is None:
            raise UserError(
                f"parallel.expert={self.expert} needs a mixture of experts; model.experts is null"
            )
        if self.expert > 1 and (model.experts or 0) % self.expert:
            raise UserError(
                f"parallel.expert={self.expert} must divide model.experts={model.experts}; "
                f"{divisors(model.experts or 1)}"
            )
        if data % self.expert:
            raise UserError(
                f"parallel.expert={self.expert} must divide the {data} data-parallel ranks ({world_size} ranks over "
                f"tensor x pipeline x context); {divisors(data)}, or start a multiple of {self.min_world_size} ranks"
            )
        if model.experts is not None and self.tensor > 1 and not self.sequence:
            raise UserError(
                f"parallel.tensor={self.tensor} with model.experts={model.experts} needs parallel.sequence=true"
            )

    def _check_sequence(self, train: TrainConfig) -> None:
        """Check context and sequence parallelism against the length of the windows."""
        if self.context > 1 and train.document_attention:
            raise UserError(
                f"parallel.context={self.context} does not support train.document_attention=true; set "
                "parallel.context=1"
            )
        if self.context > 1 and train.sequence_length % (2 * self.context):
            raise UserError(
                f"parallel.context={self.context} cuts windows into {2 * self.context} blocks, which must divide "
                f"train.sequence_length={train.sequence_length}"
            )
        if train.sequence_length % self.sequence_shards:
            over = f" over parallel.context={self.context}" if self.context > 1 else ""
            raise UserError(
                f"parallel.tensor={self.tensor} with parallel.sequence=true must divide "
                f"train.sequence_length={train.sequence_length}{over}"
            )

    def _check_batch(self, data: int, train: TrainConfig) -> None:
        """Check the global batch against the ``data`` data-parallel ranks and the pipeline's schedule."""
        if train.global_batch_size % (train.micro_batch_size * data):
            raise UserError(
                f"train.global_batch_size={train.global_batch_size} must be a multiple of "
                f"train.micro_batch_size={train.micro_batch_size} x {data} data-parallel ranks"
                + (
                    f"; {_nearest(train.global_batch_size, train.micro_batch_size * data)}"
                    if train.global_batch_size % data
                    else f"; with micro-batches, {divisors(train.global_batch_size // data)}"
                )
            )
        batches = train.global_batch_size // (train.micro_batch_size * data)
        if self.virtual_pipeline > 1 and batches % self.pipeline:
            raise UserError(
                f"parallel.virtual_pipeline={self.virtual_pipeline} works on micro-batches in groups of "
                f"parallel.pipeline={self.pipeline}, and a step has {batches} a data-parallel rank; change "
                "train.global_batch_size or train.micro_batch_size"
            )


def _nearest(size: int, unit: int) -> str:
    """The multiples of a unit next to a number, as text."""
    below = size // unit * unit
    return f"{f'{below} and ' if below else ''}{below + unit} fit{'' if below else 's'}"
