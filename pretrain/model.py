"""Build megatron-core's ``GPTModel`` and give it weights that do not depend on the topology."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import xxhash
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from palimpsest.pretrain import engine, kernels
from palimpsest.pretrain.attention import CausalAttention
from palimpsest.pretrain.config import (
    ModelConfig,
    ParallelConfig,
    RotaryScaling,
    TrainConfig,
    padded_vocabulary,
)
from palimpsest.pretrain.layers import (
    BiaslessFeedForward,
    ClippedAttention,
    FeedForward,
    Norm,
    ParallelLayer,
    PlainNorm,
    PostNormLayer,
    TokenNorm,
)
from palimpsest.pretrain.parallel import Attention

rope_utils._apply_rotary_pos_emb_bshd = partial(kernels.fused, rope_utils._apply_rotary_pos_emb_bshd)
"""megatron-core's rotary positions are some 16 operations a layer and tensor, of which GPUs compute each by itself."""


class GPT(GPTModel):
    """``GPTModel`` that computes the loss without storing all logits if one rank has the whole output matrix.

    The rows that pad the vocabulary get probability 0, as in scores and exports.
    """

    rows: int
    """Number of rows of the vocabulary that can be predicted."""

    def _postprocess(
        self,
        hidden_states: Tensor,
        input_ids: Any,
        position_ids: Any,
        labels: Tensor | None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        mask_BT = more.get("loss_mask")
        if not self.post_process or labels is None or mask_BT is None or self.tp_group.size() > 1:
            return super()._postprocess(hidden_states, input_ids, position_ids, labels, *rest, **more)
        hidden_BTH = hidden_states.transpose(0, 1)
        return kernels.linear_cross_entropy(hidden_BTH, output_weight(self), labels, mask_BT, self.rows)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Losses, (B, T), from this rank's logits, (T, B, its rows)."""
        held = logits.shape[-1]
        left = self.rows - self.tp_group.rank() * held
        if left < held:
            beyond = torch.arange(held, device=logits.device) >= left
            logits = logits.masked_fill(beyond, -math.inf)
        losses: Tensor = super().compute_language_model_loss(labels, logits)
        return losses


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    train: TrainConfig,
    attention: Attention = "sdpa",
) -> TransformerConfig:
    """megatron-core's configuration of one run."""
    half, engine_layers = train.half_precision, attention == "te"
    virtual = parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
    activations = {
        "swiglu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    }
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.ffn,
        normalization="RMSNorm" if model.norm == "rms" else "LayerNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=activations[model.activation],
        add_bias_linear=model.biases or model.attention_biases == "all",
        add_qkv_bias=model.attention_biases == "qkv",
        # megatron-core sums the gradients of such norms over tensor-parallel ranks; ``TokenNorm`` is sharded.
        qk_layernorm=model.qk_norm and model.qk_norm_over == "head",
        num_moe_experts=model.experts,
        moe_router_topk=model.experts_per_token,
        moe_router_pre_softmax=not model.normalise_experts,
        moe_aux_loss_coeff=engine.balance_loss_coefficient(model, train, parallel),
        # Balanced in each window for itself, so that neither micro-batches nor ranks matter.
        moe_router_load_balancing_type="seq_aux_loss" if model.experts else "none",
        moe_token_dispatcher_type="alltoall",
        expert_model_parallel_size=parallel.expert,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.init_std,
        bf16=half,
        params_dtype=torch.bfloat16 if half else torch.float32,
        pipeline_dtype=torch.bfloat16 if half else torch.float32,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        # With two ranks, batched messages of the interleaved schedule would be taken for one another: both neighbours
        # are the same rank.
        overlap_p2p_comm=virtual is not None,
        batch_p2p_comm=virtual is None,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        deterministic_mode=train.deterministic,
        recompute_granularity="full" if train.recompute else None,
        recompute_method="uniform" if train.recompute else None,
        recompute_num_layers=1 if train.recompute else None,
        # Only Transformer Engine computes in 8 bits; what it trained is read in 16.
        fp8="hybrid" if train.precision == "fp8" and attention == "te" else None,
        # Initial values come from ``initialize`` below; megatron-core's own draws depend on the topology.
        perform_initialization=False,
        use_cpu_initialization=True,
        # The mean is taken over the tokens of the whole global batch, not over micro-batches.
        calculate_per_token_loss=True,
        # Of Transformer Engine's layers; ours have fused operations of their own. megatron-core's fused GELU is another
        # function than the unfused.
        bias_activation_fusion=engine_layers and model.activation == "swiglu",
        apply_rope_fusion=engine_layers and model.positions == "rotary",
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        variable_seq_lengths=False,
    )


