"""Values of the attacks, by passes through a causal model of ``transformers``.

Shapes: B rows, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from palimpsest.analysis.attacks.values import SCHEMA, AttackConfig
from palimpsest.analysis.metrics.membership import (
    con_recall_score,
    dc_pdd_score,
    gradient_norm_score,
    neighbourhood_score,
    recall_score,
)
from palimpsest.analysis.scoring.reader import Floats, Ids, Reader


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
