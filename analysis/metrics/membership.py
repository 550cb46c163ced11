"""Membership attacks: one score per text; the higher, the more likely the text was in the training data.

They are computed from one teacher-forced pass (for each token its ln p, and the entropy of the predicted distribution
and the variance of ln p under it), from a second pass with a prefix before the text (ReCaLL), from a reference model,
or from altered copies of the text. Shape suffix: T tokens of one text.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from palimpsest.analysis.checks import numbers
from palimpsest.analysis.metrics.registry import Parameters, Values, metric
from palimpsest.analysis.metrics.scored import Scored

VARIANCE_FLOOR = 1e-6
"""Smallest variance V in Min-K++, nats^2 (open-unlearning's value). V is near 0 for a memorised token and 0 for a
uniform distribution, so that smaller values are replaced by this one, and the tokens are counted."""


def _count(fraction: float, tokens: NDArray[np.int64] | int, rounding: str) -> NDArray[np.int64]:
    # 0.29 * 100 is 28.999999999999996: the product is rounded to 9 digits before floor and ceil look at it.
    exact = np.round(fraction * np.asarray(tokens, np.float64), 9)
    rounded = np.ceil(exact) if rounding == "ceil" else np.floor(exact)
    return np.maximum(1, rounded).astype(np.int64)


def min_k(logprob_T: ArrayLike, fraction: float = 0.2, rounding: Literal["floor", "ceil"] = "floor") -> float:
    """Min-K% (Shi et al. 2023): mean of the ``max(1, floor(k T))`` (or ceil) lowest values, nats.

    Unlike in the published code, which uses int(k T), a short text has at least one token instead of NaN.
    """
    values = np.sort(numbers(logprob_T, "token scores of Min-K"))
    if not 0 < fraction <= 1:
        raise ValueError(f"Min-K needs a fraction in (0, 1], not {fraction}")
    return float(values[: int(_count(fraction, len(values), rounding))].mean())


def standardised_logprob(
    logprob: ArrayLike, mean: ArrayLike, variance: ArrayLike, floor: float = VARIANCE_FLOOR
) -> NDArray[np.float64]:
    """Min-K++'s token score ``z_t = (ln p_t - mu_t) / sqrt(max(V_t, floor))`` (Zhang et al. 2024).

    ``mu_t = E_v[ln p_v] = -H_t``, ``V_t = Var_v[ln p_v]``.
    """
    deviation = np.asarray(logprob, np.float64) - np.asarray(mean, np.float64)
    return np.asarray(deviation / np.sqrt(np.maximum(np.asarray(variance, np.float64), floor)))


class MinKPlusPlus(NamedTuple):
    """A text's Min-K++ score, and the number of its tokens whose variance was clamped."""

    score: float
    clamped: int


def min_k_plus_plus(
    logprob_T: ArrayLike,
    mean_T: ArrayLike,
    variance_T: ArrayLike,
    fraction: float = 0.2,
    rounding: Literal["floor", "ceil"] = "floor",
    floor: float = VARIANCE_FLOOR,
) -> MinKPlusPlus:
    """Min-K%++ (Zhang et al. 2024): Min-K of :func:`standardised_logprob`; clamped tokens are counted."""
    z = standardised_logprob(logprob_T, mean_T, variance_T, floor)
    return MinKPlusPlus(min_k(z, fraction, rounding), int(np.sum(np.asarray(variance_T) < floor)))


def neighbourhood_score(nll: float, nll_neighbours: ArrayLike) -> float:
    """Neighbourhood attack: ``mean_j nll(x~_j) - nll(x)`` over altered copies x~_j of the text (Mattern et al. 2023),
    nats/token.
    """
    neighbours = numbers(nll_neighbours, "losses of neighbours")
    return float(neighbours.mean() - nll)


def recall_score(loglik: ArrayLike, loglik_after_nonmembers: ArrayLike) -> NDArray[np.float64]:
    """ReCaLL (Xie et al. 2024): ``LL(x | P_non) / LL(x)``, P_non a prefix of non-members.

    Foreign context lowers the log-likelihood of members more than that of others, so that their ratio of two negative
    numbers is higher. The prefix must come from reserved texts: if s of the n non-members that are scored stand in it,
    the AUC is near ``A + (s/n)(1 - A)`` instead of A, because a text is likely after itself.
    """
    total = np.asarray(loglik, np.float64)
    if np.any(total >= 0):
        raise ValueError("ReCaLL divides by LL(x), which must be negative")
    return np.asarray(loglik_after_nonmembers, np.float64) / total


def con_recall_score(
    loglik: ArrayLike,
    loglik_after_nonmembers: ArrayLike,
    loglik_after_members: ArrayLike,
    weight: float = 1.0,
) -> NDArray[np.float64]:
    """Con-ReCaLL (Wang et al. 2024): ``(LL(x | P_non) - w LL(x | P_mem)) / LL(x)``.

    For a member, a prefix of non-members lowers LL and a prefix of members does not. Its numerator is therefore more
    negative than a non-member's, and the ratio of two negative numbers is higher.
    """
    total = np.asarray(loglik, np.float64)
    if np.any(total >= 0):
        raise ValueError("Con-ReCaLL divides by LL(x), which must be negative")
    contrast = np.asarray(loglik_after_nonmembers) - weight * np.asarray(loglik_after_members)
    return np.asarray(contrast / total, np.float64)


def dc_pdd_score(
    token_T: ArrayLike, logprob_T: ArrayLike, frequency_T: ArrayLike, ceiling: float = 0.01
) -> float:
    """DC-PDD (Zhang et al. 2024): mean over first occurrences of ``min(a, p_t ln(1 / freq_t))``, a = 0.01.

    It is the cross-entropy between the model's probability and the token's frequency in a corpus, and is high if the
    model is confident of tokens that are rare elsewhere. mimir returns its negative.

    Args:
        token_T: token ids; only a token's first occurrence counts.
        logprob_T: ln p of each.
        frequency_T: relative frequency of each in a reference corpus, in (0, 1] (smoothed by the caller).
        ceiling: a, the largest contribution of one token.
    """
    frequency = numbers(frequency_T, "token frequencies of DC-PDD")
    if np.any((frequency <= 0) | (frequency > 1)):
        raise ValueError("frequencies lie in (0, 1]; smooth tokens that the corpus lacks")
    _, first = np.unique(np.asarray(token_T), return_index=True)
    terms = np.exp(np.asarray(logprob_T, np.float64)) * -np.log(frequency)
    return float(np.minimum(ceiling, terms)[first].mean())


def gradient_norm_score(norm_of_tensors: ArrayLike) -> float:
    """Gradient-norm attack: minus the mean over parameter tensors of the L2 norm of the loss gradient, which is small
    for members.

    As in mimir (but for the sign), it is the mean of the tensors' norms, not the norm of the whole gradient.
    """
    return -float(numbers(norm_of_tensors, "gradient norms").mean())


def one_run_epsilon(correct: int, guesses: int, alpha: float = 0.05) -> float:
    """Lower bound on epsilon from one training run (Steinke, Nasr & Jagielski 2023, delta = 0).

    Items are included by independent fair coins; an attacker guesses the inclusion of ``guesses`` items, and
    ``correct`` guesses are right. Under epsilon-DP ``correct`` is dominated by Bin(r, e^eps / (1 + e^eps)), so that the
    bound solves ``P[Bin(r, 1/(1+e^-eps)) >= v] = alpha`` for r guesses of which v are correct. It is the logit of the
    one-sided Clopper-Pearson limit, at least 0.
    """
    if not 0 <= correct <= guesses or guesses < 1:
        raise ValueError(f"{correct} of {guesses} guesses cannot be right")
    if correct == 0:
        return 0.0
    low = float(stats.beta.ppf(alpha, correct, guesses - correct + 1))
    return max(0.0, math.log(low / (1 - low)))


def bag_of_words_auc(
    texts_members: list[str], texts_controls: list[str], *, folds: int = 5, seed: int = 0
) -> float:
    """Blind baseline: AUC of a bag-of-words classifier that never sees the model, cross-validated.

    In a randomised experiment members and controls are exchangeable and the AUC is 0.5 in expectation. Another value
    shows that the texts themselves differ (Das et al. 2024; Meeus et al. 2024).
    """
    # Imported here: half a second that no report needs.
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    label = np.r_[np.ones(len(texts_members)), np.zeros(len(texts_controls))]
    model = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=200))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    score = cross_val_predict(
        model, [*texts_members, *texts_controls], label, cv=split, method="decision_function"
    )
    return float(roc_auc_score(label, score))


