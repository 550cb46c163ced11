"""All differences between the supported versions of megatron-core, 0.16.1 and 0.19.x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import package_info

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ModelConfig, ParallelConfig, TrainConfig

NAME: str = package_info.__version__
VERSION: tuple[int, ...] = tuple(package_info.VERSION[:3])
_NEW = (0, 19)


def balance_loss_coefficient(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> float:
    """Value of ``moe_aux_loss_coeff`` that gives the balancing loss the weight ``model.balance_loss`` at any
    micro-batch and topology.

    The loss is a mean over windows, but at the end of a step gradients are divided by the number of all tokens. To
    compensate, megatron-core multiplies the loss by a number of tokens: 0.16.1 by those of one window on this rank,
    which leaves it too small by the factor micro-batch x ranks that share a window; 0.19 by those of the whole
    micro-batch (``_apply_seq_aux_loss``).
    """
    if not model.experts:
        return 0.0
    if VERSION >= _NEW:
        return model.balance_loss
    return model.balance_loss * train.micro_batch_size * parallel.sequence_shards


def save_options() -> dict[str, Any]:
    """Further arguments of ``dist_checkpointing.save``, which keep 0.19 from writing with another package."""
    return {"async_strategy": "mcore"} if VERSION >= _NEW else {}


def require_readable(path: Path) -> None:
    """Check that this version reads a checkpoint's format: 0.19 no longer writes ``common.pt``, which 0.16.1 needs.

    Raises:
        UserError: for a checkpoint of a newer version.
    """
    if VERSION < _NEW and path.is_dir() and not (path / "common.pt").is_file():
        raise UserError(
            f"checkpoint {path} was written by megatron-core 0.19 or later, and {NAME}, which is installed, does not "
            "read that; install megatron-core>=0.19 (with Python 3.12 or later)"
        )
