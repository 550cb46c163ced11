"""Extraction metrics, read from teacher-forced ranks.

Greedy decoding reproduces a suffix exactly when every teacher-forced argmax hits, so no text is generated.
"""

from __future__ import annotations

import numpy as np

from analysis.metrics.registry import Parameters, Values, metric
from analysis.metrics.scored import Scored


@metric(
    name="exact_match",
    needs=("verbatim",),
    formula="mean of [rank = 0] over the item's tokens",
    unit="share of tokens",
    bounds=(0.0, 1.0),
)
def exact_match(scored: Scored, parameters: Parameters) -> Values:
    """Share of tokens that the teacher-forced argmax hits: ``(1/T) sum_t 1[rank_t = 0]``.

    "Exact memorization" of Tirumala et al. 2022.
    """
    hits = scored.sum_over_target((scored.rank == 0).astype(np.float64))
    return Values(hits / scored.target_lengths, np.ones(len(hits), bool), "")


@metric(
    name="verbatim",
    needs=("verbatim",),
    formula="product of [rank = 0] over tokens k .. k+m-1 (k tokens of context, m reproduced)",
    unit="rate",
    rate=True,
    bounds=(0.0, 1.0),
)
def verbatim(scored: Scored, parameters: Parameters) -> Values:
    """k-extractable (Carlini et al. 2022): ``prod_{t=k}^{k+m-1} 1[rank_t = 0]``, tokens counted from 0; 0 or
    1.

    ``k = parameters.prefix`` tokens of context, ``m = parameters.suffix`` tokens that greedy decoding
    reproduces. Items shorter than ``k + m`` tokens have no value.
    """
    k, m = parameters.prefix, parameters.suffix
    first = np.full(len(scored.lengths), k)
    hits = scored.sum_over(first, first + m, (scored.rank == 0).astype(np.float64))
    return Values(
        (hits == m).astype(np.float64), scored.lengths >= k + m, f"it is shorter than {k} + {m} tokens"
    )
