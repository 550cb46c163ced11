"""Checkpoints as Hugging Face models, and Hugging Face models as a starting point.

Both ways go through the names and shapes that a checkpoint has on disk: one tensor for all layers, layers first,
whole whatever the topology that wrote it. That needs neither process groups nor a GPU. Only ``.safetensors`` is read,
and no code that comes with a model is run.

Shapes: L layers, V vocabulary, D hidden, N query heads, K key/value heads, H head size, F inner width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest.data.artifact import file_digest, json_digest
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.pretrain import checkpoint
from palimpsest.pretrain.config import ModelConfig

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
POSITIONS = "embedding.position_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm."
QKV = "decoder.layers.self_attention.linear_qkv."
FC1 = "decoder.layers.mlp.linear_fc1."
_IN, _ATTENTION, _FEED = "decoder.layers.", "decoder.layers.self_attention.", "decoder.layers.mlp."
_LLAMA = {
    _ATTENTION + "linear_qkv.layer_norm_": "input_layernorm.",
    _ATTENTION + "linear_proj.": "self_attn.o_proj.",
    _ATTENTION + "q_layernorm.": "self_attn.q_norm.",
    _ATTENTION + "k_layernorm.": "self_attn.k_norm.",
    _FEED + "linear_fc1.layer_norm_": "post_attention_layernorm.",
    _FEED + "linear_fc2.": "mlp.down_proj.",
}
_NEOX = {
    _ATTENTION + "linear_qkv.layer_norm_": "input_layernorm.",
    _ATTENTION + "linear_qkv.": "attention.query_key_value.",
    _ATTENTION + "linear_proj.": "attention.dense.",
    _FEED + "linear_fc1.layer_norm_": "post_attention_layernorm.",
    _FEED + "linear_fc1.": "mlp.dense_h_to_4h.",
    _FEED + "linear_fc2.": "mlp.dense_4h_to_h.",
}
_GPT2 = {
    _ATTENTION + "linear_qkv.layer_norm_": "ln_1.",
    _ATTENTION + "linear_proj.": "attn.c_proj.",
    _FEED + "linear_fc1.layer_norm_": "ln_2.",
    _FEED + "linear_fc1.": "mlp.c_fc.",
    _FEED + "linear_fc2.": "mlp.c_proj.",
}
"""What is the same in both worlds: prefix of a checkpoint's name -> prefix of the name inside a layer."""


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


def architecture(model: ModelConfig) -> str:
    """The ``transformers`` class that is this model: ``Llama``, ``Qwen3``, ``Olmo``, ``GPTNeoX`` or ``GPT2``.

    Raises:
        UserError: if there is none.
    """
    plain = not model.biases and not model.parallel_residual and model.experts is None
    rotary = model.positions == "rotary"
    if model.activation == "swiglu" and plain and rotary and model.rotary_fraction == 1:
        if model.norm == "rms":
            return "Qwen3" if model.qk_norm else "Llama"
        if model.norm == "layer_plain" and not model.qk_norm and model.norm_epsilon == 1e-5:
            return "Olmo"
    if model.norm == "layer" and model.biases and model.query_groups == model.heads and not model.qk_norm:
        if model.activation == "gelu" and rotary:
            return "GPTNeoX"
        if model.activation == "gelu_tanh" and not rotary and not model.parallel_residual:
            return "GPT2"
    raise UserError(
        f"the model {model.name} has a mixture of features that no class of transformers has: norm={model.norm}, "
        f"activation={model.activation}, positions={model.positions}, biases={model.biases}, qk_norm={model.qk_norm}, "
        f"parallel_residual={model.parallel_residual}, experts={model.experts}; its checkpoints can be scored here, "
        "but not exported"
    )


