"""Teacher-forced passes through a causal model of ``transformers``, without padding.

Texts of one length are read together. Shapes: B rows, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = list[int]
Floats = NDArray[np.float64]
TOKENS_A_BATCH = {"cpu": 4096, "cuda": 65_536}
"""Tokens that are read at once."""


class Reader:
    """A model that reads texts behind the token that begins a text.

    Args:
        model: of ``transformers``.
        beginning: id of the token that begins a text.
        vocab_size: of the tokenizer; further rows of the output matrix have no probability.
    """

    def __init__(self, model: Any, beginning: int, vocab_size: int) -> None:
        self.model = model.eval()
        self.beginning = beginning
        self.vocab_size = vocab_size

    @property
    def positions(self) -> int:
        """Most tokens of a text that the model was made for, the first one included; 2^31 - 1 where it states none."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31 - 1)

    def log_softmax(self, ids_BT: Tensor) -> Tensor:
        """Predictions of tokens 1 to T - 1, (B, T - 1, V) float32."""
        logits: Tensor = self.model(ids_BT[:, :-1], use_cache=False).logits
        return logits[..., : self.vocab_size].float().log_softmax(-1)

    def logprobs(self, texts: Sequence[Ids], before: Sequence[Ids] | None = None) -> list[Floats]:
        """ln p of every token of each text, its first one included: (T,) float64 for each.

        Args:
            texts: token ids.
            before: tokens that each text follows, which are not scored; they stand behind the beginning-of-document
                token. None: the texts follow that token alone.
        """
        fronts = [[self.beginning, *(before[i] if before else ())] for i in range(len(texts))]
        found: list[Floats] = [np.empty(0)] * len(texts)
        lengths = [len(front) + len(text) for front, text in zip(fronts, texts, strict=True)]
        most = TOKENS_A_BATCH[self.model.device.type]
        for batch in _batches(lengths, most):
            ids_BT = torch.tensor([fronts[i] + texts[i] for i in batch], device=self.model.device)
            with torch.inference_mode():
                own = self.log_softmax(ids_BT).gather(-1, ids_BT[:, 1:, None])[..., 0].double().cpu().numpy()
            for row, i in zip(own, batch, strict=True):
                found[i] = row[len(fronts[i]) - 1 :]
        return found

    def gradient_norms(self, text: Ids) -> list[float]:
        """L2 norm of the gradient of the mean loss a token, of each parameter tensor."""
        ids_BT = torch.tensor([[self.beginning, *text]], device=self.model.device)
        self.model.zero_grad(set_to_none=True)
        loss = -self.log_softmax(ids_BT).gather(-1, ids_BT[:, 1:, None]).mean()
        loss.backward()
        gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
        norms: list[float] = torch.stack([one.norm() for one in gradients]).tolist()
        self.model.zero_grad(set_to_none=True)
        return norms


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Rows of one length, at most ``tokens`` in all (or one row)."""
    order = np.argsort(lengths, kind="stable")
    batch: list[int] = []
    for i in order.tolist():
        if batch and (lengths[i] != lengths[batch[0]] or (len(batch) + 1) * lengths[i] > tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
