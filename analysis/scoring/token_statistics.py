"""One teacher-forced pass per checkpoint over all probes.

Texts of similar length are batched (:mod:`analysis.scoring.batches`). The output matrix is applied to a few tokens at a
time, so that the (B, T, V) logits are never stored; six numbers per token are copied from the device.

Shapes: B texts in a batch, T tokens of the longest, N tokens whose logits exist at once, V vocabulary, P predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from palimpsest.analysis.scoring import batches
from palimpsest.analysis.scoring.models import Model, Together
from palimpsest.data.errors import UserError

TOKENS_A_BATCH = {"cpu": 2048, "cuda": 65_536}
"""Number of tokens in a batch, by device type: enough for fast matrix products and, on CPUs, few enough to stay in
cache."""
BYTES_A_CHUNK = {"cpu": 2**20, "cuda": 2**29}
"""Largest size of the logits stored at once, bytes."""
BYTES_A_BATCH = {"cpu": 2**29, "cuda": 2**32}
"""Largest size of a batch's float32 states, bytes; it matters for models whose states are the logits of all tokens."""

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
"""Columns of scores: one row per probe, one list entry per token. The first token is read after the end-of-document
token, or after nothing (see ``Reading``).

``logprob``: ln p of the token, nats. ``rank``: number of tokens that the model finds more likely, at most 65,535.
``entropy``: H of the next-token distribution, nats. ``variance``: of ln p under that distribution, nats^2. ``margin``:
the token's logit minus the largest other logit; positive if greedy decoding picks the token, 0 in a tie (greedy
decoding picks the smaller id). ``argmax``: the token that greedy decoding picks."""
NUMBERS = tuple(name for name in SCORE_SCHEMA if name != "probe_id")

UNREAD = {"rank": 65_535, "argmax": -1}
"""Values of a token that was not predicted, for the columns that cannot hold NaN; the other columns are NaN."""

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention on GPUs: without cuDNN's, which makes a plan for each shape of a batch, and batches have many shapes."""
_DTYPES = {"rank": np.uint16, "argmax": np.int32}


def statistics(logits_NV: Tensor, targets_N: Tensor) -> dict[str, Tensor]:
    """The six numbers of each token (``SCORE_SCHEMA``), computed in float32.

    With z = logit - largest logit and e = exp(z): ``ln p = z_target - ln sum e``, ``H = ln sum e - E[z]``, ``V = E[z^2]
    - E[z]^2``, where E is the mean weighted by e. If the model is certain, E[z] is near 0, so that nothing cancels, and
    ``ln sum e`` is computed by log1p of the other tokens' sum; the last steps are in float64.

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
class Reading:
    """Options of reading texts: the token before a text, and the treatment of texts that are too long."""

    bos: bool = True
    """True: every text is read after the beginning-of-text token. False: only texts without a prompt are read after it,
    because their first token is scored and needs context; this is ``lm_eval``'s way for tokenizers that add no such
    token."""
    truncate: bool = False
    """True: a text longer than the model's positions is read in pieces of that many tokens, the last of which ends at
    the text's end (left truncation, as in ``lm_eval``). False: such a text is an error."""


def score(
    model: Model, probes: pl.DataFrame, *, eod: int, vocab_size: int, reading: Reading | None = None
) -> pl.DataFrame:
    """Score every probe.

    Args:
        model: implementation of :mod:`analysis.scoring.models`.
        probes: frame with ``probe_id`` and ``tokens``, and with ``target_start`` if prompts are read without ``eod``.
        eod: id of the beginning-of-text token.
        vocab_size: number of logits that belong to tokens; logits of the padding beyond are ignored.
        reading: options of reading texts.

    Returns:
        A table of ``SCORE_SCHEMA`` in the order of ``probes``.

    Raises:
        UserError: for a probe without tokens, with a token beyond the vocabulary, or longer than the model can read.
    """
    offsets, numbers = _score(model, probes, statistics, eod=eod, vocab_size=vocab_size, reading=reading)
    return table(probes["probe_id"], offsets, numbers)


