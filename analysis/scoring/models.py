"""Language models to score: our checkpoints, and any causal model that ``transformers`` opens.

Shapes: B rows, T tokens, P predictions, D entries of a state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Together(IntEnum):
    """Texts that a model can read in one batch without changing a prediction."""

    NONE = 0
    """Each text is read alone."""
    SAME_LENGTH = 1
    """Only texts of the same length share a batch: padding a text, or reading it as the prefix of a longer one, would
    change predictions."""
    ANY = 2
    """Any texts share a batch: texts can be padded, and a text can be read as the prefix of a longer one."""


class Model(Protocol):
    """Interface between the scorer and a model."""

    @property
    def device(self) -> torch.device:
        """Device for the token ids."""

    @property
    def width(self) -> int:
        """Number of entries of a state, D."""

    @property
    def positions(self) -> int | None:
        """Length of the longest text that the model can read, tokens; None if unlimited."""

    def states(self, ids_BT: Tensor) -> Tensor:
        """States of token ids, (B, T) int64 -> (B, T, D); logits are computed from them."""

    def output(self, vocab_size: int) -> Callable[[Tensor], Tensor]:
        """Function from states, (P, D), to the logits of the first ``vocab_size`` tokens, (P, vocab_size) float32."""

    def together(self, length: int) -> Together:
        """Texts that can be read together, for texts of up to ``length`` tokens."""


class Trained:
    """megatron-core's ``GPTModel``, unsharded on this rank, with its own forward pass.

    On a CPU its weights are converted to float32.
    """

    def __init__(self, gpt: Any) -> None:
        self.gpt = gpt
        if self.device.type == "cpu":
            gpt.float()

    @property
    def head(self) -> Tensor:
        """Output matrix, (V, D)."""
        from palimpsest.pretrain import (
            model as engine,  # takes seconds, and models of transformers need none of it
        )

        weight: Tensor = engine.output_weight(self.gpt)
        return weight

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.device

    @property
    def width(self) -> int:
        """Hidden size."""
        return int(self.head.shape[1])

    @property
    def positions(self) -> int | None:
        """Number of learned position embeddings; None if the model has none."""
        table = getattr(getattr(self.gpt, "embedding", None), "position_embeddings", None)
        return None if table is None else int(table.weight.shape[0])

    def states(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states, (B, T, D)."""
        from palimpsest.pretrain import model as engine

        states: Tensor = engine.hidden_states(self.gpt, ids_BT)
        return states

    def output(self, vocab_size: int) -> Callable[[Tensor], Tensor]:
        """Function from states, (P, D), to logits, (P, vocab_size) float32."""
        return matrix(self.head, vocab_size)

    def together(self, length: int) -> Together:
        """``Together.ANY``: attention is always causal, and positions do not depend on the text's length."""
        return Together.ANY


def matrix(head_VD: Tensor, vocab_size: int) -> Callable[[Tensor], Tensor]:
    """Function from states, (P, D), to logits, (P, vocab_size) float32, by a product with the output matrix.

    On GPUs a half-precision matrix is not converted: products of half-precision numbers are exact in float32, in which
    they are summed, and tensor cores make them several times as fast as float32 products.
    """
    head_VD = head_VD[:vocab_size].detach()
    if head_VD.device.type == "cpu" or head_VD.dtype not in (torch.bfloat16, torch.float16):
        weight_VD = head_VD.float()
        return lambda states_PD: functional.linear(states_PD.to(weight_VD.device, torch.float32), weight_VD)

    def product(states_PD: Tensor) -> Tensor:
        states_PD = states_PD.to(head_VD.device)
        if states_PD.dtype != head_VD.dtype:
            return functional.linear(states_PD.float(), head_VD.float())
        return torch.mm(states_PD, head_VD.t(), out_dtype=torch.float32)

    return product
