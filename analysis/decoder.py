"""A Llama-shaped decoder that only reads: for scores and continuations, faster than whose weights it takes.

The weights of a megatron-core ``GPTModel`` or of ``transformers``' ``LlamaForCausalLM`` in one lean forward pass:
norms folded into the matrices after them, no autograd, attention over trees of texts, a static cache for generation.
Whoever makes one checks it against the model itself (:func:`analysis.models.agree`).

Shapes: B rows, T tokens, D hidden, N query heads, K key/value heads, E head size, S places of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pretrain import kernels


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices of one block; each takes the output of the norm before it, whose weight is multiplied in."""

    qkv: Tensor
    """((N + 2K) * E, D): queries, keys, values."""
    out: Tensor
    """(D, N * E)."""
    gate: Tensor
    """(F, D): what SiLU is applied to."""
    up: Tensor
    """(F, D): what that is multiplied with."""
    down: Tensor
    """(D, F)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the matrices' sizes do not say."""

    heads: int
    kv_heads: int
    epsilon: float
    """Of the RMSNorms."""
    frequencies: Tensor
    """(E / 2,) rotary frequencies, radians a position."""
    rotary_scale: float = 1.0
    """Factor of cosine and sine."""


@dataclass(slots=True)
class Cache:
    """Keys and values of what has been read: one (B, K, S, E) tensor a layer."""

    keys: list[Tensor]
    values: list[Tensor]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows alone."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


