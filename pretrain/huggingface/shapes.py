"""Conversion between ``config.json`` of ``transformers`` and ``ModelConfig``, by one table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ModelConfig, RotaryScaling

PER_HEAD = {"qk_norm": True, "qk_norm_over": "head"}
PER_TOKEN = {"qk_norm": True, "qk_norm_over": "all_heads"}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")
_SAME = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "init_std": "initializer_range",
    "tied_embeddings": "tie_word_embeddings",
    "vocab_size": "vocab_size",
}
_LLAMA = {**_SAME, "kv_heads": "num_key_value_heads", "norm_epsilon": "rms_norm_eps"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model class of ``transformers``, and the mapping of its settings to ``ModelConfig``."""

    kind: str
    """Prefix of its classes: ``Llama`` of ``LlamaConfig`` and ``LlamaForCausalLM``."""
    head: str = "ForCausalLM"
    always: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``ModelConfig`` that the class fixes."""
    same: Mapping[str, str]
    """Field of ``ModelConfig`` -> field of ``config.json`` with the same meaning."""
    open: tuple[str, ...] = ()
    """Further fields of ``ModelConfig``, which ``_read_more`` and ``_write_more`` convert."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Field of ``config.json`` -> its only supported value."""

    @property
    def classes(self) -> tuple[Any, Any]:
        """Configuration and model class."""
        import transformers

        return getattr(transformers, f"{self.kind}Config"), getattr(transformers, f"{self.kind}{self.head}")


