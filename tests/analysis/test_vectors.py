"""Kernels for CPUs: each against its formula in float64, on shapes that are no multiples of anything."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from palimpsest.analysis import scoring, vectors

HEADS = [(16, 3, 3), (32, 6, 2), (48, 4, 1), (64, 2, 1)]
"""Size of a head, heads, key/value heads."""
SENTINEL = -7.0


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def in_blocks(keys):
    """(B, K, E, S) as the kernel has it: (B, K, S / BLOCK, E, BLOCK)."""
    return np.ascontiguousarray(np.stack(np.split(keys, keys.shape[-1] // vectors.BLOCK, -1), 2))


class Texts:
    """Random rows of 1 to 9 tokens; what no row holds of any memory is NaN."""

    def __init__(self, size, heads, kv_heads, seed):
        rng = np.random.default_rng(seed)
        self.size, self.heads, self.kv_heads = size, heads, kv_heads
        self.counts = rng.permutation(np.arange(1, 10))
        count = len(self.counts)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.shared, self.held = rng.integers(1, 71, count), rng.integers(1, 71, count)
        self.shared[:3], self.held[1:4], self.shared[4], self.held[4] = 0, 0, 70, 70
        self.slots, self.lines = rng.permutation(count + 3)[:count], rng.permutation(count)
        self.lines[-1] = self.lines[-2]  # two begin with the same line, one with more of it
        self.common, self.own = self.memory(count), self.memory(count + 3)
        for r in range(count):
            self.write(rng, self.common, self.lines[r], self.shared[r])
            self.write(rng, self.own, self.slots[r], self.held[r])
        self.mixed = normal(rng, self.starts[-1], (heads + 2 * kv_heads) * size)
        self.angles = np.arange(160)[:, None] * 10_000.0 ** (-np.arange(size // 2) / (size // 2))

    def memory(self, rows):
        shapes = (rows, self.kv_heads, self.size, 96), (rows, self.kv_heads, 96, self.size)
        return [np.full(shape, np.nan, np.float32) for shape in shapes]

    def write(self, rng, memory, line, places):
        keys, values = memory
        there = max(places, int(np.isfinite(keys[line, 0, 0]).sum()))
        keys[line, :, :, :there] = normal(rng, self.kv_heads, self.size, there)
        values[line, :, :there] = normal(rng, self.kv_heads, there, self.size)

    def told(self):
        """By the formula, a token at a time: what is attended to, and keys and values of the rows afterwards."""
        found = np.full((self.starts[-1], self.heads * self.size), np.nan)
        keys, values = (one.astype(np.float64) for one in self.own)
        group, half = self.heads // self.kv_heads, self.size // 2
        for r, count in enumerate(self.counts):
            shared, slot = self.shared[r], self.slots[r]
            common_keys, common_values = (one[self.lines[r]].astype(np.float64) for one in self.common)
            for step in range(count):
                place, n = self.held[r] + step, self.starts[r] + step
                z = self.mixed[n].reshape(-1, self.size).astype(np.float64)
                turned = (z[:, :half] + 1j * z[:, half:]) * np.exp(1j * self.angles[shared + place])
                turned = np.concatenate([turned.real, turned.imag], 1)
                keys[slot, :, :, place] = turned[self.heads : -self.kv_heads]
                values[slot, :, place] = z[-self.kv_heads :]
                for h in range(self.heads):
                    k = [common_keys[h // group, :, :shared], keys[slot, h // group, :, : place + 1]]
                    v = [common_values[h // group, :shared], values[slot, h // group, : place + 1]]
                    weights = softmax(turned[h] @ np.concatenate(k, 1) * self.size**-0.5)
                    found[n, h * self.size : (h + 1) * self.size] = weights @ np.concatenate(v)
        return found, keys, values


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("size", "heads", "kv_heads"), HEADS)
def test_attention_sees_what_is_shared_and_its_own_and_nothing_else(size, heads, kv_heads, seed):
    texts = Texts(size, heads, kv_heads, seed)
    told, told_keys, told_values = texts.told()
    assert np.isfinite(told).all()
    common = [one.copy() for one in texts.common]
    cos, sin = np.cos(texts.angles).astype(np.float32), np.sin(texts.angles).astype(np.float32)
    tokens = len(texts.mixed)
    common_keys, own_keys = in_blocks(texts.common[0]), in_blocks(texts.own[0])
    to = np.full((tokens + 5, heads * size), SENTINEL, np.float32)
    vectors.attend(
        texts.mixed,
        cos,
        sin,
        texts.starts,
        common_keys,
        texts.common[1],
        texts.lines,
        texts.shared,
        own_keys,
        texts.own[1],
        texts.slots,
        texts.held,
        to,
    )
    np.testing.assert_allclose(to[:tokens], told, rtol=0, atol=5e-6)
    assert (to[tokens:] == SENTINEL).all()
    np.testing.assert_allclose(own_keys, in_blocks(told_keys), rtol=0, atol=2e-6)  # NaN where nothing was put
    np.testing.assert_array_equal(texts.own[1], told_values.astype(np.float32))
    np.testing.assert_array_equal(common_keys, in_blocks(common[0]))
    np.testing.assert_array_equal(texts.common[1], common[1])


@pytest.mark.parametrize("width", [1, 7, 33, 300])
@pytest.mark.parametrize("added", [True, False])
def test_sums_are_kept_and_normed(width, added):
    rng = np.random.default_rng(width)
    x, more = normal(rng, 5, width) * 3, normal(rng, 5, width)
    x[2], more[2] = 0, 0  # epsilon keeps this from being nothing over nothing
    told = x.astype(np.float64) + (more if added else 0)
    to = np.empty_like(x)
    vectors.add_and_norm(x, more if added else None, 1e-5, to)
    np.testing.assert_allclose(x, told, rtol=1e-6, atol=1e-6)
    root = np.sqrt((told**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(to, told / root, rtol=1e-6, atol=1e-6)


def test_exponentials_in_swiglu_keep_their_digits():
    rng = np.random.default_rng(0)
    gate = np.concatenate([-rng.uniform(0, 87, 3001), rng.uniform(0, 87, 3001), [0.0, 1e-8, -1e-8]])
    gate = rng.permutation(gate).astype(np.float32).reshape(5, -1)
    up = rng.choice([0.5, 1.0, -2.0], gate.shape).astype(np.float32)
    to = np.empty_like(gate)
    vectors.swiglu(np.concatenate([gate, up], 1), to)
    z = gate.astype(np.float64)
    np.testing.assert_allclose(to, z / (1 + np.exp(-z)) * up, rtol=2.5e-7, atol=0)


def test_swiglu_far_from_zero_is_a_line_or_nothing():
    gate = np.array([[200.0, -200.0, -90.0, 3e38, -3e30]], np.float32)
    to = np.empty_like(gate)
    vectors.swiglu(np.concatenate([gate, np.ones_like(gate)], 1), to)
    np.testing.assert_allclose(to, [[200.0, 0, 0, 3e38, 0]], atol=1e-5)


@pytest.mark.parametrize("most", [1.0, 20.0, 80.0])
def test_exponentials_in_attention_keep_their_digits(most):
    """Nothing is turned, and values are the unit matrix: what comes out is the weights."""
    scores = -np.random.default_rng(0).uniform(0, most, 16).astype(np.float32)
    scores[5] = 0  # the largest: no digits go with it
    keys, values = np.full((1, 1, 16, 32), np.nan, np.float32), np.full((1, 1, 32, 16), np.nan, np.float32)
    keys[..., :15], values[0, 0, :15] = 0, np.eye(16)[:15]
    keys[0, 0, 0, :15] = scores[:15]
    keys = in_blocks(keys)
    q, k, v = np.zeros((3, 16), np.float32)
    q[0], k[0], v[15] = 4, scores[15], 1  # 4 = 16^0.5, which scores are divided by
    cos, sin, zero = np.ones((16, 8), np.float32), np.zeros((16, 8), np.float32), np.zeros(1, np.int64)
    to = np.zeros((1, 16), np.float32)
    mixed, starts, held = np.concatenate([q, k, v])[None], np.array([0, 1]), np.array([15])
    vectors.attend(mixed, cos, sin, starts, keys, values, zero, zero, keys, values, zero, held, to)
    np.testing.assert_allclose(to[0], softmax(scores.astype(np.float64)), rtol=4e-7, atol=0)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 255, 256, 257, 300, 4096])
def test_the_first_of_tied_logits_is_the_largest(vocabulary):
    rng = np.random.default_rng(vocabulary)
    logits = rng.integers(0, 4, (40, vocabulary)).astype(np.float32)
    logits[0], logits[1] = -np.inf, -1e30
    logits[2, vocabulary // 2 :] = 9
    logits[3, -1] = 9
    found = np.full(40, -1)
    vectors.largest(logits, found)
    np.testing.assert_array_equal(found, logits.argmax(1))


def both(logits, targets):
    """The six numbers by the kernel, and by PyTorch's formula."""
    ways = [
        scoring.statistics(torch.from_numpy(one.copy()), torch.from_numpy(targets))
        for one in (logits, logits.astype(np.float64))
    ]
    return [{name: values.numpy() for name, values in way.items()} for way in ways]


