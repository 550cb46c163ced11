"""Likelihood metrics. Sums are computed in float64; sums in bf16 are off by nats on long texts.

Shape suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from palimpsest.analysis.checks import numbers
from palimpsest.analysis.metrics.registry import Parameters, Values, metric
from palimpsest.analysis.metrics.scored import Scored


class Likelihood(NamedTuple):
    """Likelihood of one text in all common units; of the per-byte ones, ``loglik_per_byte`` is higher for better
    remembered texts.
    """

    loglik: float
    """Log-likelihood ``sum_t l_t``, nats."""
    nll: float
    """Mean loss ``-(1/T) sum_t l_t`` over the T scored tokens, nats/token."""
    perplexity: float
    """Perplexity, exp(nll)."""
    loglik_per_byte: float
    """``sum_t l_t / UTF-8 bytes``, nats/byte; Hubble's "Norm LL"."""
    bits_per_byte: float
    """Bits per byte, ``-sum_t l_t / (bytes ln 2)``."""
    byte_perplexity: float
    """Perplexity per byte, ``exp(-sum_t l_t / bytes)``."""


def likelihood(logprob_N: ArrayLike, utf8_bytes: int) -> Likelihood:
    """The likelihood of one text from its tokens' log-probabilities.

    Args:
        logprob_N: ln p of every scored token, nats.
        utf8_bytes: number of UTF-8 bytes of the text of these tokens.
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


def _per_byte(scored: Scored) -> Values:
    valid = scored.target_bytes > 0
    total = scored.sum_over_target(scored.logprob)
    return Values(total / np.where(valid, scored.target_bytes, 1), valid, "its target has no bytes")


@metric(
    name="loglik_per_byte",
    needs=("verbatim",),
    formula="sum of ln p(token | before) over the item / UTF-8 bytes of the item",
    unit="nats/byte",
    source="Norm LL of Hubble, Wei et al. 2025",
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
    source="loss attack, Yeom et al. 2018, with the sign changed",
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
    source="loglik_per_byte of a target after its prompt",
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
    source="loglik_per_byte of held-out documents",
    bounds=(-math.inf, 0.0),
    higher="better language model",
)
def heldout_loglik_per_byte(scored: Scored, parameters: Parameters) -> Values:
    """Log-likelihood of held-out text, on which neither run trains, per UTF-8 byte, nats/byte; a drop is a cost of
    insertion.
    """
    return _per_byte(scored)