def settings(
    model: ModelConfig, vocab_size: int, *, sequence_length: int, eod: int, dtype: torch.dtype
) -> Any:
    """The configuration of a model in ``transformers``.

    Args:
        model: its shape.
        vocab_size: of the tokenizer; the padding of the checkpoint's vocabulary is left out.
        sequence_length: tokens of the longest context trained on.
        eod: id of the end-of-document token, which begins and ends texts.
        dtype: of the weights.
    """
    import transformers

    kind = architecture(model)
    common = {
        "vocab_size": vocab_size,
        "initializer_range": model.init_std,
        "bos_token_id": eod,
        "eos_token_id": eod,
        "tie_word_embeddings": model.tied_embeddings,
        "dtype": dtype,
        "architectures": [_classes(kind)[1].__name__],
    }
    if kind == "GPT2":
        return transformers.GPT2Config(
            n_embd=model.hidden,
            n_layer=model.layers,
            n_head=model.heads,
            n_inner=model.ffn,
            n_positions=sequence_length,
            activation_function="gelu_new",
            layer_norm_epsilon=model.norm_epsilon,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
    common |= {
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": sequence_length,
    }
    rope = {"rope_type": "default", "rope_theta": float(model.rotary_base)}
    if kind == "GPTNeoX":
        return transformers.GPTNeoXConfig(
            hidden_act="gelu",
            layer_norm_eps=model.norm_epsilon,
            use_parallel_residual=model.parallel_residual,
            rope_parameters={**rope, "partial_rotary_factor": model.rotary_fraction},
            **common,
        )
    if kind != "Olmo":
        common |= {"rms_norm_eps": model.norm_epsilon, "head_dim": model.hidden // model.heads}
    return _classes(kind)[0](
        num_key_value_heads=model.query_groups,
        hidden_act="silu",
        rope_parameters=rope,
        attention_bias=False,
        **common,
    )


def _classes(kind: str) -> tuple[Any, Any]:
    """Configuration and model class of an architecture."""
    import transformers

    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    return getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}{head}")


def to_transformers(weights: Mapping[str, Tensor], model: ModelConfig, vocab_size: int) -> dict[str, Tensor]:
    """A checkpoint's weights under the names that ``transformers`` has for them.

    Args:
        weights: by the checkpoint's names, layers first.
        model: the shape.
        vocab_size: rows of the embeddings to keep.
    """
    kind = architecture(model)
    table, body, embedding, final = {
        "GPTNeoX": (_NEOX, "gpt_neox.layers.", "gpt_neox.embed_in", "gpt_neox.final_layer_norm"),
        "GPT2": (_GPT2, "transformer.h.", "transformer.wte", "transformer.ln_f"),
    }.get(kind, (_LLAMA, "model.layers.", "model.embed_tokens", "model.norm"))
    found = {f"{embedding}.weight": weights[EMBEDDING][:vocab_size]}
    found["lm_head.weight"] = weights[EMBEDDING if model.tied_embeddings else OUTPUT][:vocab_size]
    for name, tensor in weights.items():
        if name.startswith(FINAL_NORM):
            found[f"{final}.{name.removeprefix(FINAL_NORM)}"] = tensor
        elif name == POSITIONS:
            found["transformer.wpe.weight"] = tensor
        elif name.startswith(_IN):
            for layer, part in enumerate(tensor):
                for inside, value in _layer(name, part, table, kind, model):
                    found[f"{body}{layer}.{inside}"] = value
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _layer(
    name: str, tensor: Tensor, table: Mapping[str, str], kind: str, model: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """One tensor of one layer as ``transformers`` has it: name inside the layer, value."""
    kept = max((prefix for prefix in table if name.startswith(prefix)), key=len, default="")
    if kept:
        # GPT-2's linear layers are stored the other way round.
        turned = kind == "GPT2" and tensor.dim() == 2
        yield table[kept] + name.removeprefix(kept), tensor.T if turned else tensor
    elif name.startswith(QKV):
        # megatron-core puts each group's queries, key and value together: (K, N/K + 2, H, ...).
        queries, size = model.heads // model.query_groups, model.hidden // model.heads
        parts = tensor.view(model.query_groups, queries + 2, size, *tensor.shape[1:]).split(
            [queries, 1, 1], dim=1
        )
        flat = [part.reshape(-1, *tensor.shape[1:]) for part in parts]
        if kind == "GPT2":
            yield f"attn.c_attn.{name.removeprefix(QKV)}", torch.cat(flat).T
        else:
            for letter, part in zip("qkv", flat, strict=True):
                yield f"self_attn.{letter}_proj.{name.removeprefix(QKV)}", part
    elif name.startswith(FC1):
        for half, part in zip(("gate", "up"), tensor.chunk(2), strict=True):
            yield f"mlp.{half}_proj.{name.removeprefix(FC1)}", part
    else:
        raise AssertionError(f"{name} has no place in {kind}")


def from_llama(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Llama's weights under the names and shapes that a checkpoint has: the inverse of ``to_transformers``."""
    queries, head = model.heads // model.query_groups, model.hidden // model.heads
    found = {
        EMBEDDING: weights["model.embed_tokens.weight"],
        FINAL_NORM + "weight": weights["model.norm.weight"],
    }
    if not model.tied_embeddings:
        found[OUTPUT] = weights["lm_head.weight"]

    def layers(name: str) -> Tensor:
        return torch.stack([weights[f"model.layers.{layer}.{name}"] for layer in range(model.layers)])

    for ours, theirs in _LLAMA.items():
        if "norm." not in ours:
            found[ours + "weight"] = layers(theirs + "weight")
    parts = [
        layers(f"self_attn.{name}_proj.weight").view(
            model.layers, model.query_groups, size, head, model.hidden
        )
        for name, size in (("q", queries), ("k", 1), ("v", 1))
    ]
    found[QKV + "weight"] = torch.cat(parts, dim=2).reshape(model.layers, -1, model.hidden)
    found[FC1 + "weight"] = torch.cat([layers("mlp.gate_proj.weight"), layers("mlp.up_proj.weight")], dim=1)
    return found


def load(directory: Path, step: int, *, eod: int) -> Any:
    """The model of a checkpoint, in memory and in evaluation mode, on the CPU.

    Args:
        directory: of the run's checkpoints; the manifests say the shape.
        step: finished steps.
        eod: id of the end-of-document token.

    Returns:
        A model of ``transformers`` (``LlamaForCausalLM``, or the class that ``architecture`` names) with the
        checkpoint's precision and the tokenizer's vocabulary.

    Raises:
        UserError: without ``transformers``, or if the checkpoint is missing or of another version.
    """
    require()
    from transformers import GenerationConfig

    path, manifest = checkpoint.path_of(directory, step), checkpoint.read(directory, step)
    checkpoint.require_whole(path, manifest)
    config = manifest.config
    model = _shape(config["model"], path)
    weights = checkpoint.tensors(path, weights_only=True)
    wanted = settings(
        model,
        config["vocab_size"],
        sequence_length=config["train"]["sequence_length"],
        eod=eod,
        dtype=weights[EMBEDDING].dtype,
    )
    with torch.device("meta"):  # nothing is drawn only to be overwritten
        gpt = _classes(architecture(model))[1](wanted)
    _compute_frequencies(gpt, wanted)
    gpt.load_state_dict(to_transformers(weights, model, config["vocab_size"]), strict=True, assign=True)
    gpt.tie_weights()
    gpt.generation_config = GenerationConfig(bos_token_id=eod, eos_token_id=eod, pad_token_id=eod)
    return gpt.eval()


def _shape(given: Mapping[str, Any], path: Path) -> ModelConfig:
    """The shape that a checkpoint's manifest tells; the name that early ones have in it is the path's here.

    Raises:
        UserError: if another version wrote it, with settings that this one does not know.
    """
    known = {field.name for field in fields(ModelConfig)}
    if strangers := sorted(set(given) - known):
        raise UserError(
            f"{path} was written by another version, whose model.{strangers[0]} is unknown here; export it with that "
            "version"
        )
    return ModelConfig(**{**given, "name": path.name})


def _compute_frequencies(gpt: Any, wanted: Any) -> None:
    """Rotary frequencies are computed where a module is made, not loaded: make those modules on the CPU."""
    for module in list(gpt.modules()):
        if "rotary_emb" in module._modules:
            module.rotary_emb = type(module.rotary_emb)(wanted)


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
    if architecture(model) != "Llama":
        raise UserError(
            f"model.weights={directory} is a Llama, but model={model.name} is none; choose model=nano"
        )
    have = {name: getattr(model, "query_groups" if name == "kv_heads" else name) for name in wanted}
    if have != wanted:
        say = " ".join(
            f"model.{name}={str(value).lower()}" for name, value in wanted.items() if have[name] != value
        )
        raise UserError(f"model.weights={directory} has another shape; set {say}")
