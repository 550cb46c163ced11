"""Near-verbatim similarity of generated continuations, over token ids.

Token ids are compared, not words, because rouge_score's English tokeniser gives 0 for identical Cyrillic texts and 1
for UUIDs that differ in punctuation. Neither sequence includes the prompt; the continuation is cut to the reference's
length.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

from rapidfuzz.distance import LCSseq, Levenshtein


class Rouge(NamedTuple):
    """ROUGE-L (Lin 2004)."""

    precision: float
    """Precision, ``LCS / |continuation|``."""
    recall: float
    """Recall, ``LCS / |reference|``."""
    f1: float
    """F1, ``2PR / (P + R)``."""


def _cut(
    continuation: Sequence[Hashable], reference: Sequence[Hashable], truncate: bool
) -> Sequence[Hashable]:
    if not len(reference):
        raise ValueError("similarity needs a reference")
    return continuation[: len(reference)] if truncate else continuation


def rouge_l(
    continuation: Sequence[Hashable], reference: Sequence[Hashable], *, truncate: bool = True
) -> Rouge:
    """ROUGE-L by longest common subsequence of tokens (ids, or characters of a string).

    Args:
        continuation: generated, without the prompt.
        reference: the text's own continuation.
        truncate: cut the continuation to the reference's length first.
    """
    given = _cut(continuation, reference, truncate)
    if not len(given):
        return Rouge(0.0, 0.0, 0.0)
    shared = LCSseq.similarity(given, reference)
    precision, recall = shared / len(given), shared / len(reference)
    return Rouge(precision, recall, 2 * precision * recall / (precision + recall) if shared else 0.0)


def edit_similarity(
    continuation: Sequence[Hashable],
    reference: Sequence[Hashable],
    *,
    over: Literal["longest", "reference"] = "longest",
    truncate: bool = True,
) -> float:
    """Edit similarity ``1 - Lev / max(|a|, |b|)``, or ``1 - Lev / |reference|`` (memorization_kfac), at least 0; Lev is
    the Levenshtein distance.
    """
    given = _cut(continuation, reference, truncate)
    distance = Levenshtein.distance(given, reference)
    length = len(reference) if over == "reference" else max(len(given), len(reference))
    return max(0.0, 1 - distance / length)
