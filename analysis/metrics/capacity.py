"""Knowledge capacity in bits (Physics of Language Models 3.3, Allen-Zhu & Li 2024; Morris et al. 2025).

The formulas are checked by three facts. A model that knows nothing (every p uniform) has 0 bits. A model that knows
everything has the logarithm of the number of possible data sets: N of N0 names without order (``log2 C(N0, N)``, up to
Stirling's N log2 e), and S0 attribute values for each. The published values log2 S0 = 47.6 and R_max are reproduced.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG2_NAMES = math.log2(400 * 400 * 1000)
"""log2 of the number of names in bioS (first, middle, last): 27.253497."""
LOG2_ATTRIBUTES = math.log2(2 * (12 * 28 * 200) * 200 * 300 * 100 * 263)
"""log2 of the number of attribute combinations in bioS (pronoun, birth date, birth city, university, major, employer,
its city): 47.591624."""


class Capacity(NamedTuple):
    """Knowledge capacity of a model."""

    bits: float
    per_parameter: float
    max_bits: float
    """Bits per parameter of a model without errors."""
    max_per_parameter: float


def _bits(nll: float) -> float:
    return nll / math.log(2)


def bio_s_capacity(
    people: float,
    parameters: float,
    name_nll: float,
    attributes_nll: float,
    *,
    log2_names: float = LOG2_NAMES,
    log2_attributes: float = LOG2_ATTRIBUTES,
) -> Capacity:
    """``R = [N log2(N0 / e^p1) + N log2(S0 / e^p2)] / P``, each term at least 0.

    Args:
        people: N, number of people.
        parameters: P, number of parameters, embeddings included.
        name_nll: p1, mean NLL (nats, summed over the name's tokens) of a name without context; at best ln N.
        attributes_nll: p2, mean over people of the NLL (nats, summed over value tokens) of all attribute values given
            the name.
        log2_names: log2 N0.
        log2_attributes: log2 S0.
    """
    names = people * max(0.0, log2_names - _bits(name_nll))
    values = people * max(0.0, log2_attributes - _bits(attributes_nll))
    most = people * (log2_names - math.log2(people)) + people * log2_attributes
    return Capacity(names + values, (names + values) / parameters, most, most / parameters)


def unintended_memorization(loglik: ArrayLike, loglik_reference: ArrayLike) -> NDArray[np.float64]:
    """Unintended memorization ``max(0, log2 p_theta(x) - log2 p_ref(x))``, bits per text (Morris et al. 2025).

    It is the code length that an arithmetic coder saves by using the model theta instead of the reference; it is cut at
    0 because a coder may use the reference. Its sum over texts divided by P is comparable with the paper's 3.6 bits per
    parameter.

    Args:
        loglik: sum of ln p over the text, nats.
        loglik_reference: the same under a model that never saw the text.
    """
    saved = np.asarray(loglik, np.float64) - np.asarray(loglik_reference, np.float64)
    return np.asarray(np.maximum(0.0, saved) / math.log(2), np.float64)
