"""Tiny models of every class that training can start from, as ``save_pretrained`` leaves them."""

import torch
import transformers

COMMON = {
    "vocab_size": 396,  # no multiple of 128: the rest must not be predicted
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "initializer_range": 0.2,
}
GROUPED = {"num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 12}
MIXTURE = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "neox": ("GPTNeoX", {"rotary_pct": 0.25}),
    "neox_serial": ("GPTNeoX", {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "llama2": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {**GROUPED, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama_attention_biases": ("Llama", {**GROUPED, "attention_bias": True}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**WIDE, "sliding_window": 48}),
    "qwen2": ("Qwen2", {**GROUPED, "tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": ("Qwen3", WIDE),
    "olmo": ("Olmo", {}),
    "olmo_clipped": ("Olmo", {**GROUPED, "clip_qkv": 0.5}),
    "olmo2": ("Olmo2", GROUPED),
    "mixtral": ("Mixtral", {**GROUPED, **MIXTURE, "num_local_experts": 4}),
    "olmoe": ("Olmoe", {**MIXTURE, "num_experts": 4, "norm_topk_prob": False}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**WIDE, **MIXTURE, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True},
    ),
}
"""Name -> class, and what its configuration has beyond ``COMMON``."""


def make(name, directory, **more):
    """Write a model whose weights, gains and biases are all random."""
    kind, settings = MODELS[name]
    common = dict(COMMON)
    if kind == "GPT2":
        for unknown in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            del common[unknown]
        del common["max_position_embeddings"]
    config = getattr(transformers, f"{kind}Config")(**{**common, **settings, **more})
    transformers.set_seed(3)
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{kind}{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory
