"""Settings of one training, and the part of them that identifies its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from palimpsest.pretrain.huggingface import files
from palimpsest.pretrain.identity import result_settings
from palimpsest.pretrain.parallel import Attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Model, optimizer, schedule and topology of one training."""

    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    parallel: ParallelConfig
    attention: Attention = "sdpa"

    def shards_optimizer(self, data_size: int) -> bool:
        """True if data-parallel ranks shard the optimizer's state; not with Muon."""
        ranks = data_size * self.parallel.context
        return self.parallel.distributed_optimizer and ranks > 1 and self.optimizer.kind != "muon"

    def identity(self, vocab_size: int) -> dict[str, Any]:
        """The settings that determine the result, as JSON values, without the topology and the schedule of
        checkpoints.
        """
        settings = result_settings(self.model, self.optimizer, self.train)
        for key in ("start_from", "stop_at"):  # the checkpoint it starts from is named by its digest
            del settings["train"][key]
        if self.model.weights:  # identified by their content, not by their path
            directory = files.find(self.model.weights, self.model.revision)
            settings["model"]["weights"] = files.digest(directory)
        del settings["model"]["revision"]
        return {**settings, "vocab_size": vocab_size}


MAY_DIFFER = {
    "train": ("steps", "seed"),
    "optimizer": (
        *("learning_rate", "min_learning_rate", "warmup_steps", "schedule"),
        *("decay_steps", "initial_learning_rate"),
    ),
}
"""Settings in which a run may differ from the run whose checkpoint it starts from."""


def without(identity: dict[str, Any], left_out: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A copy of an identity without the given settings."""
    return {
        group: {name: value for name, value in values.items() if name not in left_out[group]}
        if group in left_out
        else values
        for group, values in identity.items()
    }