_EXPERTS = {"experts_per_token": "num_experts_per_tok", "balance_loss": "router_aux_loss_coef"}
_ROPE = ("rotary_base", "rotary_scaling")
ARCHITECTURES = {
    "llama": Architecture(
        kind="Llama",
        same={**_LLAMA, "head_size": "head_dim"},
        open=(*_ROPE, "attention_biases", "biases"),
    ),
    "mistral": Architecture(
        kind="Mistral",
        same={**_LLAMA, "head_size": "head_dim", "attention_window": "sliding_window"},
        open=_ROPE,
    ),
    "qwen2": Architecture(
        kind="Qwen2",
        always={"attention_biases": "qkv"},
        same=_LLAMA,
        open=(*_ROPE, "attention_window"),
    ),
    "qwen3": Architecture(
        kind="Qwen3",
        always=PER_HEAD,
        same={**_LLAMA, "head_size": "head_dim"},
        open=(*_ROPE, "attention_window", "attention_biases"),
    ),
    "olmo": Architecture(
        kind="Olmo",
        always={"norm": "layer_plain", "norm_epsilon": 1e-5},
        same={**_SAME, "kv_heads": "num_key_value_heads", "qkv_clip": "clip_qkv"},
        open=(*_ROPE, "attention_biases"),
    ),
    "olmo2": Architecture(
        kind="Olmo2",
        always={**PER_TOKEN, "post_norm": True},
        same=_LLAMA,
        open=(*_ROPE, "attention_biases"),
    ),
    "olmoe": Architecture(
        kind="Olmoe",
        always=PER_TOKEN,
        same={
            **_LLAMA,
            **_EXPERTS,
            "experts": "num_experts",
            "qkv_clip": "clip_qkv",
            "normalise_experts": "norm_topk_prob",
        },
        open=_ROPE,
        only={"attention_bias": False},
    ),
    "mixtral": Architecture(
        kind="Mixtral",
        same={
            **_LLAMA,
            **_EXPERTS,
            "experts": "num_local_experts",
            "head_size": "head_dim",
            "attention_window": "sliding_window",
        },
        open=_ROPE,
        only={"router_jitter_noise": 0.0},
    ),
    "qwen3_moe": Architecture(
        kind="Qwen3Moe",
        always=PER_HEAD,
        same={
            **_LLAMA,
            **_EXPERTS,
            "experts": "num_experts",
            "head_size": "head_dim",
            "ffn": "moe_intermediate_size",
            "normalise_experts": "norm_topk_prob",
        },
        open=(*_ROPE, "attention_window"),
        only={"attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "gpt_neox": Architecture(
        kind="GPTNeoX",
        always={"norm": "layer", "biases": True},
        same={**_SAME, "norm_epsilon": "layer_norm_eps", "parallel_residual": "use_parallel_residual"},
        open=(*_ROPE, "rotary_fraction", "activation"),
        only={"attention_bias": True},
    ),
    "gpt2": Architecture(
        kind="GPT2",
        head="LMHeadModel",
        always={"norm": "layer", "biases": True, "positions": "learned"},
        same={
            **{ours: theirs for ours, theirs in _SAME.items() if ours != "ffn"},
            "layers": "n_layer",
            "hidden": "n_embd",
            "heads": "n_head",
            "norm_epsilon": "layer_norm_epsilon",
        },
        open=("ffn", "activation"),
        only={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
}
"""Architectures by the ``model_type`` of ``config.json``."""

NOT_SHAPE = {"name", "weights", "revision", "tokenizer_size", "balance_loss", "init_std"}
"""Fields of ``ModelConfig`` that are not part of a model's shape."""


def read_config(directory: Path) -> Any:
    """``config.json`` as read by its class in ``transformers``, which adds defaults.

    Raises:
        UserError: if there is no such file, or its class is not supported.
    """
    import json

    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"model.weights={directory}: there is no config.json in it; give a model's directory")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        kind = given.get("model_type")
    except (ValueError, AttributeError):
        raise UserError(f"{path} is no JSON object; give the directory of a transformers model") from None
    if kind not in ARCHITECTURES:
        raise UserError(
            f"model.weights={directory} has model_type={kind}; training can start from {', '.join(ARCHITECTURES)}"
        )
    if given.get("quantization_config"):
        raise UserError(
            f"model.weights={directory} has quantization_config: quantised weights cannot be trained; set "
            "model.weights to the model from which they were quantised"
        )
    try:
        return ARCHITECTURES[kind].classes[0].from_dict(given)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not fit its class: {' '.join(str(error).split())}") from None


def shape_of(config: Any, where: str) -> dict[str, Any]:
    """Fields of ``ModelConfig`` that differ from the defaults in a configuration.

    Args:
        config: configuration of ``transformers``.
        where: name of the model, for error messages.

    Raises:
        UserError: naming the field of ``config.json`` that is not supported.
    """
    known = ARCHITECTURES[config.model_type]

    def refuse(name: str, value: Any, instead: str = "") -> UserError:
        return UserError(
            f"model.weights={where}: {name}={value} is not supported here{instead}; start from another model"
        )

    for name, value in known.only.items():
        if (fields := getattr(config, name, value)) != value:
            raise refuse(name, fields, f" ({name}={value} can)")
    fields = dict(known.always)
    for ours, theirs in known.same.items():
        fields[ours] = getattr(config, theirs, None)
    for name in known.open:
        fields |= _OPEN[name][0](config, refuse)
    if fields.get("kv_heads") == fields["heads"]:
        fields["kv_heads"] = None
    if fields.get("head_size") == fields["hidden"] / fields["heads"]:
        fields["head_size"] = None
    if "activation" not in known.open and config.hidden_act not in ("silu", "swish"):
        raise refuse("hidden_act", config.hidden_act, " (silu can)")
    return {name: value for name, value in fields.items() if value is not None}


Refuse = Callable[..., UserError]


def _read_activation(config: Any, refuse: Refuse) -> dict[str, Any]:
    name = "activation_function" if config.model_type == "gpt2" else "hidden_act"
    value = getattr(config, name)
    if value not in _ACTIVATIONS:
        raise refuse(name, value, f" ({', '.join(_ACTIVATIONS)} can)")
    return {"activation": _ACTIVATIONS[value]}


def _write_activation(model: ModelConfig) -> dict[str, Any]:
    names = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
    return {
        ("activation_function" if model.positions == "learned" else "hidden_act"): names[model.activation]
    }


def _read_base(config: Any, refuse: Refuse) -> dict[str, Any]:
    base = config.rope_parameters["rope_theta"]
    if base != int(base):
        raise refuse("rope_theta", base, " (whole numbers can)")
    return {"rotary_base": int(base)}


def _read_scaling(config: Any, refuse: Refuse) -> dict[str, Any]:
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {}
    if kind == "linear":
        return {"rotary_scaling": {"kind": "linear", "factor": float(rope["factor"])}}
    if kind == "llama3":
        return {
            "rotary_scaling": {
                "kind": "llama3",
                "factor": float(rope["factor"]),
                "low_factor": float(rope["low_freq_factor"]),
                "high_factor": float(rope["high_freq_factor"]),
                "original_length": int(rope["original_max_position_embeddings"]),
            }
        }
    raise refuse("rope_type", kind, " (default, linear and llama3 can)")


def _write_rope(model: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(model.rotary_base)}
    scaling = model.rotary_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_factor,
            "high_freq_factor": scaling.high_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    if model.rotary_fraction != 1:
        rope["partial_rotary_factor"] = model.rotary_fraction
    return {"rope_parameters": rope}


def _read_attention_biases(config: Any, refuse: Refuse) -> dict[str, Any]:
    everywhere = getattr(config, "mlp_bias", False)
    if everywhere and not config.attention_bias:
        raise refuse("mlp_bias", True, " without attention_bias=true")
    if everywhere:
        return {"biases": True}
    return {"attention_biases": "all" if config.attention_bias else "none"}


def _write_attention_biases(model: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": model.biases or model.attention_biases == "all"}


def _read_window(config: Any, _refuse: Refuse) -> dict[str, Any]:
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return {"attention_window": config.sliding_window} if config.use_sliding_window and sliding else {}


def _write_window(model: ModelConfig) -> dict[str, Any]:
    return {
        "use_sliding_window": model.attention_window is not None,
        "sliding_window": model.attention_window,
        "max_window_layers": 0,
    }


_OPEN: dict[str, tuple[Callable[[Any, Refuse], dict[str, Any]], Callable[[ModelConfig], dict[str, Any]]]] = {
    "activation": (_read_activation, _write_activation),
    "ffn": (lambda config, _: {"ffn": config.n_inner or 4 * config.n_embd}, lambda m: {"n_inner": m.ffn}),
    "rotary_base": (_read_base, _write_rope),
    "rotary_scaling": (_read_scaling, lambda _: {}),
    "rotary_fraction": (
        lambda config, _: {"rotary_fraction": float(config.rope_parameters["partial_rotary_factor"])},
        lambda _: {},
    ),
    "attention_biases": (_read_attention_biases, _write_attention_biases),
    "biases": (lambda *_: {}, lambda model: {"mlp_bias": model.biases}),
    "attention_window": (_read_window, _write_window),
}
"""Conversions of the fields ``Architecture.open``: from ``config.json``, and to it."""


def positions_of(config: Any) -> int | None:
    """Number of learned position embeddings; None: no limit."""
    return int(config.n_positions) if config.model_type == "gpt2" else None


def dropouts_of(config: Any) -> dict[str, float]:
    """Dropout of a configuration; training here has none."""
    return {name: value for name in _DROPOUTS if (value := getattr(config, name, 0.0))}


def typed(fields_of_model: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``ModelConfig`` from JSON values, ready for its constructor."""
    values = dict(fields_of_model)
    if isinstance(scaling := values.get("rotary_scaling"), Mapping):
        values["rotary_scaling"] = RotaryScaling(**scaling)
    return values


def differences(model: ModelConfig, wanted: Mapping[str, Any]) -> list[str]:
    """Command-line settings that give a model the shape found by ``shape_of``."""
    there = ModelConfig(name=model.name, **typed(wanted))
    arguments = []
    for one in fields(ModelConfig):
        have, want = getattr(model, one.name), getattr(there, one.name)
        if one.name == "kv_heads":
            have, want = model.query_groups, there.query_groups
        elif one.name == "vocab_size" and (have or 0) <= want:
            continue  # rows beyond those of the tokenizer may be left out
        if one.name not in NOT_SHAPE and have != want:
            arguments.append(f"model.{one.name}={str(want).lower() if want is not None else 'null'}")
    return arguments


def architecture(model: ModelConfig) -> Architecture:
    """The ``transformers`` class that can represent the model.

    Raises:
        UserError: if there is none.
    """
    for known in _PREFERRED:
        if not _lacks(known, model):
            return known
    names = ", ".join(
        f"{one.name}={value}"
        for one in fields(ModelConfig)
        if one.name not in NOT_SHAPE | {"layers", "hidden", "heads", "kv_heads", "ffn", "vocab_size"}
        and (value := getattr(model, one.name)) != one.default
    )
    raise UserError(
        f"the model {model.name} combines features that no class of transformers has: {names}; its "
        "checkpoints can be scored here, but not exported"
    )


_PREFERRED = tuple(
    ARCHITECTURES[name]
    for name in (
        *("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2"),
        *("mixtral", "olmoe", "qwen3_moe", "gpt_neox", "gpt2"),
    )
)


def _lacks(known: Architecture, model: ModelConfig) -> bool:
    """True if a class lacks something that the model has, or has something that the model lacks."""
    free = {*known.same, *known.open, *NOT_SHAPE}
    if not model.qk_norm:
        free |= {"qk_norm_over"}
    if model.experts is None:
        free |= {"experts_per_token", "normalise_experts"}
    if model.positions == "learned":
        free |= {"rotary_base", "rotary_fraction", "rotary_scaling"}
    if model.query_groups == model.heads:
        free |= {"kv_heads"}
    for one in fields(ModelConfig):
        have = getattr(model, one.name)
        if one.name not in free and have != known.always.get(one.name, one.default):
            return True
    if "experts" in known.same and model.experts is None:
        return True
    if known.kind == "Llama":  # biases of queries, keys and values alone are Qwen 2's
        return model.attention_biases == "qkv"
    if "attention_biases" in known.open and model.attention_biases == "qkv":
        return True
    return "activation" in known.open and model.activation == "swiglu"


def settings(model: ModelConfig, vocab_size: int, *, sequence_length: int, eod: int, dtype: Any) -> Any:
    """The ``transformers`` configuration of a model.

    Args:
        model: shape of the model.
        vocab_size: size of the tokenizer's vocabulary, without the checkpoint's padding.
        sequence_length: tokens of the longest context trained on.
        eod: id of the end-of-document token, which begins and ends texts.
        dtype: of the weights.
    """
    known = architecture(model)
    configuration, model_class = known.classes
    fields: dict[str, Any] = {theirs: getattr(model, ours) for ours, theirs in known.same.items()}
    for name in known.open:
        fields |= _OPEN[name][1](model)
    if "kv_heads" in known.same:
        fields["num_key_value_heads"] = model.query_groups
    if "head_size" in known.same:
        fields["head_dim"] = model.head_dim
    if known.kind == "GPT2":
        fields |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_positions": sequence_length}
    else:
        fields["max_position_embeddings"] = sequence_length
    return configuration(
        **{
            **fields,
            "vocab_size": model.rows(vocab_size),
            "bos_token_id": eod,
            "eos_token_id": eod,
            "dtype": dtype,
            "architectures": [model_class.__name__],
        }
    )
