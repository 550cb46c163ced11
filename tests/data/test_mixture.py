"""Blends are megatron-core's, element by element; phases go on where the last one stopped."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Mixture, Phase, blend
from tests.data.test_order import corpus, order


@pytest.fixture
def orders(tmp_path):
    made = []
    for number, documents in enumerate(([40] * 60, [70] * 50, [25] * 90)):
        place = tmp_path / str(number)
        place.mkdir()
        corpus(place, documents, seed=number)
        made.append(order(place))
    return made


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (7.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_equal_to_megatron_cores_blended_dataset(tmp_path, orders, weights):
    from megatron.core.datasets.blended_dataset import BlendedDataset

    size = 120
    theirs = BlendedDataset([o.dataset for o in orders], list(weights), size, _without_cache(orders[0]))
    ours = Mixture(orders, [Phase(size, weights)])
    assert len(ours) == len(theirs) == size
    for position in range(size):
        sample = theirs[position]
        assert ours.corpus[position] == sample["dataset_id"]
        assert ours.window(position)[:-1].tolist() == sample["tokens"].tolist()
        assert ours.window(position)[1:].tolist() == sample["labels"].tolist()


def _without_cache(one):
    import copy

    config = copy.copy(one.dataset.config)
    config.path_to_cache = None
    return config


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(1, 300), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_blends_keep_their_weights_and_their_beginnings(weights, windows, more):
    chosen, window = blend(weights, windows)
    shares = np.bincount(chosen, minlength=len(weights)) / windows
    assert np.abs(shares - np.array(weights) / sum(weights)).max() <= len(weights) / windows
    for number in range(len(weights)):
        assert window[chosen == number].tolist() == list(range((chosen == number).sum()))
    longer, _ = blend(weights, windows + more)
    assert longer[:windows].tolist() == chosen.tolist()


def test_phases_never_read_a_window_twice_and_keep_the_replay_fraction(orders):
    mixed = Mixture(orders, [Phase(50, (1, 0, 0)), Phase(60, (0.1, 0.9, 0)), Phase(20, (0, 0, 2))])
    assert len(mixed) == 130
    assert Counter(mixed.corpus[50:110].tolist()) == {0: 6, 1: 54}  # a tenth is replay
    assert set(mixed.corpus[110:].tolist()) == {2}
    pairs = list(zip(mixed.corpus.tolist(), mixed.windows.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert mixed.windows[mixed.corpus == 0].tolist() == list(range(56))
    assert mixed.window(3).tolist() == orders[0].window(3).tolist()
    assert mixed.identity != Mixture(orders, [Phase(50, (1, 0, 0))]).identity


def test_epochs_follow_each_other_and_boundaries_are_those_of_the_windows(tmp_path, orders):
    """Every window of every epoch once, in that epoch's own order; document starts are end-of-document tokens."""
    again = order(tmp_path / "0", seed=4)
    size = len(again)
    mixed = Mixture([[orders[0], again], orders[1]], [Phase(size, (1, 0)), Phase(size + 10, (size, 10))])
    own = np.flatnonzero(mixed.corpus == 0)
    read = [mixed.window(int(p)).tolist() for p in own]
    first, second = ([o.window(p).tolist() for p in range(size)] for o in (orders[0], again))
    assert read == first + second
    assert first != second
    positions = np.random.default_rng(1).permutation(len(mixed))
    splits, starts = mixed.boundaries(positions)
    for row, position in enumerate(positions.tolist()):
        ends = np.flatnonzero(mixed.window(position)[:-1] == mixed.eod) + 1
        assert starts[splits[row] : splits[row + 1]].tolist() == ends.tolist()


def test_impossible_mixtures_are_refused(orders, tmp_path):
    with pytest.raises(UserError, match=r"needs 1,000 windows of corpus 0 but 1 epoch\(s\) of it have"):
        Mixture(orders, [Phase(1000, (1, 0, 0))])
    for weights in ((1, 1), (0, 0, 0), (1, -1, 1), (1, float("nan"), 1)):
        with pytest.raises(UserError, match="phase 0"):
            Mixture(orders, [Phase(5, weights)])
    with pytest.raises(UserError, match="at least one corpus"):
        Mixture(orders, [])
    with pytest.raises(UserError, match="differ in sequence_length"):
        Mixture([orders[0], order(tmp_path / "1", length=8)], [Phase(5, (1, 1))])
