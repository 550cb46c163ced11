"""Definition of the settings that determine a training's result, for run directories and checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from palimpsest.pretrain.config import ModelConfig, OptimizerConfig, TrainConfig

NO_RESULT: dict[str, tuple[str, ...]] = {
    "model": ("name", "tokenizer_size"),
    "optimizer": ("law",),  # the learning rates that it leads to count
    "train": (
        *(
            "micro_batch_size",
            "checkpoint_every",
            "checkpoint_at",
            "checkpoint_after_last",
            "checkpoint_keep",
        ),
        *("checkpoint_async", "deterministic", "recompute"),
        "non_finite",  # where it mattered, the ledger says so
    ),
}
"""Section -> settings that change no weight at any step. All other settings of these sections are part of a run's
identity; topology, device, evaluation and logging never are."""


def result_settings(
    model: ModelConfig, optimizer: OptimizerConfig, train: TrainConfig
) -> dict[str, dict[str, Any]]:
    """The settings of each section that determine the result, as JSON values."""
    sections = {"model": asdict(model), "optimizer": asdict(optimizer), "train": asdict(train)}
    return {
        name: {key: value for key, value in values.items() if key not in NO_RESULT[name]}
        for name, values in sections.items()
    }
