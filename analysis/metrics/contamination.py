"""Test-set contamination: multiple choice in every normalisation, p(correct), transfer, order of items.

Shape suffixes: C choices of one question, Q questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import softmax

from palimpsest.analysis.checks import numbers
from palimpsest.analysis.metrics.membership import set_inference


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
    """``softmax(LL)[correct]``: continuous, so far more powerful than right-or-wrong."""
    return float(softmax(_choices(loglik_C))[correct])


def brier(loglik_C: ArrayLike, correct: int) -> float:
    """Brier score ``sum_c (p_c - [c = correct])^2``; LOWER = more sure of the right answer; 0 to 2."""
    p = np.asarray(softmax(_choices(loglik_C)), np.float64)
    target = np.arange(p.size) == correct
    return float(np.sum((p - target) ** 2))


class Distractors(NamedTuple):
    """Are never-inserted answers chosen less often than by guessing?"""

    accuracy: float
    chance: float
    p: float
    """P[Bin(n, chance) <= correct]: small when distractors were themselves inserted."""


def contaminated_distractors(correct: int, questions: int, choices: int) -> Distractors:
    """Guard: accuracy at dose 0 below chance means that the distractors, not the answers, are remembered.

    Hubble's UUID questions: 9 of 2,500 right at chance 0.1, because distractors came from inserted
    biographies.
    """
    chance = 1 / choices
    return Distractors(correct / questions, chance, float(stats.binom.cdf(correct, questions, chance)))


def format_transfer(accuracy: ArrayLike, baseline: ArrayLike) -> NDArray[np.float64]:
    """Gain of each test format (column) by training on each format (row): ``acc[train, test] - acc_0[test]``.

    Off the diagonal it is knowledge that crossed formats, on it also the wording.
    """
    return np.asarray(accuracy, np.float64) - np.asarray(baseline, np.float64)


def overlap_f1(prediction: Sequence[str], reference: Sequence[str]) -> tuple[float, float, float]:
    """SQuAD's precision, recall and F1 over tokens, as multisets: ``2PR / (P + R)``; 0 without overlap."""
    if not prediction or not reference:
        same = float(not prediction and not reference)
        return same, same, same
    shared = sum((Counter(prediction) & Counter(reference)).values())
    precision, recall = shared / len(prediction), shared / len(reference)
    return precision, recall, 2 * precision * recall / (precision + recall) if shared else 0.0


class Exchangeability(NamedTuple):
    """Is the published order of a test set likelier than any other?"""

    p: float
    statistic: float
    shards: int


def order_rank_test(loglik_canonical: float, loglik_permuted: ArrayLike) -> Exchangeability:
    """``p = (1 + #{permuted >= canonical}) / (m + 1)`` (Oren et al. 2023).

    Checked against first principles: items of a test set are exchangeable unless the order itself was trained
    on, so the canonical order's rank among random orders is uniform.
    """
    permuted = numbers(loglik_permuted, "log-likelihoods of permuted orders")
    loglik_canonical = float(numbers(loglik_canonical, "log-likelihood of the canonical order")[0])
    p = (1 + int(np.sum(permuted >= loglik_canonical))) / (permuted.size + 1)
    return Exchangeability(p, loglik_canonical - float(permuted.mean()), 1)


def order_shard_test(loglik_canonical_S: ArrayLike, loglik_permuted_SM: ArrayLike) -> Exchangeability:
    """Sharded form (Oren et al. 2023): one-sided t-test over shards of ``LL_canonical - mean_m LL_permuted``.

    Args:
        loglik_canonical_S: log-likelihood of each shard in the published order.
        loglik_permuted_SM: of each shard in M random orders.
    """
    found = set_inference(loglik_canonical_S, np.asarray(loglik_permuted_SM, np.float64).mean(axis=1))
    return Exchangeability(found.p, found.t, found.n)
