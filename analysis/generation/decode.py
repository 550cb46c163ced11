"""Greedy and sampled continuations by ``generate`` of ``transformers``, with a cache of keys and values.

Prompts of one length are read together, so that nothing is padded before them and each row is what it would be alone.

Shapes: B rows, T tokens of a prompt, R tokens of a reference, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from palimpsest.analysis.generation.continuations import SCHEMA, GenerateConfig
from palimpsest.data.errors import UserError

TOKENS_A_BATCH = {"cpu": 4096, "cuda": 65_536}
"""Tokens of prompts and continuations that are in the cache at once."""


def continued(
    model: Any,
    prompts: pl.DataFrame,
    config: GenerateConfig,
    *,
    beginning: int,
    ends: Sequence[int],
    vocab_size: int,
    decode: Callable[[Sequence[int]], str],
) -> pl.DataFrame:
    """Continuations of prompts.

    A continuation ends before the first token that ends a text, and is never longer than the prompt's reference, the
    text that truly follows.

    Args:
        model: of ``transformers``, with ``generate``; its own settings of generation are not used.
        prompts: as :func:`~analysis.generation.continuations.prompts` gives them, with a boolean column ``begun``:
            whether the token that begins a text precedes the prompt.
        config: settings.
        beginning: id of the token that begins a text.
        ends: ids of the tokens that end one.
        vocab_size: of the tokenizer; further rows of the output matrix are never chosen.
        decode: text of token ids.

    Returns:
        Rows of ``SCHEMA``, in the order of the prompts, the greedy continuation of each before its samples;
        ``similarity`` is null.

    Raises:
        UserError: if the model has not enough positions for a prompt and what follows.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    contexts = [
        [beginning, *context] if begun else list(context)
        for context, begun in prompts.select("context", "begun").iter_rows()
    ]
    references = [list(reference) for reference in prompts["reference"].to_list()]
    _require_positions(model, prompts["probe_id"].to_list(), contexts, references)
    written: list[list[list[int]]] = [[] for _ in contexts]
    logliks = np.zeros(len(contexts))
    for batch in _batches(contexts, references, TOKENS_A_BATCH[model.device.type], 1 + config.samples):
        ids_BT = torch.tensor([contexts[i] for i in batch], device=model.device)
        wanted = [references[i] for i in batch]
        with torch.inference_mode():
            ways = _write(model, ids_BT, max(map(len, wanted)), config, ends, vocab_size)
            loglik = _loglik(model, ids_BT, wanted, config, vocab_size)
        for row, i in enumerate(batch):
            written[i] = [_cut(way, len(references[i]), ends) for way in ways[row]]
            logliks[i] = loglik[row]
    rows = [
        (probe, prefix, sample, tokens, reference, decode(tokens), decode(reference), loglik, None)
        for (probe, prefix), ways, reference, loglik in zip(
            prompts.select("probe_id", "prefix").iter_rows(), written, references, logliks, strict=True
        )
        for sample, tokens in enumerate(ways)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _require_positions(
    model: Any, probes: Sequence[str], contexts: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> None:
    """Check that learned positions suffice; rotary ones always do."""
    words = model.get_input_embeddings()
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    room = min(tables, default=None)
    for probe, context, reference in zip(probes, contexts, references, strict=True):
        needed = len(context) + len(reference)
        if room is not None and needed > room:
            raise UserError(
                f"probe {probe!r}: its prompt and {len(reference)} more tokens take {needed} positions, and the model "
                f"has {room}; set generate.max_tokens or generate.prefix_tokens lower, or generate.questions=false"
            )


def _batches(
    contexts: Sequence[Sequence[int]], references: Sequence[Sequence[int]], tokens: int, ways: int
) -> Iterator[list[int]]:
    """Prompts of one length, with references of like length, so many that all ways fit."""
    order = sorted(range(len(contexts)), key=lambda i: (len(contexts[i]), len(references[i]), i))
    batch: list[int] = []
    for i in order:
        longest = len(contexts[i]) + len(references[i])
        other = batch and len(contexts[i]) != len(contexts[batch[0]])
        if batch and (other or (len(batch) + 1) * ways * longest > tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _write(
    model: Any, ids_BT: Tensor, length: int, config: GenerateConfig, ends: Sequence[int], vocab_size: int
) -> list[list[list[int]]]:
    """Of each row the greedy continuation, then the samples; tokens after an end are arbitrary."""
    from transformers import GenerationConfig, LogitsProcessorList

    def known(_ids: Tensor, logits_BV: Tensor) -> Tensor:
        logits_BV[:, vocab_size:] = -torch.inf
        return logits_BV

    def written(**how: Any) -> Tensor:
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=length, eos_token_id=list(ends), pad_token_id=ends[0], use_cache=True, **how
        )
        ids: Tensor = model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=settings,
            logits_processor=LogitsProcessorList([known]),
        )
        return ids[:, ids_BT.shape[1] :]

    ways: list[list[list[int]]] = written(do_sample=False)[:, None].tolist()
    if config.samples:
        # Seeded by the prompts: the same whatever was decoded before them.
        seed = hashlib.blake2b(ids_BT.cpu().numpy().tobytes(), digest_size=7, key=str(config.seed).encode())
        with torch.random.fork_rng(devices=[ids_BT.device] if ids_BT.device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(seed.digest(), "little"))
            drawn = written(
                do_sample=True,
                num_return_sequences=config.samples,
                temperature=config.temperature,
                top_k=config.top_k or 0,
                top_p=1.0 if config.top_p is None else config.top_p,
            )
        for row, samples in zip(ways, drawn.unflatten(0, (-1, config.samples)).tolist(), strict=True):
            row.extend(samples)
    return ways


def _cut(tokens: Sequence[int], length: int, ends: Sequence[int]) -> list[int]:
    stop = next((at for at, token in enumerate(tokens) if token in ends), length)
    return list(tokens[: min(stop, length)])


def _loglik(
    model: Any, ids_BT: Tensor, references: Sequence[Sequence[int]], config: GenerateConfig, vocab_size: int
) -> list[float]:
    """Sum over each reference of ln g, by one teacher-forced pass; padding stands behind the texts."""
    longest, start = max(map(len, references)), ids_BT.shape[1] - 1
    padded = [[*reference, *[0] * (longest - len(reference))] for reference in references]
    after_BR = torch.tensor(padded, device=ids_BT.device)
    logits_BRV = model(torch.cat([ids_BT, after_BR[:, :-1]], 1), use_cache=False).logits[
        :, start:, :vocab_size
    ]
    how: dict[str, Any] = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    return [
        float(sampled_logprob(logits_RV[: len(reference)], targets_R[: len(reference)], **how).sum())
        for logits_RV, targets_R, reference in zip(logits_BRV, after_BR, references, strict=True)
    ]


def sampled_logprob(
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """ln g of each target, g what sampling draws from; -inf if it is cut off.

    ``softmax(logits / T)``, restricted to the k largest, restricted to the smallest set of most likely tokens whose
    mass reaches p (the token that reaches it is kept), renormalised. Ties at the edge are all kept by top-k and cut in
    order of the vocabulary by top-p.

    Args:
        logits_NV: (N, V), any float dtype.
        targets_N: (N,) int64.
        temperature: T.
        top_k: k; None: all tokens.
        top_p: p; None: all tokens.

    Returns:
        (N,) float64.
    """
    logprob_NV = torch.log_softmax(logits_NV.double() / temperature, -1)
    if top_k is not None and top_k < logprob_NV.shape[1]:
        least_N1 = logprob_NV.topk(top_k, -1).values[:, -1:]
        logprob_NV = torch.log_softmax(logprob_NV.masked_fill(logprob_NV < least_N1, -torch.inf), -1)
    if top_p is not None:
        falling_NV, order_NV = logprob_NV.sort(dim=-1, descending=True, stable=True)
        p_NV = falling_NV.exp()
        before_NV = p_NV.cumsum(-1) - p_NV
        before_NV[:, 0] = 0.0
        cut_NV = (before_NV >= top_p - 1e-12) & (before_NV > 0)
        kept_NV = torch.log_softmax(falling_NV.masked_fill(cut_NV, -torch.inf), -1)
        logprob_NV = logprob_NV.scatter(1, order_NV, kept_NV)
    return logprob_NV.gather(1, targets_N[:, None])[:, 0]
