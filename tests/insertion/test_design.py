"""Assignment: exact counts, balance over strata, every assignment equally likely."""

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palimpsest.insertion import design


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from([0, 1, 4, 16, 64, 256]), st.integers(1, 12), min_size=1),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_counts_are_exact_and_spread_over_strata(counts, quantiles, seed):
    rng = np.random.default_rng(seed)
    total = sum(counts.values())
    blocks = design.strata(np.full(total, "f"), rng.integers(5, 50, total), quantiles)
    doses = design.assign(blocks, counts, rng)
    assert Counter(doses.tolist()) == Counter(counts)
    sizes = Counter(blocks)
    assert max(sizes.values()) - min(sizes.values()) <= 1 or len(sizes) < quantiles
    for dose, count in counts.items():
        for stratum, size in sizes.items():
            share = sum(d == dose and b == stratum for d, b in zip(doses, blocks, strict=True))
            assert abs(share - count * size / total) < 2


def test_whole_shares_are_exact_in_every_stratum():
    """Of 30 strata of 25 items, five arms get five items each in each, as copyright traps have it."""
    blocks = [f"length{k % 3} perplexity{k % 10}" for k in range(750)]
    for seed in range(20):
        arms = design.assign(blocks, dict.fromkeys((0, 1, 10, 100, 1000), 150), np.random.default_rng(seed))
        assert set(Counter(zip(blocks, arms.tolist(), strict=True)).values()) == {5}


def test_every_item_is_equally_likely_to_get_a_dose():
    blocks = ["a"] * 10 + ["b"] * 10
    hits = np.zeros(20)
    for seed in range(2000):
        hits += design.assign(blocks, {0: 10, 8: 10}, np.random.default_rng(seed)) == 8
    assert stats.chisquare(hits).pvalue > 0.001


def test_strata_are_quantiles_of_length_inside_families():
    families = np.array(["f"] * 6 + ["g"] * 4)
    lengths = np.array([9, 1, 8, 2, 7, 3, 30, 10, 20, 40])
    found = design.strata(families, lengths, 2)
    assert [s.split("/")[0] for s in found] == list(families)
    assert [lengths[k] for k in range(6) if found[k] == "f/length1of2"] == [1, 2, 3]
    assert [lengths[k] for k in range(6, 10) if found[k] == "g/length2of2"] == [30, 40]


def table(doses, lengths, clusters=None):
    return pl.DataFrame(
        {
            "family": ["f"] * len(doses),
            "cluster": [""] * len(doses) if clusters is None else clusters,
            "stratum": ["s"] * len(doses),
            "arm": [f"dose {dose}" for dose in doses],
            "dose": doses,
            "bytes": lengths,
            "length": lengths,
        }
    )


def test_balance_sees_an_unfair_assignment_and_passes_a_fair_one():
    lengths = list(range(10, 50))
    unfair = design.balance(table([0] * 20 + [4] * 20, lengths))
    assert [row["covariate"] for row in unfair] == ["length", "bytes", "all together"]
    assert all(row["p"] < 0.01 and row["largest_standardised_difference"] > 1 for row in unfair)
    rng = np.random.default_rng(1)
    p = [
        design.balance(table(rng.permutation([0] * 20 + [4] * 20).tolist(), lengths), permutations=200)[0][
            "p"
        ]
        for _ in range(100)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_the_test_of_balance_is_exact_with_clusters_and_several_covariates():
    """Three items of a person are nearly as long as each other: the arms of persons, not of items, are exchangeable."""
    rng, p = np.random.default_rng(2), []
    for _ in range(150):
        people = rng.normal(50, 10, 20).repeat(3)
        doses = rng.permutation([0] * 10 + [4] * 10).repeat(3).tolist()
        given = table(doses, np.round(people + rng.normal(0, 1, 60)), [f"p{k // 3}" for k in range(60)])
        rows = design.balance(given, rng.normal(0, 1, 60), permutations=100)
        assert [row["covariate"] for row in rows] == ["length", "bytes", "reference loss", "all together"]
        p.append([row["p"] for row in rows])
    for one in np.array(p).T:
        assert stats.kstest(one, "uniform").pvalue > 0.001


def test_one_bad_covariate_shows_in_all_together():
    losses = np.r_[np.zeros(20), np.ones(20)] + np.random.default_rng(0).normal(0, 0.1, 40)
    rows = design.balance(table([0, 4] * 10 + [4, 0] * 10, [10, 11, 12, 13] * 10), losses)
    shuffled = design.balance(table([0] * 20 + [4] * 20, [10, 11, 12, 13] * 10), losses)
    assert min(row["p"] for row in rows) > 0.1
    told = {row["covariate"]: row["p"] for row in shuffled}
    assert told["length"] > 0.1
    assert max(told["reference loss"], told["all together"]) < 0.01
