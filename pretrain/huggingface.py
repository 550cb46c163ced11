"""Checkpoints as Hugging Face models, and Hugging Face models as a starting point.

Both ways go through the names and shapes that a checkpoint has on disk: one tensor for all layers, layers first,
whole whatever the topology that wrote it. That needs neither process groups nor a GPU. Only ``.safetensors`` is read,
and no code that comes with a model is run.

Shapes: L layers, V vocabulary, D hidden, N query heads, K key/value heads, H head size, F inner width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.artifact import file_digest, json_digest, verify
from data.errors import UserError
from data.tokenizer import Tokenizer
from pretrain import checkpoint
from pretrain.config import ModelConfig

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
QKV = "decoder.layers.self_attention.linear_qkv.weight"
FC1 = "decoder.layers.mlp.linear_fc1.weight"
_EACH = {
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "decoder.layers.self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "decoder.layers.mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "decoder.layers.mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
"""Tensors that are the same in both worlds: the checkpoint's name -> the name inside a layer."""


def require() -> None:
    """Check that ``transformers`` and ``safetensors`` are installed.

    Raises:
        UserError: saying how to install them.
    """
    try:
        import safetensors  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the package {error.name} is not installed; pip install -e '.[huggingface]'"
        ) from None


def settings(
    model: ModelConfig, vocab_size: int, *, sequence_length: int, eod: int, dtype: torch.dtype
) -> Any:
    """The ``LlamaConfig`` of a model.

    Args:
        model: its shape.
        vocab_size: of the tokenizer; the padding of the checkpoint's vocabulary is left out.
        sequence_length: tokens of the longest context trained on.
        eod: id of the end-of-document token, which begins and ends texts.
        dtype: of the weights.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.groups,
        hidden_act="silu",
        max_position_embeddings=sequence_length,
        initializer_range=model.init_std,
        rms_norm_eps=model.norm_epsilon,
        bos_token_id=eod,
        eos_token_id=eod,
        tie_word_embeddings=model.tied_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": float(model.rotary_base)},
        attention_bias=False,
        mlp_bias=False,
        dtype=dtype,
        architectures=["LlamaForCausalLM"],
    )


def to_llama(weights: Mapping[str, Tensor], model: ModelConfig, vocab_size: int) -> dict[str, Tensor]:
    """A checkpoint's weights under Llama's names.

    Args:
        weights: by the checkpoint's names, layers first.
        model: the shape.
        vocab_size: rows of the embeddings to keep.
    """
    found = {
        "model.embed_tokens.weight": weights[EMBEDDING][:vocab_size],
        "model.norm.weight": weights[FINAL_NORM],
    }
    if not model.tied_embeddings:
        found["lm_head.weight"] = weights[OUTPUT][:vocab_size]
    queries, head = model.heads // model.groups, model.hidden // model.heads
    for layer in range(model.layers):
        inside = f"model.layers.{layer}."
        for ours, theirs in _EACH.items():
            found[inside + theirs] = weights[ours][layer]
        # megatron-core puts each group's queries, key and value together: (K, N/K + 2, H, D).
        qkv_KGHD = weights[QKV][layer].view(model.groups, queries + 2, head, model.hidden)
        for name, part in zip("qkv", qkv_KGHD.split([queries, 1, 1], dim=1), strict=True):
            found[f"{inside}self_attn.{name}_proj.weight"] = part.reshape(-1, model.hidden)
        gate, up = weights[FC1][layer].chunk(2)
        found[inside + "mlp.gate_proj.weight"], found[inside + "mlp.up_proj.weight"] = gate, up
    return {name: tensor.contiguous() for name, tensor in found.items()}


def from_llama(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Llama's weights under the names and shapes that a checkpoint has: the inverse of ``to_llama``."""
    queries, head = model.heads // model.groups, model.hidden // model.heads
    found = {EMBEDDING: weights["model.embed_tokens.weight"], FINAL_NORM: weights["model.norm.weight"]}
    if not model.tied_embeddings:
        found[OUTPUT] = weights["lm_head.weight"]

    def layers(name: str) -> Tensor:
        return torch.stack([weights[f"model.layers.{layer}.{name}"] for layer in range(model.layers)])

    for ours, theirs in _EACH.items():
        found[ours] = layers(theirs)
    parts = [
        layers(f"self_attn.{name}_proj.weight").view(model.layers, model.groups, size, head, model.hidden)
        for name, size in (("q", queries), ("k", 1), ("v", 1))
    ]
    found[QKV] = torch.cat(parts, dim=2).reshape(model.layers, -1, model.hidden)
    found[FC1] = torch.cat([layers("mlp.gate_proj.weight"), layers("mlp.up_proj.weight")], dim=1)
    return found


