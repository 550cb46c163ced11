"""A decoder's products by the tile registers (AMX) of newer Intel processors: bfloat16, many times as fast as float32.

A float32 is the sum of three bfloat16. Six products of such parts, added up in float32, are as exact as a product in
float32 and faster (``EXACT``: for scores); three products of two parts are so to about 16 bits of each factor, ten
times float32's error and far less than what decides most argmaxes (``QUICK``: for what is generated).

What a product is for is done while it is still in cache: activations, sums, norms, the largest logit. Only four of the
eight tiles are used: where another tenant of the core uses tiles as well, the fewer are in use the faster they load.

Shapes: N tokens, D in, F out, P parts. A tile is 16 lines of 64 bytes.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palimpsest.analysis import threads
from palimpsest.analysis.vectors import (
    EXP,
    LANES,
    LEAST,
    LN2,
    LOG2_E,
    Floats,
    Ints,
    by_number,
    compiled,
    load,
    pointer,
    scale,
    store,
)

Halves = NDArray[np.uint16]
"""Bit patterns of bfloat16."""

SIDE = 16
"""Lines of a tile: tokens, or outputs."""
STEP = 32
"""bfloat16 of a line: inputs that are multiplied at once."""
TILE = SIDE * STEP
PARTS = EXACT = 3
"""Of a float32, the largest first."""
QUICK = 2
"""So many of them are used where 16 bits do."""
ROWS = 256
"""Tokens at once: their parts stay in cache while the weights pass by."""

_STORE, _ADD, _GATE, _BEST = range(4)
"""What is done with a product."""
_REQUEST, _TILES = (158, 0x1023), 18
"""Linux' arch_prctl(ARCH_REQ_XCOMP_PERM), and the registers that a process asks for."""
_BYTE, _SHORT, _WORD, _INDEX = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT = ir.FloatType()
_f32: Any = np.float32
_u64: Any = np.uint64


def _available() -> bool:
    """Whether the processor has these registers, LLVM compiles for it, and the kernel lets this process use them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES or numba.config.DISABLE_JIT:
        return False
    if not numba.config.ENABLE_AVX:
        return False
    features = binding.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-bf16") and features.get("avx512f")):
        return False
    return bool(ctypes.CDLL(None).syscall(*_REQUEST, _TILES) == 0)


AVAILABLE = _available()


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight matrix, (F, D), as tiles."""

    blocks: Halves
    """(F / 32 * D / 32 * P * 1024,): by 32 outputs, 32 inputs, part and half of the outputs, a tile whose lines are
    pairs of inputs of 16 outputs; F filled up with the last output again, which never is the only largest."""
    outputs: int
    """F."""


def covers(weight: Tensor) -> bool:
    """Whether :func:`packed` takes this matrix."""
    kind = weight.dtype, weight.device.type
    return kind == (torch.float32, "cpu") and not weight.shape[1] % STEP


