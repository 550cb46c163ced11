"""Products of matrices by the tile registers (AMX) of newer Intel processors: bfloat16, many times as fast as float32.

A float32 is the sum of two bfloat16 but for 2^-17 of it, so three products of bfloat16, added up in float32, are a
product to about 16 bits of each factor (the fourth, of the two small parts, is below what is left out anyway). That is
ten times float32's error and far less than what decides an argmax: it is for continuations. Scores are float32's.

Shapes: N tokens, D in, F out. A tile is 16 lines of 64 bytes.
"""

from __future__ import annotations

import ctypes
import platform
import sys
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

from analysis.vectors import LANES, Floats, compiled, pointer

Halves = NDArray[np.uint16]
"""Bit patterns of bfloat16."""

SIDE = 32
"""Tokens, inputs and outputs of a block: two tiles of each matrix side by side."""
PARTS = 2
"""Of a float32, the larger first."""
TILE = 512
"""bfloat16 of a tile."""
BLOCK = PARTS * 2 * TILE
"""Of ``SIDE`` tokens or outputs and as many inputs: the larger parts of the first and last 16, then the smaller."""
ROWS = 256
"""Tokens at once: their parts stay in cache while the weights pass by."""

_REQUEST, _TILES = (158, 0x1023), 18
"""Linux' arch_prctl(ARCH_REQ_XCOMP_PERM), and the registers that a process asks for."""
_BYTE, _SHORT, _WORD, _INDEX = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_u64: Any = np.uint64


def _available() -> bool:
    """Whether the processor has these registers, LLVM compiles for it, and the kernel lets this process use them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES or numba.config.DISABLE_JIT:
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
    """(F / 32, D / 32, part, half, 16, 16, 2): pairs of inputs of 16 outputs are a line; F filled up with zeros."""
    outputs: int
    """F."""


def covers(weight: Tensor) -> bool:
    """Whether :func:`packed` takes this matrix."""
    kind = weight.dtype, weight.device.type
    return kind == (torch.float32, "cpu") and not weight.shape[1] % SIDE


def packed(weight_FD: Tensor) -> Packed:
    """A matrix as :func:`product` takes it."""
    outputs, inputs = weight_FD.shape
    rest = functional.pad(weight_FD, (0, 0, 0, -outputs % SIDE))
    parts = []
    for _ in range(PARTS):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    blocks = torch.stack(parts).view(PARTS, -1, 2, 16, inputs // SIDE, 16, 2).permute(1, 4, 0, 2, 5, 3, 6)
    return Packed(blocks.contiguous().view(torch.int16).numpy().view(np.uint16), outputs)


def product(x_ND: Tensor, weight: Packed) -> Tensor:
    """``x @ weight.T``, float32, to about 2^-16 of the product of their lengths."""
    tokens, inputs = x_ND.shape
    # PyTorch begins tensors where lines of the cache begin, as tiles should.
    room = torch.empty(ROWS // SIDE * inputs // SIDE * BLOCK, dtype=torch.int16).numpy().view(np.uint16)
    to = torch.empty(-(-tokens // SIDE) * SIDE, len(weight.blocks) * SIDE)
    _product(x_ND.contiguous().numpy(), weight.blocks, room, to.numpy())
    return to[:tokens, : weight.outputs].contiguous()


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


@intrinsic  # type: ignore[untyped-decorator]
def _split(_: Any, x: Any, xa: Any, to: Any, ta: Any) -> Any:
    """Of ``SIDE`` numbers from ``x[xa]`` on, the parts: ``to[ta]`` and on, a pair of tiles apart."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source, into = (pointer(context, builder, signature.args[n], given[n], given[n + 1]) for n in (0, 2))
        floats, words, shorts = (ir.VectorType(one, LANES) for one in (ir.FloatType(), _WORD, _SHORT))

        def all_of(number: int) -> Any:
            return ir.Constant(words, [number] * LANES)

        for start in range(0, SIDE, LANES):
            at = builder.gep(source, [ir.Constant(_INDEX, start)])
            rest = builder.load(builder.bitcast(at, floats.as_pointer()))
            rest.align = 4
            for part in range(PARTS):
                bits = builder.bitcast(rest, words)
                odd = builder.and_(builder.lshr(bits, all_of(16)), all_of(1))  # to the nearest, ties to even
                high = builder.lshr(builder.add(builder.add(bits, all_of(0x7FFF)), odd), all_of(16))
                at = builder.gep(into, [ir.Constant(_INDEX, part * 2 * TILE + start)])
                line = builder.bitcast(at, shorts.as_pointer())
                builder.store(builder.trunc(high, shorts), line).align = 2
                rest = builder.fsub(rest, builder.bitcast(builder.shl(high, all_of(16)), floats))
        return context.get_dummy_value()

    return types.void(x, xa, to, ta), build


