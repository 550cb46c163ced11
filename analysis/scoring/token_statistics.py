"""One teacher-forced pass per checkpoint over all probes.

Texts of like length are read together (:mod:`analysis.scoring.batches`). The output matrix is applied to a few
tokens at a time, so that B x T x V logits never exist; six numbers a token leave the device.

Shapes: B texts in a batch, T tokens of the longest, N tokens whose logits exist at once, V vocabulary, P predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palimpsest.analysis.scoring import batches
from palimpsest.analysis.scoring.models import Model
from palimpsest.data.errors import UserError

TOKENS_A_BATCH = {"cpu": 2048, "cuda": 65_536}
"""Tokens read at once: enough for fast matrix products; on CPUs, few enough to stay in cache."""
BYTES_A_CHUNK = {"cpu": 2**20, "cuda": 2**29}
"""Size of the logits that exist at once."""

SCORE_SCHEMA = pl.Schema(
    {
        "probe_id": pl.String(),
        "logprob": pl.List(pl.Float32),
        "rank": pl.List(pl.UInt16),
        "entropy": pl.List(pl.Float32),
        "variance": pl.List(pl.Float32),
        "margin": pl.List(pl.Float32),
        "argmax": pl.List(pl.Int32),
    }
)
"""One row a probe, one list entry a token (the first one follows an end-of-document token).

