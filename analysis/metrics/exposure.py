"""Exposure (The Secret Sharer, Carlini et al. 2019): how far up a secret ranks among what it could have been."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FEWEST_FOR_FIT = 1000
"""References below which the skew-normal fit, and so an extrapolated exposure, is unstable."""


class Exposure(NamedTuple):
    """Exposure in bits, and what it rests on."""

    bits: float
    """log2 |R| - log2 rank."""
    rank: float
    """1 = the likeliest of all candidates."""
    candidates: int
    """|R|: the sampled references and the secret itself."""
    capped: bool
    """The secret beats every reference: the true exposure is at least ``bits``, which no sample of this size
    exceeds."""


def exposure(rank: float, candidates: int) -> float:
    """``log2 |R| - log2 rank``, bits; 0 for the last of |R| candidates, log2 |R| for the first.

    tensorflow-privacy leaves the secret out of |R| but counts it in the rank, so its worst secret of 16 has
    -0.0875 bits.
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
        loglik: of the inserted secret (any score, higher = likelier).
        loglik_references: of draws from the same space that were never inserted.
        ties: how equal scores count.
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
    """-log2 P[a reference is at least as likely]."""
    beyond: bool
    """The secret is likelier than every reference: the tail is the fit's, not the data's."""
    unstable: bool
    """Fewer than 1,000 references: the fit varies more than the exposure."""
