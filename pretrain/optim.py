"""Optimizer and learning-rate schedule, from megatron-core; Muon is PyTorch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from palimpsest.pretrain.config import OptimizerConfig, TrainConfig


def build(
    chunks: list[Any], optimizer: OptimizerConfig, train: TrainConfig, *, distributed: bool = False
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """The optimizer of the model's chunks, and its learning-rate schedule (warm-up and decay), counted in windows.

    Args:
        chunks: the model's chunks, each wrapped in megatron-core's ``DistributedDataParallel``.
        optimizer: its settings.
        train: gives the precision and the length of the schedule.
        distributed: if true, each data-parallel rank holds a share of Adam's state and updates that share of the
            weights.
    """
    half = train.half_precision
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.learning_rate,
        min_lr=optimizer.min_learning_rate,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_eps=optimizer.epsilon,
        clip_grad=optimizer.clip_grad,
        bf16=half,
        params_dtype=torch.bfloat16 if half else torch.float32,
        use_distributed_optimizer=distributed,
    )
    if optimizer.kind == "muon":
        built: MegatronOptimizer = _with_muon(chunks, optimizer, config)
    else:
        built = get_megatron_optimizer(config, chunks)
    for one in _parts(built):
        _fuse(one.optimizer)
    return built, schedule(built, optimizer, train)


def _fuse(inner: Any) -> None:
    """Let PyTorch's AdamW update all weights of a GPU by one kernel; CPUs keep the results of its loop."""
    for group in inner.param_groups if isinstance(inner, torch.optim.AdamW) else ():
        if group["params"] and all(parameter.is_cuda for parameter in group["params"]):
            group["fused"] = True


def _count(steps: float, parameter: Tensor, inner: torch.optim.AdamW) -> Tensor:
    """Adam's number of steps for a weight, where PyTorch keeps it: on the GPU if the update is fused."""
    fused = any(group["fused"] for group in inner.param_groups)
    return torch.tensor(steps, device=parameter.device if fused else "cpu")


