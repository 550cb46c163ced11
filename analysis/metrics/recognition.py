"""Differences of expert routing."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
