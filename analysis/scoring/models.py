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
    """Texts that a model can read together without a change to any prediction."""

    NONE = 0
    """None: each text alone."""
    SAME_LENGTH = 1
    """Only texts of the same length: predictions would change if a text were padded, or read as the beginning of a
    longer one."""
    ANY = 2
    """All: texts can be padded, and a text that another begins with need not be read."""


class Model(Protocol):
    """Interface that the scorer needs of a model."""

    @property
    def device(self) -> torch.device:
        """Device that token ids are put on."""

    @property
    def width(self) -> int:
        """Entries of a state, D."""

    @property
    def positions(self) -> int | None:
        """Tokens in the longest text that it can read; None if there is no bound."""

    def states(self, ids_BT: Tensor) -> Tensor:
        """States from which logits are computed, at each position: (B, T) ids -> (B, T, D)."""

    def output(self, vocab_size: int) -> Callable[[Tensor], Tensor]:
        """Function of states, (P, D), to the logits of the first ``vocab_size`` tokens, (P, vocab_size) float32."""

    def together(self, length: int) -> Together:
        """Texts that can be read together, for texts of up to ``length`` tokens."""


class Trained:
    """megatron-core's ``GPTModel``, whole on this rank, by its own forward pass.

    On CPUs it computes in float32 whatever precision it was trained in: its weights are turned to float32.
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
        """Rows of the table of learned positions; None without one."""
        table = getattr(getattr(self.gpt, "embedding", None), "position_embeddings", None)
        return None if table is None else int(table.weight.shape[0])

    def states(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states, (B, T, D)."""
        from palimpsest.pretrain import model as engine

        states: Tensor = engine.hidden_states(self.gpt, ids_BT)
        return states

    def output(self, vocab_size: int) -> Callable[[Tensor], Tensor]:
        """Product with the output matrix, in float32."""
        return matrix(self.head, vocab_size)

    def together(self, length: int) -> Together:
        """Always all: attention is causal without exception, and positions do not depend on the text's length."""
        return Together.ANY


def matrix(head_VD: Tensor, vocab_size: int) -> Callable[[Tensor], Tensor]:
    """Logits as the product of an output matrix with states, in float32 whatever they are stored in.

    On GPUs a half-precision matrix is multiplied by states of its dtype as it is: such products are exact in float32,
    which they are summed in, and tensor cores make them several times as fast as products of float32 copies.
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