def _with_muon(
    chunks: list[Any], optimizer: OptimizerConfig, config: MegatronOptimizerConfig
) -> ChainedOptimizer:
    """Adam for embeddings and norms, Muon for the matrices of the layers."""
    named = [pair for chunk in chunks for pair in chunk.named_parameters()]
    matrices = [weight for name, weight in named if ".layers." in name and weight.dim() == 2]
    for weight in matrices:  # megatron-core leaves out what is frozen when it makes an optimizer
        weight.requires_grad = False
    parts = _parts(get_megatron_optimizer(config, chunks))
    for weight in matrices:
        weight.requires_grad = True
    group = {
        "params": matrices,
        # By these names megatron-core finds a group again in a checkpoint.
        **{"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False, "is_decoupled_lr": False},
    }
    muon = torch.optim.Muon(
        [group],
        lr=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    if config.bf16:
        wrapped: MegatronOptimizer = Float16OptimizerWithFloat16Params(muon, config, None, _no_momentum)
    else:
        wrapped = FP32Optimizer(muon, config, _no_momentum)
    for name in ("grad_stats_parallel_group", "tp_group"):
        setattr(wrapped, name, getattr(parts[0], name))
    return ChainedOptimizer([*parts, wrapped])


def _no_momentum(muon: torch.optim.Muon, _config: Any = None) -> None:
    """Optimizer state before the first step, into which a checkpoint's state is loaded."""
    for weight in (weight for group in muon.param_groups for weight in group["params"]):
        muon.state[weight] = {"momentum_buffer": torch.zeros_like(weight)}


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


_FORM = {
    "distrib_optim_sharding_type": "fully_reshardable",
    # Gathered on the first data-parallel rank alone: the others need no room for the whole of it.
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,
}
_GATHERED = "optimizer.state.param."
"""Prefix of a distributed optimizer's names for the float32 weights that it holds."""


def state(adam: MegatronOptimizer, weights: dict[int, Any]) -> dict[str, Any]:
    """The optimizer's part of a checkpoint; the same on disk whether it is distributed or not.

    Args:
        adam: the optimizer after at least one step.
        weights: the model's sharded state dict.
    """
    whole, _ = extract_sharded_base(_sharded(adam, weights, loading=False))
    return {"state": whole, "step": _steps(adam)}


def state_to_load(adam: MegatronOptimizer, weights: dict[int, Any]) -> dict[str, Any]:
    """Sharded tensors to load from a checkpoint, for ``load_state``; the optimizer's settings are not loaded."""
    for one in _parts(adam):
        if isinstance(one, DistributedOptimizer) and isinstance(one.optimizer, torch.optim.AdamW):
            # megatron-core asks for Adam's step before there is one.
            for parameter in (p for group in one.optimizer.param_groups for p in group["params"]):
                one.optimizer.state[parameter] = {
                    "step": _count(0.0, parameter, one.optimizer),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
    asked = _sharded(adam, weights, loading=True)
    return {"state": dict_list_map_inplace(_keep_ours, asked)}


def load_state(adam: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Load a checkpoint's optimizer state, after the model's weights."""
    parts = _parts(adam)
    for number, one in enumerate(parts):
        own = loaded["state"] if len(parts) == 1 else loaded["state"][number]
        tensors = own.pop("param_state", None)
        groups = own.get("optimizer", own)["param_groups"]
        if isinstance(one.optimizer, torch.optim.Muon):
            pass  # counts no steps
        elif not isinstance(one.optimizer, torch.optim.AdamW):  # of Transformer Engine or Apex
            for group in groups:
                group["step"] = loaded["step"]
        elif tensors is None:
            own.get("optimizer", own)["state"]["common_step"] = torch.tensor(0.0)
        one.load_state_dict(own)
        held = one.optimizer.state.items() if isinstance(one.optimizer, torch.optim.AdamW) else ()
        for _, state in held:
            del state["step"]  # megatron-core would look for it among the tensors
        if tensors is not None:
            one.load_parameter_state_from_fully_reshardable(tensors)
        for parameter, state in held:
            state["step"] = _count(float(loaded["step"]), parameter, one.optimizer)


def updated(adam: MegatronOptimizer) -> list[torch.nn.Parameter]:
    """The weights, or shares of them, that this rank updates."""
    return [parameter for one in _parts(adam) for parameter in one.get_parameters()]


def _parts(adam: Any) -> list[Any]:
    """The inner optimizers: one for experts or Muon's matrices, one for the other weights."""
    return getattr(adam, "chained_optimizers", [adam])


def _keep_ours(value: Any) -> Any:
    return (
        value
        if isinstance(value, ShardedBase | LocalNonpersistentObject)
        else LocalNonpersistentObject(value)
    )


def _steps(adam: MegatronOptimizer) -> int:
    """Number of steps that Adam has taken."""
    inner = _parts(adam)[0].optimizer
    counted = [own["step"] for own in inner.state.values() if "step" in own]
    return int(counted[0] if counted else inner.param_groups[0]["step"])


def _sharded(adam: MegatronOptimizer, weights: dict[int, Any], *, loading: bool) -> dict[str, Any]:
    """megatron-core's sharded state dict, with the same tensor names for distributed and plain optimizers."""
    state: dict[Any, Any] = adam.sharded_state_dict(weights, is_loading=loading, metadata=_FORM)
    parts = _parts(adam)
    for number, one in enumerate(parts):
        own = state if len(parts) == 1 else state[number]
        if not isinstance(one, DistributedOptimizer) or own["param_state"] is None:
            continue
        parameters = [parameter for buffer in one.buffers for parameter in buffer.param_index_map]
        for parameter, tensors in zip(parameters, own["param_state"].values(), strict=True):
            if parameter.dtype != torch.float32:
                key = tensors["param"].key.replace(_GATHERED, "optimizer.state.fp32_param.", 1)
                tensors["param"] = replace(tensors["param"], key=key)
            elif loading:  # they are the model's own weights
                tensors["param"] = LocalNonpersistentObject(parameter.data)
            else:
                del tensors["param"]
    return state
