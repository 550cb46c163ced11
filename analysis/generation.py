"""Continuations, where similarity of free text is asked for; exact extraction needs none (``metrics.extraction``).

Prompts of one length are continued together from one cache; each stops at its reference's length or at an
end-of-document token. Up to the first token that differs from the reference the teacher-forced pass has said it all
(:func:`continue_greedily`); only what follows is generated.

Shapes: B rows, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.decoder import Decoder, linear
from analysis.metrics.extraction import sampling_logprobs

ROWS_A_BATCH = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn: temperature, then top-k, then top-p."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def generate(
    model: Decoder,
    prompts: Sequence[NDArray[np.integer]],
    lengths: Sequence[int],
    *,
    eod: int,
    vocab_size: int,
    sampling: Sampling | None = None,
) -> list[NDArray[np.int64]]:
    """Continue each prompt.

    Args:
        model: lean form of a model (``models.of_checkpoint`` or ``models.of_huggingface``).
        prompts: token ids; an end-of-document token is put before each.
        lengths: most tokens to generate of each, such as the reference's length; at least 1.
        eod: end-of-document token, which also ends a continuation and is not part of it.
        vocab_size: rows of the output matrix that stand for tokens.
        sampling: how to draw; greedy if not given (of tied tokens the one with the smallest id).

    Returns:
        One array of at most ``lengths`` ids a prompt.
    """
    draw = _greedy if sampling is None else _sampler(sampling)
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda k: (len(prompts[k]), lengths[k]))
    size = ROWS_A_BATCH[model.device.type]
    with torch.inference_mode():
        head_VD = model.head[:vocab_size].float()
        start = 0
        for stop in range(1, len(order) + 1):
            if (
                stop == len(order)
                or stop - start == size
                or len(prompts[order[stop]]) != len(prompts[order[start]])
            ):
                chosen = order[start:stop]
                ids = np.stack([np.concatenate([[eod], prompts[k]]) for k in chosen]).astype(np.int64)
                limits = np.array([lengths[k] for k in chosen])
                for k, tokens in zip(chosen, _batch(model, head_VD, ids, limits, eod, draw), strict=True):
                    found[k] = tokens
                start = stop
    return found


def _batch(
    model: Decoder,
    head_VD: Tensor,
    ids: NDArray[np.int64],
    limits: NDArray[np.int64],
    eod: int,
    draw: Callable[[Tensor], Tensor],
) -> list[NDArray[np.int64]]:
    """Continuations of prompts of one length; rows that are done leave the batch."""
    longest = int(limits.max())
    device = model.device
    cache = model.cache(len(ids), ids.shape[1] + longest)
    made = np.full((len(ids), longest), eod, np.int64)
    alive = np.arange(len(ids))
    done = np.zeros(len(ids), np.bool_)
    fresh_BT, read = torch.from_numpy(ids).to(device), 0
    for place in range(longest):
        hidden_BD = model.extend(fresh_BT, read, cache)[:, -1]
        read += fresh_BT.shape[1]
        token_B = draw(linear(hidden_BD.float(), head_VD))
        tokens = token_B.cpu().numpy()
        made[alive, place] = np.where(done, eod, tokens)
        done |= (tokens == eod) | (limits[alive] <= place + 1)
        if done.all():
            break
        if done.mean() > 0.25:  # below that, leaving rows out costs more than it saves
            rows = torch.from_numpy(np.flatnonzero(~done)).to(device)
            cache.keep(rows)
            token_B, alive, done = token_B[rows], alive[~done], done[~done]
        fresh_BT = token_B[:, None]
    ends = np.where((made == eod).any(1), (made == eod).argmax(1), longest)
    return [row[: min(end, limit)] for row, end, limit in zip(made, ends, limits, strict=True)]


def _greedy(logits_BV: Tensor) -> Tensor:
    return logits_BV.argmax(-1)


def _sampler(sampling: Sampling) -> Callable[[Tensor], Tensor]:
    """Draw by the Gumbel trick: the argmax of log-probabilities plus Gumbel noise has just their distribution."""
    rng = np.random.default_rng(sampling.seed)

    def draw(logits_BV: Tensor) -> Tensor:
        logprob = sampling_logprobs(
            logits_BV.cpu().numpy(),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        return torch.from_numpy((logprob + rng.gumbel(size=logprob.shape)).argmax(-1)).to(logits_BV.device)

    return draw


def continue_greedily(
    model: Decoder,
    texts: Sequence[NDArray[np.integer]],
    argmax: Sequence[NDArray[np.integer]],
    prefixes: Sequence[int],
    *,
    longest: int,
    eod: int,
    vocab_size: int,
) -> dict[int, list[NDArray[np.int64]]]:
    """Greedy continuations of texts after several prefixes, generating only what scoring has not said.

    As long as the argmax hits, the continuation is the text itself; the first miss is known as well. Two prefixes of a
    text between which nothing misses have the same continuation from there on.

    Args:
        model: as for :func:`generate`.
        texts: token ids.
        argmax: of every token of every text (column ``argmax`` of the scores).
        prefixes: tokens of context.
        longest: most tokens to continue; a text that ends before ends the continuation.
        eod: end-of-document token; ends a continuation.
        vocab_size: as for :func:`generate`.

    Returns:
        For every prefix the continuations of all texts; empty where a text has no more tokens than the prefix.
    """
    jobs: dict[tuple[int, int], int] = {}
    first: dict[int, list[int]] = {}
    for prefix in prefixes:
        first[prefix] = []
        for k, (text, best) in enumerate(zip(texts, argmax, strict=True)):
            stop = min(len(text), prefix + longest)
            missed = np.flatnonzero(np.asarray(best[prefix:stop]) != np.asarray(text[prefix:stop]))
            miss = prefix + int(missed[0]) if len(missed) else stop
            first[prefix].append(miss)
            if miss + 1 < stop and best[miss] != eod:
                jobs[k, miss] = max(jobs.get((k, miss), 0), stop - miss - 1)
    keys = list(jobs)
    made = generate(
        model,
        [np.append(texts[k][:miss], argmax[k][miss]) for k, miss in keys],
        [jobs[key] for key in keys],
        eod=eod,
        vocab_size=vocab_size,
    )
    after = dict(zip(keys, made, strict=True))
    found: dict[int, list[NDArray[np.int64]]] = {}
    for prefix in prefixes:
        found[prefix] = []
        for k, (text, miss) in enumerate(zip(texts, first[prefix], strict=True)):
            stop = min(len(text), prefix + longest)
            tail = [np.asarray(text[prefix:miss], np.int64)]
            if miss < stop and argmax[k][miss] != eod:
                tail += [np.asarray(argmax[k][miss : miss + 1], np.int64), after.get((k, miss), tail[0][:0])]
            found[prefix].append(np.concatenate(tail)[: max(0, stop - prefix)])
    return found
