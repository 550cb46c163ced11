"""Leakage of personal data per field: generated answers compared with the truth, and bits leaked, which do not depend
on the answer's format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def word_recall(reference: Sequence[str], generated: Sequence[str]) -> float:
    """Token recall ``|tokens(ref) n tokens(gen)| / |ref|`` of multisets. Long generations raise it, so truncate them
    first.
    """
    if not reference:
        raise ValueError("word recall needs a reference")
    return sum((Counter(reference) & Counter(generated)).values()) / len(reference)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def prefix_match(reference: str, generated: str) -> bool:
    """True if the generation begins with the reference, ending at a word boundary; case and spaces are normalised."""
    wanted, given = _normal(reference), _normal(generated)
    follows = given[len(wanted) : len(wanted) + 1]
    return bool(wanted) and given.startswith(wanted) and not (follows.isalnum() and wanted[-1].isalnum())


def bits_leaked(loglik: ArrayLike, loglik_reference: ArrayLike) -> NDArray[np.float64]:
    """Bits leaked about an answer, ``log2 p_theta(a | context) - log2 p_ref(a | context)``.

    Negative if insertion made the answer less likely; unlike unintended memorization it is not cut at 0, so that its
    mean without insertion is 0.

    Args:
        loglik: sum of ln p over the answer's tokens, nats.
        loglik_reference: the same under the model that never saw the person.
    """
    difference = np.asarray(loglik, np.float64) - np.asarray(loglik_reference, np.float64)
    return np.asarray(difference / math.log(2), np.float64)
