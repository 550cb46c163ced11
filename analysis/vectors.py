"""What a CPU does in one pass over its vector registers and PyTorch in several: attention, norms, scores of tokens.

Compiled by numba when first called, for the processor that is there; kept beside this file for the next time. All
arrays are float32 and contiguous. Threads may call these at once: each computes alone and without Python's lock.

Shapes: N tokens, R rows (texts that are read on), D hidden, H query heads, K key/value heads, E head size, S places of
a memory, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

LANES = 16
"""Numbers in a vector; a processor with shorter registers takes several for one."""
BLOCK = 2 * LANES
"""Places whose attention scores are computed at once: ``S`` is a multiple of it."""
QUERIES = 8
"""Tokens of a row whose attention is computed at once."""

EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""e^x is 1 + x + x^2 times a polynomial with these factors, near 0 (Cephes' expf)."""
LOG2_E, LN2, LEAST = 1.44269504, (0.693359375, -2.12194440e-4), -87.0
"""LN2 in two parts, whose sum is more exact than a float32; the smallest exponent that is told from less."""

_SUMS = frozenset({"reassoc", "contract", "nsz"})
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INDEX = ir.IntType(64)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)
_f32: Any = np.float32
_u64: Any = np.uint64
_i32: Any = np.int32


def compiled(function: Function, freedom: frozenset[str] = _SUMS) -> Function:
    """A function that numba compiles when it is called.

    Args:
        function: of arrays and numbers.
        freedom: what LLVM may do to sums and products; by default add up in any order.
    """
    settings = {"nogil": True, "error_model": "numpy", "fastmath": set(freedom)}
    try:
        return cast(Function, numba.njit(cache=True, **settings)(function))
    except RuntimeError:  # no directory to keep it in
        return cast(Function, numba.njit(**settings)(function))


def covers(heads: int, kv_heads: int, size: int) -> bool:
    """Whether :func:`attend` takes heads of this size."""
    return size % LANES == 0 and heads % kv_heads == 0


# Products with a few rows at a time, which stay in registers: numba has no words for registers, LLVM has.


def pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """For intrinsics: where an element of a flat array is."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


@intrinsic  # type: ignore[untyped-decorator]
def _wide(_: Any) -> Any:
    """Loops of the function that says so are for the widest registers there are, which LLVM else shuns."""

    def build(context: Any, builder: Any, _: Any, __: Any) -> Any:
        attributes = builder.function.attributes
        if isinstance(attributes, set):  # llvmlite has no name for this one
            set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), build


def _step(builder: Any, pointer: Any, count: Any, stride: Any) -> Any:
    return builder.gep(pointer, [builder.mul(ir.Constant(_INDEX, count), stride)])


def load(builder: Any, pointer: Any) -> Any:
    """For intrinsics: the vector there."""
    found = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    found.align = 4
    return found


def store(builder: Any, value: Any, pointer: Any) -> None:
    """For intrinsics: put a vector there."""
    builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer())).align = 4


def _add_product(builder: Any, total: Any, pointer: Any, vector: Any) -> None:
    """``total += *pointer * vector``."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    one = builder.insert_element(nothing, builder.load(pointer), ir.Constant(ir.IntType(32), 0))
    product = builder.fmul(builder.shuffle_vector(one, nothing, lanes), vector, flags=("contract",))
    builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)


def by_number(builder: Any, number: Any, known: Iterable[int], of: Callable[[int], None]) -> None:
    """``of`` a number among the known ones, each in instructions of its own."""
    cases = {n: builder.append_basic_block(f"of_{n}") for n in known}
    end = builder.append_basic_block("end")
    choice = builder.switch(number, end)
    for n, case in cases.items():
        choice.add_case(ir.Constant(number.type, n), case)
        builder.position_at_end(case)
        of(n)
        builder.branch(end)
    builder.position_at_end(end)


