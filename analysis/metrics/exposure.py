"""Exposure (The Secret Sharer, Carlini et al. 2019): rank of an inserted secret among all candidates, in bits."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FEWEST_FOR_FIT = 1000
"""References below which the skew-normal fit, and so an extrapolated exposure, is unstable."""


class Exposure(NamedTuple):
    """Exposure in bits, with the rank and the number of candidates behind it."""

    bits: float
    """Exposure, ``log2 |R| - log2 rank``."""
    rank: float
    """Rank of the secret; 1 = the likeliest of all candidates."""
    candidates: int
    """|R|, the number of candidates: the sampled references and the secret itself."""
    capped: bool
    """True if the secret is likelier than every reference; the exposure over all candidates is then at least ``bits``,
    the maximum for a sample of this size."""


def exposure(rank: float, candidates: int) -> float:
    """Exposure ``log2 |R| - log2 rank``, bits: 0 for the last of |R| candidates, log2 |R| for the first.
    tensorflow-privacy counts the secret in the rank but not in |R|, so that its exposure of the last of 17 candidates
    is -0.0875 bits.
    """
    if not 1 <= rank <= candidates:
        raise ValueError(f"rank {rank} is not among {candidates} candidates")
    return math.log2(candidates) - math.log2(rank)


def exposure_among(
    loglik: float, loglik_references: ArrayLike, ties: Literal["strict", "half"] = "strict"
) -> Exposure:
    """Exposure by rank among m sampled references: at most ``log2(m + 1)`` bits.

    ``rank = 1 + #{references likelier}``, plus half the ties with ``half``.

    Args:
        loglik: score of the inserted secret, such as its log-likelihood; higher = likelier.
        loglik_references: scores of never-inserted draws from the same space.
        ties: rank of equal scores: ``half`` counts half of them as likelier.
    """
    references = np.asarray(loglik_references, np.float64)
    if not references.size or not np.isfinite(references).all() or not math.isfinite(loglik):
        raise ValueError("exposure needs finite scores and at least one reference")
    rank = 1 + float(np.sum(references > loglik))
    if ties == "half":
        rank += 0.5 * float(np.sum(references == loglik))
    return Exposure(exposure(rank, references.size + 1), rank, references.size + 1, rank == 1)


class Extrapolated(NamedTuple):
    """Exposure from a distribution fitted to the references."""

    bits: float
    """Exposure, ``-log2 P[a reference is at least as likely]``."""
    beyond: bool
    """True if the secret is likelier than every reference, so that its exposure depends on the fitted tail."""
    unstable: bool
    """True with fewer than 1,000 references; the fit is then too variable to rely on."""
