"""Assignment of items to arms: complete randomisation inside strata, with exact counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

_CHUNK = 50  # permutations held at once


def strata(
    families: npt.NDArray[np.str_],
    values: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    quantiles: int,
    what: str = "length",
) -> list[str]:
    """Stratum of every item: its family and its quantile of a property within the family.

    Args:
        families: (N,) names, of strata too.
        values: (N,) of the property: tokens, or a likelihood.
        quantiles: blocks of (nearly) equal size per family.
        what: name of the property.
    """
    result = np.empty(len(families), dtype=object)
    for name in np.unique(families):
        members = np.flatnonzero(families == name)
        ranked = members[np.argsort(values[members], kind="stable")]
        for k, block in enumerate(np.array_split(ranked, quantiles)):
            result[block] = f"{name}/{what}{k + 1}of{quantiles}"
    return [str(value) for value in result]


def clusters(items: pl.DataFrame) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Unit of randomisation of each item (its cluster, or the item itself), and the first item of each unit.

    Args:
        items: with columns ``family`` and ``cluster``; units are numbered by their first item.

    Returns:
        (N,) unit of each item, and (units,) its first item.
    """
    names = [
        (family, cluster) if cluster else (family, cluster, row)
        for row, (family, cluster) in enumerate(items.select("family", "cluster").iter_rows())
    ]
    number: dict[tuple[object, ...], int] = {}
    unit = np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)
    return unit, np.unique(unit, return_index=True)[1].astype(np.int64)


def assign(blocks: list[str], counts: Mapping[int, int], rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Arms of one family's items: exact counts per arm, spread evenly over the strata, random inside them.

    Where the arms' shares are whole numbers in every stratum, each stratum has exactly those. Otherwise every arm's
    labels are laid out evenly (with a random start) over the items sorted by stratum, so each stratum gets its share of
    each arm to within two items; the sequence of labels is shifted cyclically by a random number of places, and the
    labels are permuted inside each stratum.
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


def balance(
    items: pl.DataFrame,
    losses: npt.NDArray[np.float64] | None = None,
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Balance of the arms in covariates measured before the treatment.

    For every covariate: the largest standardised difference of an arm's mean from dose 0's within strata, and the
    permutation p of the variance between arms (arms permuted inside strata); and for all of them together the p of the
    sum of those variances. Each cluster counts once, with the means of its items.

    Args:
        items: with columns ``family``, ``stratum``, ``arm``, ``dose``, ``bytes``, ``length``, ``cluster``.
        losses: (N,) under a reference model.
        permutations: of the test.
        seed: of the permutations.
    """
    unit, first = clusters(items)
    # Number the arms with the control first.
    arms = np.unique(
        [f"{dose > 0:d}{arm}" for dose, arm in items[first].select("dose", "arm").iter_rows()],
        return_inverse=True,
    )[1]
    names = items["stratum"].to_numpy()[first]
    columns = {"length": items["length"].to_numpy(), "bytes": items["bytes"].to_numpy()}
    if losses is not None:
        columns["reference loss"] = losses
    size = np.bincount(unit)
    values = np.stack([np.bincount(unit, weights=column) / size for column in columns.values()])
    for name in np.unique(names):  # within strata
        values[:, names == name] -= values[:, names == name].mean(1, keepdims=True)
    spread = values.std(1, ddof=1, keepdims=True)
    values = values / np.where(spread > 0, spread, 1.0)

    def between(assigned: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Means of the standardised covariates over each arm's clusters, (covariates, ..., arms); ``assigned`` gives
        the arms, (..., clusters).
        """
        shown = np.expand_dims(values, tuple(range(1, assigned.ndim)))
        means = [
            np.where(assigned == arm, shown, 0.0).sum(-1) / np.maximum((assigned == arm).sum(-1), 1)
            for arm in range(arms.max() + 1)
        ]
        return np.stack(means, -1)

    means = between(arms)
    largest = np.abs(means - means[:, :1]).max(1)
    observed = means.var(-1)
    observed = np.append(observed, observed.sum())
    reached = np.ones(len(observed), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for start in range(0, permutations, _CHUNK):
        shuffled = np.tile(arms, (min(_CHUNK, permutations - start), 1))
        for name in np.unique(names):
            members = np.flatnonzero(names == name)
            shuffled[:, members] = rng.permuted(shuffled[:, members], axis=1)
        permuted = between(shuffled).var(-1)
        permuted = np.concatenate([permuted, permuted.sum(0, keepdims=True)])
        reached += (permuted >= observed[:, None] - 1e-12).sum(1)
    p = reached / (permutations + 1)
    return [
        {"covariate": covariate, "largest_standardised_difference": float(difference), "p": float(one)}
        for covariate, difference, one in zip(
            [*columns, "all together"], [*largest, largest.max()], p, strict=True
        )
    ]
