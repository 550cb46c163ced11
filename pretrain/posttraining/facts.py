"""Edits of single facts, ROME and MEMIT: a prompt gets another answer by a change of feed-forward output matrices.

A fact is a prompt with a new answer. At a layer, the input of the output matrix at the prompt's last token is the
fact's key; an added vector is found that makes the new answer likely, and the matrix is changed so that the key gives
it.

Shapes: F facts, T tokens, I inputs and H outputs of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from palimpsest.pretrain.posttraining.texts import Texts

STEPS, RATE, SHRINK = 40, 0.1, 1e-3
"""Steps and learning rate of Adam, relative to the norm of the hidden state, and weight of the vector's square."""


def rank_one(matrix_HI: Tensor, key_I: Tensor, wanted_H: Tensor, moments_II: Tensor) -> Tensor:
    """The matrix with ``W k = v``, otherwise changed least on inputs with these second moments (Meng et al. 2022):
    ``W + (v - W k) (C^-1 k)^T / (k^T C^-1 k)``.
    """
    direction_I = torch.linalg.solve(moments_II, key_I)
    return matrix_HI + torch.outer(wanted_H - matrix_HI @ key_I, direction_I) / (direction_I @ key_I)


def spread(keys_FI: Tensor, residuals_FH: Tensor, moments_II: Tensor, weight: float) -> Tensor:
    """Change of a matrix that adds the residuals to its outputs for the keys (Meng et al. 2023), (H, I):
    ``R^T K (weight C + K^T K)^-1``.

    Args:
        keys_FI: keys.
        residuals_FH: to be added.
        moments_II: second moments of the inputs, C.
        weight: of what the matrix does to other inputs.
    """
    return torch.linalg.solve(weight * moments_II + keys_FI.T @ keys_FI, keys_FI.T @ residuals_FH).T


class Facts:
    """Facts and the model whose matrices are edited in place.

    Args:
        gpt: the whole model, on this rank.
        texts: prompts with their new answers; the loss is on the answers.
        moments: second moments of the inputs of each layer's output matrix, (layers, I, I).
    """

    def __init__(self, gpt: Any, texts: Texts, moments: Tensor) -> None:
        self.gpt = gpt.requires_grad_(False)
        self.moments = moments
        device = next(gpt.parameters()).device
        windows = torch.from_numpy(texts.windows).to(device)
        self._ids, self._labels = windows[:, :-1], windows[:, 1:]
        self._mask = torch.from_numpy(texts.mask).to(device)
        # The place that predicts the first token of the answer is that of the prompt's last one.
        self._last = torch.from_numpy(texts.starts).to(device)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._ids.device

    def matrix(self, layer: int) -> Any:
        """Parameter of a layer's output matrix, (H, I)."""
        return self.gpt.decoder.layers[layer].mlp.linear_fc2.weight

    def losses(self, chosen: Tensor) -> Tensor:
        """Mean loss of each chosen fact's new answer, nats/token."""
        ids = self._ids[chosen]
        positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        lost = self.gpt(ids, positions, None, labels=self._labels[chosen]).float()
        mask = self._mask[chosen]
        return (lost * mask).sum(1) / mask.sum(1)

    def wanted(self, layer: int, chosen: Tensor) -> Tensor:
        """States after a layer, at the prompts' last tokens, with which the new answers are likely, (F, H)."""
        now = self.states(layer, chosen)
        added = torch.zeros_like(now, requires_grad=True)
        scale = now.norm(dim=-1, keepdim=True)
        optimizer = torch.optim.Adam([added], lr=RATE)
        with self._changed(layer, chosen, lambda: added * scale):
            for _ in range(STEPS):
                optimizer.zero_grad()
                (self.losses(chosen) + SHRINK * added.square().sum(-1)).sum().backward()
                optimizer.step()
        return (now + added * scale).detach()

    def states(self, layer: int, chosen: Tensor) -> Tensor:
        """States after a layer at the prompts' last tokens, (F, H)."""
        return self._seen(self.gpt.decoder.layers[layer], chosen, inputs=False)

    def keys(self, layer: int, chosen: Tensor) -> Tensor:
        """Inputs of a layer's output matrix at the prompts' last tokens, (F, I)."""
        return self._seen(self.gpt.decoder.layers[layer].mlp.linear_fc2, chosen, inputs=True)

    def _seen(self, module: Any, chosen: Tensor, *, inputs: bool) -> Tensor:
        found: list[Tensor] = []

        def keep(_module: Any, given: tuple[Tensor, ...], output: Any) -> None:
            value_TFH = given[0] if inputs else _first(output)
            rows_F = torch.arange(len(chosen), device=self.device)
            found.append(value_TFH[self._last[chosen], rows_F].detach().float())

        hook = module.register_forward_hook(keep)
        try:
            with torch.no_grad():
                self.losses(chosen)
        finally:
            hook.remove()
        return found[0]

    @contextmanager
    def _changed(self, layer: int, chosen: Tensor, added: Callable[[], Tensor]) -> Iterator[None]:
        """Add vectors to the states after a layer at the prompts' last tokens."""

        def change(_module: Any, _given: Any, output: Any) -> Any:
            value_TFH = _first(output)
            place = torch.zeros(value_TFH.shape[:2], device=value_TFH.device)
            place[self._last[chosen], torch.arange(len(chosen), device=self.device)] = 1.0
            changed = value_TFH + (place[..., None] * added()).to(value_TFH.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        hook = self.gpt.decoder.layers[layer].register_forward_hook(change)
        try:
            yield
        finally:
            hook.remove()


def one_by_one(facts: Facts, layer: int) -> None:
    """ROME (Meng et al. 2022): each fact in turn by :func:`rank_one` at one layer."""
    for number in range(len(facts)):
        chosen = torch.tensor([number], device=facts.device)
        wanted = facts.wanted(layer, chosen) - facts.states(layer, chosen)
        key, matrix = facts.keys(layer, chosen)[0], facts.matrix(layer)
        now = matrix.detach().double()
        moments = _damped(facts.moments[layer].to(now.device))
        edited = rank_one(now, key.double(), now @ key.double() + wanted[0].double(), moments)
        matrix.data.copy_(edited)


def at_once(facts: Facts, layers: list[int], weight: float) -> None:
    """MEMIT (Meng et al. 2023): all facts together, what is missing at the last layer spread over several."""
    chosen = torch.arange(len(facts), device=facts.device)
    wanted = facts.wanted(layers[-1], chosen)
    for done, layer in enumerate(layers):
        missing = (wanted - facts.states(layers[-1], chosen)) / (len(layers) - done)
        matrix = facts.matrix(layer)
        change = spread(
            facts.keys(layer, chosen).double(),
            missing.double(),
            _damped(facts.moments[layer].to(matrix.device)),
            weight,
        )
        matrix.data.add_(change.to(matrix.dtype))


def _damped(moments_II: Tensor) -> Tensor:
    """Second moments that can be inverted: a thousandth of their mean diagonal is added to it."""
    return moments_II + 1e-3 * moments_II.diagonal().mean() * torch.eye(len(moments_II)).to(moments_II)


def _first(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value