class Decoder:
    """The decoder.

    Args:
        embedding_VD: input embeddings.
        layers: blocks, first to last.
        head: (V, D) output matrix, the final norm's weight multiplied in.
        shape: the rest.
    """

    trees = True
    """``hidden`` takes positions and masks."""

    def __init__(self, embedding_VD: Tensor, layers: Sequence[Layer], head: Tensor, shape: Shape) -> None:
        self.embedding_VD, self.layers, self.head, self.shape = embedding_VD, layers, head, shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, mask_BTT: Tensor | None = None
    ) -> Tensor:
        """What the output matrix is applied to, (B, T, D).

        Args:
            ids_BT: int64.
            positions_BT: of each token in its text; 0, 1, 2, ... if not given.
            mask_BTT: True where a token (second axis) attends to another (third); causal if not given.
        """
        x_BTD = self.embedding_VD[ids_BT]
        length = ids_BT.shape[1]
        if positions_BT is None:
            turn = self._rotation(torch.arange(length, device=ids_BT.device))
        else:
            turn = self._rotation(positions_BT)
        mask = None if mask_BTT is None else mask_BTT[:, None]
        for layer in self.layers:
            q, k, v = self._qkv(layer, x_BTD, turn)
            attended = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=self.shape.kv_heads != self.shape.heads,
            )
            x_BTD = self._rest(layer, x_BTD, attended)
        return self._norm(x_BTD)

    def cache(self, rows: int, places: int) -> Cache:
        """An empty cache for ``rows`` texts of at most ``places`` tokens."""
        size = self.layers[0].out.shape[1] // self.shape.heads
        made = [
            self.embedding_VD.new_zeros(rows, self.shape.kv_heads, places, size)
            for _ in range(2 * len(self.layers))
        ]
        return Cache(made[::2], made[1::2])

    def extend(self, ids_BT: Tensor, read_B: NDArray[np.int64], cache: Cache) -> Tensor:
        """Read T more tokens of each row, after those that are in the cache, and put them there.

        Args:
            ids_BT: int64.
            read_B: tokens of each row that the cache holds; what lies behind them is written over.
            cache: changed in place.

        Returns:
            As :meth:`hidden`.
        """
        x_BTD = self.embedding_VD[ids_BT]
        rows, count = ids_BT.shape
        device = ids_BT.device
        read, stop = int(read_B[0]), int(read_B.max()) + count
        even = bool((read_B == read).all())
        places = torch.arange(stop, device=device)
        line = places[read:] if even else torch.from_numpy(read_B).to(device)[:, None] + places[:count]
        mask = None
        if not even or (read and count > 1):
            mask = places <= line[..., None]
            mask = mask if even else mask[:, None]
        turn = self._rotation(line)
        each = torch.arange(rows, device=device)[:, None]
        for number, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x_BTD, turn)
            keys, values = cache.keys[number], cache.values[number]
            if even:
                keys[:, :, read:stop], values[:, :, read:stop] = k, v
            else:
                keys[each, :, line], values[each, :, line] = k.transpose(1, 2), v.transpose(1, 2)
            attended = functional.scaled_dot_product_attention(
                q,
                keys[:, :, :stop],
                values[:, :, :stop],
                attn_mask=mask,
                is_causal=mask is None and count > 1,
                enable_gqa=self.shape.kv_heads != self.shape.heads,
            )
            x_BTD = self._rest(layer, x_BTD, attended)
        return self._norm(x_BTD)

    def _norm(self, x_BTD: Tensor) -> Tensor:
        return functional.rms_norm(x_BTD, x_BTD.shape[-1:], None, self.shape.epsilon)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (T, E) or (B, 1, T, E); the sine negated in its first half."""
        angles = positions[..., None].float() * self.shape.frequencies
        cos = (angles.cos() * self.shape.rotary_scale).to(self.embedding_VD.dtype)
        sin = (angles.sin() * self.shape.rotary_scale).to(self.embedding_VD.dtype)
        cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def _qkv(self, layer: Layer, x_BTD: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values: (B, heads, T, E)."""
        rows, length = x_BTD.shape[:2]
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        mixed = linear(self._norm(x_BTD), layer.qkv)
        mixed = mixed.view(rows, length, heads + 2 * kv_heads, -1).transpose(1, 2)
        turning = mixed[:, : heads + kv_heads]
        cos, sin = turn
        turned = torch.addcmul(turning * cos, turning.roll(turning.shape[-1] // 2, -1), sin)
        return turned[:, :heads], turned[:, heads:], mixed[:, heads + kv_heads :]

    def _rest(self, layer: Layer, x_BTD: Tensor, attended: Tensor) -> Tensor:
        """Output projection and feed-forward block, with their residuals."""
        flat = attended.transpose(1, 2).flatten(2)
        x_BTD = x_BTD + linear(flat, layer.out)
        normed = self._norm(x_BTD)
        inner = linear(normed, layer.gate, silu=True).mul_(linear(normed, layer.up))
        return x_BTD + linear(inner, layer.down)


def linear(x: Tensor, weight: Tensor, *, silu: bool = False) -> Tensor:
    """``x @ weight.T`` in the precision of both, and SiLU of it if asked for, by whichever library is faster.

    On CPUs that is oneDNN for float32: see :func:`pretrain.kernels.onednn_linear`.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or not kernels.ONEDNN:
        found = functional.linear(x, weight)
        return functional.silu(found) if silu else found
    product: Tensor = kernels.onednn_linear(x, weight, "swish" if silu else "none")
    return product


def from_llama(state: Mapping[str, Tensor], shape: Shape) -> Decoder:
    """From the weights of ``LlamaForCausalLM``, under its names.

    Raises:
        ValueError: if there are weights beyond those that a Llama without biases has, or some are missing.
    """
    left = {name: tensor.detach() for name, tensor in state.items() if not name.endswith("inv_freq")}
    embedding = _take(left, "model.embed_tokens.weight")
    norm = _take(left, "model.norm.weight")
    head = left.pop("lm_head.weight", embedding)
    layers: list[Layer] = []
    while f"model.layers.{len(layers)}.input_layernorm.weight" in left:
        at = f"model.layers.{len(layers)}."
        q, k, v, out = (_take(left, f"{at}self_attn.{name}_proj.weight") for name in "qkvo")
        gate, up, down = (_take(left, f"{at}mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
        before, between = (
            _take(left, f"{at}{name}_layernorm.weight") for name in ("input", "post_attention")
        )
        layers.append(
            Layer(_fold(torch.cat([q, k, v]), before), out, _fold(gate, between), _fold(up, between), down)
        )
    _nothing_left(left)
    return Decoder(embedding, layers, _fold(head, norm), shape)


def from_gpt(state: Mapping[str, Tensor], shape: Shape) -> Decoder:
    """From the weights of megatron-core's ``GPTModel`` on one rank, under its names.

    Raises:
        ValueError: if there are weights beyond those that ``pretrain.model`` makes for a Llama shape, or some are
            missing.
    """
    left = {name: tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}
    left = {name: tensor for name, tensor in left.items() if not name.endswith("_extra_state")}
    embedding = _take(left, "embedding.word_embeddings.weight")
    norm = _take(left, "decoder.final_layernorm.weight")
    head = left.pop("output_layer.weight", embedding)
    layers: list[Layer] = []
    while f"decoder.layers.{len(layers)}.input_layernorm.weight" in left:
        at = f"decoder.layers.{len(layers)}."
        before, between = (_take(left, f"{at}{name}_layernorm.weight") for name in ("input", "pre_mlp"))
        mixed = _take(left, f"{at}self_attention.linear_qkv.weight")
        # megatron-core keeps the queries of a group beside the group's key and value.
        groups = mixed.view(shape.kv_heads, shape.heads // shape.kv_heads + 2, -1, mixed.shape[1])
        parts = groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)
        gate, up = _take(left, f"{at}mlp.linear_fc1.weight").chunk(2)
        layers.append(
            Layer(
                _fold(torch.cat(parts), before),
                _take(left, f"{at}self_attention.linear_proj.weight"),
                _fold(gate, between),
                _fold(up, between),
                _take(left, f"{at}mlp.linear_fc2.weight"),
            )
        )
    _nothing_left(left)
    return Decoder(embedding, layers, _fold(head, norm), shape)


def _take(left: dict[str, Tensor], name: str) -> Tensor:
    if name not in left:
        raise ValueError(f"there is no weight {name}")
    return left.pop(name)


def _nothing_left(left: Mapping[str, Tensor]) -> None:
    if left:
        raise ValueError(f"a Llama has no weight {min(left)}")


def _fold(matrix: Tensor, norm: Tensor) -> Tensor:
    """A matrix that is applied to what a norm's weight scales, with the weight in it."""
    return (matrix.float() * norm.float()).to(matrix.dtype)
