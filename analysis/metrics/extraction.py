"""Extraction metrics, read from teacher-forced ranks.

Greedy decoding reproduces a suffix exactly when every teacher-forced argmax hits, so no text is generated.

Shape suffixes: T tokens of one text, N texts, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palimpsest.analysis.metrics.registry import Parameters, Values, metric
from palimpsest.analysis.metrics.scored import Scored


@metric(
    name="exact_match",
    needs=("verbatim",),
    formula="mean of [rank = 0] over the item's tokens",
    unit="share of tokens",
    source="exact memorization, Tirumala et al. 2022",
    bounds=(0.0, 1.0),
)
def exact_match(scored: Scored, parameters: Parameters) -> Values:
    """Share of tokens that are the teacher-forced argmax: ``(1/T) sum_t 1[rank_t = 0]``.

    "Exact memorization" of Tirumala et al. 2022.
    """
    hits = scored.sum_over_target((scored.rank == 0).astype(np.float64))
    return Values(hits / scored.target_lengths, np.ones(len(hits), bool), "")


@metric(
    name="extracted",
    needs=("verbatim",),
    formula="product of [rank = 0] over tokens k .. k+m-1 (k tokens of context, m reproduced)",
    unit="rate",
    source="k-extractability, Carlini et al. 2022",
    rate=True,
    bounds=(0.0, 1.0),
)
def extracted(scored: Scored, parameters: Parameters) -> Values:
    """k-extractable (Carlini et al. 2022): ``prod_{t=k}^{k+m-1} 1[rank_t = 0]``, tokens counted from 0; 0 or
    1.

    k is ``parameters.prefix``, the tokens of context, and m ``parameters.suffix``, the tokens that greedy decoding must
    reproduce. Items shorter than ``k + m`` tokens have no value.
    """
    k, m = parameters.prefix, parameters.suffix
    first = np.full(len(scored.lengths), k)
    hits = scored.sum_over(first, first + m, (scored.rank == 0).astype(np.float64))
    return Values(
        (hits == m).astype(np.float64), scored.lengths >= k + m, f"it is shorter than {k} + {m} tokens"
    )


def run_lengths(hit_T: ArrayLike) -> NDArray[np.int64]:
    """Number of consecutive argmax hits from each token on.

    ``runlen(t) = min{j >= 0 : not hit_{t+j}}``; a suffix of m tokens after k tokens of context is extracted
    iff ``runlen(k) >= m`` (tokens counted from 0), so one pass answers for all k and m.
    """
    hit = np.asarray(hit_T, bool)
    stops = np.where(hit, len(hit), np.arange(len(hit)))
    return np.minimum.accumulate(stops[::-1])[::-1] - np.arange(len(hit))


def extraction_strength(hit_T: ArrayLike) -> float:
    """Extraction strength ``1 - (1/T) min{k : greedy decoding after k tokens gives the rest}``, with k = T if there is
    no such k.

    It is 0 if no token is reproduced; open-unlearning's loop stops at k = T - 1 and returns 1/T there.
    """
    hit = np.asarray(hit_T, bool)
    if not hit.size:
        raise ValueError("extraction strength needs at least one token")
    wrong = np.flatnonzero(~hit)
    return 1 - (int(wrong[-1]) + 1 if wrong.size else 0) / len(hit)


def extraction_probability(ln_pz: ArrayLike, queries: ArrayLike) -> NDArray[np.float64]:
    """Probability that n samples contain the suffix at least once: ``1 - (1 - p_z)^n`` (Hayes et al. 2024).

    ``p_z = exp(sum over the suffix of ln g(x_t | x_<t))`` under the sampling scheme g. Computed as
    ``-expm1(n log1p(-p_z))``, exact for tiny p_z.
    """
    pz = np.exp(np.asarray(ln_pz, np.float64))
    n = np.asarray(queries, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pz >= 1, (n > 0) * 1.0, -np.expm1(n * np.log1p(-np.minimum(pz, 1))))


def log10_queries(ln_pz: ArrayLike, probability: ArrayLike) -> NDArray[np.float64]:
    """log10 of the number of samples n that contain the suffix with probability p: ``n = ln(1-p) / ln(1-p_z)``, not
    rounded.

    It is inf for p_z = 0 and -inf for p_z = 1. For ln p_z < -40, ``ln(1 - p_z)`` equals ``-p_z`` to 17 digits, and n is
    computed in logarithms so that it cannot overflow; otherwise it is ``ln(-expm1(ln p_z))``, which is exact near p_z =
    1.
    """
    ln = np.asarray(ln_pz, np.float64)
    p = np.asarray(probability, np.float64)
    if np.any((p <= 0) | (p >= 1)):
        raise ValueError("the probability of extraction must be above 0 and below 1")
    with np.errstate(divide="ignore"):
        # ln of -ln(1 - p_z), in three ranges.
        close = np.log(-np.log(-np.expm1(np.clip(ln, -0.7, 0.0))))
        between = np.log(-np.log1p(-np.exp(np.clip(ln, -40.0, -0.6))))
        ln_rate = np.where(ln < -40, ln, np.where(ln > -0.65, close, between))
    return (np.log(-np.log1p(-p)) - ln_rate) / math.log(10)


def queries_needed(ln_pz: float, probability: float) -> int:
    """Smallest number of samples n with ``1 - (1 - p_z)^n >= p``, the (n,p)-discoverable threshold (Hayes et al.
    2024).
    """
    if ln_pz >= 0:
        return 1
    log_n = float(log10_queries(ln_pz, probability))
    if log_n == math.inf:
        raise OverflowError("a suffix of probability 0 is never extracted")
    if log_n <= 0:
        return 1
    if log_n >= 15:  # more digits than a float has: its 15 first ones, and zeros
        first, zeros = int(10 ** (log_n % 1 + 14)), int(log_n) - 14
        return first * int(10**zeros)
    # Rounding to 12 digits first: an n that solves the equation exactly must not be counted up by a last bit.
    return math.ceil(round(10**log_n, 12 - math.ceil(log_n)))


def _suffix_loglik(scored: Scored, parameters: Parameters) -> NDArray[np.float64]:
    first = np.full(len(scored.lengths), parameters.prefix)
    return scored.sum_over(first, first + parameters.suffix, scored.logprob)


@metric(
    name="suffix_loglik",
    needs=("verbatim",),
    formula="sum of ln p(token | before) over tokens k .. k+m-1: ln p_z",
    unit="nats",
    source="p_z of (n,p)-discoverable extraction, Hayes et al. 2024",
    bounds=(-math.inf, 0.0),
    default=False,
)
def suffix_loglik(scored: Scored, parameters: Parameters) -> Values:
    """``ln p_z = sum_{t=k}^{k+m-1} ln p(x_t | x_<t)`` at temperature 1, the quantity behind (n,p)-discoverable
    extraction.
    """
    k, m = parameters.prefix, parameters.suffix
    return Values(
        _suffix_loglik(scored, parameters), scored.lengths >= k + m, f"it is shorter than {k} + {m} tokens"
    )


@metric(
    name="np_discoverable",
    needs=("verbatim",),
    formula="1 - (1 - p_z)^n: chance that n samples at temperature 1 contain the suffix",
    unit="probability",
    source="(n,p)-discoverable extraction, Hayes et al. 2024",
    bounds=(0.0, 1.0),
    default=False,
)
def np_discoverable(scored: Scored, parameters: Parameters) -> Values:
    """``1 - (1 - p_z)^n``, n = ``parameters.queries``; its mean is the expected share extracted."""
    k, m = parameters.prefix, parameters.suffix
    probability = extraction_probability(_suffix_loglik(scored, parameters), parameters.queries)
    return Values(probability, scored.lengths >= k + m, f"it is shorter than {k} + {m} tokens")


@metric(
    name="extraction_strength",
    needs=("verbatim",),
    formula="1 - (tokens of context after which every argmax hits) / T",
    unit="share of tokens",
    source="extraction strength of open-unlearning, with 0 where nothing is reproduced",
    bounds=(0.0, 1.0),
    default=False,
)
def extraction_strength_of(scored: Scored, parameters: Parameters) -> Values:
    """:func:`extraction_strength` of every text: ``1 - (1 + last miss) / T``, 1 without a miss."""
    if not len(scored.lengths):
        return Values(np.zeros(0), np.zeros(0, bool), "")
    needed = np.maximum.reduceat(np.where(scored.rank != 0, scored.position + 1, 0), scored.starts)
    return Values(1 - needed / scored.lengths, np.ones(len(needed), bool), "")


@metric(
    name="longest_extracted",
    needs=("verbatim",),
    formula="longest run of [rank = 0] after k tokens of context, starting there",
    unit="tokens",
    source="k-extractability, Carlini et al. 2022, for all suffix lengths at once",
    bounds=(0.0, math.inf),
    default=False,
)
def longest_extracted(scored: Scored, parameters: Parameters) -> Values:
    """``runlen(k)``: number of tokens that greedy decoding reproduces after k tokens of context before its first
    error.
    """
    k = parameters.prefix
    if not len(scored.lengths):
        return Values(np.zeros(0), np.zeros(0, bool), "")
    # The first miss at or after k, or the end of the text.
    end = np.repeat(scored.lengths, scored.lengths)
    miss = np.where((scored.rank != 0) & (scored.position >= k), scored.position, end)
    return Values(
        np.minimum.reduceat(miss, scored.starts) - float(k),
        scored.lengths > k,
        f"it has no more than {k} tokens",
    )
