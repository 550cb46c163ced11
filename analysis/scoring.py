"""One teacher-forced pass per checkpoint over all probes.

Shapes: B probes in a batch, T tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from data import artifact
from pretrain import checkpoint, model
from pretrain.config import ModelConfig, ParallelConfig, TrainConfig

log = logging.getLogger(__name__)

KIND = "scores"
VERSION = 1
TOKENS_A_BATCH = 4096
TOKENS_A_CHUNK = 256
"""Tokens whose logits exist at once: B x T x V never does, and the chunks stay in cache."""

SCORE_SCHEMA = pl.Schema(
    {
        "probe_id": pl.String(),
        "logprob": pl.List(pl.Float32),
        "rank": pl.List(pl.UInt16),
        "entropy": pl.List(pl.Float32),
        "variance": pl.List(pl.Float32),
        "margin": pl.List(pl.Float32),
    }
)
"""One row a probe, one list entry a token (the first one follows an end-of-document token).

``logprob``: ln p of the token, nats. ``rank``: tokens that the model holds more likely, at most 65,535.
``entropy``: H of the next-token distribution, nats. ``variance``: of ln p under that distribution, nats^2.
``margin``: the token's logit minus the best other one's; above 0 where greedy decoding picks it, 0 in a tie (of tied
tokens the one with the smaller id comes first).
"""


def statistics(logits_NV: Tensor, targets_N: Tensor) -> dict[str, Tensor]:
    """The five numbers of each token, in float32.

    Args:
        logits_NV: (N, V), any float dtype.
        targets_N: (N,) int64.
    """
    logits_NV = logits_NV.float()
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    probs_NV = logprobs_NV.exp()
    target = logits_NV.gather(1, targets_N[:, None])
    entropy_N1 = -(probs_NV * logprobs_NV).sum(-1, keepdim=True)
    best = logits_NV.topk(2, dim=-1).values
    ahead = (logits_NV > target).sum(-1)
    smaller_id = torch.arange(logits_NV.shape[1], device=logits_NV.device) < targets_N[:, None]
    tied_before = ((logits_NV == target) & smaller_id).sum(-1)
    other = torch.where(target >= best[:, :1], best[:, 1:], best[:, :1])
    return {
        "logprob": logprobs_NV.gather(1, targets_N[:, None])[:, 0],
        "rank": (ahead + tied_before).clamp(max=65_535),
        "entropy": entropy_N1[:, 0],
        # Two passes: E[(ln p + H)^2] keeps its digits where E[ln p ^2] - H^2 cancels.
        "variance": (probs_NV * (logprobs_NV + entropy_N1).square()).sum(-1),
        "margin": (target - other)[:, 0],
    }


def batches(lengths: npt.NDArray[np.int64], tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows sorted by length and cut so that a batch, padded to its longest, has at most ``tokens`` tokens."""
    ranked = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(ranked) + 1):
        if stop == len(ranked) or (stop + 1 - start) * lengths[ranked[stop]] > tokens:
            yield ranked[start:stop]
            start = stop


def score(gpt: Any, probes: pl.DataFrame, *, eod: int, vocab_size: int, device: torch.device) -> pl.DataFrame:
    """Score every probe.

    Args:
        gpt: the whole model on one rank; ids -> logits.
        probes: with ``probe_id`` and ``tokens``.
        eod: id of the end-of-document token, put before each probe.
        vocab_size: of the tokenizer; logits of the padding beyond it are left out.
        device: of the model.

    Returns:
        A table of ``SCORE_SCHEMA`` in the order of ``probes``.
    """
    gpt.eval()
    ids = [np.asarray(tokens, dtype=np.int64) for tokens in probes["tokens"].to_list()]
    rows: list[dict[str, npt.NDArray[Any]]] = [{} for _ in ids]
    lengths = np.array([len(tokens) for tokens in ids])
    with torch.inference_mode():
        head_VH = model.output_weight(gpt)[:vocab_size].float()
        for chosen in batches(lengths, TOKENS_A_BATCH):
            found = _score_batch(gpt, head_VH, [ids[row] for row in chosen], eod, device)
            ends = np.cumsum(lengths[chosen])[:-1]
            for name, values in found.items():
                for row, part in zip(chosen, np.split(values, ends), strict=True):
                    rows[row][name] = part
    columns = {name: [row[name] for row in rows] for name in SCORE_SCHEMA if name != "probe_id"}
    return pl.DataFrame({"probe_id": probes["probe_id"], **columns}, schema=SCORE_SCHEMA)


def _score_batch(
    gpt: Any, head_VH: Tensor, ids: list[npt.NDArray[np.int64]], eod: int, device: torch.device
) -> dict[str, npt.NDArray[Any]]:
    """The statistics of all tokens of some probes, one probe after the other."""
    longest = max(len(tokens) for tokens in ids)
    inputs = np.full((len(ids), longest + 1), eod, dtype=np.int64)
    real = np.zeros((len(ids), longest), dtype=np.bool_)
    for line, tokens in enumerate(ids):
        inputs[line, 1 : len(tokens) + 1] = tokens
        real[line, : len(tokens)] = True
    inputs_BT = torch.from_numpy(inputs).to(device)
    real_BT = torch.from_numpy(real).to(device)
    hidden_NH = model.hidden_states(gpt, inputs_BT[:, :-1])[real_BT]
    targets_N = inputs_BT[:, 1:][real_BT]
    parts = [
        statistics(hidden.float() @ head_VH.T, targets)
        for hidden, targets in zip(
            hidden_NH.split(TOKENS_A_CHUNK), targets_N.split(TOKENS_A_CHUNK), strict=True
        )
    ]
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def score_run(
    checkpoints: Path,
    scores: Path,
    probes: pl.DataFrame,
    *,
    plan_digest: str,
    shape: ModelConfig,
    train: TrainConfig,
    vocab_size: int,
    eod: int,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> list[int]:
    """Score every finished checkpoint of a run; those scored already are left alone.

    Args:
        checkpoints: directory of the run's checkpoints.
        scores: directory that gets one artefact a checkpoint.
        probes: of the plan.
        plan_digest: its digest.
        shape: of the model.
        train: of the run.
        vocab_size: of the tokenizer.
        eod: id of the end-of-document token.
        device: to score on.
        share: k and n: only every n-th checkpoint, from the k-th on.

    Returns:
        The steps scored.
    """
    gpt = None
    steps: list[int] = checkpoint.finished(checkpoints)[share[0] :: share[1]]
    for step in steps:
        inputs = {"checkpoint": checkpoint.read(checkpoints, step).digest, "plan": plan_digest}
        target = scores / f"step_{step:08d}"
        done, _ = artifact.reuse(target, kind=KIND, schema_version=VERSION, config={}, inputs=inputs)
        if done is not None:
            continue
        if gpt is None:
            gpt = model.build(shape, vocab_size, ParallelConfig(), train).to(device)
        artifact.verify(checkpoint.path_of(checkpoints, step), checkpoint.read(checkpoints, step))
        state = checkpoint.load(checkpoints, step, {"model": gpt.sharded_state_dict()})
        gpt.load_state_dict(state["model"])
        table = score(gpt, probes, eod=eod, vocab_size=vocab_size, device=device)
        with artifact.writing(target, kind=KIND, schema_version=VERSION, config={}, inputs=inputs) as draft:
            table.write_parquet(draft.path / "scores.parquet", compression="zstd")
            draft.facts.update(step=step, probes=len(table))
    return steps
