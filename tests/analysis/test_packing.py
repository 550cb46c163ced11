"""Shared beginnings are read once, and every token is still predicted from just what precedes it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.analysis import packing

EOD = 0
# Few ids, so that beginnings coincide often; whole texts coincide too.
TEXTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=14), min_size=1, max_size=12)


def contexts(rows: list[packing.Row]) -> dict[int, tuple[list[int], int]]:
    """Place -> (what the prediction sees, in order; what is predicted)."""
    found = {}
    for row in rows:
        for node, target, place in zip(row.nodes, row.targets, row.places, strict=True):
            if row.seen is None:
                seen = row.ids[: node + 1]
            else:
                nodes = np.flatnonzero(row.seen[node])
                nodes = nodes[np.argsort(row.positions[nodes])]
                assert row.positions[nodes].tolist() == list(range(len(nodes)))
                assert nodes[-1] == node
                seen = row.ids[nodes]
            assert place not in found
            found[int(place)] = seen.tolist(), int(target)
    return found


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_every_token_is_predicted_from_what_precedes_it(texts):
    arrays = [np.array(text) for text in texts]
    rows, copies = packing.rows(arrays, EOD)
    told = contexts(rows)
    for copy in copies:
        for place in range(copy.count):
            assert copy.target + place not in told
            told[copy.target + place] = told[copy.source + place]
    place = 0
    for text in texts:
        for count, token in enumerate(text):
            assert told[place] == ([EOD, *text[:count]], token)
            place += 1
    assert len(told) == place


def test_choices_of_a_question_cost_their_own_tokens():
    question = np.arange(1, 41)
    texts = [np.concatenate([question, [100 + k, 200 + k]]) for k in range(10)]
    rows, _ = packing.rows(texts, EOD)
    assert len(rows) == 1
    # End-of-document, 40 tokens of the question, and one of each choice: its last is only predicted.
    assert len(rows[0].ids) == 1 + 40 + 10
    assert len(rows[0].targets) == 40 + 2 * 10


def test_texts_without_a_common_beginning_stay_apart():
    rows, copies = packing.rows([np.array([1, 2, 3]), np.array([2, 2, 3]), np.array([1, 3, 3])], EOD)
    assert not copies
    assert all(row.seen is None for row in rows)


def test_trees_are_not_too_long_to_attend_over():
    question = np.arange(1, 201)
    texts = [np.concatenate([question, np.full(150, 300 + k)]) for k in range(20)]
    rows, _ = packing.rows(texts, EOD)
    assert max(len(row.ids) for row in rows) <= packing.LONGEST_TREE
    assert len(contexts(rows)) == sum(len(row.targets) for row in rows)


@given(TEXTS, st.integers(10, 60))
@settings(deadline=None)
def test_batches_hold_every_row_once_and_do_not_exceed_their_size(texts, tokens):
    rows, _ = packing.rows([np.array(text) for text in texts], EOD)
    batches = list(packing.batches(rows, tokens))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(id(row) for row in rows)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(row.ids) for row in batch) <= tokens
        assert len({row.seen is None for row in batch}) == 1
