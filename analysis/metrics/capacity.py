"""Knowledge capacity in bits (Physics of Language Models 3.3, Allen-Zhu & Li 2024; Morris et al. 2025).

Formulas recalled from the papers ([M] in the notes) and checked so: a model that knows nothing (every p at its
uniform value) has 0 bits; one that knows everything has the logarithm of the number of data sets that could have
been drawn, N choices out of N0 names without order (``log2 C(N0, N)``, up to Stirling's N log2 e) times S0
attributes each; and the published log2 S0 = 47.6 and R_max are reproduced.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG2_NAMES = math.log2(400 * 400 * 1000)
"""bioS: first, middle and last names, log2 N0 = 27.253497."""
LOG2_ATTRIBUTES = math.log2(2 * (12 * 28 * 200) * 200 * 300 * 100 * 263)
"""bioS: pronoun, birth date, birth city, university, major, employer and its city, log2 S0 = 47.591624."""


class Capacity(NamedTuple):
    """Bits that the parameters hold."""

    bits: float
    per_parameter: float
    max_bits: float
    """Of a model without error."""
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
        people: N.
        parameters: P, all of them, embeddings included.
        name_nll: p1, mean NLL (nats, summed over the name's tokens) of a name, not knowing whose; ln N at best.
        attributes_nll: p2, mean NLL (nats) of all attribute values given the name, over value tokens only.
        log2_names: log2 N0.
        log2_attributes: log2 S0.
    """
    names = people * max(0.0, log2_names - _bits(name_nll))
    values = people * max(0.0, log2_attributes - _bits(attributes_nll))
    most = people * (log2_names - math.log2(people)) + people * log2_attributes
    return Capacity(names + values, (names + values) / parameters, most, most / parameters)


def bio_d_capacity(
    people: float,
    attributes: float,
    chunks: float,
    diversity: float,
    length: float,
    vocabulary: float,
    parameters: float,
    name_nll: float,
    value_nll: float,
    chunk_nll: float,
    *,
    log2_names: float = LOG2_NAMES,
) -> Capacity:
    """bioD: ``R = [N log2(N0/e^p1) + N K log2(D^C/e^p2) + K D log2(T^L/(D e^p3))] / P``, each term at least 0.

    Args:
        people: N.
        attributes: K.
        chunks: C, in an attribute's value.
        diversity: D, possible chunks an attribute.
        length: L, tokens of a chunk.
        vocabulary: T, tokens a chunk is drawn from.
        parameters: P.
        name_nll: p1, nats.
        value_nll: p2, mean NLL (nats) of an attribute's value given the name.
        chunk_nll: p3, mean NLL (nats) of a chunk of the diversity set beyond naming which; 0 at best.
        log2_names: log2 N0.
    """
    of_values = chunks * math.log2(diversity)
    of_chunks = length * math.log2(vocabulary) - math.log2(diversity)
    bits = (
        people * max(0.0, log2_names - _bits(name_nll))
        + people * attributes * max(0.0, of_values - _bits(value_nll))
        + attributes * diversity * max(0.0, of_chunks - _bits(chunk_nll))
    )
    most = (
        people * (log2_names - math.log2(people))
        + people * attributes * of_values
        + attributes * diversity * of_chunks
    )
    return Capacity(bits, bits / parameters, most, most / parameters)


def unintended_memorization(loglik: ArrayLike, loglik_reference: ArrayLike) -> NDArray[np.float64]:
    """``max(0, log2 p_theta(x) - log2 p_ref(x))`` bits per text (Morris et al. 2025).

    Checked against first principles: it is the length that an arithmetic coder saves by having theta rather
    than the reference, and no coder is forced to use theta where that is worse. Summed over texts and divided
    by P it is comparable with their 3.6 bits per parameter.

    Args:
        loglik: sum of ln p over the text, nats.
        loglik_reference: the same under a model that never saw it.
    """
    saved = np.asarray(loglik, np.float64) - np.asarray(loglik_reference, np.float64)
    return np.asarray(np.maximum(0.0, saved) / math.log(2), np.float64)
