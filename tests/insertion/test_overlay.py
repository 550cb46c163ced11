"""The overlay, over random windows and plans: rules 1 to 3 of the design."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insertion.overlay import Overlay

EOD = 0


@st.composite
def cases(draw):
    """A window, one exposure planned for it, and its position."""
    length = draw(st.integers(8, 60))  # L
    window = np.array(draw(st.lists(st.integers(1, 99), min_size=length + 1, max_size=length + 1)))
    item = np.array(draw(st.lists(st.integers(100, 199), min_size=1, max_size=length - 3)), dtype=np.int32)
    boundary = draw(st.booleans())
    offset = draw(st.integers(1 if boundary else 2, length - len(item)))
    if boundary:
        window[offset - 1] = EOD
    return window, item, offset, boundary, draw(st.integers(0, 2**40))


def overlay_of(item, offset, boundary, position):
    return Overlay(
        position=np.array([position]),
        item=np.zeros(1, dtype=np.int32),
        offset=np.array([offset], dtype=np.int32),
        boundary=np.array([boundary]),
        tokens=item,
        starts=np.array([0, len(item)]),
        eod=EOD,
    )


@given(cases())
def test_the_item_is_whole_framed_and_nothing_else_changes(case):
    window, item, offset, boundary, position = case
    before = window.copy()
    found = overlay_of(item, offset, boundary, position).apply(position, window)
    end = offset + len(item)
    assert len(found) == len(window)
    assert np.array_equal(window, before)  # the corpus's array is never written to
    assert np.array_equal(found[offset:end], item)  # contiguous, exactly as planned
    assert found[offset - 1] == EOD
    assert found[end] == EOD
    assert offset >= 1  # so every item token is predicted
    assert end <= len(window) - 1
    host = offset if boundary else offset - 1
    assert np.array_equal(found[:host], before[:host])
    assert np.array_equal(found[end + 1 :], before[host : host + len(window) - end - 1])


@given(cases(), st.integers(1, 1000))
def test_a_window_without_an_exposure_is_the_corpus_s(case, away):
    window, item, offset, boundary, position = case
    overlay = overlay_of(item, offset, boundary, position)
    assert overlay.apply(position + away, window) is window
    assert Overlay.empty().apply(position, window) is window
    assert overlay.spans(position + away) == []


def test_applying_twice_is_applying_once_to_the_corpus():
    """The overlay keeps no state: a second epoch, worker or rerun cannot double an insertion."""
    window = np.arange(1, 30)
    overlay = overlay_of(np.array([100, 101], dtype=np.int32), 5, False, 3)
    assert np.array_equal(overlay.apply(3, window), overlay.apply(3, window))


def test_two_exposures_at_one_position_are_refused():
    with pytest.raises(ValueError, match="distinct, ascending"):
        Overlay(
            position=np.array([4, 4]),
            item=np.zeros(2, dtype=np.int32),
            offset=np.array([1, 8], dtype=np.int32),
            boundary=np.ones(2, dtype=np.bool_),
            tokens=np.array([100], dtype=np.int32),
            starts=np.array([0, 1]),
            eod=EOD,
        )
