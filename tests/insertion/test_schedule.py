"""Placement: distinct, uniform, inside the window, and the same whatever the text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from data.errors import UserError
from insertion import schedule


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 2**32))
def test_positions_are_distinct_and_inside_the_run(count, spare, seed):
    found = schedule.positions(count, count + spare, np.random.default_rng(seed))
    assert len(np.unique(found)) == count
    assert found.min() >= 0
    assert found.max() < count + spare


def test_positions_are_uniform():
    found = schedule.positions(20_000, 1_000_000, np.random.default_rng(3))
    assert stats.kstest(found / 1_000_000, "uniform").pvalue > 0.001
    # Random order: the exposures of one item are spread like those of all.
    assert abs(stats.spearmanr(np.arange(20_000), found).statistic) < 0.03


def test_more_exposures_than_windows_are_refused():
    with pytest.raises(UserError, match="11 exposures but the run only 10 windows"):
        schedule.positions(11, 10, np.random.default_rng(0))


@st.composite
def windows(draw):
    """Windows with the starts of their documents."""
    length = draw(st.integers(10, 50))
    starts = draw(
        st.lists(st.lists(st.integers(1, length), unique=True).map(sorted), min_size=1, max_size=30)
    )
    lengths = draw(
        st.lists(st.integers(1, length - 2), min_size=len(starts), max_size=len(starts)).map(np.array)
    )
    return length, starts, lengths


def place(length, starts, lengths, seed):
    def boundaries(at):
        chosen = [starts[k] for k in at]
        splits = np.concatenate([[0], np.cumsum([len(s) for s in chosen])])
        return splits, np.array([o for s in chosen for o in s], dtype=np.int64)

    return schedule.offsets(np.arange(len(starts)), lengths, length, boundaries, np.random.default_rng(seed))


@given(windows(), st.integers(0, 2**32))
def test_offsets_leave_room_and_prefer_document_starts(case, seed):
    length, starts, lengths = case
    offset, boundary = place(length, starts, lengths, seed)
    for k, own in enumerate(starts):
        fitting = [start for start in own if start + lengths[k] <= length]
        assert boundary[k] == bool(fitting)
        if fitting:
            assert offset[k] in fitting
        else:
            assert 2 <= offset[k] <= length - lengths[k]


def test_offsets_are_uniform_where_nothing_is_in_the_way():
    count = 20_000
    offset, boundary = place(101, [[]] * count, np.full(count, 20), 1)
    assert not boundary.any()
    counts = np.bincount(offset, minlength=82)[2:82]
    assert counts.sum() == count
    assert stats.chisquare(counts).pvalue > 0.001
    offset, boundary = place(101, [[5, 30, 60]] * count, np.full(count, 20), 1)
    assert boundary.all()
    assert stats.chisquare(np.bincount(offset)[[5, 30, 60]]).pvalue > 0.001


def test_windows_do_not_depend_on_the_text():
    """Two plans that differ in wording alone draw the same windows; see also tests/e2e."""
    one = schedule.positions(50, 400, np.random.default_rng(9))
    assert np.array_equal(one, schedule.positions(50, 400, np.random.default_rng(9)))
