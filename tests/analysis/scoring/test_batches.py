"""Every text is read once, by itself or as the beginning of a longer one, and batches do not exceed their size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.analysis.scoring import batches as cut
from palimpsest.analysis.scoring.models import Together

# Few ids, so that beginnings coincide often; whole texts coincide too. Large ids differ in their last byte only.
TEXTS = st.lists(st.lists(st.sampled_from([1, 2, 255, 256]), min_size=1, max_size=6), min_size=1, max_size=12)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_a_text_is_left_out_only_if_a_longer_one_begins_with_it(texts):
    source = cut.containing([np.array(text) for text in texts])
    for k, text in enumerate(texts):
        assert texts[source[k]][: len(text)] == text
        assert source[source[k]] == source[k]
    # No text that is read begins another one.
    read = sorted({int(k) for k in source})
    for k in read:
        assert not any(texts[other][: len(texts[k])] == texts[k] for other in read if other != k)


def test_clozes_that_go_on_are_read_once():
    story = np.arange(1, 40)
    texts = [story[:10], np.array([7, 8]), story, story[:20], story]
    source = cut.containing(texts)
    assert len({*source[[0, 2, 3, 4]].tolist()}) == 1
    assert source[1] == 1


@pytest.mark.parametrize("together", list(Together))
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30), tokens=st.integers(10, 60))
@settings(deadline=None)
def test_batches_hold_every_text_once_and_do_not_exceed_their_size(together, lengths, tokens):
    lengths = np.array(lengths)
    batches = [batch.tolist() for batch in cut.batches(lengths, tokens, together=together)]
    assert sorted(k for batch in batches for k in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens
        assert together is Together.ANY or len(set(lengths[batch].tolist())) == 1
        assert together is not Together.NONE or len(batch) == 1


@given(predictions=st.integers(0, 60), positions=st.integers(1, 20) | st.none())
@settings(deadline=None)
def test_pieces_predict_every_token_once_and_the_last_piece_is_whole(predictions, positions):
    found = list(cut.pieces(predictions, positions))
    assert sorted(k for start, stop in found for k in range(start, stop)) == list(range(predictions))
    assert all(positions is None or stop - start <= positions for start, stop in found)
    assert not predictions or found[0] == (max(0, predictions - (positions or predictions)), predictions)
