"""A Llama-shaped decoder that only reads: for scores and continuations, faster than whose weights it takes.

The weights of a megatron-core ``GPTModel`` or of ``transformers``' ``LlamaForCausalLM`` in one lean forward pass:
norms folded into the matrices after them, no autograd, attention over trees of texts, a static cache for generation.
Whoever makes one checks it against the model itself (:func:`analysis.models.agree`).

Shapes: B rows, T tokens, D hidden, N query heads, K key/value heads, E head size, S places of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palimpsest.analysis import threads, tiles, vectors
from palimpsest.pretrain import kernels


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices of one block; each takes the output of the norm before it, whose weight is multiplied in."""

    qkv: Tensor
    """((N + 2K) * E, D): queries, keys, values."""
    out: Tensor
    """(D, N * E)."""
    gate_up: Tensor
    """(2F, D): what SiLU is applied to, and what that is multiplied with."""
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


@dataclass(frozen=True, slots=True)
class Memory:
    """Keys and values of what has been read, by layer."""

    keys: Sequence[Tensor]
    """(B, K, E, S); for :mod:`analysis.vectors` in blocks of places, (B, K, S / BLOCK, E, BLOCK)."""
    values: Sequence[Tensor]
    """(B, K, S, E)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts that are read on: what each has in common with others, and what is its own, which grows."""

    counts: NDArray[np.int64]
    """(R,) tokens that are read now, end to end."""
    memory: Memory
    slots: NDArray[np.int64]
    """(R,) row of ``memory`` in which each has its own."""
    held: NDArray[np.int64]
    """(R,) places that are there."""
    common: Memory
    lines: NDArray[np.int64]
    """(R,) row of ``common`` with which each begins."""
    shared: NDArray[np.int64]
    """(R,) and how many places of it."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """(R + 1,) where the tokens of each begin."""
        return np.concatenate([[0], np.cumsum(self.counts)])


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
        self.embedding_VD, self.head, self.shape = embedding_VD, laid_out(head), shape
        self.depth, self.size = len(layers), int(layers[0].out.shape[1]) // shape.heads
        """Layers, and the size of a head."""
        self.fast = (
            head.device.type == "cpu"
            and head.dtype == torch.float32
            and vectors.covers(shape.heads, shape.kv_heads, self.size)
        )
        """Whether :mod:`analysis.vectors` is for this device, precision and shape."""
        self.layers: list[Layer] = []
        """The layers, unless tiles have them."""
        self.tiles, self.parts = None, tiles.EXACT
        """The layers as the processor's tiles take them, if it has some, and of each float32 the parts they take."""
        matrices = [(one.qkv, one.out, one.gate_up, one.down) for one in layers]
        if self.fast and tiles.AVAILABLE and tiles.Layers.cover(matrices):
            self.tiles = tiles.Layers(matrices, shape.epsilon)
        else:
            self.layers = [Layer(*map(laid_out, one)) for one in matrices]
        self._turns = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    @property
    def quick(self) -> Decoder:
        """The same, but to about 16 bits of each factor where the processor has tiles: faster."""
        found = copy(self)
        found.parts = tiles.QUICK
        return found

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, mask_BTT: Tensor | None = None
    ) -> Tensor:
        """What the output matrix is applied to, (B, T, D).

        Args:
            ids_BT: int64.
            positions_BT: of each token in its text; 0, 1, 2, ... if not given.
            mask_BTT: True where a token (second axis) attends to another (third); causal if not given.
        """
        if mask_BTT is None and positions_BT is None and self.fast:
            rows, count = ids_BT.shape
            none = np.zeros(rows, np.int64)
            memory = self.memory(rows, count, brief=True)
            found = self.extend(
                ids_BT.flatten(),
                Rows(np.full(rows, count), memory, np.arange(rows), none, memory, none, none),
            )
            return found.unflatten(0, ids_BT.shape)
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        mask = None if mask_BTT is None else mask_BTT[:, None]
        turn = self._rotation(positions_BT)

        def attend(_: int, mixed_ND: Tensor) -> Tensor:
            q, k, v = self._split(mixed_ND.unflatten(0, ids_BT.shape), turn)
            attended = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=self.shape.kv_heads != self.shape.heads,
            )
            return attended.transpose(1, 2).flatten(0, 1).flatten(1)

        return self._read(ids_BT.flatten(), attend).unflatten(0, ids_BT.shape)

    def memory(self, rows: int, places: int, *, brief: bool = False) -> Memory:
        """Room for ``rows`` texts of at most ``places`` tokens; ``brief``: each layer overwrites the one before.

        What is ``brief`` is the thread's own, and gone when it asks for more of the kind.
        """
        blocks = -(-places // vectors.BLOCK)
        heads, size, places = (rows, self.shape.kv_heads), self.size, blocks * vectors.BLOCK
        # What is not held is never read by the fast way, and weighed with 0 by the other.
        new = self.embedding_VD.new_empty if self.fast else self.embedding_VD.new_zeros
        of_keys: tuple[int, ...] = (*heads, blocks, size, vectors.BLOCK)
        of_values = *heads, places, size
        if self.fast and brief:
            key, value = (
                torch.from_numpy(threads.space(name, *shape))
                for name, shape in (("keys", of_keys), ("values", of_values))
            )
            return Memory([key] * self.depth, [value] * self.depth)
        if not self.fast:
            of_keys = *heads, size, places
        layers = range(self.depth)
        return Memory([new(*of_keys) for _ in layers], [new(*of_values) for _ in layers])

    def extend(self, ids_N: Tensor, rows: Rows) -> Tensor:
        """Read more tokens of several texts, each after those that are there, and keep their keys and values.

        Args:
            ids_N: int64, row after row.
            rows: the texts; what lies in their memory behind what is held is written over.

        Returns:
            What the output matrix is applied to, (N, D).
        """
        starts = rows.starts
        longest = int((rows.shared + rows.held + rows.counts).max())
        if not self.fast:
            turn = self._rotation(torch.arange(longest, device=ids_N.device))
            return self._read(ids_N, self._plainly(rows, starts, turn))
        cos, sin = self._turns  # other threads may put longer ones there
        if len(cos) < longest:
            turns = self._rotation(torch.arange(2 * longest))
            half = self.size // 2
            cos, sin = self._turns = turns[0][:, :half].numpy().copy(), turns[1][:, half:].numpy().copy()
        to = threads.space("attended", _padded(len(ids_N)), self.shape.heads * self.size)
        to[len(ids_N) :] = 0

        def attend(number: int, mixed: Tensor) -> Tensor:
            keys, values = rows.memory.keys[number].numpy(), rows.memory.values[number].numpy()
            vectors.attend(
                mixed.numpy(),
                cos,
                sin,
                starts,
                rows.common.keys[number].numpy(),
                rows.common.values[number].numpy(),
                rows.lines,
                rows.shared,
                keys,
                values,
                rows.slots,
                rows.held,
                to,
            )
            return torch.from_numpy(to)

        return self._read(ids_N, attend)

    def _plainly(
        self, rows: Rows, starts: NDArray[np.int64], turn: tuple[Tensor, Tensor]
    ) -> Callable[[int, Tensor], Tensor]:
        """Attention for :meth:`extend` by PyTorch, rows padded to the longest."""
        device, most = self.device, int(rows.counts.max())

        def given(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array).to(device)

        row = given(np.repeat(np.arange(len(rows.counts)), rows.counts))
        step = given(np.arange(starts[-1]) - np.repeat(starts[:-1], rows.counts))
        slots, lines, held, shared = (given(one) for one in (rows.slots, rows.lines, rows.held, rows.shared))
        place = held[row] + step
        cos, sin = (one[shared[row] + place][:, None, None] for one in turn)
        width = int((rows.held + rows.counts).max())
        before = int(rows.shared.max())
        seen = torch.cat(
            [
                (torch.arange(before, device=device) < shared[:, None])[:, None].expand(-1, most, -1),
                torch.arange(width, device=device)
                <= (held[:, None] + torch.arange(most, device=device))[..., None],
            ],
            2,
        )
        group = self.shape.heads // self.shape.kv_heads

        def attend(number: int, mixed_ND: Tensor) -> Tensor:
            q, k, v = self._split(mixed_ND[:, None], (cos, sin))
            keys, values = rows.memory.keys[number], rows.memory.values[number]
            keys[slots[row], :, :, place] = k[:, :, 0]
            values[slots[row], :, place] = v[:, :, 0]
            q_RTNE = q.new_zeros(len(slots), most, self.shape.heads, self.size)
            q_RTNE[row, step] = q[:, :, 0]
            all_k = torch.cat([rows.common.keys[number][lines][..., :before], keys[slots][..., :width]], 3)
            all_v = torch.cat(
                [rows.common.values[number][lines][:, :, :before], values[slots][:, :, :width]], 2
            )
            q_RKME = q_RTNE.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
            scores = (q_RKME @ all_k * self.size**-0.5).unflatten(2, (group, most))
            weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
            found = (weights.flatten(2, 3) @ all_v).unflatten(2, (group, most))
            return found.permute(0, 3, 1, 2, 4)[row, step].flatten(1)

        return attend

    def _read(self, ids_N: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """What the output matrix is applied to, (N, D).

        Args:
            ids_N: int64.
            attend: number of the layer, queries, keys and values (N, (H + 2K) * E) -> (at least N, H * E).
        """
        if self.tiles is not None:
            return self.tiles.read(self.embedding_VD[ids_N], attend, self.parts)
        tokens = len(ids_N)
        x_ND = self.embedding_VD[functional.pad(ids_N, (0, _padded(tokens) - tokens))]
        x_ND, normed_ND = self._add_and_norm(x_ND, None)
        for number, layer in enumerate(self.layers):
            attended_ND = attend(number, linear(normed_ND, layer.qkv)[:tokens])
            if more := len(x_ND) - len(attended_ND):
                attended_ND = functional.pad(attended_ND, (0, 0, 0, more))
            x_ND, normed_ND = self._add_and_norm(x_ND, linear(attended_ND, layer.out))
            inner_NF = self._swiglu(linear(normed_ND, layer.gate_up))
            x_ND, normed_ND = self._add_and_norm(x_ND, linear(inner_NF, layer.down))
        return normed_ND[:tokens]

    def _add_and_norm(self, x_ND: Tensor, more_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum, and its RMSNorm without a weight."""
        if self.fast:
            to = torch.empty_like(x_ND)
            more = None if more_ND is None else more_ND.numpy()
            vectors.add_and_norm(x_ND.numpy(), more, self.shape.epsilon, to.numpy())
            return x_ND, to
        if more_ND is not None:
            x_ND = x_ND + more_ND
        return x_ND, functional.rms_norm(x_ND, x_ND.shape[-1:], None, self.shape.epsilon)

    def _swiglu(self, x_NF: Tensor) -> Tensor:
        if self.fast:
            to = x_NF.new_empty(len(x_NF), x_NF.shape[1] // 2)
            vectors.swiglu(x_NF.numpy(), to.numpy())
            return to
        gate, up = x_NF.chunk(2, -1)
        return functional.silu(gate).mul_(up)

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


def laid_out(weight: Tensor) -> Tensor:
    """The same matrix, (F, D), on CPUs with its columns end to end: oneDNN need not turn it each time."""
    return weight.T.contiguous().T if weight.device.type == "cpu" else weight


def _padded(tokens: int) -> int:
    """So many tokens, and a few more: one of few numbers, for oneDNN compiles a kernel for each that it meets."""
    few = max(8, 1 << max(0, tokens.bit_length() - 6))
    return -(-tokens // few) * few


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in the precision of both, by whichever library is faster.

    On CPUs not made by Intel that is oneDNN for float32: see :func:`pretrain.kernels.onednn_linear`.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or kernels.INTEL or not kernels.ONEDNN:
        return functional.linear(x, weight)
    return kernels.onednn_linear(x, weight)


class Output:
    """The output matrix, (V, D), by tiles where the processor has them.

    Args:
        weight_VD: float32.
    """

    def __init__(self, weight_VD: Tensor) -> None:
        self.size = len(weight_VD)
        """V."""
        by_tiles = tiles.AVAILABLE and tiles.covers(weight_VD)
        self.weight = tiles.packed(weight_VD) if by_tiles else laid_out(weight_VD)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, V), float32."""
        if isinstance(self.weight, tiles.Packed):
            return tiles.product(hidden_ND, self.weight)
        return linear(hidden_ND, self.weight)

    def largest(self, hidden_ND: Tensor) -> Tensor:
        """The first place of the largest logit of each row, (N,) int64; by tiles, to about 16 bits."""
        if isinstance(self.weight, tiles.Packed):
            return tiles.largest(hidden_ND, self.weight)
        return largest(linear(hidden_ND, self.weight))


def largest(logits_NV: Tensor) -> Tensor:
    """The first place of the largest logit of each row, (N,) int64."""
    if logits_NV.device.type != "cpu" or logits_NV.dtype != torch.float32:
        return logits_NV.argmax(-1)
    found = np.empty(len(logits_NV), np.int64)
    vectors.largest(logits_NV.numpy(), found)
    return torch.from_numpy(found)


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
            Layer(_fold(torch.cat([q, k, v]), before), out, _fold(torch.cat([gate, up]), between), down)
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
        layers.append(
            Layer(
                _fold(torch.cat(parts), before),
                _take(left, f"{at}self_attention.linear_proj.weight"),
                _fold(_take(left, f"{at}mlp.linear_fc1.weight"), between),
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