def load(directory: Path, step: int, *, eod: int) -> Any:
    """The model of a checkpoint, in memory and in evaluation mode: a ``LlamaForCausalLM`` on the CPU.

    Args:
        directory: of the run's checkpoints; the manifests say the shape.
        step: finished steps.
        eod: id of the end-of-document token.

    Returns:
        A ``transformers`` model with the checkpoint's precision and the tokenizer's vocabulary.

    Raises:
        UserError: without ``transformers``, or if the checkpoint is missing or of another version.
    """
    require()
    from transformers import GenerationConfig, LlamaForCausalLM

    path, manifest = checkpoint.path_of(directory, step), checkpoint.read(directory, step)
    verify(path, manifest)
    config = manifest.config
    model = ModelConfig(name=path.name, **config["model"])
    weights = checkpoint.tensors(path, weights_only=True)
    wanted = settings(
        model,
        config["vocab_size"],
        sequence_length=config["train"]["sequence_length"],
        eod=eod,
        dtype=weights[EMBEDDING].dtype,
    )
    with torch.device("meta"):  # nothing is drawn only to be overwritten
        gpt = LlamaForCausalLM(wanted)
    gpt.model.rotary_emb = type(gpt.model.rotary_emb)(wanted)  # its frequencies are computed, not loaded
    state = to_llama(weights, model, config["vocab_size"])
    if model.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    gpt.load_state_dict(state, strict=True, assign=True)
    gpt.tie_weights()
    gpt.generation_config = GenerationConfig(bos_token_id=eod, eos_token_id=eod, pad_token_id=eod)
    return gpt.eval()


def fast_tokenizer(tokenizer: Tokenizer, *, sequence_length: int) -> Any:
    """The tokenizer as ``transformers`` has it; the end-of-document token begins, ends and pads.

    It adds no token by itself, as in training, where documents are only ended.
    """
    require()
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    text = tokenizer.backend.id_to_token(tokenizer.eod)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.backend.to_str()),
        bos_token=text,
        eos_token=text,
        pad_token=text,
        model_max_length=sequence_length,
        clean_up_tokenization_spaces=False,
    )


def write(gpt: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Put a model of ``load`` and its tokenizer into a directory that ``from_pretrained`` reads."""
    gpt.save_pretrained(directory)
    fast_tokenizer(tokenizer, sequence_length=gpt.config.max_position_embeddings).save_pretrained(directory)


def digest(directory: Path) -> str:
    """Identity of a Hugging Face model's weights: of its ``.safetensors`` files, by name."""
    return json_digest({file.name: file_digest(file) for file in _files(directory)})


def _files(directory: Path) -> list[Path]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model.weights={directory}: there is no .safetensors file in it; other formats can run code when they "
            "are read, so convert the model (transformers: save_pretrained)"
        )
    return files


def read(directory: Path, model: ModelConfig) -> dict[str, Tensor]:
    """The weights of a Hugging Face Llama on disk under the names and shapes that a checkpoint has, in float32.

    Args:
        directory: with ``config.json`` and ``.safetensors`` files.
        model: the shape that it must have.

    Raises:
        UserError: if it is no Llama, is missing, or has another shape; the message says which settings would fit.
    """
    require()
    from safetensors.torch import load_file

    _require_shape(directory, model)
    weights: dict[str, Tensor] = {}
    for file in _files(directory):
        weights.update(load_file(file))
    return from_llama({name: tensor.float() for name, tensor in weights.items()}, model)


def _require_shape(directory: Path, model: ModelConfig) -> None:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"model.weights={directory}: there is no config.json in it; give a model's directory")
    found = json.loads(path.read_text(encoding="utf-8"))
    kind = found.get("model_type")
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    if (
        kind != "llama"
        or found.get("attention_bias")
        or found.get("mlp_bias")
        or rope.get("rope_type", "default") != "default"
    ):
        raise UserError(
            f"model.weights={directory} is a {kind} model or one with biases or scaled rotary positions; only a "
            "plain Llama can be started from"
        )
    heads = found["num_attention_heads"]
    wanted = {
        "layers": found["num_hidden_layers"],
        "hidden": found["hidden_size"],
        "heads": heads,
        "kv_heads": found.get("num_key_value_heads") or heads,
        "ffn": found["intermediate_size"],
        "tied_embeddings": bool(found.get("tie_word_embeddings", False)),
        "rotary_base": int(rope.get("rope_theta", found.get("rope_theta", 10_000))),
        "norm_epsilon": found.get("rms_norm_eps", 1e-6),
    }
    have = {name: getattr(model, "groups" if name == "kv_heads" else name) for name in wanted}
    if have != wanted:
        say = " ".join(
            f"model.{name}={str(value).lower()}" for name, value in wanted.items() if have[name] != value
        )
        raise UserError(f"model.weights={directory} has another shape; set {say}")
