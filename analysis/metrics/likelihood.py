"""Likelihood metrics. Sums run in float64: bf16 sums, common elsewhere, are off by nats on long texts."""

from __future__ import annotations

import math

import numpy as np

from analysis.metrics.registry import Parameters, Values, metric
from analysis.metrics.scored import Scored


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