``logprob``: ln p of the token, nats. ``rank``: tokens that the model holds more likely, at most 65,535.
``entropy``: H of the next-token distribution, nats. ``variance``: of ln p under that distribution, nats^2.
``margin``: the token's logit minus the best other one's; above 0 where greedy decoding picks it, 0 in a tie (of tied
tokens the one with the smaller id comes first). ``argmax``: the token that greedy decoding picks.
"""
NUMBERS = tuple(name for name in SCORE_SCHEMA if name != "probe_id")

_DTYPES = {"rank": np.uint16, "argmax": np.int32}


def statistics(logits_NV: Tensor, targets_N: Tensor) -> dict[str, Tensor]:
    """The six numbers of each token (``SCORE_SCHEMA``), computed in float32.

    With z = logit - largest logit and e = exp(z): ``ln p = z_target - ln sum e``, ``H = ln sum e - E[z]``,
    ``V = E[z^2] - E[z]^2``, E being weighted by e. Where the model is sure, E[z] is near 0 and nothing cancels, and the
    sum is 1 plus little, whose logarithm is taken of the little; the last steps are in float64.

    Args:
        logits_NV: (N, V), any float dtype; float32 ones are overwritten.
        targets_N: (N,) int64.
    """
    z_NV = logits_NV.float()
    index_N1 = targets_N[:, None]
    largest_N1, argmax_N1 = z_NV.max(-1, keepdim=True)
    z_NV -= largest_N1
    target_N1 = z_NV.gather(1, index_N1)
    ahead_N = (z_NV > target_N1).sum(-1, dtype=torch.int32)
    level_N = (z_NV == target_N1).sum(-1, dtype=torch.int32)
    e_NV = z_NV.exp().scatter_(
        1, argmax_N1, 0.0
    )  # the largest adds 1 to the sum, and nothing to what follows
    rest_N = e_NV.sum(-1).double()
    sum_N, log_sum_N = 1 + rest_N, rest_N.log1p()
    e_NV *= z_NV
    mean_N = e_NV.sum(-1).double() / sum_N
    e_NV *= z_NV
    square_N = e_NV.sum(-1).double() / sum_N
    ties = (level_N > 1).nonzero()[:, 0]
    if len(ties):
        ids = torch.arange(z_NV.shape[1], device=z_NV.device)
        level = z_NV[ties] == target_N1[ties]
        ahead_N[ties] += (level & (ids < index_N1[ties])).sum(-1, dtype=torch.int32)
    # The best other token is the argmax, unless the target is.
    margin_N = target_N1[:, 0].clone()
    best = (ahead_N == 0).nonzero()[:, 0]
    if len(best):
        others = z_NV[best].scatter_(1, index_N1[best], -torch.inf)
        margin_N[best] = -others.amax(-1)
    return {
        "logprob": (target_N1[:, 0].double() - log_sum_N).float(),
        "rank": ahead_N.clamp(max=65_535),
        "entropy": (log_sum_N - mean_N).float(),
        "variance": (square_N - mean_N.square()).clamp(min=0).float(),
        "margin": margin_N,
        "argmax": argmax_N1[:, 0].int(),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling scheme: temperature, then top-k, then top-p."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def sampled_logprob(logits_NV: Tensor, targets_N: Tensor, sampling: Sampling) -> Tensor:
    """ln g of each target, g what sampling draws from; -inf if it is cut off.

    As :func:`analysis.metrics.extraction.sampling_logprobs`, ties included, for the targets alone and on the device.

    Args:
        logits_NV: (N, V), any float dtype.
        targets_N: (N,) int64.
        sampling: how tokens are drawn.

    Returns:
        (N,) float32.
    """
    logprob_NV = torch.log_softmax(logits_NV.double() / sampling.temperature, -1)
    if sampling.top_k is not None and sampling.top_k < logprob_NV.shape[1]:
        least_N1 = logprob_NV.topk(sampling.top_k, -1).values[:, -1:]
        logprob_NV = torch.log_softmax(logprob_NV.masked_fill(logprob_NV < least_N1, -torch.inf), -1)
    if sampling.top_p is not None:
        falling_NV, order_NV = logprob_NV.sort(dim=-1, descending=True, stable=True)
        p_NV = falling_NV.exp()
        before_NV = p_NV.cumsum(-1) - p_NV
        before_NV[:, 0] = 0.0
        cut_NV = (before_NV >= sampling.top_p - 1e-12) & (before_NV > 0)
        kept_NV = torch.log_softmax(falling_NV.masked_fill(cut_NV, -torch.inf), -1)
        logprob_NV = logprob_NV.scatter(1, order_NV, kept_NV)
    return logprob_NV.gather(1, targets_N[:, None])[:, 0].float()


def score(model: Model, probes: pl.DataFrame, *, eod: int, vocab_size: int) -> pl.DataFrame:
    """Score every probe.

    Args:
        model: see :mod:`analysis.scoring.models`.
        probes: with ``probe_id`` and ``tokens``.
        eod: id of the end-of-document token, put before each probe.
        vocab_size: rows of the output matrix that stand for tokens; logits of the padding beyond are left out.

    Returns:
        A table of ``SCORE_SCHEMA`` in the order of ``probes``.

    Raises:
        UserError: for a probe without tokens, or with a token beyond the vocabulary.
    """
    texts, offsets = _texts(probes, vocab_size)
    return table(probes["probe_id"], offsets, score_tokens(model, texts, eod=eod, vocab_size=vocab_size))


def _texts(probes: pl.DataFrame, vocab_size: int) -> tuple[list[NDArray[np.integer]], NDArray[np.int64]]:
    """Tokens of each probe, and where each begins among all of them (and where the last one ends)."""
    lengths = probes["tokens"].list.len().to_numpy().astype(np.int64)
    flat = probes["tokens"].explode().to_numpy() if lengths.sum() else np.zeros(0, np.int32)
    _check(probes, lengths, flat, vocab_size)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return (np.split(flat, offsets[1:-1]) if len(lengths) else []), offsets


def score_sampled(
    model: Model, probes: pl.DataFrame, sampling: Sampling, *, eod: int, vocab_size: int
) -> pl.DataFrame:
    """``probe_id`` and ``sampled``: ln g of each token under a sampling scheme, in the order of ``probes``.

    Joined to scores by ``probe_id`` it gives (n,p)-discoverable extraction under that scheme (Hayes et al. 2024); the
    arguments are those of :func:`score`.
    """
    texts, offsets = _texts(probes, vocab_size)
    found = each_token(
        model,
        texts,
        lambda z, y: {"sampled": sampled_logprob(z, y, sampling)},
        eod=eod,
        vocab_size=vocab_size,
    )["sampled"]
    lists = pl.Series("sampled", np.split(found, offsets[1:-1]), dtype=pl.List(pl.Float32))
    return pl.DataFrame({"probe_id": probes["probe_id"], "sampled": lists})


def table(
    probe_id: pl.Series, offsets: NDArray[np.int64], numbers: dict[str, NDArray[np.generic]]
) -> pl.DataFrame:
    """Flat numbers, tokens of all probes end to end, as a table of ``SCORE_SCHEMA``."""
    rows = pl.DataFrame({"row": np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), **numbers})
    lists = rows.group_by("row", maintain_order=True).agg(pl.col(NUMBERS))
    return pl.DataFrame({"probe_id": probe_id, **{n: lists[n] for n in NUMBERS}}, schema=SCORE_SCHEMA)


def score_tokens(
    model: Model, texts: Sequence[NDArray[np.integer]], *, eod: int, vocab_size: int
) -> dict[str, NDArray[np.generic]]:
    """The six numbers of every token of every text, flat, text after text."""
    return each_token(model, texts, statistics, eod=eod, vocab_size=vocab_size)


def each_token(
    model: Model,
    texts: Sequence[NDArray[np.integer]],
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    *,
    eod: int,
    vocab_size: int,
) -> dict[str, NDArray[np.generic]]:
    """Numbers of every token of every text, flat, text after text.

    Args:
        model: as for :func:`score`.
        texts: token ids.
        of: logits (N, V), which it may overwrite, and tokens (N,) -> named numbers, (N,) each.
        eod: as for :func:`score`.
        vocab_size: as for :func:`score`.
    """
    ids = [np.asarray(text, np.int64) for text in texts]
    lengths = np.array([len(text) for text in ids], np.int64)
    places = np.cumsum(lengths) - lengths
    with torch.inference_mode():
        names = of(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
        made = {name: np.zeros(lengths.sum(), _DTYPES.get(name, np.float32)) for name in names}
        head_VD = model.head[:vocab_size].float()
        padding = model.causal(int(lengths.max(initial=0)))
        source = batches.containing(ids) if padding else np.arange(len(ids))
        read = np.flatnonzero(source == np.arange(len(ids)))
        for batch in batches.batches(lengths[read], TOKENS_A_BATCH[model.device.type], padding=padding):
            found = _read(model, head_VD, of, [ids[k] for k in read[batch]], eod)
            into = np.concatenate([places[k] + np.arange(lengths[k]) for k in read[batch]])
            for name, values in found.items():
                made[name][into] = values
    for text in np.flatnonzero(source != np.arange(len(ids))):
        first, other, count = places[text], places[source[text]], lengths[text]
        for values in made.values():
            values[first : first + count] = values[other : other + count]
    return made


def _read(
    model: Model,
    head_VD: Tensor,
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    texts: Sequence[NDArray[np.int64]],
    eod: int,
) -> dict[str, NDArray[np.generic]]:
    """The numbers of every token of a batch of texts, text after text."""
    longest = max(map(len, texts))
    ids = np.full((len(texts), longest), eod)
    for row, text in zip(ids, texts, strict=True):
        row[1 : len(text)] = text[:-1]
    hidden_BTD = model.hidden(torch.from_numpy(ids).to(model.device))
    there_BT = np.arange(longest) < np.array([len(text) for text in texts])[:, None]
    hidden_PD = hidden_BTD[torch.from_numpy(there_BT).to(model.device)].float()
    return numbers(head_VD, of, hidden_PD, torch.from_numpy(np.concatenate(texts)).to(model.device))


def numbers(
    head_VD: Tensor,
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    hidden_PD: Tensor,
    targets_P: Tensor,
) -> dict[str, NDArray[Any]]:
    """Numbers of P predictions, whose logits exist a few at a time.

    Args:
        head_VD: output matrix, float32.
        of: as for :func:`each_token`.
        hidden_PD: what the output matrix is applied to, float32.
        targets_P: tokens that are predicted, int64.
    """
    chunk = max(16, BYTES_A_CHUNK[hidden_PD.device.type] // (4 * len(head_VD)))
    parts = [
        of(functional.linear(hidden, head_VD), targets)
        for hidden, targets in zip(hidden_PD.split(chunk), targets_P.split(chunk), strict=True)
    ]
    return {
        name: torch.cat([part[name] for part in parts]).cpu().numpy().astype(_DTYPES.get(name, np.float32))
        for name in parts[0]
    }


def _check(
    probes: pl.DataFrame, lengths: NDArray[np.int64], flat: NDArray[np.integer], vocab_size: int
) -> None:
    if not lengths.all():
        raise UserError(f"probe {probes['probe_id'][int(lengths.argmin())]!r} has no tokens; remove it")
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < vocab_size:
        wrong = int(np.flatnonzero((flat < 0) | (flat >= vocab_size))[0])
        row = int(np.searchsorted(np.cumsum(lengths), wrong, side="right"))
        raise UserError(
            f"probe {probes['probe_id'][row]!r} has token {flat[wrong]}, but the vocabulary has {vocab_size}: it was "
            "tokenized for another model"
        )
