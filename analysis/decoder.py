"""A Llama-shaped decoder that only reads: for scores and continuations, faster than whose weights it takes.

The weights of a megatron-core ``GPTModel`` or of ``transformers``' ``LlamaForCausalLM`` in one lean forward pass:
norms folded into the matrices after them, no autograd, attention over trees of texts, a static cache for generation.
Whoever makes one checks it against the model itself (:func:`analysis.models.agree`).

Shapes: B rows, T tokens, D hidden, N query heads, K key/value heads, E head size, S places of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """Keys and values of what has been read: one (B, K, S, E) tensor a layer; the first ``rows`` rows count."""

    keys: list[Tensor]
    values: list[Tensor]
    rows: int

    def keep(self, rows: Tensor, places: int) -> None:
        """Keep the first ``places`` places of these rows alone, in this order."""
        for one in self.keys + self.values:
            one[: len(rows), :, :places] = one[rows, :, :places]
        self.rows = len(rows)

    def fits(self, rows: int, places: int) -> bool:
        """Whether so many texts of so many tokens have room."""
        return len(self.keys[0]) >= rows and int(self.keys[0].shape[2]) >= places


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
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        mask = None if mask_BTT is None else mask_BTT[:, None]
        hidden_ND = self._read(ids_BT, positions_BT, lambda _, q, k, v: self._attend(q, k, v, mask))
        return hidden_ND[: ids_BT.numel()].unflatten(0, ids_BT.shape)

    def cache(self, rows: int, places: int) -> Cache:
        """An empty cache for ``rows`` texts of at most ``places`` tokens."""
        size = self.layers[0].out.shape[1] // self.shape.heads
        made = [
            self.embedding_VD.new_zeros(rows, self.shape.kv_heads, places, size)
            for _ in range(2 * len(self.layers))
        ]
        return Cache(made[::2], made[1::2], rows)

    def begin(self, ids_BT: Tensor) -> Cache:
        """Keys and values of texts of one length.

        Args:
            ids_BT: int64.
        """
        cache = Cache([], [], len(ids_BT))

        def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.keys.append(k)
            cache.values.append(v)
            return self._attend(q, k, v)

        self._read(ids_BT, torch.arange(ids_BT.shape[1], device=ids_BT.device), attend)
        return cache

    def extend(self, ids_BT: Tensor, caches: Sequence[tuple[Cache, NDArray[np.int64]]]) -> Tensor:
        """Read T more tokens of each row, after those that are in the caches, and put them there.

        Args:
            ids_BT: int64.
            caches: changed in place, for consecutive rows; and how many tokens of each row it holds. What lies behind
                them is written over.

        Returns:
            What the output matrix is applied to, (at least B * T, D): row by row, and then padding.
        """
        count, device = ids_BT.shape[1], ids_BT.device
        lines = [torch.from_numpy(read[:, None] + np.arange(count)).to(device) for _, read in caches]
        stops = [int(read.max()) + count for _, read in caches]
        masks = [
            (torch.arange(stop, device=device) <= line[..., None])[:, None]
            for stop, line in zip(stops, lines, strict=True)
        ]
        each = [torch.arange(len(line), device=device)[:, None] for line in lines]
        sizes = [len(line) for line in lines]

        def attend(number: int, *mixed: Tensor) -> Tensor:
            found = []
            for place, (q, k, v) in enumerate(zip(*(one.split(sizes) for one in mixed), strict=True)):
                cache, stop = caches[place][0], stops[place]
                keys, values = cache.keys[number][: cache.rows], cache.values[number][: cache.rows]
                keys[each[place], :, lines[place]] = k.transpose(1, 2)
                values[each[place], :, lines[place]] = v.transpose(1, 2)
                found.append(self._attend(q, keys[:, :, :stop], values[:, :, :stop], masks[place]))
            return torch.cat(found)

        return self._read(ids_BT, torch.cat(lines), attend)

    def _read(self, ids_BT: Tensor, positions: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """What the output matrix is applied to, (at least B * T, D): row by row, and then padding.

        Args:
            ids_BT: int64.
            positions: of each token in its text, (B, T), or (T,) for all rows.
            attend: (number of the layer, queries, keys, values), (B, heads, T, E) each -> (B, N, T, E).
        """
        tokens = ids_BT.numel()
        # oneDNN compiles a kernel for every size that it has not seen: there shall be few.
        more = -tokens % max(16, 2 ** (tokens.bit_length() - 6))
        x_ND = self.embedding_VD[functional.pad(ids_BT.flatten(), (0, more))]
        turn = self._rotation(positions)
        attended_ND = x_ND.new_zeros(tokens + more, self.layers[0].out.shape[1])
        into_BTNE = attended_ND[:tokens].view(*ids_BT.shape, self.shape.heads, -1)
        for number, layer in enumerate(self.layers):
            mixed = linear(self._norm(x_ND), layer.qkv)[:tokens].unflatten(0, ids_BT.shape)
            into_BTNE[:] = attend(number, *self._split(mixed, turn)).transpose(1, 2)
            x_ND = self._rest(layer, x_ND, attended_ND)
        return self._norm(x_ND)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention, causal if there is no mask: (B, N, T, E)."""
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.shape.kv_heads != self.shape.heads,
        )

    def _norm(self, x_ND: Tensor) -> Tensor:
        return functional.rms_norm(x_ND, x_ND.shape[-1:], None, self.shape.epsilon)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (T, E) or (B, 1, T, E); the sine negated in its first half."""
        angles = positions[..., None].float() * self.shape.frequencies
        cos = (angles.cos() * self.shape.rotary_scale).to(self.embedding_VD.dtype)
        sin = (angles.sin() * self.shape.rotary_scale).to(self.embedding_VD.dtype)
        cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def _split(self, mixed: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values: (B, T, (N + 2K) * E) -> (B, heads, T, E) each."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        mixed = mixed.unflatten(2, (heads + 2 * kv_heads, -1)).transpose(1, 2)
        turning = mixed[:, : heads + kv_heads]
        cos, sin = turn
        turned = torch.addcmul(turning * cos, turning.roll(turning.shape[-1] // 2, -1), sin)
        return turned[:, :heads], turned[:, heads:], mixed[:, heads + kv_heads :]

    def _rest(self, layer: Layer, x_ND: Tensor, attended_ND: Tensor) -> Tensor:
        """Output projection and feed-forward block, with their residuals."""
        x_ND = x_ND + linear(attended_ND, layer.out)
        normed = self._norm(x_ND)
        inner = linear(normed, layer.gate, silu=True).mul_(linear(normed, layer.up))
        return x_ND + linear(inner, layer.down)


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
