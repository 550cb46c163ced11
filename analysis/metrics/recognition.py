"""Recognition (Orhan 2023), order recall (SORT), knowledge cut-offs, and differences of expert routing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palimpsest.analysis.checks import numbers


def two_alternative(score_seen: ArrayLike, score_foil: ArrayLike) -> float:
    """Two-alternative forced choice: share correct over pairs, ``mean_i [s(seen_i) > s(foil_i)] + [=]/2``, where a tie
    counts half.

    Higher score = more memorised (for example -nll).
    """
    seen, foil = numbers(score_seen, "scores of seen texts"), numbers(score_foil, "scores of foils")
    if seen.shape != foil.shape:
        raise ValueError("2AFC needs pairs")
    return float(np.mean((seen > foil) + 0.5 * (seen == foil)))


def order_recall(score_true_first: ArrayLike, score_false_first: ArrayLike) -> float:
    """SORT, sequence-order recall (Pink et al. 2024): share correct over both presentation orders, so that a position
    bias cancels.

    Args:
        score_true_first: for each pair, LL(answer "the first") - LL(answer "the second") where the segment
            shown first does come first.
        score_false_first: the same with the segments shown the other way round.
    """
    right = (
        numbers(score_true_first, "pairs in true order"),
        -numbers(score_false_first, "pairs turned round"),
    )
    return float(np.mean([((s > 0) + 0.5 * (s == 0)).mean() for s in right]))


def value_recall(
    loglik_old: ArrayLike, loglik_new: ArrayLike, date: ArrayLike, cutoff: float
) -> tuple[float, float]:
    """Shares of changed facts whose new value is likelier than the old one, for facts that changed before a cut-off and
    for those that changed after it.

    ``mean [LL(new) > LL(old)] + [=]/2`` over facts with date < cutoff and over those with date >= cutoff; NaN
    for a side without facts.
    """
    difference = np.asarray(loglik_new, np.float64) - np.asarray(loglik_old, np.float64)
    new = (difference > 0) + 0.5 * (difference == 0)
    before = np.asarray(date, np.float64) < cutoff
    return (
        float(new[before].mean()) if before.any() else math.nan,
        float(new[~before].mean()) if (~before).any() else math.nan,
    )


def routing_distance(experts_a: ArrayLike, experts_b: ArrayLike) -> NDArray[np.float64]:
    """Jaccard distance ``1 - |A n B| / |A u B|`` of the sets of experts to which two passes route a token, mean over
    layers: 0 = the same experts, 1 = none in common.

    Args:
        experts_a: (tokens, layers, k) distinct expert indices.
        experts_b: the same tokens under another model or after another context.
    """
    a, b = np.asarray(experts_a), np.asarray(experts_b)
    if a.ndim != 3 or a.shape[:2] != b.shape[:2]:
        raise ValueError("routing paths have the shape tokens x layers x experts")
    shared = (a[..., :, None] == b[..., None, :]).any(-1).sum(-1)
    union = a.shape[-1] + b.shape[-1] - shared
    return np.asarray(1 - (shared / union).mean(axis=-1), np.float64)
