"""One teacher-forced pass per checkpoint over all probes.

Texts of like length are read together, those with a common beginning as one tree (:mod:`analysis.packing`). The output
matrix is applied to a few tokens at a time, so that B x T x V logits never exist; six numbers a token leave the device.

Shapes: B rows in a batch, R tokens of the longest, N tokens whose logits exist at once, V vocabulary, P predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from palimpsest.analysis import packing, threads, vectors
from palimpsest.analysis.decoder import Output
from palimpsest.analysis.models import Model
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
    if logits_NV.device.type == "cpu" and logits_NV.dtype == torch.float32:
        return _statistics_on_cpu(logits_NV.contiguous(), targets_N)
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


def _statistics_on_cpu(logits_NV: Tensor, targets_N: Tensor) -> dict[str, Tensor]:
    """As :func:`statistics`, in two passes over the logits."""
    kinds = {"rank": torch.int32, "argmax": torch.int32}
    found = {name: torch.empty(len(targets_N), dtype=kinds.get(name, torch.float32)) for name in NUMBERS}
    vectors.statistics(logits_NV.numpy(), targets_N.numpy(), *(one.numpy() for one in found.values()))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn: temperature, then top-k, then top-p."""

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
        model: see :mod:`analysis.models`.
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
    rows, copies = packing.rows(texts, eod, trees=model.trees)
    batches = list(packing.batches(rows, TOKENS_A_BATCH[model.device.type]))
    total = sum(len(text) for text in texts)
    with torch.inference_mode():
        head = Output(model.head[:vocab_size].float())
        names = of(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    made = {name: np.zeros(total, _DTYPES.get(name, np.float32)) for name in names}
    work = partial(_read, model, head, of)
    for batch, found in zip(batches, threads.each(work, batches, model.device), strict=True):
        places = np.concatenate([row.places for row in batch])
        for name, values in found.items():
            made[name][places] = values
    for copy in copies:
        for values in made.values():
            values[copy.target : copy.target + copy.count] = values[copy.source : copy.source + copy.count]
    return made


def _read(
    model: Model,
    head: Output,
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    batch: Sequence[packing.Row],
) -> dict[str, NDArray[np.generic]]:
    """The numbers of a batch's predictions, row after row."""
    longest = max(len(row.ids) for row in batch)
    ids = np.zeros((len(batch), longest), np.int64)
    nodes = []
    for line, row in enumerate(batch):
        ids[line, : len(row.ids)] = row.ids
        nodes.append(line * longest + row.nodes)
    device = model.device
    ids_BR = torch.from_numpy(ids).to(device)
    if batch[0].seen is None:
        hidden_BRD = model.hidden(ids_BR)
    else:
        positions = np.zeros((len(batch), longest), np.int64)
        # Padding attends to itself, for attention to nothing is not a number.
        seen = np.broadcast_to(np.eye(longest, dtype=np.bool_), (len(batch), longest, longest)).copy()
        for line, row in enumerate(batch):
            size = len(row.ids)
            assert row.positions is not None, "rows of one kind are read together"
            positions[line, :size] = row.positions
            seen[line, :size, :size] = row.seen
        hidden_BRD = model.hidden(
            ids_BR, torch.from_numpy(positions).to(device), torch.from_numpy(seen).to(device)
        )
    nodes_P = torch.from_numpy(np.concatenate(nodes)).to(device)
    hidden_PD = hidden_BRD.flatten(0, 1)[nodes_P].float()
    targets_P = torch.from_numpy(np.concatenate([row.targets for row in batch])).to(device)
    return numbers(head, of, hidden_PD, targets_P)


def numbers(
    head: Output,
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    hidden_PD: Tensor,
    targets_P: Tensor,
) -> dict[str, NDArray[Any]]:
    """Numbers of P predictions, whose logits exist a few at a time.

    Args:
        head: output matrix.
        of: as for :func:`each_token`.
        hidden_PD: what the output matrix is applied to, float32.
        targets_P: tokens that are predicted, int64.
    """
    chunk = max(16, BYTES_A_CHUNK[hidden_PD.device.type] // (4 * head.size))
    parts = [
        of(head.logits(hidden), targets)
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
