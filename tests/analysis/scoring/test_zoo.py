"""Tiny models of many classes of ``transformers``: every token as one plain pass over its text alone has it."""

import numpy as np
import pytest
import torch

from palimpsest.analysis.scoring import huggingface, token_statistics
from palimpsest.analysis.scoring.models import Together

transformers = pytest.importorskip("transformers")
VOCABULARY, EOD, WINDOW = 97, 0, 16
LENGTHS = (5, 6, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3, 3 * WINDOW)

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "n_inner": 48}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 24,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}

# Kind -> class of the configuration, class of the model, settings.
ZOO = {
    "gpt2": ("GPT2", "GPT2LMHeadModel", GPT2),
    "gpt_bigcode": ("GPTBigCode", "GPTBigCodeForCausalLM", GPT2),
    "gpt_neo": (
        "GPTNeo",
        "GPTNeoForCausalLM",
        {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
    ),
    "gptj": ("GPTJ", "GPTJForCausalLM", {**GPT2, "rotary_dim": 4}),
    "codegen": ("CodeGen", "CodeGenForCausalLM", {**GPT2, "rotary_dim": 4}),
    "opt": ("OPT", "OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 24}),
    "biogpt": ("BioGpt", "BioGptForCausalLM", {}),
    "bloom": ("Bloom", "BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
    "mpt": ("Mpt", "MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 48}),
    "neox": ("GPTNeoX", "GPTNeoXForCausalLM", {}),
    "llama3": ("Llama", "LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama_dynamic": ("Llama", "LlamaForCausalLM", {"rope_parameters": DYNAMIC}),
    "phi3_longrope": (
        "Phi3",
        "Phi3ForCausalLM",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24},
    ),
    "phi": ("Phi", "PhiForCausalLM", {}),
    "mistral_window": ("Mistral", "MistralForCausalLM", {"sliding_window": WINDOW}),
    "qwen2_window": (
        "Qwen2",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", "Qwen3ForCausalLM", {"head_dim": 8}),
    "gemma2_caps": (
        "Gemma2",
        "Gemma2ForCausalLM",
        {
            "sliding_window": WINDOW,
            "head_dim": 8,
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        "Gemma3ForCausalLM",
        {"sliding_window": WINDOW, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt_oss": (
        "GptOss",
        "GptOssForCausalLM",
        {"sliding_window": WINDOW, "head_dim": 8, **EXPERTS, "rope_parameters": LLAMA3},
    ),
    "cohere_scale": ("Cohere", "CohereForCausalLM", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2", "Cohere2ForCausalLM", {"sliding_window": WINDOW, "logit_scale": 0.25}),
    "granite_scales": (
        "Granite",
        "GraniteForCausalLM",
        {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    ),
    "olmo2": ("Olmo2", "Olmo2ForCausalLM", {}),
    "olmo3": ("Olmo3", "Olmo3ForCausalLM", {"sliding_window": WINDOW}),
    "mixtral": ("Mixtral", "MixtralForCausalLM", EXPERTS),
    "olmoe": ("Olmoe", "OlmoeForCausalLM", EXPERTS),
    "qwen3_moe": ("Qwen3Moe", "Qwen3MoeForCausalLM", {**EXPERTS, "head_dim": 8}),
    "deepseek3": (
        "DeepseekV3",
        "DeepseekV3ForCausalLM",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
            "n_shared_experts": 1,
        },
    ),
    "llama4": (
        "Llama4Text",
        "Llama4ForCausalLM",
        {
            **EXPERTS,
            "head_dim": 8,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 48,
            "num_experts_per_tok": 1,
        },
    ),
    "mamba": ("Mamba", "MambaForCausalLM", {"state_size": 8}),
    "mamba2": (
        "Mamba2",
        "Mamba2ForCausalLM",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "falcon_mamba": ("FalconMamba", "FalconMambaForCausalLM", {"state_size": 8}),
    "jamba": (
        "Jamba",
        "JambaForCausalLM",
        {
            **EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
        },
    ),
    "bamba": ("Bamba", "BambaForCausalLM", {**MAMBA2, "attn_layer_indices": [1]}),
    "falcon_h1": (
        "FalconH1",
        "FalconH1ForCausalLM",
        {**MAMBA2, "mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.5},
    ),
    "zamba": (
        "Zamba",
        "ZambaForCausalLM",
        {
            "mamba_d_state": 8,
            "n_mamba_heads": 2,
            "num_hidden_layers": 3,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        },
    ),
    "zamba2": (
        "Zamba2",
        "Zamba2ForCausalLM",
        {
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "chunk_size": 8,
            "mamba_ngroups": 1,
            "use_mem_eff_path": False,
            "layers_block_type": ["linear_attention", "hybrid"],
        },
    ),
    "granite_hybrid": (
        "GraniteMoeHybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **MAMBA2,
            **EXPERTS,
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 32,
            "logits_scaling": 3.0,
        },
    ),
    "nemotron_h": (
        "NemotronH",
        "NemotronHForCausalLM",
        {
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "head_dim": 8,
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        "RecurrentGemmaForCausalLM",
        {
            "lru_width": 32,
            "attention_window_size": WINDOW,
            "logits_soft_cap": 2.0,
            "num_hidden_layers": 3,
            "head_dim": 8,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        "Qwen3NextForCausalLM",
        {
            **EXPERTS,
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "lfm2": ("Lfm2", "Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "rwkv": ("Rwkv", "RwkvForCausalLM", {"context_length": 64, "attention_hidden_size": 32}),
    "minimax": ("MiniMax", "MiniMaxForCausalLM", {**EXPERTS, "head_dim": 8, "block_size": 8}),
    "minicpm3": (
        "MiniCPM3",
        "MiniCPM3ForCausalLM",
        {
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "num_key_value_heads": 4,
            "dim_model_base": 16,
        },
    ),
    "nanochat": ("NanoChat", "NanoChatForCausalLM", {"final_logit_softcapping": 2.0}),
    "xglm": (
        "XGLM",
        "XGLMForCausalLM",
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    ),
    "falcon_alibi": ("Falcon", "FalconForCausalLM", {"alibi": True, "new_decoder_architecture": False}),
    "stablelm": ("StableLm", "StableLmForCausalLM", {}),
    "ctrl": (
        "CTRL",
        "CTRLLMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "dff": 48},
    ),
    "openai": (
        "OpenAIGPT",
        "OpenAIGPTLMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40},
    ),
}

FAST = {
    "gpt2",
    "opt",
    "bloom",
    "neox",
    "llama3",
    "llama_dynamic",
    "phi3_longrope",
    "mistral_window",
    "qwen2_window",
    "qwen3",
    "gemma2_caps",
    "gemma3",
    "gpt_oss",
    "cohere_scale",
    "granite_scales",
    "olmoe",
    "mamba",
    "bamba",
    "ctrl",
}  # the others: make test-slow
LENGTH_MATTERS = {"llama_dynamic", "phi3_longrope"}
"""Positions depend on the length of the text."""
ENDS = {"gpt2", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt", "biogpt", "ctrl", "openai"}
"""A table of 40 positions, learned or not."""
OWN_LOGITS = {
    "gptj",
    "codegen",
    "phi",
    "gemma2_caps",
    "cohere_scale",
    "cohere2",
    "granite_scales",
    "llama4",
    "falcon_h1",
    "granite_hybrid",
    "recurrent_gemma",
    "minicpm3",
    "nanochat",
    "ctrl",
}
"""A bias, a scale or a cap beside the output matrix, or states that are not those of its body."""


def made(kind):
    """A model with weights far from uniform predictions."""
    config, model, settings = ZOO[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{config}Config")(**{**SHAPE, **settings})
    opened = getattr(transformers, model)(config).eval()
    with torch.no_grad():
        for name, weight in opened.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
    return opened


def texts(longest):
    """Of all lengths around the window; some begin with the same tokens, some with the whole of another."""
    rng = np.random.default_rng(0)
    found = [rng.integers(1, VOCABULARY, length) for length in LENGTHS if length <= longest]
    story = rng.integers(1, VOCABULARY, longest)
    found += [story[:cut] for cut in (5, WINDOW + 2, longest // 2, longest - 1)] + [story]
    found += [np.append(story[: WINDOW + 4], rng.integers(1, VOCABULARY, 3)) for _ in range(2)]
    rng.shuffle(found)
    return found


def plain(model, text):
    """Log-probabilities of a text from one pass over it alone."""
    ids = torch.from_numpy(np.concatenate([[EOD], text]))[None]
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.double()
    return logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0].numpy()


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in FAST else pytest.mark.slow) for kind in ZOO]
)
def test_every_token_equals_a_plain_pass(kind):
    model = huggingface.of_huggingface(made(kind))
    asked = texts(min(3 * WINDOW, model.positions or 3 * WINDOW))
    numbers = token_statistics.score_tokens(model, asked, eod=EOD, vocab_size=VOCABULARY)
    ends = np.cumsum([len(text) for text in asked])[:-1]
    for text, found in zip(asked, np.split(numbers["logprob"], ends), strict=True):
        np.testing.assert_allclose(found, plain(made(kind), text), rtol=0, atol=1e-4)
    longest = max(map(len, asked))
    assert model.together(longest) is (Together.SAME_LENGTH if kind in LENGTH_MATTERS else Together.ANY)
    assert (model.positions == 40) == (kind in ENDS)
    assert (model.body is not None) != (kind in OWN_LOGITS)
