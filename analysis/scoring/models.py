"""Language models to score: our checkpoints, and any causal model that ``transformers`` opens.

Shapes: B rows, T tokens, N tokens of all rows, D hidden, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.data.errors import UserError

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of log-probabilities that rounding explains, by precision."""
COARSE_AGREEMENT = 0.1
"""The same for bf16 and fp16, whose roundings differ between any two orders of the same sums."""


class Model(Protocol):
    """Interface that the scorer needs of a model."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def head(self) -> Tensor:
        """Output matrix, (V, D): logits are ``hidden @ head.T``."""

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states, which the output matrix is applied to: (B, T) ids -> (B, T, D)."""

    def causal(self, length: int) -> bool:
        """True if no hidden state in texts of up to ``length`` tokens depends on later tokens, or on their number.

        Such texts can be padded, and a text that another begins with need not be read.
        """


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

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states, (B, T, D)."""
        from palimpsest.pretrain import model as engine

        states: Tensor = engine.hidden_states(self.gpt, ids_BT)
        return states

    def causal(self, length: int) -> bool:
        """Always: there is no other attention, and positions do not depend on the text's length."""
        return True


class HuggingFace:
    """A causal model of ``transformers``, by its own forward pass."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def head(self) -> Tensor:
        """Output matrix, (V, D)."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.device

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states, (B, T, D)."""
        states: Tensor = self.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return states

    def causal(self, length: int) -> bool:
        """Tested: a text of that length, and what it begins with (16 tokens, and half of it), agree.

        Rotary frequencies that depend on the text's length (``dynamic``, ``longrope``) are told by their name, too: at
        early positions they differ by less than bf16 shows.
        """
        kinds = {str(getattr(module, "rope_type", "")) for module in self.model.modules()}
        if any(name in kind for kind in kinds for name in ("dynamic", "longrope")):
            return False
        ids = sample(length, len(self.head), self.device)[None]
        with torch.inference_mode():
            whole = self.hidden(ids)
            return all(
                agree(self, self.hidden(ids[:, :cut])[:, last], whole[:, last])
                for cut in {16, length // 2}
                if 0 < cut < length
                for last in [torch.arange(cut, device=self.device)[-16:]]
            )


def agree(model: Model, one_BTD: Tensor, other_BTD: Tensor) -> bool:
    """True if hidden states of the same texts give the same log-probabilities, within rounding."""
    head_VD = model.head.float()
    one, other = (
        torch.log_softmax(functional.linear(states.float(), head_VD), -1) for states in (one_BTD, other_BTD)
    )
    return bool(torch.allclose(one, other, rtol=0, atol=AGREEMENT.get(model.head.dtype, COARSE_AGREEMENT)))


def sample(length: int, vocabulary: int, device: torch.device) -> Tensor:
    """(length,) ids to check a model with; any will do."""
    return (torch.arange(length, device=device) * 7919) % vocabulary


def open_huggingface(path: str | Path, device: torch.device) -> HuggingFace:
    """A causal model of ``transformers`` by path or name.

    Float32 on CPUs, the saved precision on GPUs. Code that comes with a model is never run.

    Raises:
        UserError: if ``transformers`` is missing, cannot open it, or :func:`of_huggingface` refuses it.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face model; install transformers (pip install -e '.[huggingface]')"
        ) from None
    try:
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32 if device.type == "cpu" else "auto", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers cannot open {path} as a causal language model: {' '.join(str(error).split())}"
        ) from None
    return of_huggingface(opened.to(device))


def of_huggingface(opened: Any) -> HuggingFace:
    """As :func:`open_huggingface`, of a model that is open.

    Raises:
        UserError: if its logits are more than its output matrix applied to its last hidden state.
    """
    model = HuggingFace(opened.eval())
    ids = sample(32, len(model.head), model.device).view(2, 16)
    with torch.inference_mode():
        logits_BTV = opened(input_ids=ids, use_cache=False).logits.float()
        made_BTV = functional.linear(model.hidden(ids).float(), model.head.float())
    limit = AGREEMENT.get(model.head.dtype, COARSE_AGREEMENT)
    if logits_BTV.shape != made_BTV.shape or not torch.allclose(
        made_BTV.log_softmax(-1), logits_BTV.log_softmax(-1), rtol=0, atol=limit
    ):
        raise UserError(
            f"{type(opened).__name__} is not supported: its logits are not its output matrix applied to its last "
            "hidden state (a bias, a scale or a cap comes after it)"
        )
    return model