@intrinsic  # type: ignore[untyped-decorator]
def _scores(
    _: Any, rows: Any, q: Any, qa: Any, qs: Any, k: Any, ka: Any, size: Any, to: Any, ta: Any, ts: Any
) -> Any:
    """``to[i * ts + j] = sum_e q[i * qs + e] * k[e * BLOCK + j]`` for i < rows, j < BLOCK, e < size."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        from_q, from_k, into = (
            pointer(context, builder, signature.args[n], given[n], given[n + 1]) for n in (1, 4, 7)
        )

        def of(rows: int) -> None:
            totals = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(2)] for _ in range(rows)]
            for total in chain(*totals):
                builder.store(_ZEROS, total)
            with cgutils.for_range(builder, given[6], intp=_INDEX) as loop:
                line = builder.gep(from_k, [builder.mul(loop.index, ir.Constant(_INDEX, BLOCK))])
                halves = [load(builder, builder.gep(line, [ir.Constant(_INDEX, n)])) for n in (0, LANES)]
                for i in range(rows):
                    factor = builder.gep(_step(builder, from_q, i, given[3]), [loop.index])
                    for total, half in zip(totals[i], halves, strict=True):
                        _add_product(builder, total, factor, half)
            for i in range(rows):
                line = _step(builder, into, i, given[9])
                for n, total in enumerate(totals[i]):
                    place = builder.gep(line, [ir.Constant(_INDEX, n * LANES)])
                    store(builder, builder.load(total), place)

        by_number(builder, given[0], range(1, QUERIES + 1), of)
        return context.get_dummy_value()

    return types.void(rows, q, qa, qs, k, ka, size, to, ta, ts), build


@intrinsic  # type: ignore[untyped-decorator]
def _sums(
    _: Any,
    rows: Any,
    p: Any,
    pa: Any,
    ps: Any,
    v: Any,
    va: Any,
    vs: Any,
    count: Any,
    to: Any,
    ta: Any,
    ts: Any,
) -> Any:
    """``to[i * ts + j] += sum_s p[i * ps + s] * v[s * vs + j]`` for i < rows, j < LANES, s < count."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        from_p, from_v, into = (
            pointer(context, builder, signature.args[n], given[n], given[n + 1]) for n in (1, 4, 8)
        )

        def of(rows: int) -> None:
            # Two sums of each, of even and odd places: a processor adds several at a time.
            totals = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(2)] for _ in range(rows)]
            for i in range(rows):
                builder.store(load(builder, _step(builder, into, i, given[10])), totals[i][0])
                builder.store(_ZEROS, totals[i][1])

            def add(place: Any, half: int) -> None:
                vector = load(builder, builder.gep(from_v, [builder.mul(place, given[6])]))
                for i in range(rows):
                    factor = builder.gep(_step(builder, from_p, i, given[3]), [place])
                    _add_product(builder, totals[i][half], factor, vector)

            one = ir.Constant(_INDEX, 1)
            with cgutils.for_range(builder, builder.lshr(given[7], one), intp=_INDEX) as loop:
                even = builder.shl(loop.index, one)
                add(even, 0)
                add(builder.add(even, one), 1)
            with builder.if_then(builder.trunc(given[7], ir.IntType(1))):
                add(builder.sub(given[7], one), 0)
            for i in range(rows):
                both = builder.fadd(*(builder.load(total) for total in totals[i]))
                store(builder, both, _step(builder, into, i, given[10]))

        by_number(builder, given[0], range(1, QUERIES + 1), of)
        return context.get_dummy_value()

    return types.void(rows, p, pa, ps, v, va, vs, count, to, ta, ts), build


