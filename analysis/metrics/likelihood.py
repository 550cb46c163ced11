"""Likelihood metrics. Sums run in float64: bf16 sums, common elsewhere, are off by nats on long texts.

Shape suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from palimpsest.analysis.checks import numbers
from palimpsest.analysis.metrics.registry import Parameters, Values, metric
from palimpsest.analysis.metrics.scored import Scored
from palimpsest.data.errors import UserError


class Likelihood(NamedTuple):
    """One text's likelihood in every unit in use; ``loglik_per_byte`` is the one in which higher is better
    remembered."""

    loglik: float
    """sum_t l_t, nats."""
    nll: float
    """-(1/T) sum_t l_t over the T tokens scored, nats/token."""
    perplexity: float
    """exp(nll): of the mean, never a mean of exponentials (Jensen)."""
    loglik_per_byte: float
    """sum_t l_t / UTF-8 bytes, nats/byte; Hubble's "Norm LL"."""
    bits_per_byte: float
    """-sum_t l_t / (bytes ln 2)."""
    byte_perplexity: float
    """exp(-sum_t l_t / bytes)."""


def likelihood(logprob_N: ArrayLike, utf8_bytes: int) -> Likelihood:
    """The likelihood of one text from its tokens' log-probabilities.

    Args:
        logprob_N: ln p of every token that was scored, nats; summed in float64.
        utf8_bytes: of the text those tokens spell.
    """
    logprob = numbers(logprob_N, "log-probabilities of a text's tokens")
    if utf8_bytes < 1:
        raise ValueError(f"a likelihood needs bytes, not {utf8_bytes}")
    total = float(logprob.sum())
    nll = -total / logprob.size
    per_byte = total / utf8_bytes
    with np.errstate(over="ignore"):  # a perplexity beyond the largest float is infinite, not an error
        perplexity, byte_perplexity = np.exp([nll, -per_byte])
    return Likelihood(
        total, nll, float(perplexity), per_byte, -per_byte / math.log(2), float(byte_perplexity)
    )


class Moments(NamedTuple):
    """Statements of the next-token distribution on its own log-probability, and of the token that came."""

    logprob: NDArray[np.float64]
    """N: ln p of the token, nats."""
    mean: NDArray[np.float64]
    """N: mu = sum_v p_v ln p_v = -entropy, nats."""
    variance: NDArray[np.float64]
    """N: V = sum_v p_v (ln p_v - mu)^2, nats^2; 0 for a uniform distribution and for a certain token."""


def moments(logits_NV: ArrayLike, token_N: ArrayLike) -> Moments:
    """Log-probability of each token, and mean and variance of ln p under the same distribution, in float64.

    The variance takes two passes: E[x^2] - E[x]^2 cancels to noise where a token is remembered.
    """
    logprob_NV = log_softmax(np.asarray(logits_NV, np.float64), axis=-1)
    token = np.asarray(token_N, np.int64)
    p_NV = np.exp(logprob_NV)
    # A logit of -inf has p = 0 and no share in the mean: 0 * -inf is 0 here.
    finite_NV = np.where(p_NV > 0, logprob_NV, 0.0)
    mean = (p_NV * finite_NV).sum(-1)
    variance = (p_NV * (finite_NV - mean[..., None]) ** 2).sum(-1)
    return Moments(np.take_along_axis(logprob_NV, token[..., None], -1)[..., 0], mean, variance)


def round_to_bf16(values: ArrayLike) -> NDArray[np.float64]:
    """Values rounded to the nearest bfloat16 (8 bits of significand, ties to even).

    Between 512 and 1024 neighbouring values are 4 apart: what a sum of log-probabilities loses in bf16.
    """
    bits = np.ascontiguousarray(np.asarray(values, np.float32)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    finite = np.isfinite(np.asarray(values, np.float64))
    return np.where(finite, rounded.view(np.float32).astype(np.float64), np.asarray(values, np.float64))


def share_on_bf16_grid(values: ArrayLike) -> float:
    """Share of the finite, non-zero values that bfloat16 represents exactly.

    Scores computed in float32 lie there by accident once in 65,536 times; a share near 1 says that they
    passed through bf16 and that differences below 1/256 of them are lost.
    """
    checked = np.asarray(values, np.float64)
    checked = checked[np.isfinite(checked) & (checked != 0)]
    return float(np.mean(round_to_bf16(checked) == checked)) if checked.size else 0.0


def require_float32(values: ArrayLike, *, what: str = "log-probabilities", limit: float = 0.5) -> None:
    """Refuse scores that were computed in bf16: 20 or more values of which ``limit`` or more lie on its grid.

    Raises:
        UserError: naming the share.
    """
    checked = np.asarray(values, np.float64)
    share = share_on_bf16_grid(checked)
    if checked.size >= 20 and share >= limit:
        raise UserError(
            f"{share:.0%} of the {what} lie on the bfloat16 grid: they were computed or stored in bf16; "
            "compute the log-softmax and its sums in float32"
        )


def _per_byte(scored: Scored) -> Values:
    valid = scored.target_bytes > 0
    total = scored.sum_over_target(scored.logprob)
    return Values(total / np.where(valid, scored.target_bytes, 1), valid, "its target has no bytes")


@metric(
    name="loglik_per_byte",
    needs=("verbatim",),
    formula="sum of ln p(token | before) over the item / UTF-8 bytes of the item",
    unit="nats/byte",
    bounds=(-math.inf, 0.0),
)
def loglik_per_byte(scored: Scored, parameters: Parameters) -> Values:
    """Log-likelihood of the item's text per UTF-8 byte: ``sum_t ln p(x_t | x_<t) / bytes``, nats/byte.

    Independent of the tokenizer. Hubble's "Norm LL" (2025); averaged per document, not weighted by the
    corpus.
    """
    return _per_byte(scored)


@metric(
    name="loglik_per_token",
    needs=("verbatim",),
    formula="mean of ln p(token | before) over the item's tokens",
    unit="nats/token",
    bounds=(-math.inf, 0.0),
)
def loglik_per_token(scored: Scored, parameters: Parameters) -> Values:
    """Mean log-probability of the item's tokens: ``(1/T) sum_t ln p(x_t | x_<t)``, nats/token."""
    total = scored.sum_over_target(scored.logprob)
    return Values(total / scored.target_lengths, np.ones(len(total), bool), "")


@metric(
    name="cloze_loglik_per_byte",
    needs=("cloze",),
    formula="sum of ln p(token | prompt, before) over the target / UTF-8 bytes of the target",
    unit="nats/byte",
    bounds=(-math.inf, 0.0),
)
def cloze_loglik_per_byte(scored: Scored, parameters: Parameters) -> Values:
    """Log-likelihood of a cloze's target given its prompt, per UTF-8 byte of the target, nats/byte."""
    return _per_byte(scored)


@metric(
    name="heldout_loglik_per_byte",
    needs=("heldout",),
    formula="sum of ln p(token | before) over a held-out passage / its UTF-8 bytes",
    unit="nats/byte",
    bounds=(-math.inf, 0.0),
    higher="better language model",
)
def heldout_loglik_per_byte(scored: Scored, parameters: Parameters) -> Values:
    """Log-likelihood of text that neither run trains on, per UTF-8 byte, nats/byte: what insertion may
    cost."""
    return _per_byte(scored)
