"""A sample of the fuzzer's cases; ``python -m tests.fuzz 10000`` runs many."""

import pytest

from tests.fuzz import SHARES, Fuzzer

CASES = 20  # of each kind and share


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return Fuzzer(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", SHARES)
def test_damaged_inputs_end_well_or_in_a_line(fuzzer, kind):
    escapes = [(seed, escape) for seed in range(CASES) if (escape := fuzzer.run(kind, seed)) is not None]
    assert not escapes, escapes[0]
