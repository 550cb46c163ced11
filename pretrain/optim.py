"""Optimizer and learning-rate schedule, from megatron-core."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from pretrain.config import OptimizerConfig, TrainConfig


def build(
    chunks: list[Any], optimizer: OptimizerConfig, train: TrainConfig
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """AdamW over the model's chunks, and its warm-up and decay counted in windows."""
    low = train.precision == "bf16"
    adam = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=optimizer.learning_rate,
            min_lr=optimizer.min_learning_rate,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_eps=optimizer.epsilon,
            clip_grad=optimizer.clip_grad,
            bf16=low,
            params_dtype=torch.bfloat16 if low else torch.float32,
            use_distributed_optimizer=False,
        ),
        chunks,
    )
    return adam, schedule(adam, optimizer, train)


def schedule(adam: Any, optimizer: OptimizerConfig, train: TrainConfig) -> OptimizerParamScheduler:
    """The learning-rate schedule over ``adam.param_groups``, counted in windows."""
    batch = train.global_batch_size
    return OptimizerParamScheduler(
        adam,
        init_lr=optimizer.initial_learning_rate,
        max_lr=optimizer.learning_rate,
        min_lr=optimizer.min_learning_rate,
        lr_warmup_steps=optimizer.warmup_steps * batch,
        lr_decay_steps=train.steps * batch,
        lr_decay_style="WSD" if optimizer.schedule == "wsd" else optimizer.schedule,
        wsd_decay_steps=optimizer.decay_steps and optimizer.decay_steps * batch,
        lr_wsd_decay_style="minus_sqrt",
        start_wd=optimizer.weight_decay,
        end_wd=optimizer.weight_decay,
        wd_incr_steps=train.steps * batch,
        wd_incr_style="constant",
    )
