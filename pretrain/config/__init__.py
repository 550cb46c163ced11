"""Settings of a training run, as frozen dataclasses that check themselves."""

from palimpsest.pretrain.config.checks import check_seed
from palimpsest.pretrain.config.model import (
    VOCABULARY_MULTIPLE,
    ModelConfig,
    RotaryScaling,
    padded_vocabulary,
)
from palimpsest.pretrain.config.optimizer import OptimizerConfig
from palimpsest.pretrain.config.parallel import ParallelConfig
from palimpsest.pretrain.config.posttrain import ForgetConfig, PosttrainConfig
from palimpsest.pretrain.config.runtime import EvalConfig, ProfileConfig, RuntimeConfig
from palimpsest.pretrain.config.train import TrainConfig

__all__ = [
    "VOCABULARY_MULTIPLE",
    "EvalConfig",
    "ForgetConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PosttrainConfig",
    "ProfileConfig",
    "RotaryScaling",
    "RuntimeConfig",
    "TrainConfig",
    "check_seed",
    "padded_vocabulary",
]