@intrinsic  # type: ignore[untyped-decorator]
def _soon(_: Any, x: Any, start: Any, count: Any) -> Any:
    """``x[start : start + count]`` is to be in cache soon."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first = builder.bitcast(
            pointer(context, builder, signature.args[0], given[0], given[1]), ir.IntType(8).as_pointer()
        )
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [first.type, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        lines = builder.lshr(builder.add(given[2], ir.Constant(_INDEX, LANES - 1)), ir.Constant(_INDEX, 4))
        with cgutils.for_range(builder, lines, intp=_INDEX) as loop:
            at = builder.gep(first, [builder.mul(loop.index, ir.Constant(_INDEX, 64))])
            builder.call(prefetch, [at, *(ir.Constant(flag, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(x, start, count), build


@intrinsic  # type: ignore[untyped-decorator]
def _top_of(_: Any, x: Any, start: Any, count: Any) -> Any:
    """The largest of ``count`` vectors; -inf if there is none."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first = pointer(context, builder, signature.args[0], given[0], given[1])
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        found = cgutils.alloca_once(builder, _VECTOR)
        builder.store(ir.Constant(_VECTOR, [float("-inf")] * LANES), found)

        def take(other: Any) -> None:
            best = builder.load(found)
            builder.store(builder.select(builder.fcmp_ordered(">", other, best), other, best), found)

        with cgutils.for_range(builder, given[2], intp=_INDEX) as loop:
            place = builder.mul(loop.index, ir.Constant(_INDEX, LANES))
            take(load(builder, builder.gep(first, [place])))
        for half in (8, 4, 2, 1):
            lanes = [(n + half) % LANES for n in range(LANES)]
            order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
            take(builder.shuffle_vector(builder.load(found), nothing, order))
        return builder.extract_element(builder.load(found), ir.Constant(ir.IntType(32), 0))

    return types.float32(x, start, count), build


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(_: Any, bits: Any) -> Any:
    def build(_: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.bitcast(given[0], ir.FloatType())

    return types.float32(types.int32), build


def _exponential(x: float) -> float:
    """e^x for x <= 0, to 1e-7 of it; nearly 0 below ``LEAST``."""
    x = max(x, _f32(LEAST))
    whole = np.floor(x * _f32(LOG2_E) + _f32(0.5))
    rest = (x - whole * _f32(LN2[0])) - whole * _f32(LN2[1])
    p = _f32(EXP[0])
    p = p * rest + _f32(EXP[1])
    p = p * rest + _f32(EXP[2])
    p = p * rest + _f32(EXP[3])
    p = p * rest + _f32(EXP[4])
    p = p * rest + _f32(EXP[5])
    p = p * (rest * rest) + rest + _f32(1.0)
    found: float = p * _as_float((_i32(whole) + _i32(127)) << _i32(23))
    return found


exp = compiled(_exponential, frozenset({"contract"}))


@compiled
def _top(x: Floats, start: int, count: int) -> float:
    """The largest of ``x[start : start + count]``; -inf if there is none, whichever if there are NaNs."""
    whole = count // LANES
    found: float = _top_of(x, _u64(start), _u64(whole))
    for n in range(start + whole * LANES, start + count):
        if x[n] > found:
            found = x[n]
    return found


@compiled
def _softmax(x: Floats, start: int, count: int) -> None:
    """In place, of ``x[start : start + count]``."""
    _wide()
    line, largest, total = x[start : start + count], _top(x, start, count), _f32(0)
    for v in range(len(line)):
        line[v] = exp(line[v] - largest)
        total += line[v]
    factor = _f32(1) / total
    for v in range(len(line)):
        line[v] *= factor


@intrinsic  # type: ignore[untyped-decorator]
def _turned(_: Any, x: Any, xa: Any, cos: Any, ca: Any, sin: Any, sa: Any, half: Any, factor: Any) -> Any:
    """Rotate and scale the ``half`` pairs ``x[xa + e]``, ``x[xa + half + e]``, in place, half a vector at once."""
    kind, few = ir.VectorType(ir.FloatType(), LANES // 2), ir.Constant(_INDEX, LANES // 2)

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        low, by_cos, by_sin = (
            pointer(context, builder, signature.args[n], given[n], given[n + 1]) for n in (0, 2, 4)
        )
        high = builder.gep(low, [given[6]])
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES // 2), [0] * (LANES // 2))
        one = builder.insert_element(
            ir.Constant(kind, ir.Undefined), given[7], ir.Constant(ir.IntType(32), 0)
        )
        scale = builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes)
        with cgutils.for_range(builder, builder.udiv(given[6], few), intp=_INDEX) as loop:
            place = builder.mul(loop.index, few)
            at = [
                builder.bitcast(builder.gep(start, [place]), kind.as_pointer())
                for start in (low, high, by_cos, by_sin)
            ]
            found = [builder.load(one) for one in at]
            for one in found:
                one.align = 4
            x, y, c, s = found[0], found[1], builder.fmul(found[2], scale), builder.fmul(found[3], scale)
            turned = (
                builder.fsub(builder.fmul(x, c), builder.fmul(y, s), flags=("contract",)),
                builder.fadd(builder.fmul(y, c), builder.fmul(x, s), flags=("contract",)),
            )
            for one, into in zip(turned, at, strict=False):
                builder.store(one, into).align = 4
        return context.get_dummy_value()

    return types.void(x, xa, cos, ca, sin, sa, half, factor), build


@intrinsic  # type: ignore[untyped-decorator]
def _kept(_: Any, x: Any, key: Any, value: Any, size: Any, k: Any, ka: Any, v: Any, va: Any) -> Any:
    """``k[ka + e * BLOCK] = x[key + e]`` and ``v[va + e] = x[value + e]`` for e < size."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        from_key, from_value, to_k, to_v = (
            pointer(context, builder, signature.args[array], given[array], given[place])
            for array, place in ((0, 1), (0, 2), (4, 5), (6, 7))
        )
        with cgutils.for_range(builder, given[3], intp=_INDEX) as loop:
            line = builder.mul(loop.index, ir.Constant(_INDEX, BLOCK))
            builder.store(builder.load(builder.gep(from_key, [loop.index])), builder.gep(to_k, [line]))
        whole = ir.Constant(_INDEX, LANES)
        with cgutils.for_range(builder, builder.udiv(given[3], whole), intp=_INDEX) as loop:
            place = [builder.mul(loop.index, whole)]
            store(builder, load(builder, builder.gep(from_value, place)), builder.gep(to_v, place))
        return context.get_dummy_value()

    return types.void(x, key, value, size, k, ka, v, va), build


@compiled
def _turn(
    x: Floats, at: int, cos: Floats, sin: Floats, turn: int, heads: int, kv_heads: int, size: int
) -> None:
    """Rotate a token's queries, scaled by E^-1/2, and its keys, in place."""
    half, factor = size // _u64(2), _f32(size**-0.5)
    for h in range(heads + kv_heads):
        by = factor if h < heads else _f32(1)
        _turned(x, at + _u64(h) * size, cos, turn, sin, turn, half, by)


@compiled
def _keep(
    x: Floats,
    key: int,
    value: int,
    stride: int,
    k: Floats,
    v: Floats,
    mine: int,
    held: int,
    count: int,
    size: int,
) -> None:
    """Put a key/value head of ``count`` tokens in their row's memory, behind the ``held`` places."""
    for n in range(count):
        place, at = held + n, n * stride
        block, lane = place // _u64(BLOCK), place % _u64(BLOCK)
        at_k, at_v = mine + block * _u64(BLOCK) * size + lane, mine + place * size
        _kept(x, key + at, value + at, size, k, at_k, v, at_v)


@compiled
def _fetch(keys: Floats, values: Floats, start: int, count: int, size: int) -> None:
    """``count`` places of a key/value head are to be in cache soon."""
    _soon(keys, start, (count + _u64(BLOCK - 1)) // _u64(BLOCK) * _u64(BLOCK) * size)
    _soon(values, start, count * size)


@compiled
def attend(
    mixed: Floats,
    cos: Floats,
    sin: Floats,
    starts: Ints,
    common_keys: Floats,
    common_values: Floats,
    lines: Ints,
    shared: Ints,
    keys: Floats,
    values: Floats,
    slots: Ints,
    held: Ints,
    to: Floats,
) -> None:
    """Causal attention of tokens to the places of their row: what it shares with others, and its own.

    Args:
        mixed: queries, keys and values of each token, (N, (H + 2K) * E); overwritten.
        cos: (positions, E / 2), of the rotation.
        sin: (positions, E / 2).
        starts: (R + 1,) where the tokens of each row begin.
        common_keys: (lines, K, S / BLOCK, E, BLOCK) of what rows share.
        common_values: (lines, K, S, E).
        lines: (R,) the line of each row there.
        shared: (R,) and how many places of it are the row's.
        keys: (slots, K, S' / BLOCK, E, BLOCK) of what is the row's own; the tokens' own are put there.
        values: (slots, K, S', E), likewise.
        slots: (R,) the row's slot there.
        held: (R,) places that were there before these tokens.
        to: (N or more, H * E), written.
    """
    _wide()
    kv_heads, places, more = keys.shape[1], common_values.shape[2], values.shape[2]
    size, stride, width = _u64(values.shape[3]), _u64(mixed.shape[1]), _u64(to.shape[1])
    heads = to.shape[1] // values.shape[3]
    q, into, ck, cv = mixed.reshape(-1), to.reshape(-1), common_keys.reshape(-1), common_values.reshape(-1)
    k, v, of_cos, of_sin = keys.reshape(-1), values.reshape(-1), cos.reshape(-1), sin.reshape(-1)
    line = _u64(places + more + 2 * BLOCK)
    weights = np.empty(QUERIES * (places + more + 2 * BLOCK), np.float32)
    for r in range(len(slots)):
        count, before, base = starts[r + 1] - starts[r], _u64(shared[r]), _u64(held[r])
        for n in range(count):
            at, turn = _u64(starts[r] + n) * stride, _u64(shared[r] + held[r] + n) * (size // _u64(2))
            _turn(q, at, of_cos, of_sin, turn, heads, kv_heads, size)
        for h in range(heads):
            head = h // (heads // kv_heads)
            common = _u64(lines[r] * kv_heads + head) * _u64(places) * size
            mine = _u64(slots[r] * kv_heads + head) * _u64(more) * size
            if h % (heads // kv_heads) == 0:
                key = _u64(starts[r]) * stride + _u64(heads + head) * size
                value = key + _u64(kv_heads) * size
                _keep(q, key, value, stride, k, v, mine, base, _u64(count), size)
            soon, then = (r, h + 1) if h + 1 < heads else (r + 1, 0)
            if soon < len(slots):
                then //= heads // kv_heads
                new = held[soon] + starts[soon + 1] - starts[soon]
                _fetch(k, v, _u64(slots[soon] * kv_heads + then) * _u64(more) * size, _u64(new), size)
                if soon == 0 or lines[soon] != lines[soon - 1]:
                    start = _u64(lines[soon] * kv_heads + then) * _u64(places) * size
                    _fetch(ck, cv, start, _u64(shared[soon]), size)
            for first in range(0, count, QUERIES):
                rows = min(QUERIES, count - first)
                at_q = _u64(starts[r] + first) * stride + _u64(h) * size
                at_to = _u64(starts[r] + first) * width + _u64(h) * size
                own = base + _u64(first + rows)
                for n in range(_u64(0), before, _u64(BLOCK)):
                    _scores(_u64(rows), q, at_q, stride, ck, common + n * size, size, weights, n, line)
                for n in range(_u64(0), own, _u64(BLOCK)):
                    _scores(_u64(rows), q, at_q, stride, k, mine + n * size, size, weights, before + n, line)
                for i in range(rows):
                    begin, seen = _u64(i) * line, before + base + _u64(first + i + 1)
                    _softmax(weights, int(begin), int(seen))
                    for s in range(begin + seen, begin + before + own):
                        weights[s] = 0
                    for e in range(at_to + _u64(i) * width, at_to + _u64(i) * width + size):
                        into[e] = 0
                for e in range(_u64(0), size, _u64(LANES)):
                    put = at_to + e
                    _sums(_u64(rows), weights, _u64(0), line, cv, common + e, size, before, into, put, width)
                    _sums(_u64(rows), weights, before, line, v, mine + e, size, own, into, put, width)


@compiled
def scale(line: Floats, epsilon: float) -> float:
    """1 over the root of the mean square + epsilon, what RMSNorm multiplies with."""
    _wide()
    total = _f32(0)
    for d in range(len(line)):
        total += line[d] * line[d]
    found: float = _f32(1 / np.sqrt(total / len(line) + epsilon))
    return found


@compiled
def add_and_norm(x: Floats, more: Floats | None, epsilon: float, to: Floats) -> None:
    """Add ``more`` to ``x``, (N, D) each, in place; to ``to`` its rows over the root of their mean square + epsilon."""
    _wide()
    for n in range(len(x)):
        line, into = x[n], to[n]
        if more is not None:
            added = more[n]
            for d in range(len(line)):
                line[d] += added[d]
        factor = scale(line, epsilon)
        for d in range(len(line)):
            into[d] = line[d] * factor


@compiled
def swiglu(x: Floats, to: Floats) -> None:
    """SiLU of the first half of each row times the second: (N, 2F) -> (N, F)."""
    _wide()
    for n in range(len(x)):
        gate, up, into = x[n, : to.shape[1]], x[n, to.shape[1] :], to[n]
        for f in range(len(into)):
            e = exp(-abs(gate[f]))  # 1 / (1 + exp(-x)), or the same by exp(x) where x < 0
            into[f] = gate[f] * up[f] * (_f32(1) if gate[f] > 0 else e) / (_f32(1) + e)


@compiled
def _largest(line: Floats) -> tuple[int, float]:
    """The first place of the largest number, and the number."""
    found, best = 0, _f32(-np.inf)
    for start in range(0, len(line), 256):
        top = _top(line, start, min(256, len(line) - start))
        if top > best:
            found, best = start, top
    while found < len(line) - 1 and line[found] != best:
        found += 1
    return found, best


@compiled
def largest(logits: Floats, to: Ints) -> None:
    """The first place of the largest logit of each row: (N, V) -> (N,)."""
    for n in range(len(to)):
        to[n] = _largest(logits[n])[0]


@compiled
def _moments(line: Floats, largest: float) -> tuple[float, float, float]:
    """Sums of e, e * z and e * z^2, z being what each is above the largest and e = exp(z)."""
    _wide()
    total, first, second = _f32(0), _f32(0), _f32(0)
    for v in range(len(line)):
        z = line[v] - largest
        e = exp(z)
        total += e
        first += e * z
        second += e * z * z
    return total, first, second


@compiled
def statistics(
    logits: Floats,
    targets: Ints,
    logprob: Floats,
    rank: NDArray[np.int32],
    entropy: Floats,
    variance: Floats,
    margin: Floats,
    argmax: NDArray[np.int32],
) -> None:
    """What :func:`analysis.scoring.statistics` says, where each is derived: (N, V), (N,) -> six times (N,)."""
    _wide()
    for n in range(len(targets)):
        line, target = logits[n], targets[n]
        level = line[target]
        best, top = _largest(line)
        before, after = line[:target], line[target + 1 :]
        ahead = 0
        for v in range(len(before)):
            ahead += before[v] >= level
        for v in range(len(after)):
            ahead += after[v] > level
        # The largest adds 1 to the sum and nothing to the rest: what is left is added up by itself, lest it vanish.
        low, high = _moments(line[:best], top), _moments(line[best + 1 :], top)
        rest = np.float64(low[0]) + np.float64(high[0])
        mean = (np.float64(low[1]) + np.float64(high[1])) / (1 + rest)
        square = (np.float64(low[2]) + np.float64(high[2])) / (1 + rest)
        logprob[n] = np.float64(level - top) - np.log1p(rest)
        rank[n] = min(ahead, 65_535)
        entropy[n] = np.log1p(rest) - mean
        variance[n] = max(square - mean * mean, 0.0)
        margin[n] = level - max(_top(line, 0, target), _top(line, target + 1, len(line) - target - 1))
        argmax[n] = best
