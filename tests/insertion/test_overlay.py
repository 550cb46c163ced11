"""The overlay, over random windows and plans: rules 1 to 3 of the design."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.insertion.overlay import CONTEXT, Overlay, counted

EOD = 0


@st.composite
def cases(draw):
    """A window, one exposure planned for it, and its position."""
    size = draw(st.integers(9, 61))  # L + 1
    window = np.array(draw(st.lists(st.integers(1, 99), min_size=size, max_size=size)))
    item = np.array(draw(st.lists(st.integers(100, 199), min_size=1, max_size=size - 5)), dtype=np.int32)
    lead, trail, overwrite = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    inserted = len(item) + lead + trail
    start = draw(st.integers(0, size - inserted))  # of everything inserted
    cut = 0 if overwrite else draw(st.integers(0, inserted))
    return window, item, start + lead, lead, trail, cut, overwrite, draw(st.integers(0, 2**40))


def overlay_of(item, offset, lead, trail, cut, overwrite, position):
    return Overlay(
        position=np.array([position]),
        item=np.zeros(1, dtype=np.int32),
        wording=np.zeros(1, dtype=np.int32),
        offset=np.array([offset], dtype=np.int32),
        lead=np.array([lead]),
        trail=np.array([trail]),
        cut=np.array([cut], dtype=np.int32),
        overwrite=np.array([overwrite]),
        tokens=item,
        starts=np.array([0, len(item)]),
        eod=EOD,
    )


@given(cases())
def test_the_item_is_whole_framed_and_nothing_else_changes(case):
    window, item, offset, lead, trail, cut, overwrite, position = case
    before = window.copy()
    found = overlay_of(*case[1:]).apply(position, window)
    assert np.array_equal(window, before)  # the corpus's array is never written to
    assert len(found) == len(window)
    start, end = offset - lead, offset + len(item) + trail
    assert np.array_equal(found[offset : offset + len(item)], item)  # contiguous, exactly as planned
    assert (found[start:offset] == EOD).all()
    assert (found[offset + len(item) : end] == EOD).all()
    if overwrite:
        assert np.array_equal(np.delete(found, range(start, end)), np.delete(before, range(start, end)))
    else:  # what is left of the window is a run of the corpus's tokens: ``cut`` lost at its head, others at its tail
        host = np.delete(found, range(start, end))
        assert np.array_equal(host, before[cut : cut + len(host)])


@given(cases(), st.integers(1, 1000))
def test_a_window_without_an_exposure_is_the_corpus_s(case, away):
    window, position = case[0], case[-1]
    overlay = overlay_of(*case[1:])
    assert overlay.apply(position + away, window) is window
    assert Overlay.empty().apply(position, window) is window
    assert overlay.spans(position + away) == []


@given(st.sets(st.integers(0, 60), max_size=20), st.lists(st.integers(0, 70), max_size=80))
def test_what_is_planned_does_not_depend_on_what_was_asked_before(planned, asked):
    at, count = np.array(sorted(planned), dtype=np.int64), len(planned)
    zeros = np.zeros(count, dtype=np.int32)
    overlay = Overlay(
        **dict.fromkeys(("item", "wording", "cut"), zeros),
        **dict.fromkeys(("lead", "trail", "overwrite"), zeros > 0),
        position=at,
        offset=zeros + 1,
        tokens=np.array([5], dtype=np.int32),
        starts=np.array([0, 1]),
        eod=EOD,
    )
    assert [overlay.planned(position) for position in asked] == [position in planned for position in asked]


def test_applying_twice_is_applying_once_to_the_corpus():
    """The overlay keeps no state: a second epoch, worker or rerun cannot double an insertion."""
    window = np.arange(1, 30)
    overlay = overlay_of(np.array([100, 101], dtype=np.int32), 5, True, True, 0, False, 3)
    assert np.array_equal(overlay.apply(3, window), overlay.apply(3, window))


def two(offsets):
    return Overlay(
        position=np.array([4, 4]),
        item=np.array([0, 1], dtype=np.int32),
        wording=np.array([0, 1], dtype=np.int32),
        offset=np.array(offsets, dtype=np.int32),
        lead=np.array([False, True]),
        trail=np.array([True, True]),
        cut=np.zeros(2, dtype=np.int32),
        overwrite=np.zeros(2, dtype=np.bool_),
        tokens=np.array([100, 101, 200], dtype=np.int32),
        starts=np.array([0, 2, 3]),
        eod=EOD,
    )


def test_two_exposures_in_one_window():
    """The second is shifted by the first; its offset is that in the finished window."""
    found = two([3, 8]).apply(4, np.arange(1, 13))
    assert found.tolist() == [1, 2, 3, 100, 101, EOD, 4, EOD, 200, EOD, 5, 6]


@pytest.mark.parametrize("offsets", [[8, 3], [3, 3]])
def test_exposures_out_of_order_are_refused(offsets):
    with pytest.raises(ValueError, match="must ascend"):
        two(offsets)


def test_goldfish_leaves_out_one_token_in_k():
    tokens = np.random.default_rng(0).integers(0, 50_000, 200_000).astype(np.int32)
    for k in (2, 4, 50):
        share = 1 - counted(tokens, k).mean()
        assert abs(share - 1 / k) < 4 * np.sqrt((1 / k) * (1 - 1 / k) / len(tokens))
    assert counted(tokens, 0).all()
    assert not counted(tokens, 1).any()


@given(st.lists(st.integers(0, 99), max_size=60), st.integers(2, 5), st.data())
def test_goldfish_depends_on_the_thirteen_tokens_before_alone(tokens, k, data):
    """As the paper wants it: the same context, the same gap, wherever the text is met; and what follows is no part."""
    before = counted(np.array(tokens, dtype=np.int32), k)
    assert before[:CONTEXT].all()
    if tokens:
        at = data.draw(st.integers(0, len(tokens) - 1))
        changed = tokens.copy()
        changed[at] += 1
        after = counted(np.array(changed, dtype=np.int32), k)
        outside = [i for i in range(len(tokens)) if not at < i <= at + CONTEXT]
        assert (before[outside] == after[outside]).all()


@pytest.mark.parametrize("offset", [0, 1, 6])
def test_masked_tokens_are_not_predicted(offset):
    """The token at offset k of a window is target k - 1."""
    made = overlay_of(np.array([100, 101, 102], dtype=np.int32), offset, False, True, 0, False, 7)
    assert made.loss_mask(7, 11) is None
    made = Overlay(**{**vars_of(made), "loss": np.array([1], dtype=np.int8)})
    off = [k - 1 for k in range(offset, offset + 3) if k]
    assert np.flatnonzero(made.loss_mask(7, 11) == 0).tolist() == off
    assert made.loss_mask(8, 11) is None


def vars_of(overlay):
    names = "position item wording offset lead trail cut overwrite tokens starts eod".split()
    return {name: getattr(overlay, name) for name in names}