def require_readable(
    model: Model, probes: pl.DataFrame, *, eod: int, vocab_size: int, reading: Reading | None = None
) -> None:
    """Check that a model can read every probe; the arguments are those of :func:`score`.

    Raises:
        UserError: naming the first probe that the model cannot read.
    """
    if not 0 <= eod < vocab_size:
        raise UserError(
            f"the token that begins a text has id {eod}, but the model's vocabulary has {vocab_size}: it is of another "
            "model's tokenizer"
        )
    lengths = probes["tokens"].list.len().to_numpy().astype(np.int64)
    flat = probes["tokens"].explode().to_numpy() if lengths.sum() else np.zeros(0, np.int32)
    _check(probes, lengths, flat, vocab_size)
    reading = reading or Reading()
    if model.positions is not None and not reading.truncate:
        read = lengths - (0 if reading.bos else (probes["target_start"] > 0).to_numpy())
        if (read > model.positions).any():
            row = int((read > model.positions).argmax())
            raise UserError(
                f"probe {probes['probe_id'][row]!r} is too long: the model has positions for {model.positions} tokens, "
                f"and {read[row]} are read ({int((read > model.positions).sum())} such in all); shorten it, or set "
                "score.long_texts=truncate to read such texts in pieces (left truncation)"
            )


def _score(
    model: Model,
    probes: pl.DataFrame,
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    *,
    eod: int,
    vocab_size: int,
    reading: Reading | None,
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.generic]]]:
    """Score all probes. Returns the offsets of the probes' tokens in flat arrays, (probes + 1,) int64, and the arrays
    by name, one entry per token.
    """
    require_readable(model, probes, eod=eod, vocab_size=vocab_size, reading=reading)
    lengths = probes["tokens"].list.len().to_numpy().astype(np.int64)
    flat = probes["tokens"].explode().to_numpy() if lengths.sum() else np.zeros(0, np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    texts = np.split(flat, offsets[1:-1]) if len(lengths) else []
    begun = None if reading is None or reading.bos else (probes["target_start"] == 0).to_numpy()
    return offsets, each_token(model, texts, of, eod=eod, vocab_size=vocab_size, begun=begun)


def table(
    probe_id: pl.Series, offsets: NDArray[np.int64], numbers: dict[str, NDArray[np.generic]]
) -> pl.DataFrame:
    """Convert flat arrays over the tokens of all probes to a table of ``SCORE_SCHEMA``."""
    rows = pl.DataFrame({"row": np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), **numbers})
    lists = rows.group_by("row", maintain_order=True).agg(pl.col(NUMBERS))
    return pl.DataFrame({"probe_id": probe_id, **{n: lists[n] for n in NUMBERS}}, schema=SCORE_SCHEMA)


def score_tokens(
    model: Model, texts: Sequence[NDArray[np.integer]], *, eod: int, vocab_size: int
) -> dict[str, NDArray[np.generic]]:
    """The six numbers of every token, as flat arrays over the concatenated texts."""
    return each_token(model, texts, statistics, eod=eod, vocab_size=vocab_size)


