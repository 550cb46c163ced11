"""Slices of the windows: designs that keep to different ones never meet, and never notice each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data.errors import UserError
from palimpsest.insertion.placement.slices import WindowSlice
from palimpsest.insertion.placement.windows import place


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 40))
def test_lots_share_out_all_windows(of, blocks):
    """Every ``of`` windows in a row hold one of each slice; counted anew, window by window."""
    slices = [WindowSlice(number, of).position(np.arange(blocks)) for number in range(of)]
    for block in range(blocks):
        assert sorted(part[block] for part in slices) == list(range(block * of, (block + 1) * of))
    for number, positions in enumerate(slices):
        counted = [sum(p < position for p in positions) for position in range(blocks * of)]
        assert WindowSlice(number, of).before(np.arange(blocks * of)).tolist() == counted


def test_lots_are_mixed():
    """A slice has no fixed place among its neighbours, which could be one row of every batch."""
    inside = np.bincount(WindowSlice(1, 4).position(np.arange(8000)) % 4, minlength=4)
    assert np.abs(inside - 2000).max() < 200  # 5 standard deviations


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from([1, 2]))
def test_places_are_the_lots_own(of, seed, slots):
    """Six exposures always find room: a step has six windows of each slice or more."""
    rng = np.random.default_rng(seed)
    batch, steps = 24, 30
    first = rng.integers(0, steps, 6)
    end = first + rng.integers(1, 6, 6).clip(max=steps - first)
    for number in range(of):
        part = WindowSlice(number, of)
        mine = set(part.position(np.arange(batch * steps // of + 1)).tolist())
        at = place(
            first * batch,
            end * batch,
            slots=slots,
            batch=batch,
            apart=np.full(6, -1),
            rng=np.random.default_rng(1),
            windows=part,
        )
        assert set(at.tolist()) <= mine
        assert ((at >= first * batch) & (at < end * batch)).all()
        assert np.unique(at, return_counts=True)[1].max() <= slots


def test_uniform_over_the_lots_windows():
    part = WindowSlice(2, 3)
    at = place(
        np.zeros(3000, dtype=np.int64),
        np.full(3000, 30_000),
        slots=1,
        batch=30,
        apart=np.full(3000, -1),
        rng=np.random.default_rng(3),
        windows=part,
    )
    counts = np.bincount(at // 3000, minlength=10)
    assert ((counts - 300) ** 2 / 300).sum() < 27.9  # chi-square, 9 degrees of freedom, p = .001


def test_a_step_without_a_window_of_the_lot_is_refused():
    windows = WindowSlice(0, 8).position(np.arange(4))  # a batch of 2 has none of most slices
    step = next(k for k in range(4) if not ({2 * k, 2 * k + 1} & set(windows.tolist())))
    with pytest.raises(UserError, match=rf"step {step} has no window of insertion.slice=0/8"):
        place(
            np.array([2 * step]),
            np.array([2 * step + 2]),
            slots=1,
            batch=2,
            apart=np.array([-1]),
            rng=np.random.default_rng(0),
            windows=WindowSlice(0, 8),
        )
