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
    """Choice selected by each rule (index; the first of equals), and the model's probabilities of the choices."""

    raw: int
    """Index of the largest LL, the raw log-likelihood."""
    per_char: int | None
    """Index of the largest LL / characters (lm-eval's acc_norm)."""
    per_byte: int | None
    """Index of the largest LL / UTF-8 bytes."""
    pmi: int | None
    """Index of the largest LL(c | context) - LL(c) (lm-eval's acc_mutual_info)."""
    probability: NDArray[np.float64]
    """Softmax of LL, (C,) float64."""
    tied: bool
    """True if several choices share the best LL; evaluation harnesses then take the first of them."""


def choose(
    loglik_C: ArrayLike,
    *,
    chars_C: ArrayLike | None = None,
    bytes_C: ArrayLike | None = None,
    unconditional_C: ArrayLike | None = None,
) -> Choice:
    """Select a choice by each rule whose inputs are given.

    Args:
        loglik_C: sum of ln p of the choice's tokens after the context, nats.
        chars_C: number of characters of each choice.
        bytes_C: number of UTF-8 bytes of each choice.
        unconditional_C: log-likelihoods of the choices without the context, nats.
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
        raise ValueError("choose() needs one log-likelihood per choice, and a finite largest one")
    return loglik


def _lengths(lengths_C: ArrayLike) -> NDArray[np.float64]:
    lengths = numbers(lengths_C, "lengths of choices")
    if (lengths < 1).any():
        raise ValueError("every choice must have at least one character and one byte")
    return lengths
