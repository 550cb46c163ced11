"""Test-set contamination: multiple choice in every normalisation, p(correct), transfer, order of items.

Shape suffixes: C choices of one question, Q questions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from palimpsest.analysis.checks import numbers


class Choice(NamedTuple):
    """Choice of each rule (index of the choice; the first of equals) and what the model believes."""

    raw: int
    """argmax LL."""
    per_char: int | None
    """argmax LL / characters (lm-eval's acc_norm)."""
    per_byte: int | None
    """argmax LL / UTF-8 bytes."""
    pmi: int | None
    """argmax LL(c | context) - LL(c | nothing) (acc_mutual_info)."""
    probability: NDArray[np.float64]
    """C: softmax of LL."""
    tied: bool
    """The best raw score is shared: harnesses give such points to whichever choice stands first."""


def choose(
    loglik_C: ArrayLike,
    *,
    chars_C: ArrayLike | None = None,
    bytes_C: ArrayLike | None = None,
    unconditional_C: ArrayLike | None = None,
) -> Choice:
    """Pick a choice under each rule whose inputs are given.

    Args:
        loglik_C: sum of ln p of the choice's tokens after the context, nats.
        chars_C: characters of each choice.
        bytes_C: UTF-8 bytes of each choice.
        unconditional_C: the log-likelihoods without the context.
    """
    loglik = _choices(loglik_C)

    def best(scores: NDArray[np.float64]) -> int:
        return int(np.argmax(scores))

    return Choice(
        best(loglik),
        None if chars_C is None else best(loglik / _lengths(chars_C)),
        None if bytes_C is None else best(loglik / _lengths(bytes_C)),
        None if unconditional_C is None else best(loglik - np.asarray(unconditional_C, np.float64)),
        np.asarray(softmax(loglik), np.float64),
        int(np.sum(loglik == loglik.max())) > 1,
    )


def _choices(loglik_C: ArrayLike) -> NDArray[np.float64]:
    loglik = numbers(loglik_C, "log-likelihoods of choices", 2)
    if loglik.ndim != 1 or not np.isfinite(loglik.max()):
        raise ValueError("a choice needs one score a choice, and a finite best one")
    return loglik


def _lengths(lengths_C: ArrayLike) -> NDArray[np.float64]:
    lengths = numbers(lengths_C, "lengths of choices")
    if (lengths < 1).any():
        raise ValueError("a choice of no length has no score per length")
    return lengths


def p_correct(loglik_C: ArrayLike, correct: int) -> float:
    """``softmax(LL)[correct]``; as it is continuous, tests on it are far more powerful than on right-or-wrong."""
    return float(softmax(_choices(loglik_C))[correct])


class Distractors(NamedTuple):
    """Are never-inserted answers chosen less often than by guessing?"""

    accuracy: float
    chance: float
    p: float
    """P[Bin(n, chance) <= correct]: small when distractors were themselves inserted."""


class Exchangeability(NamedTuple):
    """Is the published order of a test set likelier than any other?"""

    p: float
    statistic: float
    shards: int
