"""Hyperparameters by a published scaling law, from the numbers of weights and of training tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from palimpsest.pretrain.config import ModelConfig

STEP_LAW = "step_law"
LOWEST = 1e-5
"""Final learning rate of the runs to which the law was fitted."""
SOURCE = "Step Law, Li et al., 2025, arXiv:2503.04715"


def step_law_learning_rate(weights: float, tokens: float) -> float:
    """Best peak learning rate of AdamW, 1.79 N^-0.713 D^0.307 (Li et al., 2025).

    It was fitted with cosine decay to 1e-5.

    Args:
        weights: N, without embeddings and output layer.
        tokens: D, number of training tokens.
    """
    return float(1.79 * weights**-0.713 * tokens**0.307)


def step_law_batch_of(steps: int) -> float:
    """Best batch size in tokens of a run of ``steps`` steps: the solution b of ``b = 0.58 (steps b)^0.571``."""
    return float((0.58 * steps**0.571) ** (1 / (1 - 0.571)))


def apply(values: dict[str, Any]) -> list[str]:
    """Apply ``optimizer.law``, and replace ``train.global_batch_size=step_law`` by a number.

    The batch is computed first, for the given number of steps and rounded to whole micro-batches; then the learning
    rate, for the tokens that this batch gives.

    Args:
        values: settings by group, changed in place.

    Returns:
        Descriptions of the changes and their formulas, one line each.
    """
    train, optimizer = values["train"], values["optimizer"]
    batch = train.get("global_batch_size")
    numbers = [train.get(key) for key in ("steps", "micro_batch_size", "sequence_length")]
    if any(not isinstance(number, int) or number < 1 for number in numbers):
        return []  # the checks of the settings name it
    lines = []
    if batch == STEP_LAW:
        micro = train["micro_batch_size"]
        best = step_law_batch_of(train["steps"])
        windows = max(1, round(best / train["sequence_length"] / micro)) * micro
        train["global_batch_size"] = windows
        lines.append(
            f"train.global_batch_size={windows}: {best:,.0f} tokens a step are 0.58 D^0.571 for the D tokens of "
            f"{train['steps']:,} such steps ({SOURCE})"
        )
    weights = _body(values["model"]) if optimizer.get("law") == STEP_LAW else None
    if weights is not None and isinstance(train.get("global_batch_size"), int):
        tokens = train["steps"] * train["global_batch_size"] * train["sequence_length"]
        rate = float(f"{step_law_learning_rate(weights, tokens):.3g}")
        optimizer |= {"learning_rate": rate, "min_learning_rate": LOWEST}
        lines.append(
            f"optimizer.learning_rate={rate:g}: 1.79 N^-0.713 D^0.307 for N={weights:,} weights without embeddings "
            f"and D={tokens:,} tokens; optimizer.min_learning_rate={LOWEST:g} ({SOURCE})"
        )
    return lines


def _body(model: Mapping[str, Any]) -> int | None:
    """Number of weights of a model without embeddings and output layer; None if its settings are not valid."""
    try:
        return TypeAdapter(ModelConfig).validate_python(model).parameters(0, 0)
    except ValidationError:
        return None
