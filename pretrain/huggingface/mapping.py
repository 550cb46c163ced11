"""Conversion of weights between ``transformers`` and checkpoints, by one table of rules.

A checkpoint has one unsharded tensor for all layers (and experts), layers first, independent of the topology.

Shapes: L layers, V vocabulary, D hidden, N query heads, K key/value heads, H head size, F inner width, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ModelConfig
from palimpsest.pretrain.huggingface import files, shapes

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
LAYERS = "decoder.layers."


def _one(parts: Sequence[Tensor], _model: ModelConfig) -> Tensor:
    return parts[0]


def _split_one(tensor: Tensor, _model: ModelConfig) -> list[Tensor]:
    return [tensor]


def _turned(parts: Sequence[Tensor], _model: ModelConfig) -> Tensor:
    return parts[0].T


def _split_turned(tensor: Tensor, _model: ModelConfig) -> list[Tensor]:
    return [tensor.T]


def _mixed(parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
    """Queries, keys and values, (N H, ...), (K H, ...), (K H, ...), joined in megatron-core's layout of K (N/K + 2) H
    rows.
    """
    grouped = [part.reshape(model.query_groups, -1, model.head_dim, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, 1).flatten(0, 2)


def _split_mixed(tensor: Tensor, model: ModelConfig) -> list[Tensor]:
    rest, queries = tensor.shape[1:], model.heads // model.query_groups
    grouped = tensor.view(model.query_groups, queries + 2, model.head_dim, *rest).split(
        [queries, 1, 1], dim=1
    )
    return [part.reshape(-1, *rest) for part in grouped]


def _mixed_gpt2(parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
    return _mixed(parts[0].T.chunk(3), model) if parts[0].dim() == 2 else _mixed(parts[0].chunk(3), model)


def _split_mixed_gpt2(tensor: Tensor, model: ModelConfig) -> list[Tensor]:
    whole = torch.cat(_split_mixed(tensor, model))
    return [whole.T if whole.dim() == 2 else whole]


def _stacked(parts: Sequence[Tensor], _model: ModelConfig) -> Tensor:
    return torch.cat(list(parts))


def _split_stacked(tensor: Tensor, _model: ModelConfig) -> list[Tensor]:
    return list(tensor.chunk(2))


@dataclass(frozen=True)
class Rule:
    """Rule: one tensor of a checkpoint and the tensors of ``transformers`` that it combines.

    In names, ``#`` stands for the layer, ``@`` for the expert and ``*`` for ``weight`` or ``bias``.
    """

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor], ModelConfig], Tensor] = _one
    split: Callable[[Tensor, ModelConfig], list[Tensor]] = _split_one


def _rules(prefix: str, layers: str, table: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules of the layers; names are given without their common prefix."""
    return tuple(
        Rule(
            f"{LAYERS}#.{rule.ours}",
            tuple(f"{prefix}{layers}.#.{one}" for one in rule.theirs),
            rule.join,
            rule.split,
        )
        for rule in table
    )


_QKV, _PROJECTION = "self_attention.linear_qkv.", "self_attention.linear_proj."
_FC1, _FC2 = "mlp.linear_fc1.", "mlp.linear_fc2."
_EXPERT = "mlp.experts.experts."
_ENDS = (
    Rule(EMBEDDING, ("model.embed_tokens.weight",)),
    Rule("decoder.final_layernorm.*", ("model.norm.*",)),
    Rule(OUTPUT, ("lm_head.weight",)),
)
_ATTENTION = (
    Rule(
        f"{_QKV}*",
        ("self_attn.q_proj.*", "self_attn.k_proj.*", "self_attn.v_proj.*"),
        _mixed,
        _split_mixed,
    ),
    Rule(f"{_PROJECTION}*", ("self_attn.o_proj.*",)),
    Rule("self_attention.q_layernorm.*", ("self_attn.q_norm.*",)),
    Rule("self_attention.k_layernorm.*", ("self_attn.k_norm.*",)),
)
_FEED = (
    Rule(f"{_FC1}*", ("mlp.gate_proj.*", "mlp.up_proj.*"), _stacked, _split_stacked),
    Rule(f"{_FC2}*", ("mlp.down_proj.*",)),
)
_BEFORE = (Rule(f"{_QKV}layer_norm_*", ("input_layernorm.*",)),)
_LLAMA = (
    *_BEFORE,
    *_ATTENTION,
    Rule(f"{_FC1}layer_norm_*", ("post_attention_layernorm.*",)),
    *_FEED,
)