@intrinsic  # type: ignore[untyped-decorator]
def _block(_: Any, x: Any, xa: Any, w: Any, wa: Any, count: Any, to: Any, ta: Any, ts: Any) -> Any:
    """``SIDE`` tokens times ``SIDE`` outputs, of ``count`` blocks of each: ``to[ta + n * ts + f]``."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        from_x, from_w, into = (
            builder.bitcast(
                pointer(context, builder, signature.args[n], given[n], given[n + 1]), _BYTE.as_pointer()
            )
            for n in (0, 2, 5)
        )
        line = ir.Constant(_INDEX, 64)

        def number(tile: int) -> Any:
            return ir.Constant(_BYTE, tile)

        for tile in range(4):
            _call(builder, "tilezero", number(tile))
        with cgutils.for_range(builder, given[4], intp=_INDEX) as loop:
            past = builder.mul(loop.index, ir.Constant(_INDEX, 2 * BLOCK))

            def load(tile: int, start: Any, place: int, past: Any = past) -> None:
                at = builder.gep(start, [builder.add(past, ir.Constant(_INDEX, 2 * TILE * place))])
                _call(builder, "tileloadd64", number(tile), at, line)

            for of_x in reversed(range(PARTS)):  # what is small first
                load(4, from_x, 2 * of_x)
                load(5, from_x, 2 * of_x + 1)
                for of_w in reversed(range(PARTS - of_x)):
                    for half in range(2):
                        load(6 + half, from_w, 2 * of_w + half)
                        for rows in range(2):
                            tiles = 2 * rows + half, 4 + rows, 6 + half
                            _call(builder, "tdpbf16ps", *map(number, tiles))
        stride = builder.mul(given[7], ir.Constant(_INDEX, 4))
        for tile in range(4):
            rows, half = divmod(tile, 2)
            past = builder.add(
                builder.mul(stride, ir.Constant(_INDEX, 16 * rows)), ir.Constant(_INDEX, 64 * half)
            )
            _call(builder, "tilestored64", number(tile), builder.gep(into, [past]), stride)
        return context.get_dummy_value()

    return types.void(x, xa, w, wa, count, to, ta, ts), build


@compiled
def _product(x: Floats, blocks: Halves, room: Halves, to: Floats) -> None:
    """(N, D), packed (F, D), room for the parts of ``ROWS`` tokens -> (N, F), both filled up to ``SIDE``."""
    inputs, outputs, wide = _u64(x.shape[1]), _u64(to.shape[1]), _u64(x.shape[1] // SIDE)
    from_x, weights, into = x.reshape(-1), blocks.reshape(-1), to.reshape(-1)
    length = wide * _u64(BLOCK)
    for first in range(0, len(x), ROWS):
        count = min(ROWS, len(x) - first)
        for n in range(_u64(0), _u64(count)):
            line = n // _u64(SIDE) * length + n % _u64(SIDE) * _u64(SIDE)
            for k in range(_u64(0), wide):
                _split(from_x, (_u64(first) + n) * inputs + k * _u64(SIDE), room, line + k * _u64(BLOCK))
        _begin()
        for f in range(_u64(0), _u64(len(blocks))):
            for n in range(_u64(0), _u64((count + SIDE - 1) // SIDE)):
                place = (_u64(first) + n * _u64(SIDE)) * outputs + f * _u64(SIDE)
                _block(room, n * length, weights, f * length, wide, into, place, outputs)
        _end()
