"""Passes of the attacks through a causal model of ``transformers``.

Texts of one length are read together, so that nothing is padded. Shapes: B rows, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from palimpsest.analysis.attacks.values import SCHEMA, AttackConfig
from palimpsest.analysis.metrics.membership import (
    con_recall_score,
    dc_pdd_score,
    gradient_norm_score,
    neighbourhood_score,
    recall_score,
)

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
        """Most tokens of a text that the model was made for, the first one included."""
        return int(self.model.config.max_position_embeddings)

    def log_softmax(self, ids_BT: Tensor) -> Tensor:
        """Predictions of tokens 1 to T - 1, (B, T - 1, V) float32."""
        logits: Tensor = self.model(ids_BT[:, :-1], use_cache=False).logits
        return logits[..., : self.vocab_size].float().log_softmax(-1)

    def logprobs(self, texts: Sequence[Ids], before: Sequence[Ids] | None = None) -> list[Floats]:
        """ln p of every token of each text, (T,) float64.

        Args:
            texts: token ids.
            before: what each stands behind, between the first token and it; None: nothing.
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


def attacked(
    reader: Reader,
    chosen: pl.DataFrame,
    every: pl.DataFrame,
    config: AttackConfig,
    frequencies: Callable[[], Floats],
) -> pl.DataFrame:
    """Values of the attacks on texts.

    Args:
        reader: the model.
        chosen: the texts (``analysis.attacks.values.texts``).
        every: all texts, from which the prefixes are taken.
        config: settings.
        frequencies: function that gives the relative frequency of each token id in the corpus, (V,), above 0.

    Returns:
        Rows of ``SCHEMA``, by attack in the order of the settings.
    """
    tokens: list[Ids] = [list(ids) for ids in chosen["tokens"]]
    alone = reader.logprobs(tokens)
    prefixes = _prefixes(reader, chosen, every)
    methods: dict[str, Callable[[], list[float | None]]] = {
        "recall": lambda: _recall(reader, tokens, alone, prefixes),
        "con_recall": lambda: _con_recall(reader, tokens, alone, prefixes),
        "neighbourhood": lambda: _neighbourhood(reader, tokens, alone, chosen["probe_id"].to_list(), config),
        "gradient_norm": lambda: [gradient_norm_score(reader.gradient_norms(text)) for text in tokens],
        "dc_pdd": lambda: _dc_pdd(tokens, alone, frequencies()),
    }
    frames = [
        chosen.select("probe_id", attack=pl.lit(name), value=pl.Series(methods[name](), dtype=pl.Float64))
        for name in config.names
    ]
    return pl.concat(frames).cast(SCHEMA)


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


Prefixes = list[dict[str, Ids] | None]


def _prefixes(reader: Reader, chosen: pl.DataFrame, every: pl.DataFrame) -> Prefixes:
    """Of each text the prefixes of its family's ``nonmember`` and ``member`` texts; None of one that stands in them.

    They are joined by the token that begins a text, and cut on the left where model and text leave no room.
    """
    joined: dict[tuple[str, str], Ids] = {}
    for family, group, tokens in every.drop_nulls("aside").select("family", "aside", "tokens").iter_rows():
        joined.setdefault((family, group), []).extend([*tokens, reader.beginning])
    found: Prefixes = []
    for family, tokens, aside in chosen.select("family", "tokens", "aside").iter_rows():
        room = max(0, reader.positions - 1 - len(tokens))
        own = {
            group: joined[family, group][-room:] if room else []
            for group in ("nonmember", "member")
            if (family, group) in joined
        }
        found.append(None if aside else own)
    return found


def _after(reader: Reader, tokens: list[Ids], prefixes: Prefixes, group: str) -> dict[int, float]:
    """Number of a text -> its log-likelihood behind a prefix, where it has one."""
    numbers = [i for i, own in enumerate(prefixes) if own and own.get(group)]
    before = [(prefixes[i] or {})[group] for i in numbers]
    values = reader.logprobs([tokens[i] for i in numbers], before)
    return {i: float(value.sum()) for i, value in zip(numbers, values, strict=True)}


def _recall(reader: Reader, tokens: list[Ids], alone: list[Floats], prefixes: Prefixes) -> list[float | None]:
    after = _after(reader, tokens, prefixes, "nonmember")
    return [float(recall_score(alone[i].sum(), after[i])) if i in after else None for i in range(len(tokens))]


def _con_recall(
    reader: Reader, tokens: list[Ids], alone: list[Floats], prefixes: Prefixes
) -> list[float | None]:
    nonmembers, members = (_after(reader, tokens, prefixes, group) for group in ("nonmember", "member"))
    return [
        float(con_recall_score(alone[i].sum(), nonmembers[i], members[i]))
        if i in nonmembers and i in members
        else None
        for i in range(len(tokens))
    ]


def _neighbourhood(
    reader: Reader, tokens: list[Ids], alone: list[Floats], names: list[str], config: AttackConfig
) -> list[float | None]:
    values: list[float | None] = []
    for text, own, name in zip(tokens, alone, names, strict=True):
        rng = np.random.default_rng([config.seed, *name.encode()])
        copies = altered(reader, text, config, rng)
        losses = [-float(one.mean()) for one in reader.logprobs(copies)]
        values.append(neighbourhood_score(-float(own.mean()), losses))
    return values


def altered(reader: Reader, text: Ids, config: AttackConfig, rng: np.random.Generator) -> list[Ids]:
    """Copies of a text, each with ``config.replaced`` of its tokens replaced, at least one.

    A token is replaced by one that the model predicts there, drawn by its probability among all but the true one.

    Args:
        reader: the model.
        text: token ids.
        config: settings.
        rng: of the draws.
    """
    ids_BT = torch.tensor([[reader.beginning, *text]], device=reader.model.device)
    with torch.inference_mode():
        predicted_TV = reader.log_softmax(ids_BT)[0].double().cpu().numpy()
    predicted_TV[np.arange(len(text)), text] = -np.inf
    count = max(1, round(config.replaced * len(text)))
    copies = np.tile(np.array(text), (config.neighbours, 1))
    for copy in copies:
        places = rng.choice(len(text), count, replace=False)
        noise = rng.gumbel(size=(count, predicted_TV.shape[1]))
        copy[places] = (predicted_TV[places] + noise).argmax(-1)
    found: list[Ids] = copies.tolist()
    return found


def _dc_pdd(tokens: list[Ids], alone: list[Floats], frequency_V: Floats) -> list[float | None]:
    return [
        dc_pdd_score(text, own, frequency_V[np.array(text)]) for text, own in zip(tokens, alone, strict=True)
    ]