def build(
    model: ModelConfig,
    vocab_size: int,
    parallel: ParallelConfig,
    train: TrainConfig,
    start: Mapping[str, torch.Tensor] | None = None,
    vp_stage: int | None = None,
    *,
    attention: Attention = "sdpa",
    drawn: bool = True,
) -> GPTModel:
    """This rank's part of the model, with the initial weights of ``train.seed`` or those of ``start``.

    Args:
        model: shape of the model.
        vocab_size: size of the tokenizer's vocabulary, padded here.
        parallel: the topology; the weights do not depend on it.
        train: seed, precision and sequence length.
        start: unsharded weights under the names and shapes of a checkpoint.
        vp_stage: virtual pipeline stage, with an interleaved pipeline.
        attention: implementation of the layers, which does not change checkpoints.
        drawn: false leaves the weights unset, for a checkpoint to fill.
    """
    config = transformer_config(model, parallel, train, attention)
    gpt = GPT(
        config=config,
        transformer_layer_spec=_engine_blocks(model)
        if attention == "te"
        else _blocks(model, config, vp_stage),
        vocab_size=padded_vocabulary(model.rows(vocab_size)),
        max_sequence_length=train.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="rope" if model.positions == "rotary" else "learned_absolute",
        rotary_base=model.rotary_base,
        rotary_percent=model.rotary_fraction,
        vp_stage=vp_stage,
    )
    gpt.rows = model.rows(vocab_size)
    if model.rotary_scaling is not None:
        gpt.rotary_pos_emb.inv_freq = scaled(gpt.rotary_pos_emb.inv_freq, model.rotary_scaling)
    _mark_sharded(gpt)
    if parallel.tensor == 1:
        _use_plain_products(gpt)
    if attention == "te":
        _accumulate_in_products(gpt)
    if drawn:
        initialize(gpt, model, train.seed, start or {})
    # As megatron-core's Float16Module does: all weights, the norms' too, have the precision that the optimizer expects.
    return gpt.bfloat16() if train.half_precision else gpt


def scaled(frequencies: Tensor, scaling: RotaryScaling) -> Tensor:
    """Rotary frequencies scaled for longer contexts, float32 (H / 2,).

    ``llama3`` follows ``transformers`` (modeling_rope_utils); megatron-core has it with fixed constants only.
    """
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_length * frequencies / (2 * math.pi)  # in the context before
    smooth = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    slow, fast = turns < scaling.low_factor, turns > scaling.high_factor
    return torch.where(slow, frequencies / scaling.factor, torch.where(fast, frequencies, between))


def _engine_blocks(model: ModelConfig) -> ModuleSpec:
    """Transformer Engine's layers, with its FlashAttention."""
    return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_norm)


def _blocks(
    model: ModelConfig, config: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """Layers of this pipeline stage: megatron-core's local layers with this package's attention and norms."""
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = (
            None  # megatron-core 0.16.1 names it unset where there is no Transformer Engine
        )
    spec = get_gpt_layer_local_spec(num_experts=model.experts, qk_layernorm=model.qk_norm)
    norm = PlainNorm if model.norm == "layer_plain" else Norm
    inside = spec.submodules
    inside.input_layernorm = inside.pre_mlp_layernorm = norm
    attention = inside.self_attention.submodules
    attention.core_attention = ModuleSpec(module=CausalAttention)
    if model.qk_norm and model.qk_norm_over == "all_heads":
        attention.q_layernorm = ModuleSpec(module=TokenNorm, params={"heads": model.heads})
        attention.k_layernorm = ModuleSpec(module=TokenNorm, params={"heads": model.query_groups})
    elif model.qk_norm:
        attention.q_layernorm = attention.k_layernorm = norm
    if model.qkv_clip is not None:
        inside.self_attention.module = ClippedAttention
        inside.self_attention.params = {**inside.self_attention.params, "clip": model.qkv_clip}
    spec.module = (
        ParallelLayer if model.parallel_residual else PostNormLayer if model.post_norm else TransformerLayer
    )
    if model.activation == "swiglu" and model.experts is None:
        inside.mlp.module = BiaslessFeedForward if model.attention_biases == "all" else FeedForward
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=norm)