def compare(found, told):
    for name in ("rank", "argmax"):
        np.testing.assert_array_equal(found[name], told[name], err_msg=name)
    for name in ("logprob", "entropy", "variance", "margin"):
        np.testing.assert_allclose(found[name], told[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("vocabulary", [2, 7, 300, 4096])
@pytest.mark.parametrize("kind", ["plain", "ties", "wide"])
def test_statistics_are_those_of_the_formula(vocabulary, kind):
    rng = np.random.default_rng(vocabulary)
    logits = normal(rng, 41, vocabulary) * {"plain": 2, "ties": 1, "wide": 30}[kind]
    if kind == "ties":
        logits = np.round(logits)
        logits[1] = 0.5  # all of them
    targets = rng.integers(0, vocabulary, 41)
    targets[::3] = logits[::3].argmax(1)
    targets[1], targets[2] = vocabulary - 1, 0
    found, told = both(logits, targets)
    compare(found, told)
    assert (found["rank"][::3] == 0).all()
    if kind == "ties":
        assert found["rank"][1] == vocabulary - 1
        assert found["margin"][1] == 0


@pytest.mark.parametrize("gap", [40.0, 200.0])
@pytest.mark.parametrize("vocabulary", [2, 7, 300, 4096])
def test_statistics_of_a_sure_model_keep_their_digits(vocabulary, gap):
    rng = np.random.default_rng(0)
    logits = normal(rng, 12, vocabulary)
    best = rng.integers(0, vocabulary, 12)
    logits[np.arange(12), best] = logits.max(1) + gap
    targets = best.copy()
    targets[6:] = (best[6:] + 1) % vocabulary
    found, told = both(logits, targets)
    compare(found, told)
    for name in ("logprob", "entropy", "variance"):  # relative, however small
        np.testing.assert_allclose(found[name], told[name], rtol=1e-4, atol=1e-28, err_msg=name)
    assert (found["logprob"][6:] <= -gap).all()
    if gap == 40:
        assert (found["entropy"] > 0).all()
        assert (found["logprob"][:6] < 0).all()


@pytest.mark.parametrize("vocabulary", [2, 7, 300, 4096])
def test_logits_that_are_not_numbers_are_loud_and_stay_in_their_row(vocabulary):
    rng = np.random.default_rng(0)
    logits = normal(rng, 14, vocabulary)
    targets = rng.integers(0, vocabulary, 14)
    whole = both(logits, targets)[0]
    broken = logits.copy()
    places = [0, min(255, vocabulary - 1), vocabulary - 1, slice(0, None, 3), slice(None), targets[11]]
    rows = [1, 3, 5, 7, 9, 11]
    for row, place in zip(rows, places, strict=True):
        broken[row, place] = np.nan
    found = both(broken, targets)[0]
    sound = np.setdiff1d(np.arange(14), rows)
    for name, values in found.items():
        np.testing.assert_array_equal(values[sound], whole[name][sound], err_msg=name)
    for name in ("logprob", "entropy", "variance"):
        assert np.isnan(found[name][rows]).all(), name
    largest = np.full(14, -1)
    vectors.largest(broken, largest)
    for argmax in (largest, found["argmax"]):
        assert ((argmax >= 0) & (argmax < vocabulary)).all()


def test_only_whole_vectors_and_whole_groups_are_covered():
    assert all(vectors.covers(heads, kv_heads, size) for size, heads, kv_heads in HEADS)
    assert not vectors.covers(4, 2, 24)
    assert not vectors.covers(4, 2, 8)
    assert not vectors.covers(5, 2, 16)
