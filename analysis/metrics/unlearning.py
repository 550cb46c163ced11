"""Measures of unlearning: truth ratio, forget quality, privacy leak, distance from the retain model.

The twin is the true retain model, so that the distance from it is measured directly.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import logsumexp

from palimpsest.analysis.checks import numbers

Floats = NDArray[np.float64]


def truth_ratio(
    nll_wrong: ArrayLike, nll_paraphrase: float, mean: Literal["arithmetic", "geometric"] = "arithmetic"
) -> float:
    """TOFU (Maini et al. 2024): ``TR = mean_wrong p(wrong|q)^{1/|a|} / p(paraphrase|q)^{1/|a|}``.

    ``arithmetic`` is the paper's mean of probabilities; ``geometric`` is open-unlearning's exponential of the mean
    loss. Lower = the truth is better remembered.

    Args:
        nll_wrong: per-token nll of each wrong answer, nats/token.
        nll_paraphrase: per-token nll of the paraphrased right answer.
        mean: kind of the mean over the wrong answers.
    """
    wrong = numbers(nll_wrong, "losses of wrong answers")
    # In logarithms: an answer that the model thinks all but impossible has a probability that is 0 in floats.
    ln_top = -wrong.mean() if mean == "geometric" else logsumexp(-wrong) - math.log(wrong.size)
    with np.errstate(over="ignore"):
        return float(np.exp(ln_top + nll_paraphrase))


def closer_to_one(ratios: ArrayLike) -> float:
    """Forgetting by truth ratio, ``mean min(TR, 1/TR)``; 1 if right and wrong answers are no longer distinguished."""
    tr = np.asarray(ratios, np.float64)
    with np.errstate(divide="ignore"):
        return float(np.minimum(tr, 1 / tr).mean())


def true_better(ratios: ArrayLike) -> float:
    """Retention by truth ratio, ``mean max(0, 1 - TR)``; higher = the truth is better remembered."""
    return float(np.maximum(0.0, 1 - np.asarray(ratios, np.float64)).mean())


def probability_mean(p_correct: ArrayLike, p_wrong: ArrayLike) -> float:
    """Probability of the correct answer relative to the wrong ones, ``mean p(correct) / (p(correct) + p(wrong))``."""
    right, wrong = numbers(p_correct, "probabilities"), numbers(p_wrong, "probabilities")
    if ((right + wrong) <= 0).any():
        raise ValueError("the probabilities of right and wrong answers must not both be 0")
    return float((right / (right + wrong)).mean())


class ForgetQuality(NamedTuple):
    """Two-sample Kolmogorov-Smirnov test of truth ratios: unlearned against retain model."""

    distance: float
    """Kolmogorov-Smirnov distance D in [0, 1]: 0 = equal, 1 = disjoint distributions."""
    low: float
    high: float
    """95 % percentile bootstrap of D over questions."""
    p: float


def forget_quality(
    ratios_unlearned: ArrayLike, ratios_retain: ArrayLike, *, replicates: int = 1000, seed: int = 0
) -> ForgetQuality:
    """Forget quality: KS distance D of the truth ratios with an interval, and its p, which is TOFU's
    ``forget_quality``.
    """
    x = np.sort(numbers(ratios_unlearned, "truth ratios of the unlearned model", 2))
    y = np.sort(numbers(ratios_retain, "truth ratios of the retain model", 2))
    test = stats.ks_2samp(x, y)
    # Weighted ECDFs on the pooled points: a replicate is a vector of counts, not a new sort.
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, kind="stable")
    last = np.append(np.diff(pooled[order]) > 0, True)
    counts = np.zeros((replicates, pooled.size))
    counts[:, : x.size] = rng.multinomial(x.size, np.full(x.size, 1 / x.size), replicates) / x.size
    counts[:, x.size :] = -rng.multinomial(y.size, np.full(y.size, 1 / y.size), replicates) / y.size
    distance = np.abs(np.cumsum(counts[:, order], axis=1)[:, last]).max(axis=1)
    low, high = np.quantile(distance, [0.025, 0.975])
    return ForgetQuality(float(test.statistic), float(low), float(high), float(test.pvalue))


def distance_of_forget_quality(p: float, n: int) -> float:
    """KS distance D that belongs to a published p of two samples of size n; it is unique because D is a multiple of
    1/n.

    At n = 400, p = 1.06e-239 gives D = 1 and p = 4.35e-25 gives D = 0.3725.
    """
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if math.log(max(_ks_p(middle, n), 1e-320)) > math.log(p) + 1e-3:
            low = middle + 1
        else:
            high = middle
    nearest = min((max(0, low - 1), low), key=lambda k: abs(math.log(max(_ks_p(k, n), 1e-320)) - math.log(p)))
    return nearest / n


def _ks_p(k: int, n: int) -> float:
    # Exact for equal sizes (Gnedenko & Korolyuk 1951): 2 sum_j (-1)^{j+1} C(2n, n - jk) / C(2n, n).
    if k == 0:
        return 1.0
    whole = math.comb(2 * n, n)
    total = sum((-1) ** (j + 1) * math.comb(2 * n, n - j * k) for j in range(1, n // k + 1))
    return float(2 * total / whole)


def model_utility(parts: ArrayLike) -> float:
    """Model utility: harmonic mean of the parts (nine in TOFU); 0 if any part is 0."""
    values = numbers(parts, "parts of the model utility")
    if (values < 0).any():
        raise ValueError("the parts of the model utility must not be negative")
    return 0.0 if (values == 0).any() else float(values.size / np.sum(1 / values))


def privacy_leak(auc_unlearned: float, auc_retain: float) -> float:
    """MUSE's PrivLeak: ``100 ((1 - AUC_u) - (1 - AUC_r)) / (1 - AUC_r)``, from the AUCs of members against non-members
    under the unlearned (u) and the retain model (r). It diverges as AUC_r approaches 1, so report the two AUCs as well.
    """
    if auc_retain >= 1:
        raise ValueError("PrivLeak divides by 1 - AUC of the retain model, which is 0")
    return 100 * (auc_retain - auc_unlearned) / (1 - auc_retain)


def distance_to_retained(loglik: ArrayLike, loglik_retain: ArrayLike) -> Floats:
    """Distance from the retain model, ``|loglik - loglik_retain|`` per text, nats; 0 = as if the text had never been
    seen.
    """
    return np.asarray(np.abs(np.asarray(loglik, np.float64) - np.asarray(loglik_retain, np.float64)))