def _mixture(router: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    return (
        *_BEFORE,
        *_ATTENTION,
        Rule(f"{_FC1}layer_norm_*", ("post_attention_layernorm.*",)),
        Rule("mlp.router.*", (f"{router}.*",)),
        Rule(f"{_EXPERT}linear_fc1.*", (f"{gate}.*", f"{up}.*"), _stacked, _split_stacked),
        Rule(f"{_EXPERT}linear_fc2.*", (f"{down}.*",)),
    )


_llama = partial(_rules, "model.", "layers")
_EXPERTS = _llama(_mixture("mlp.gate", *(f"mlp.experts.@.{name}_proj" for name in ("gate", "up", "down"))))
RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("Llama", "Mistral", "Qwen2", "Qwen3", "Olmo"), (*_ENDS, *_llama(_LLAMA))),
    "Olmo2": (
        *_ENDS,
        *_llama(
            (
                *_ATTENTION,
                *_FEED,
                Rule("post_attention_norm.*", ("post_attention_layernorm.*",)),
                Rule("post_mlp_norm.*", ("post_feedforward_layernorm.*",)),
            )
        ),
    ),
    "Olmoe": (*_ENDS, *_EXPERTS),
    "Qwen3Moe": (*_ENDS, *_EXPERTS),
    "Mixtral": (
        *_ENDS,
        *_llama(
            _mixture(
                "block_sparse_moe.gate",
                *(f"block_sparse_moe.experts.@.{name}" for name in ("w1", "w3", "w2")),
            )
        ),
    ),
    "GPTNeoX": (
        Rule(EMBEDDING, ("gpt_neox.embed_in.weight",)),
        Rule("decoder.final_layernorm.*", ("gpt_neox.final_layer_norm.*",)),
        Rule(OUTPUT, ("embed_out.weight",)),
        *_rules(
            "gpt_neox.",
            "layers",
            (
                *_BEFORE,
                Rule(f"{_QKV}*", ("attention.query_key_value.*",)),
                Rule(f"{_PROJECTION}*", ("attention.dense.*",)),
                Rule(f"{_FC1}layer_norm_*", ("post_attention_layernorm.*",)),
                Rule(f"{_FC1}*", ("mlp.dense_h_to_4h.*",)),
                Rule(f"{_FC2}*", ("mlp.dense_4h_to_h.*",)),
            ),
        ),
    ),
    "GPT2": (
        Rule(EMBEDDING, ("transformer.wte.weight",)),
        Rule("embedding.position_embeddings.weight", ("transformer.wpe.weight",)),
        Rule("decoder.final_layernorm.*", ("transformer.ln_f.*",)),
        Rule(OUTPUT, ("lm_head.weight",)),
        *_rules(
            "transformer.",
            "h",
            (
                Rule(f"{_QKV}layer_norm_*", ("ln_1.*",)),
                Rule(f"{_QKV}*", ("attn.c_attn.*",), _mixed_gpt2, _split_mixed_gpt2),
                Rule(f"{_PROJECTION}weight", ("attn.c_proj.weight",), _turned, _split_turned),
                Rule(f"{_PROJECTION}bias", ("attn.c_proj.bias",)),
                Rule(f"{_FC1}layer_norm_*", ("ln_2.*",)),
                Rule(f"{_FC1}weight", ("mlp.c_fc.weight",), _turned, _split_turned),
                Rule(f"{_FC1}bias", ("mlp.c_fc.bias",)),
                Rule(f"{_FC2}weight", ("mlp.c_proj.weight",), _turned, _split_turned),
                Rule(f"{_FC2}bias", ("mlp.c_proj.bias",)),
            ),
        ),
    ),
}
"""Rules by ``shapes.Architecture.kind``, for both directions."""

_IGNORED = re.compile(r"\.(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")
"""Names of causal masks and rotary frequencies, which older files contain among the weights."""


def _named(rule: Rule, suffix: str) -> tuple[str, tuple[str, ...]]:
    """Name of a rule's tensor in a checkpoint (without layer numbers), and the name patterns of its parts."""
    return (
        rule.ours.replace("#.", "").replace("*", suffix),
        tuple(one.replace("*", suffix) for one in rule.theirs),
    )


def _both(rule: Rule) -> tuple[str, ...]:
    return ("weight", "bias") if "*" in rule.ours else ("",)


class _Joined:
    """A checkpoint's tensor, computed lazily by layer (and expert)."""

    def __init__(
        self, tensors: Mapping[str, Tensor], names: tuple[str, ...], rule: Rule, model: ModelConfig
    ) -> None:
        self.tensors, self.names, self.rule, self.model = tensors, names, rule, model

    def __getitem__(self, index: tuple[int, ...]) -> Tensor:
        parts = [self.tensors[_filled(name, index)].float() for name in self.names]
        return self.rule.join(parts, self.model)