def _use_plain_products(gpt: GPTModel) -> None:
    """Use PyTorch's own linear function in layers that are not sharded. megatron-core's linear function overlaps its
    backward pass with communication, which these layers do not have.
    """

    def product(input: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
        return torch.nn.functional.linear(input, weight, bias)

    for module in gpt.modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear):
            module._forward_impl = product


def _accumulate_in_products(gpt: GPTModel) -> None:
    """Let Transformer Engine's products add to the float32 gradients themselves.

    megatron-core's setting for it, ``gradient_accumulation_fusion``, would ask for Apex in the output layer, too.
    """
    for module in gpt.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True


def _mark_sharded(gpt: GPTModel) -> None:
    """Mark the weights that are sharded over tensor-parallel ranks. megatron-core does so while drawing initial
    weights, which ``initialize`` does here.

    Without the mark the gradient norm would count the first rank's shards alone.
    """
    for module in gpt.modules():
        weight = getattr(module, "weight", None)
        if weight is None or hasattr(weight, "tensor_model_parallel"):
            continue
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            set_tensor_model_parallel_attributes(weight, True, 0, 1)
        elif isinstance(module, RowParallelLinear):
            set_tensor_model_parallel_attributes(weight, True, 1, 1)


def initialize(gpt: GPTModel, model: ModelConfig, seed: int, start: Mapping[str, torch.Tensor]) -> None:
    """Draw every weight by a random generator of (seed, name, layer), so that all topologies start from the same model.

    Each rank draws the whole tensor that it holds a shard of and keeps its part; megatron-core's sharded state dict
    says which part that is. Norms start at one, biases at zero. If ``start`` is given, its weights are used instead;
    rows of the vocabulary that it lacks are drawn, and its positions beyond the windows are left out.
    """
    sharded: dict[str, Any] = gpt.sharded_state_dict()
    apply_factories(sharded)  # splits SwiGLU's fused matrix into its two halves
    held = [one for one in nested_values(sharded) if isinstance(one, ShardedTensor) and one.data is not None]
    # A tensor is drawn by one thread, and torchrun gives a rank one thread: several are drawn at once.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = (
        1 if start else max(1, min(4, (os.cpu_count() or 1) // ranks))
    )  # weights of files are read in order
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(partial(_fill, model=model, seed=seed, start=start), held))


def _fill(shard: ShardedTensor, *, model: ModelConfig, seed: int, start: Mapping[str, torch.Tensor]) -> None:
    """Set a shard to its part of the whole tensor's initial value."""
    layer = shard.global_offset[: shard.prepend_axis_num]
    shape = shard.global_shape[shard.prepend_axis_num :]
    whole = start[shard.key][layer][: shape[0]] if start else torch.empty(0, *shape[1:])
    if (rows := len(whole)) < shape[0]:  # only vocabularies differ
        drawn = _draw(shard.key, shape, layer, model, seed)
        drawn[:rows] = whole
        whole = drawn
    offset = shard.global_offset[shard.prepend_axis_num :]
    part = whole[tuple(slice(o, o + n) for o, n in zip(offset, shard.data.shape, strict=True))]
    with torch.no_grad():
        shard.data.copy_(part)


def _draw(
    name: str, shape: tuple[int, ...], layer: tuple[int, ...], model: ModelConfig, seed: int
) -> torch.Tensor:
    """Initial value of a whole tensor, or of one layer's part if ``layer`` is given."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    generator = torch.Generator()
    generator.manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}/{layer}".encode()) >> 1)
    residual = "linear_proj" in name or "linear_fc2" in name
    std = model.init_std / (math.sqrt(2 * model.layers) if residual else 1.0)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def hidden_states(gpt: GPTModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Final normalised hidden states, before the output layer: (B, T) ids -> (B, T, H).

    The model must be whole on this rank. Their product with ``output_weight`` gives logits, of any number of rows at a
    time.
    """
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    gpt.post_process = False  # hands out the decoder's output; the decoder keeps its final norm
    try:
        return gpt(ids_BT, positions_BT, None).transpose(0, 1)
    finally:
        gpt.post_process = True


def output_weight(gpt: GPTModel) -> torch.Tensor:
    """Weight of the output layer, (padded vocabulary, H)."""
    if gpt.share_embeddings_and_output_weights:
        return gpt.shared_embedding_or_output_weight()
    return gpt.output_layer.weight