def lowest(values_T: NDArray[np.float64], scored: Scored, fraction: float) -> NDArray[np.float64]:
    """Mean of the lowest ``max(1, floor(k T))`` values of each row, (R,) float64; rows are padded in blocks of similar
    length.
    """
    means = np.empty(len(scored.lengths))
    keep = _count(fraction, scored.lengths, "floor")
    values_T = np.where(
        np.isnan(values_T), -np.inf, values_T
    )  # sorted to the front, so that no NaN is left out
    order = np.argsort(scored.lengths, kind="stable")
    for block in np.array_split(order, max(1, len(order) // 512)):
        lengths = scored.lengths[block]
        width = int(lengths.max(initial=1))
        column = np.arange(width)
        index = np.minimum(scored.starts[block][:, None] + column, max(0, len(values_T) - 1))
        padded = np.where(column < lengths[:, None], values_T[index] if len(values_T) else 0.0, np.inf)
        most = int(keep[block].max(initial=1))
        if most < width:
            padded = np.partition(padded, most - 1, axis=1)[:, :most]
        padded.sort(axis=1)
        chosen = np.where(np.arange(padded.shape[1]) < keep[block][:, None], padded, 0.0)
        means[block] = chosen.sum(axis=1) / keep[block]
    return means


@metric(
    name="min_k_logprob",
    needs=("verbatim",),
    formula="mean of the max(1, floor(k T)) lowest ln p(token | before)",
    unit="nats/token",
    source="Min-K, Shi et al. 2023",
    bounds=(-math.inf, 0.0),
    default=False,
)
def min_k_logprob(scored: Scored, parameters: Parameters) -> Values:
    """:func:`min_k` of every text, k = ``parameters.fraction``."""
    return Values(lowest(scored.logprob, scored, parameters.fraction), np.ones(len(scored.lengths), bool), "")


@metric(
    name="min_k_plus_plus",
    needs=("verbatim",),
    formula="mean of the max(1, floor(k T)) lowest (ln p + entropy) / sqrt(max(variance, 1e-6))",
    unit="standard deviations",
    source="Min-K++, Zhang et al. 2024",
    reads=("entropy", "variance"),
    default=False,
)
def min_k_plus_plus_of(scored: Scored, parameters: Parameters) -> Values:
    """:func:`min_k_plus_plus` of every text, k = ``parameters.fraction``."""
    z = standardised_logprob(scored.logprob, -scored.extra["entropy"], scored.extra["variance"])
    return Values(lowest(z, scored, parameters.fraction), np.ones(len(scored.lengths), bool), "")


@metric(
    name="clamped_variance_tokens",
    needs=("verbatim",),
    formula="tokens with variance below 1e-6, at which Min-K++ clamps",
    unit="tokens",
    source="diagnostic of Min-K++, Zhang et al. 2024",
    bounds=(0.0, math.inf),
    reads=("variance",),
    default=False,
)
def clamped_variance_tokens(scored: Scored, parameters: Parameters) -> Values:
    """Number of a text's tokens whose variance Min-K++ clamped, because they are memorised or the distribution is
    uniform.
    """
    clamped = (scored.extra["variance"] < VARIANCE_FLOOR).astype(np.float64)
    zero = np.zeros(len(scored.lengths), np.int64)
    return Values(scored.sum_over(zero, scored.lengths, clamped), np.ones(len(zero), bool), "")


@metric(
    name="zlib_ratio",
    needs=("verbatim",),
    formula="mean of ln p(token | before) / bytes of the zlib-compressed text",
    unit="nats/token/byte",
    source="Carlini et al. 2021",
    bounds=(-math.inf, 0.0),
    reads=("zlib_bytes",),
    default=False,
)
def zlib_ratio(scored: Scored, parameters: Parameters) -> Values:
    """Mean log-probability of a text divided by the bytes of its zlib compression (Carlini et al. 2021)."""
    size = scored.extra["zlib_bytes"]
    mean = scored.sum_over_target(scored.logprob) / scored.target_lengths
    return Values(mean / size, np.isfinite(size), "the probe has no text")


@metric(
    name="reference_difference",
    needs=("verbatim",),
    formula="mean of ln p(token | before) minus the same under the reference run",
    unit="nats/token",
    source="reference attack, Carlini et al. 2021",
    reads=("reference",),
    default=False,
)
def reference_difference(scored: Scored, parameters: Parameters) -> Values:
    """:func:`reference_score` of every text: ``nll_ref - nll`` with the reference run at the same step."""
    difference = scored.sum_over_target(scored.logprob - scored.extra["reference"]) / scored.target_lengths
    return Values(difference, np.isfinite(difference), "the reference run has no score of it at this step")


@metric(
    name="negative_loss_ratio",
    needs=("verbatim",),
    formula="-(nll / nll under the reference run): minus ln PPL_t / ln PPL_r",
    unit="ratio",
    source="ratio attack of copyright traps, Meeus et al. 2024, with the sign changed",
    bounds=(-math.inf, 0.0),
    reads=("reference",),
    default=False,
)
def negative_loss_ratio(scored: Scored, parameters: Parameters) -> Values:
    """Minus the ratio of a text's loss to its loss under the reference run; higher means more memorised."""
    reference = scored.sum_over_target(scored.extra["reference"])
    valid = reference < 0
    ratio = scored.sum_over_target(scored.logprob) / np.where(valid, reference, 1.0)
    return Values(-ratio, valid, "the reference run has no score of it at this step")