def _filled(name: str, index: Sequence[int]) -> str:
    for mark, number in zip("#@", index, strict=False):
        name = name.replace(mark, str(number))
    return name


class Start(Mapping[str, Any]):
    """The weights of a model of ``transformers`` under the names and shapes that a checkpoint has, in float32.

    ``start[name][layer]`` is one layer's, ``start[name][layer, expert]`` one expert's, ``start[name][()]`` a tensor
    outside the layers. Only the accessed tensor is read into memory.

    Args:
        tensors: tensors by their names in the files.
        kind: kind of the architecture.
        model: shape of the model.
        where: name of the model, for error messages.

    Raises:
        UserError: naming a tensor that is missing, or that the model does not have.
    """

    def __init__(self, tensors: Mapping[str, Tensor], kind: str, model: ModelConfig, where: object) -> None:
        self.where = where
        first = next(rule for rule in RULES[kind] if rule.ours == EMBEDDING).theirs[0]
        prefix = first.split(".")[0] + "."
        if (
            first not in tensors and first.removeprefix(prefix) in tensors
        ):  # files of the body alone, as GPT-2's
            tensors = _Prefixed(tensors, prefix)
        self._found: dict[str, _Joined] = {}
        left = {name for name in tensors if not _IGNORED.search(name)}
        if model.tied_embeddings:
            left -= {rule.theirs[0] for rule in RULES[kind] if rule.ours == OUTPUT}
        places = [(layer, expert) for layer in range(model.layers) for expert in range(model.experts or 1)]
        for rule in RULES[kind]:
            if rule.ours == OUTPUT and model.tied_embeddings:
                continue
            for suffix in _both(rule):
                ours, names = _named(rule, suffix)
                if _filled(names[0], (0, 0)) not in left:
                    continue
                self._found[ours] = _Joined(tensors, names, rule, model)
                wanted = {_filled(name, place) for name in names for place in places}
                if missing := sorted(wanted - left):
                    raise UserError(f"model.weights={where}: the tensor {missing[0]} is missing")
                left -= wanted
        if left:
            raise UserError(
                f"model.weights={where}: the tensor {min(left)} does not belong to a {kind} of "
                f"{model.layers} layers; give the weights of this model"
            )

    def __getitem__(self, name: str) -> _Joined:
        if name not in self._found:
            raise UserError(
                f"model.weights={self.where}: there is no tensor for the weight {name}; "
                f"give the weights of this model"
            )
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class _Prefixed(Mapping[str, Tensor]):
    """Tensors of a model's body under their names in the whole model."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name.removeprefix(self.prefix)]

    def __iter__(self) -> Iterator[str]:
        return (self.prefix + name for name in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def read(model: ModelConfig, vocab_size: int) -> Start:
    """The weights that ``model.weights`` names.

    Args:
        model: required shape.
        vocab_size: size of the tokenizer's vocabulary.

    Raises:
        UserError: if the weights cannot be loaded, or have another shape or vocabulary; the message names settings that
            fit.
    """
    assert model.weights is not None
    directory = files.find(model.weights, model.revision)
    config = shapes.read_config(directory)
    if differences := shapes.differences(model, shapes.shape_of(config, model.weights)):
        raise UserError(f"model.weights={model.weights} has another shape; set {' '.join(differences)}")
    if config.vocab_size < vocab_size:
        raise UserError(
            f"model.weights={model.weights} has a vocabulary of {config.vocab_size} tokens, fewer than the corpus's "
            f"{vocab_size}; {files.own_tokenizer(directory)}"
        )
    kind = shapes.ARCHITECTURES[config.model_type].kind
    return Start(files.Tensors(directory), kind, model, model.weights)


def to_transformers(weights: Mapping[str, Tensor], model: ModelConfig, vocab_size: int) -> dict[str, Tensor]:
    """A checkpoint's weights under their names in files of ``transformers``.

    Args:
        weights: by the checkpoint's names, layers first, then experts.
        model: the shape.
        vocab_size: rows of the vocabulary to keep.
    """
    places: dict[str, tuple[tuple[str, ...], Rule]] = {}
    for rule in RULES[shapes.architecture(model).kind]:
        for suffix in _both(rule):
            ours, names = _named(rule, suffix)
            places[ours] = names, rule
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        names, rule = places[name]
        if name in (EMBEDDING, OUTPUT):
            tensor = tensor[:vocab_size]
        levels = ("#" in names[0]) + ("@" in names[0])
        for index in product(*(range(size) for size in tensor.shape[:levels])):
            parts = rule.split(tensor[index] if index else tensor, model)
            for one, part in zip(names, parts, strict=True):
                renamed[_filled(one, index)] = part.contiguous()
    return renamed
