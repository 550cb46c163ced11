"""N-gram counts over a token file equal those of a plain count in Python."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import contamination
from data.tokens import TokenWriter

EOD = 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=40), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(1, 5), max_size=12), max_size=5),
    st.integers(1, 6),
    st.integers(1, 50),
)
def test_counts(tmp_path_factory, documents, spans, n, block):
    prefix = tmp_path_factory.mktemp("corpus") / "train"
    with TokenWriter(prefix, 300, EOD) as writer:
        writer.add([np.array(d, dtype=np.int32) for d in documents])
    stream = [token for d in documents for token in [*d, EOD]]
    plain = Counter(tuple(stream[k : k + n]) for k in range(len(stream) - n + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "_BLOCK", block)  # n-grams that straddle blocks count as well
        found = contamination.ngram_counts(prefix, [np.array(s, dtype=np.int32) for s in spans], n=n)
    for span, counts in zip(spans, found, strict=True):
        assert counts.tolist() == [plain[tuple(span[k : k + n])] for k in range(max(len(span) - n + 1, 0))]