def each_token(
    model: Model,
    texts: Sequence[NDArray[np.integer]],
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    *,
    eod: int,
    vocab_size: int,
    begun: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Values of every token, as flat arrays over the concatenated texts.

    Texts longer than the model can read are read in pieces (:func:`analysis.scoring.batches.pieces`).

    Args:
        model: as for :func:`score`.
        texts: token ids of each text.
        of: function from logits, (N, V), which it may overwrite, and tokens, (N,), to named arrays, (N,) each.
        eod: as for :func:`score`.
        vocab_size: as for :func:`score`.
        begun: true for texts that are read after ``eod``; None: all. The first token of any other text is not predicted
            and has the values ``UNREAD``.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    places = np.cumsum(lengths) - lengths
    ids, into = [], []
    for k, text in enumerate(texts):
        after = begun is None or bool(begun[k])
        whole = np.concatenate([[eod], text] if after else [text]).astype(np.int64)
        for start, stop in batches.pieces(len(whole) - 1, model.positions):
            ids.append(whole[start : stop + 1])
            into.append(places[k] + start + (0 if after else 1))
    counts = np.array([len(one) - 1 for one in ids], np.int64)
    with torch.inference_mode():
        names = of(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
        numbers = {
            name: np.full(lengths.sum(), UNREAD.get(name, np.nan), _DTYPES.get(name, np.float32))
            for name in names
        }
        together = model.together(int(counts.max(initial=0)))
        source = batches.containing(ids) if together is Together.ANY else np.arange(len(ids))
        read = np.flatnonzero(source == np.arange(len(ids)))
        logits = model.output(vocab_size)
        cut = batches.batches(counts[read], _tokens_a_batch(model), together=together)
        pending: dict[str, Tensor] = {}
        place: NDArray[np.int64] = np.zeros(0, np.int64)
        for batch in cut:
            of_batch = _read(model, logits, vocab_size, of, [ids[k] for k in read[batch]])
            # A GPU has this batch to compute while the values of the last one are copied.
            _copy(pending, numbers, place)
            pending = of_batch
            place = np.concatenate([into[k] + np.arange(counts[k]) for k in read[batch]])
        _copy(pending, numbers, place)
    for other in np.flatnonzero(source != np.arange(len(ids))):
        first, begun_by, count = into[other], into[source[other]], counts[other]
        for values in numbers.values():
            values[first : first + count] = values[begun_by : begun_by + count]
    return numbers


def _tokens_a_batch(model: Model) -> int:
    kind = model.device.type
    return min(TOKENS_A_BATCH[kind], max(1, BYTES_A_BATCH[kind] // (4 * model.width)))


def _read(
    model: Model,
    logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    texts: Sequence[NDArray[np.int64]],
) -> dict[str, Tensor]:
    """Values of every token but the first of each text in a batch, flat over the concatenated texts, on the device."""
    longest = max(map(len, texts)) - 1
    ids = np.zeros((len(texts), longest), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text) - 1] = text[:-1]
    with sdpa_kernel(_KERNELS) if model.device.type == "cuda" else nullcontext():
        states_BTD = model.states(torch.from_numpy(ids).to(model.device))
    there_BT = np.arange(longest) < np.array([len(text) - 1 for text in texts])[:, None]
    # By their places: a GPU would have to tell the CPU first how many places a mask has.
    places_P = tuple(torch.from_numpy(axis).to(states_BTD.device) for axis in there_BT.nonzero())
    states_PD = states_BTD[places_P]
    targets_P = torch.from_numpy(np.concatenate([text[1:] for text in texts]))
    return numbers(logits, vocab_size, of, states_PD, targets_P.to(states_PD.device))


def numbers(
    logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    states_PD: Tensor,
    targets_P: Tensor,
) -> dict[str, Tensor]:
    """Values of P predictions, computed from a few logits at a time, on the device.

    Args:
        logits: function from states to logits, ``Model.output``.
        vocab_size: number of logits.
        of: as for :func:`each_token`.
        states_PD: states from which logits are computed.
        targets_P: predicted tokens, int64.
    """
    chunk = max(16, BYTES_A_CHUNK[states_PD.device.type] // (4 * vocab_size))
    parts = []
    for states, targets in zip(states_PD.split(chunk), targets_P.split(chunk), strict=True):
        z = logits(states)
        parts.append(of(z, targets.to(z.device)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _copy(
    values: dict[str, Tensor], numbers: dict[str, NDArray[np.generic]], place: NDArray[np.int64]
) -> None:
    """Copy a batch's values from the device to their places."""
    for name, one in values.items():
        numbers[name][place] = one.cpu().numpy().astype(_DTYPES.get(name, np.float32))


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