def packed(weight_FD: Tensor) -> Packed:
    """A matrix as :func:`product` takes it."""
    outputs, inputs = weight_FD.shape
    rest = torch.cat([weight_FD, weight_FD[-1:].expand(-outputs % (2 * SIDE), -1)])
    parts = []
    for _ in range(PARTS):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    tiles = torch.stack(parts).view(PARTS, -1, 2, SIDE, inputs // STEP, STEP // 2, 2)
    blocks = tiles.permute(1, 4, 0, 2, 5, 3, 6).flatten()
    return Packed(blocks.view(torch.int16).numpy().view(np.uint16), outputs)


def product(x_ND: Tensor, weight: Packed, parts: int = EXACT) -> Tensor:
    """``x @ weight.T``, float32.

    Args:
        x_ND: float32.
        weight: the matrix.
        parts: ``EXACT``, as exact as float32; ``QUICK``, to about 2^-16 of the product of the two lengths.
    """
    tokens, inputs = x_ND.shape
    x = _filled(x_ND)
    to = torch.empty(len(x), len(weight.blocks) // (PARTS * inputs))
    _product(x.numpy(), weight.blocks, _room("parts", inputs), _scratch(), parts, to.numpy())
    return to[:tokens, : weight.outputs].contiguous()


def largest(x_ND: Tensor, weight: Packed) -> Tensor:
    """The first place of the largest of ``x @ weight.T``, (N,) int64, by ``QUICK`` products."""
    x = _filled(x_ND)
    to = np.empty(len(x), np.int64)
    lanes = ROWS * 2 * SIDE
    best, where = np.empty(lanes, np.float32), np.empty(lanes, np.int32)
    _largest(
        x.numpy(), weight.blocks, weight.outputs, _room("parts", x.shape[1]), _scratch(), best, where, to
    )
    return torch.from_numpy(to[: len(x_ND)])


class Layers:
    """The layers of a decoder.

    Args:
        layers: of each the matrices ``qkv``, ``out``, ``gate_up`` and ``down`` of :class:`analysis.decoder.Layer`.
        epsilon: of the RMSNorms, whose weights are in the matrices.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], epsilon: float) -> None:
        self.epsilon, self.inner, self.wide = epsilon, int(layers[0][3].shape[1]), int(layers[0][0].shape[0])
        """Width of the activations, and of queries, keys and values."""
        self.packed = [
            [packed(one).blocks for one in (qkv, out, _paired(both), down)] for qkv, out, both, down in layers
        ]

    @staticmethod
    def cover(layers: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> bool:
        """Whether these are matrices for tiles."""
        return all(covers(one) and not one.shape[0] % (2 * SIDE) for layer in layers for one in layer)

    def read(self, x_ND: Tensor, attend: Callable[[int, Tensor], Tensor], parts: int) -> Tensor:
        """What the output matrix is applied to, (N, D).

        Args:
            x_ND: embeddings, float32.
            attend: number of the layer, queries, keys and values (N, (H + 2K) * E) -> (at least N, H * E).
            parts: as for :func:`product`.
        """
        (tokens, width), lines = x_ND.shape, len(x_ND) + -len(x_ND) % SIDE
        x, mixed = threads.space("sums", lines, width), threads.space("mixed", lines, self.wide)
        x[:tokens], x[tokens:] = x_ND.numpy(), 0
        hidden = torch.empty(lines, width)
        heads = self.packed[0][1].size // (PARTS * width)
        rooms = _room("parts", max(width, heads)), _room("inner", self.inner), _scratch()
        _begin_layers(x, self.epsilon, self.packed[0][0], *rooms, parts, mixed)
        for number, (_, out, gate_up, down) in enumerate(self.packed):
            attended = _filled(attend(number, torch.from_numpy(mixed[:tokens]))).numpy()
            last = number + 1 == len(self.packed)
            after, to = (out[:0], hidden.numpy()) if last else (self.packed[number + 1][0], mixed)
            _between_layers(attended, x, self.epsilon, out, gate_up, down, after, *rooms, parts, to)
        return hidden[:tokens]


def _paired(gate_up: Tensor) -> Tensor:
    """(2F, D), gates before what they are multiplied with, as 16 of these, 16 of those, and so on."""
    return gate_up.unflatten(0, (2, -1, SIDE)).transpose(0, 1).flatten(0, 2)


def _filled(x_ND: Tensor) -> Tensor:
    """Contiguous, filled up with lines of zeros to whole tiles."""
    more = -len(x_ND) % SIDE
    return functional.pad(x_ND, (0, 0, 0, more)) if more else x_ND.contiguous()


def _room(name: str, inputs: int) -> Halves:
    """For the parts of ``ROWS`` tokens."""
    return threads.space(name, ROWS * inputs * PARTS // 2).view(np.uint16)


def _scratch() -> Floats:
    """For a token's tile of 16 and of 16 more outputs."""
    return threads.space("tiles", 2 * SIDE * SIDE)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [one.type for one in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


@intrinsic  # type: ignore[untyped-decorator]
def _begin(_: Any) -> Any:
    """Eight tiles, each whole."""

    def build(context: Any, builder: Any, _: Any, __: Any) -> Any:
        # Palette 1; from byte 16 on the bytes of a line, 16 bits each; from byte 48 on the lines.
        form = bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])
        kind = ir.ArrayType(_BYTE, len(form))
        place = cgutils.global_constant(builder.module, "tiles", ir.Constant(kind, bytearray(form)))
        _call(builder, "ldtilecfg", builder.bitcast(place, _BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(), build


@intrinsic  # type: ignore[untyped-decorator]
def _end(_: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, __: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), build


def _all_of(kind: Any, number: float) -> Any:
    return ir.Constant(ir.VectorType(kind, LANES), [number] * LANES)


def _put_parts(builder: Any, rest: Any, into: Any, count: int) -> None:
    """The first parts of a vector, a tile apart."""
    words, shorts = (ir.VectorType(one, LANES) for one in (_WORD, _SHORT))
    # Of what is not a number, the one that rounding leaves so.
    rest = builder.select(builder.fcmp_unordered("uno", rest, rest), _all_of(_FLOAT, float("nan")), rest)
    for part in range(count):
        bits = builder.bitcast(rest, words)
        odd = builder.and_(builder.lshr(bits, _all_of(_WORD, 16)), _all_of(_WORD, 1))
        nearest = builder.add(builder.add(bits, _all_of(_WORD, 0x7FFF)), odd)  # ties to even
        high = builder.lshr(nearest, _all_of(_WORD, 16))
        at = builder.gep(into, [ir.Constant(_INDEX, part * TILE)])
        builder.store(builder.trunc(high, shorts), builder.bitcast(at, shorts.as_pointer())).align = 2
        if part + 1 < count:
            rest = builder.fsub(
                rest, builder.bitcast(builder.shl(high, _all_of(_WORD, 16)), _all_of(_FLOAT, 0).type)
            )


@intrinsic  # type: ignore[untyped-decorator]
def _split(_: Any, x: Any, xa: Any, factor: Any, to: Any, ta: Any, parts: Any) -> Any:
    """Of ``LANES`` numbers from ``x[xa]`` on, times ``factor``, the parts: ``to[ta]`` and on, a tile apart."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source, into = (pointer(context, builder, signature.args[n], given[n], given[n + 1]) for n in (0, 3))
        nothing = ir.Constant(_all_of(_FLOAT, 0).type, ir.Undefined)
        one = builder.insert_element(nothing, given[2], ir.Constant(_WORD, 0))
        product = builder.fmul(load(builder, source), builder.shuffle_vector(one, nothing, _all_of(_WORD, 0)))
        by_number(builder, given[5], (QUICK, EXACT), lambda count: _put_parts(builder, product, into, count))
        return context.get_dummy_value()

    return types.void(x, xa, factor, to, ta, parts), build


def _silu(builder: Any, x: Any) -> Any:
    """x / (1 + exp(-x)), or the same by exp(x) where x < 0, of a vector: see :func:`analysis.vectors.exp`."""
    one, fused = _all_of(_FLOAT, 1), {"flags": ("contract",)}

    def call(name: str, *given: Any) -> Any:
        kind = ir.FunctionType(x.type, [x.type] * len(given))
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v16f32"), given
        )

    positive = builder.fcmp_ordered(">", x, _all_of(_FLOAT, 0))
    negative = builder.select(positive, builder.fsub(_all_of(_FLOAT, -0.0), x), x)
    low = call("maxnum", negative, _all_of(_FLOAT, LEAST))
    whole = call(
        "floor",
        builder.fadd(builder.fmul(low, _all_of(_FLOAT, LOG2_E), **fused), _all_of(_FLOAT, 0.5), **fused),
    )
    rest = low
    for part in LN2:
        rest = builder.fsub(rest, builder.fmul(whole, _all_of(_FLOAT, part), **fused), **fused)
    p = _all_of(_FLOAT, EXP[0])
    for factor in EXP[1:]:
        p = builder.fadd(builder.fmul(p, rest, **fused), _all_of(_FLOAT, factor), **fused)
    p = builder.fadd(builder.fmul(p, builder.fmul(rest, rest), **fused), rest, **fused)
    power = builder.add(builder.fptosi(whole, _all_of(_WORD, 0).type), _all_of(_WORD, 127))
    scale = builder.bitcast(builder.shl(power, _all_of(_WORD, 23)), x.type)
    e = builder.fmul(builder.fadd(p, one), scale)
    total = builder.fadd(one, e)
    mask = ir.IntType(LANES)
    kind = ir.FunctionType(x.type, [x.type, x.type, mask])
    # 1 / total to 14 bits, and to all by a step of Newton's: a division takes longer.
    near = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.rcp14.ps.512")
    guess = builder.call(near, [total, one, ir.Constant(mask, -1)])
    wrong = builder.fsub(one, builder.fmul(total, guess, **fused), **fused)
    inverse = builder.fadd(builder.fmul(guess, wrong, **fused), guess, **fused)
    return builder.fmul(builder.fmul(x, builder.select(positive, one, e)), inverse)


@intrinsic  # type: ignore[untyped-decorator]
def _gated(_: Any, x: Any, to: Any, ta: Any, parts: Any) -> Any:
    """SiLU of one tile of outputs times the next tile, ``x``; the parts to half the lines of tiles, ``to[ta]``."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        gates = pointer(context, builder, signature.args[0], given[0], ir.Constant(_INDEX, 0))
        into = pointer(context, builder, signature.args[1], given[1], given[2])

        def of(count: int) -> None:
            with cgutils.for_range(builder, ir.Constant(_INDEX, SIDE), intp=_INDEX) as loop:
                gate = builder.gep(gates, [builder.mul(loop.index, ir.Constant(_INDEX, SIDE))])
                up = builder.gep(gate, [ir.Constant(_INDEX, SIDE * SIDE)])
                line = builder.gep(into, [builder.mul(loop.index, ir.Constant(_INDEX, STEP))])
                product = builder.fmul(_silu(builder, load(builder, gate)), load(builder, up))
                _put_parts(builder, product, line, count)

        by_number(builder, given[3], (QUICK, EXACT), of)
        return context.get_dummy_value()

    return types.void(x, to, ta, parts), build


@intrinsic  # type: ignore[untyped-decorator]
def _added(_: Any, x: Any, to: Any, ta: Any, ts: Any) -> Any:
    """Add two tiles of outputs, ``x``, to lines of ``to``: ``to[ta + n * ts]`` and on."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        totals = pointer(context, builder, signature.args[0], given[0], ir.Constant(_INDEX, 0))
        into = pointer(context, builder, signature.args[1], given[1], given[2])
        with cgutils.for_range(builder, ir.Constant(_INDEX, SIDE), intp=_INDEX) as loop:
            for half in range(2):
                past = builder.mul(loop.index, ir.Constant(_INDEX, SIDE))
                total = builder.gep(totals, [builder.add(past, ir.Constant(_INDEX, half * SIDE * SIDE))])
                past = builder.mul(loop.index, given[3])
                line = builder.gep(into, [builder.add(past, ir.Constant(_INDEX, half * SIDE))])
                store(builder, builder.fadd(load(builder, line), load(builder, total)), line)
        return context.get_dummy_value()

    return types.void(x, to, ta, ts), build


@intrinsic  # type: ignore[untyped-decorator]
def _best(_: Any, x: Any, best: Any, where: Any, at: Any, f: Any) -> Any:
    """Of two tiles of outputs, ``x``, and ``best[at]`` and on the larger; ``f`` to ``where`` for those of ``x``."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        new = pointer(context, builder, signature.args[0], given[0], ir.Constant(_INDEX, 0))
        old, places = (pointer(context, builder, signature.args[n], given[n], given[3]) for n in (1, 2))
        words = _all_of(_WORD, 0).type
        nothing = ir.Constant(words, ir.Undefined)
        one = builder.insert_element(nothing, builder.trunc(given[4], _WORD), ir.Constant(_WORD, 0))
        here = builder.shuffle_vector(one, nothing, _all_of(_WORD, 0))
        with cgutils.for_range(builder, ir.Constant(_INDEX, 2 * SIDE), intp=_INDEX) as loop:
            past = [builder.mul(loop.index, ir.Constant(_INDEX, LANES))]
            mine, theirs = load(builder, builder.gep(new, past)), load(builder, builder.gep(old, past))
            larger = builder.fcmp_ordered(">", mine, theirs)
            store(builder, builder.select(larger, mine, theirs), builder.gep(old, past))
            place = builder.bitcast(builder.gep(places, past), words.as_pointer())
            was = builder.load(place)
            was.align = 4
            builder.store(builder.select(larger, here, was), place).align = 4
        return context.get_dummy_value()

    return types.void(x, best, where, at, f), build


def _order(parts: int) -> Iterator[tuple[int, int, int]]:
    """Part of x, part of the weight and half of the outputs of each product.

    The small ones come first; of the factors of two neighbours one is the same, and stays.
    """
    half = 0
    for of_x in reversed(range(parts)):
        for of_w in range(parts - of_x):
            yield of_x, of_w, half
        half = 1 - half
        for of_w in reversed(range(parts - of_x)):
            yield of_x, of_w, half


@intrinsic  # type: ignore[untyped-decorator]
def _block(
    _: Any, x: Any, xa: Any, w: Any, wa: Any, count: Any, parts: Any, to: Any, ta: Any, ts: Any, other: Any
) -> Any:
    """16 tokens times twice 16 outputs, summed over ``count`` times 32 inputs.

    To ``to[ta + n * ts + f]``, and those of the other 16 outputs ``other`` further on.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        from_x, from_w, into = (
            builder.bitcast(
                pointer(context, builder, signature.args[n], given[n], given[n + 1]), _BYTE.as_pointer()
            )
            for n in (0, 2, 6)
        )
        line, of_tile = ir.Constant(_INDEX, 64), 2 * TILE
        *totals, tile_x, tile_w = (ir.Constant(_BYTE, n) for n in range(4))

        def of(count: int) -> None:
            for total in totals:
                _call(builder, "tilezero", total)
            with cgutils.for_range(builder, given[4], intp=_INDEX) as loop:

                def fetch(tile: Any, start: Any, tiles: int, place: int) -> None:
                    past = builder.mul(loop.index, ir.Constant(_INDEX, tiles * of_tile))
                    at = builder.gep(start, [builder.add(past, ir.Constant(_INDEX, place * of_tile))])
                    _call(builder, "tileloadd64", tile, at, line)

                loaded_x, loaded_w = -1, (-1, -1)
                for of_x, of_w, half in _order(count):
                    if loaded_x != of_x:
                        fetch(tile_x, from_x, PARTS, of_x)
                    if loaded_w != (of_w, half):
                        fetch(tile_w, from_w, 2 * PARTS, 2 * of_w + half)
                    loaded_x, loaded_w = of_x, (of_w, half)
                    _call(builder, "tdpbf16ps", totals[half], tile_x, tile_w)

        by_number(builder, given[5], (QUICK, EXACT), of)
        stride = builder.mul(given[8], ir.Constant(_INDEX, 4))
        further = builder.gep(into, [builder.mul(given[9], ir.Constant(_INDEX, 4))])
        for total, start in zip(totals, (into, further), strict=True):
            _call(builder, "tilestored64", total, start, stride)
        return context.get_dummy_value()

    return types.void(x, xa, w, wa, count, parts, to, ta, ts, other), build


@compiled
def _put(x: Floats, first: int, rows: int, width: int, epsilon: float, room: Halves, parts: int) -> None:
    """The parts of rows of ``x``; over the root of their mean square + epsilon, unless that is negative."""
    for n in range(_u64(0), rows):
        at, factor = (first + n) * width, _f32(1)
        if epsilon >= 0:
            factor = scale(x[at : at + width], epsilon)
        to = n // _u64(SIDE) * _u64(SIDE) * width * _u64(PARTS) + n % _u64(SIDE) * _u64(STEP)
        for d in range(_u64(0), width, _u64(LANES)):
            step = d // _u64(STEP) * _u64(PARTS * TILE) + d % _u64(STEP)
            _split(x, at + d, factor, room, to + step, parts)


@compiled
def _multiply(
    task: int,
    room: Halves,
    rows: int,
    width: int,
    blocks: Halves,
    parts: int,
    scratch: Floats,
    into: Floats,
    first: int,
    inner: Halves,
    best: Floats,
    where: NDArray[np.int32],
) -> None:
    """Multiply what :func:`_put` has put into ``room``, and go on with it.

    Args:
        task: ``_STORE``: to rows of ``into`` from ``first`` on; ``_ADD``: add it there; ``_GATE``: SiLU of 16 outputs
            times the next 16, the parts of that into ``inner``; ``_BEST``: of each 32nd output the largest to
            ``best``, (rows / 16, 2, 16, 16), and the block of outputs it is in to ``where``.
        room: parts of ``rows`` times ``width`` inputs.
        rows: whole tiles of tokens.
        width: inputs.
        blocks: the weights, :attr:`Packed.blocks`.
        parts: that are used.
        scratch: for 16 times 32 outputs.
        into: flat.
        first: row of ``into``.
        inner: for the parts of ``rows`` times half as many outputs.
        best: flat.
        where: flat.
    """
    wide, length = width // _u64(STEP), width * _u64(PARTS * SIDE)
    count = _u64(len(blocks)) // (_u64(2) * length)
    outputs, side, both = count * _u64(2 * SIDE), _u64(SIDE), _u64(2 * SIDE)
    _begin()
    for f in range(_u64(0), count):
        for n in range(_u64(0), rows, side):
            from_x, from_w = n // side * length, f * _u64(2) * length
            if task == _STORE:
                place = (first + n) * outputs + f * both
                _block(room, from_x, blocks, from_w, wide, parts, into, place, outputs, side)
                continue
            _block(room, from_x, blocks, from_w, wide, parts, scratch, _u64(0), side, side * side)
            if task == _ADD:
                _added(scratch, into, (first + n) * outputs + f * both, outputs)
            elif task == _GATE:
                to = (n // side * (outputs // _u64(2 * STEP)) + f // _u64(2)) * _u64(PARTS * TILE)
                _gated(scratch, inner, to + f % _u64(2) * side, parts)
            else:
                _best(scratch, best, where, n * both, f)
    _end()


@compiled
def _product(x: Floats, blocks: Halves, room: Halves, scratch: Floats, parts: int, to: Floats) -> None:
    """(N, D), N filled up to whole tiles, and weights of F outputs, filled up -> (N, F)."""
    width, from_x, into = _u64(x.shape[1]), x.reshape(-1), to.reshape(-1)
    none = np.empty(0, np.int32)
    for first in range(_u64(0), _u64(len(x)), _u64(ROWS)):
        rows = min(_u64(ROWS), _u64(len(x)) - first)
        _put(from_x, first, rows, width, -1.0, room, parts)
        _multiply(_STORE, room, rows, width, blocks, parts, scratch, into, first, room, scratch, none)


@compiled
def _largest(
    x: Floats,
    blocks: Halves,
    outputs: int,
    room: Halves,
    scratch: Floats,
    best: Floats,
    where: NDArray[np.int32],
    to: Ints,
) -> None:
    """(N, D), N filled up to whole tiles -> (N,)."""
    width, from_x, lanes = _u64(x.shape[1]), x.reshape(-1), 2 * SIDE
    for first in range(_u64(0), _u64(len(x)), _u64(ROWS)):
        rows = min(_u64(ROWS), _u64(len(x)) - first)
        _put(from_x, first, rows, width, -1.0, room, QUICK)
        best[:] = -np.inf
        where[:] = 0
        _multiply(_BEST, room, rows, width, blocks, QUICK, scratch, scratch, first, room, best, where)
        for n in range(rows):
            found, most = outputs, _f32(-np.inf)
            for lane in range(lanes):
                at = ((n // _u64(SIDE) * 2 + lane // SIDE) * SIDE + n % _u64(SIDE)) * SIDE + lane % SIDE
                output, value = where[at] * lanes + lane, best[at]
                if output < outputs and (value > most or (value == most and output < found)):
                    found, most = output, value
            to[first + n] = found if found < outputs else 0


@compiled
def _begin_layers(
    x: Floats,
    epsilon: float,
    qkv: Halves,
    room: Halves,
    inner: Halves,
    scratch: Floats,
    parts: int,
    mixed: Floats,
) -> None:
    """Queries, keys and values of the first layer: (N, D) -> (N, (H + 2K) * E)."""
    width, from_x, into = _u64(x.shape[1]), x.reshape(-1), mixed.reshape(-1)
    none = np.empty(0, np.int32)
    for first in range(_u64(0), _u64(len(x)), _u64(ROWS)):
        rows = min(_u64(ROWS), _u64(len(x)) - first)
        _put(from_x, first, rows, width, epsilon, room, parts)
        _multiply(_STORE, room, rows, width, qkv, parts, scratch, into, first, inner, scratch, none)


@compiled
def _between_layers(
    attended: Floats,
    x: Floats,
    epsilon: float,
    out: Halves,
    gate_up: Halves,
    down: Halves,
    qkv: Halves,
    room: Halves,
    inner: Halves,
    scratch: Floats,
    parts: int,
    to: Floats,
) -> None:
    """From one layer's attention to what the next one's needs, or, without its ``qkv``, to the last norm.

    Args:
        attended: (N, H * E).
        x: (N, D), the sum of all layers' outputs, which grows.
        epsilon: of the norms.
        out: weights, as the next three.
        gate_up: see :func:`_paired`.
        down: (D, F).
        qkv: of the next layer; empty after the last.
        room: for parts of ``ROWS`` tokens.
        inner: likewise, of F inputs.
        scratch: for 16 times 32 outputs.
        parts: of each float32 that are used.
        to: (N, (H + 2K) * E) or, after the last, (N, D).
    """
    width, read, wide = _u64(x.shape[1]), _u64(attended.shape[1]), _u64(len(down)) // _u64(PARTS * x.shape[1])
    of_x, of_attended, into = x.reshape(-1), attended.reshape(-1), to.reshape(-1)
    none = np.empty(0, np.int32)
    for first in range(_u64(0), _u64(len(x)), _u64(ROWS)):
        rows = min(_u64(ROWS), _u64(len(x)) - first)
        _put(of_attended, first, rows, read, -1.0, room, parts)
        _multiply(_ADD, room, rows, read, out, parts, scratch, of_x, first, inner, scratch, none)
        _put(of_x, first, rows, width, epsilon, room, parts)
        _multiply(_GATE, room, rows, width, gate_up, parts, scratch, of_x, first, inner, scratch, none)
        _multiply(_ADD, inner, rows, wide, down, parts, scratch, of_x, first, inner, scratch, none)
        if len(qkv):
            _put(of_x, first, rows, width, epsilon, room, parts)
            _multiply(_STORE, room, rows, width, qkv, parts, scratch, into, first, inner, scratch, none)
        else:
            for n in range(first, first + rows):
                factor = scale(of_x[n * width : (n + _u64(1)) * width], epsilon)
                for d in range(n * width, n * width + width):
                    into[d] = of_x[d] * factor
