"""Which item gets which arm: complete randomisation inside strata, with exact counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

_CHUNK = 50  # permutations held at once


def strata(families: npt.NDArray[np.str_], lengths: npt.NDArray[np.int64], quantiles: int) -> list[str]:
    """Stratum of every item: its family and its quantile of length within the family.

    Args:
        families: (N,) names.
        lengths: (N,) tokens.
        quantiles: blocks of (nearly) equal size per family.
    """
    result = np.empty(len(families), dtype=object)
    for name in np.unique(families):
        members = np.flatnonzero(families == name)
        ranked = members[np.argsort(lengths[members], kind="stable")]
        for k, block in enumerate(np.array_split(ranked, quantiles)):
            result[block] = f"{name}/length{k + 1}of{quantiles}"
    return [str(value) for value in result]


def assign(blocks: list[str], counts: Mapping[int, int], rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Arms of one family's items: exact counts per arm, spread evenly over the strata, random inside them.

    Where the arms' shares are whole numbers in every stratum, each stratum has exactly those. Otherwise every arm's
    labels are laid out evenly (with a random start) over the items sorted by stratum, so each stratum gets its share of
    each arm to within two items; the whole is turned by a random amount, and inside a stratum the labels are permuted.
    Every item gets an arm with the probability (items in the arm) / N, and given a stratum's counts all assignments in
    it are equally likely.

    Args:
        blocks: (N,) strata.
        counts: number of an arm -> number of items; their sum is N.
        rng: random numbers.

    Returns:
        (N,) int32 numbers of arms.
    """
    labels = np.repeat(np.fromiter(counts, dtype=np.int32), np.fromiter(counts.values(), dtype=np.int64))
    if len(labels) != len(blocks):
        raise ValueError(f"{len(labels)} labels for {len(blocks)} items")
    places = np.concatenate(
        [(np.arange(n) + rng.random()) / n for n in counts.values()] if counts else [np.empty(0)]
    )
    # Turning the circle of labels at random gives every item the same chance of every arm, whatever its stratum.
    labels = np.roll(labels[np.argsort(places, kind="stable")], rng.integers(len(labels)))
    arms = np.empty(len(blocks), dtype=np.int32)
    names = np.array(blocks)
    sizes = Counter(blocks).values()
    if all(size * count % len(blocks) == 0 for size in sizes for count in counts.values()):
        for name in sorted(set(blocks)):
            members = np.flatnonzero(names == name)
            shares = [count * len(members) // len(blocks) for count in counts.values()]
            arms[members] = rng.permutation(np.repeat(np.fromiter(counts, dtype=np.int32), shares))
        return arms
    start = 0
    for name in sorted(set(blocks)):
        members = np.flatnonzero(names == name)
        arms[members] = rng.permutation(labels[start : start + len(members)])
        start += len(members)
    return arms


def balance(items: pl.DataFrame, *, permutations: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Whether the arms differ in what was measured before the treatment.

    For every covariate: the largest standardised difference of an arm's mean from dose 0's within strata, and the
    permutation p of the variance between arms (arms permuted inside strata).

    Args:
        items: with columns ``stratum``, ``arm``, ``dose``, ``bytes``, ``length``.
        permutations: of the test.
        seed: of the permutations.
    """
    # Number the arms with the control first.
    arms = np.unique(
        [f"{dose > 0:d}{arm}" for dose, arm in items.select("dose", "arm").iter_rows()], return_inverse=True
    )[1]
    names = items["stratum"].to_numpy()
    rng = np.random.default_rng(seed)
    covariates = {"length": items["length"].to_numpy(), "bytes": items["bytes"].to_numpy()}
    rows = []
    for covariate, raw in covariates.items():
        values = raw.astype(np.float64)
        for name in np.unique(names):  # within strata
            values[names == name] -= values[names == name].mean()
        spread = values.std(ddof=1) or 1.0

        def between(assigned: npt.NDArray[np.int64], values: npt.NDArray[np.float64] = values) -> Any:
            means = [
                (np.where(assigned == d, values, 0.0).sum(-1) / np.maximum((assigned == d).sum(-1), 1))
                for d in range(arms.max() + 1)
            ]
            return np.stack(means, -1)

        means = between(arms)
        observed = means.var()
        reached = 1
        for start in range(0, permutations, _CHUNK):
            size = min(_CHUNK, permutations - start)
            shuffled = np.tile(arms, (size, 1))
            for name in np.unique(names):
                members = np.flatnonzero(names == name)
                shuffled[:, members] = rng.permuted(shuffled[:, members], axis=1)
            reached += int(np.sum(between(shuffled).var(-1) >= observed - 1e-12))
        p = reached / (permutations + 1)
        rows.append(
            {
                "covariate": covariate,
                "largest_standardised_difference": float(np.abs((means - means[0]) / spread).max()),
                "p": float(p),
            }
        )
    return rows
