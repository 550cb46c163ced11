"""Continuations, where similarity of free text is asked for; exact extraction needs none (``metrics.extraction``).

Prompts of like length are continued together, and what those of one text have in common is read once; each stops at its
reference's length or at an end-of-document token. Up to the first token that differs from the reference the
teacher-forced pass has said it all (:func:`continue_greedily`); only what follows is generated, several tokens a step
where it repeats itself or returns to the reference, as greedy continuations do.

Shapes: B rows, T tokens read at once, W places of the history, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis import threads
from analysis.decoder import Cache, Decoder, linear
from analysis.metrics.extraction import sampling_logprobs
from analysis.scoring import Sampling

ROWS_A_BATCH = {"cpu": 32, "cuda": 512}
"""Texts continued together; on CPUs, few enough that their keys and values stay in cache."""
GUESSES = (0, 1, 3, 7, 15)
"""Tokens guessed ahead, greedily; more while at least half of them are right, fewer while less than a fifth are."""
TRY_AFTER = 8
"""Steps without guesses after which one is tried."""
LEAVE = 0.25
"""Share of the batch that must be done to leave it; below that, leaving rows out costs more than it saves."""


def generate(
    model: Decoder,
    prompts: Sequence[NDArray[np.integer]],
    lengths: Sequence[int],
    *,
    eod: int,
    vocab_size: int,
    sampling: Sampling | None = None,
    hints: Sequence[NDArray[np.integer]] = (),
) -> list[NDArray[np.int64]]:
    """Continue each prompt.

    Args:
        model: lean form of a model (``models.of_checkpoint`` or ``models.of_huggingface``).
        prompts: token ids; an end-of-document token is put before each.
        lengths: most tokens to generate of each, such as the reference's length; at least 1.
        eod: end-of-document token, which also ends a continuation and is not part of it.
        vocab_size: rows of the output matrix that stand for tokens.
        sampling: how to draw; greedy if not given (of tied tokens the one with the smallest id).
        hints: what each may go on as, such as its reference; saves time where it does, and changes nothing.

    Returns:
        One array of at most ``lengths`` ids a prompt.
    """
    size = ROWS_A_BATCH[model.device.type]
    texts = _texts(prompts, hints)
    with torch.inference_mode():
        head_VD = model.head[:vocab_size].float()

    def work(number: int) -> dict[int, NDArray[np.int64]]:
        chosen = texts[number * size : (number + 1) * size]
        begun = _begin(model, [prompts[rows[-1]] for rows in chosen], eod)
        line_of = {k: line for line, rows in enumerate(chosen) for k in rows}
        order = sorted(line_of, key=lambda k: (len(prompts[k]), lengths[k]))
        made: dict[int, NDArray[np.int64]] = {}
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            batch = _Batch(model, head_VD, begun, [line_of[k] for k in rows], [prompts[k] for k in rows], eod)
            limits = np.array([lengths[k] for k in rows])
            if sampling is None:
                found = batch.greedy(limits, [hints[k] for k in rows] if hints else [])
            else:
                found = batch.drawn(limits, _sampler(sampling, number, start))
            made |= zip(rows, found, strict=True)
        return made

    parts = threads.each(work, range(-(-len(texts) // size)), model.device)
    found = {k: tokens for part in parts for k, tokens in part.items()}
    return [found[k] for k in range(len(prompts))]


def _texts(prompts: Sequence[NDArray[np.integer]], hints: Sequence[NDArray[np.integer]]) -> list[list[int]]:
    """Prompts that are, but for their last token, beginnings of one text: shortest first, texts by their longest."""
    texts: dict[int, list[int]] = {}
    for k in sorted(range(len(prompts)), key=lambda k: len(prompts[k])):
        prompt = prompts[k]
        shared = len(hints) and np.array_equal(hints[k][: len(prompt) - 1], prompt[:-1])
        texts.setdefault(id(hints[k]) if shared else -k - 1, []).append(k)
    return sorted(texts.values(), key=lambda rows: len(prompts[rows[-1]]))


def _begin(model: Decoder, prompts: Sequence[NDArray[np.integer]], eod: int) -> Cache:
    """Keys and values of an end-of-document token and all tokens but the last of each prompt."""
    ids = np.full((len(prompts), max(len(prompt) for prompt in prompts)), eod, np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, 1 : len(prompt)] = prompt[:-1]
    cache = model.cache(*ids.shape)
    if ids.size:
        model.extend(torch.from_numpy(ids).to(model.device), np.zeros(len(ids), np.int64), cache)
    return cache


class _Batch:
    """Texts that are continued together.

    Args:
        model: as for :func:`generate`.
        head_VD: output matrix.
        begun: keys and values of texts of which the prompts but their last tokens are the beginnings.
        lines: row of ``begun`` for each prompt.
        prompts: token ids of each.
        eod: id before each prompt.
    """

    def __init__(
        self,
        model: Decoder,
        head_VD: Tensor,
        begun: Cache,
        lines: Sequence[int],
        prompts: Sequence[NDArray[np.integer]],
        eod: int,
    ) -> None:
        self.model, self.head_VD, self.begun, self.eod = model, head_VD, begun, eod
        self.lines = torch.tensor(lines, device=model.device)
        self.prompts = [np.concatenate([[eod], prompt]).astype(np.int64) for prompt in prompts]
        self.read_B = np.array([len(prompt) - 1 for prompt in self.prompts])
        """Tokens of each, the first end-of-document token included, whose keys and values are known."""

    def cache(self, places: int) -> Cache:
        """The prompts' keys and values, with room for ``places`` more tokens."""
        count = int(self.read_B.max())
        cache = self.model.cache(len(self.prompts), count + places)
        for new, known in zip(cache.keys + cache.values, self.begun.keys + self.begun.values, strict=True):
            new[:, :, :count] = known[self.lines, :, :count]
        return cache

    def drawn(self, limits: NDArray[np.int64], draw: Callable[[Tensor], Tensor]) -> list[NDArray[np.int64]]:
        """Drawn continuations, token by token; rows that are done leave the batch."""
        longest, device = int(limits.max()), self.model.device
        cache, read = self.cache(longest), self.read_B
        made = np.full((len(limits), longest), self.eod, np.int64)
        alive = np.arange(len(limits))
        done = np.zeros(len(limits), np.bool_)
        tokens = np.array([prompt[-1] for prompt in self.prompts])
        for place in range(longest):
            hidden_BD = self.model.extend(torch.from_numpy(tokens[:, None]).to(device), read, cache)[:, -1]
            tokens = draw(linear(hidden_BD.float(), self.head_VD)).cpu().numpy()
            read = read + 1
            made[alive, place] = np.where(done, self.eod, tokens)
            done |= (tokens == self.eod) | (limits[alive] <= place + 1)
            if done.all():
                break
            if done.mean() > LEAVE:
                cache.keep(torch.from_numpy(np.flatnonzero(~done)).to(device))
                tokens, read, alive, done = tokens[~done], read[~done], alive[~done], done[~done]
        return _ended(made, limits, self.eod)

    def greedy(
        self, limits: NDArray[np.int64], hints: Sequence[NDArray[np.integer]]
    ) -> list[NDArray[np.int64]]:
        """Greedy continuations, several tokens a step where they can be guessed.

        Guesses are read together with the last token; the argmax after each says whether the next one is right, and
        what is kept is what the model says, so that it is greedy decoding whatever is guessed (Leviathan et al. 2023).
        """
        longest, device, most = int(limits.max()), self.model.device, GUESSES[-1]
        cache = self.cache(longest + 2 * most + 2)
        # In front of the text, and apart from it, what it may go on as.
        begin = max((len(hint) for hint in hints), default=0) + 1
        start_B = begin + self.read_B + 1
        history = np.full((len(limits), start_B.max() + longest + 2 * most + 2), -1, np.int64)
        for row, hint in enumerate(hints):
            history[row, : len(hint)] = hint
        for row, prompt in enumerate(self.prompts):
            history[row, begin : begin + len(prompt)] = prompt
        alive, done, size = np.arange(len(limits)), np.zeros(len(limits), np.bool_), start_B
        level = plain = 0
        while not done.all():
            guessed = _guess(history[alive], size, GUESSES[level])
            fresh = np.concatenate([history[alive, size - 1][:, None], guessed], 1)
            hidden_BTD = self.model.extend(torch.from_numpy(fresh).to(device), size - begin - 1, cache)
            best = linear(hidden_BTD.float(), self.head_VD).argmax(-1).cpu().numpy()
            right = (best[:, :-1] == guessed).cumprod(1).sum(1)
            line = np.arange(best.shape[1])
            history[alive[:, None], size[:, None] + line] = best
            ended = ((best == self.eod) & (line <= right[:, None])).any(1)
            size = np.where(done, size, size + right + 1)
            level, plain = _next_level(level, plain, right[~done])
            done |= ended | (size - start_B[alive] >= limits[alive])
            if not done.all() and done.mean() > LEAVE:
                cache.keep(torch.from_numpy(np.flatnonzero(~done)).to(device))
                alive, size, done = alive[~done], size[~done], done[~done]
        made = np.take_along_axis(history, start_B[:, None] + np.arange(longest), 1)
        return _ended(made, limits, self.eod)


def _ended(made: NDArray[np.int64], limits: NDArray[np.int64], eod: int) -> list[NDArray[np.int64]]:
    """Each row up to its limit or its first end-of-document token."""
    ends = np.where((made == eod).any(1), (made == eod).argmax(1), made.shape[1])
    return [row[: min(end, limit)] for row, end, limit in zip(made, ends, limits, strict=True)]


def _next_level(level: int, plain: int, right_B: NDArray[np.int64]) -> tuple[int, int]:
    """How many to guess next (index of ``GUESSES``), and for how many steps nothing was guessed."""
    if not level:
        return (1, 0) if plain + 1 >= TRY_AFTER else (0, plain + 1)
    share = right_B.mean() / GUESSES[level]
    return min(max(level + int(share >= 0.5) - int(share < 0.2), 0), len(GUESSES) - 1), 0


def _guess(history_BW: NDArray[np.int64], size_B: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """What followed the last two tokens (or the last) when they last occurred, as often as needed; (B, count)."""
    rows, width = np.arange(len(size_B)), int(size_B.max())
    last = history_BW[rows, size_B - 1]
    once = (history_BW[:, :width] == last[:, None]) & (np.arange(width) < size_B[:, None] - 1)
    twice = once.copy()
    twice[:, 0] = False
    twice[:, 1:] &= history_BW[:, : width - 1] == history_BW[rows, size_B - 2][:, None]
    chosen = np.where(twice.any(1)[:, None], twice, once)
    place = np.where(chosen.any(1), width - 1 - chosen[:, ::-1].argmax(1), size_B - 2)
    steps = np.arange(count) % (size_B - 1 - place)[:, None]
    found = history_BW[rows[:, None], place[:, None] + 1 + steps]
    return np.where(found < 0, last[:, None], found)


def _sampler(sampling: Sampling, *batch: int) -> Callable[[Tensor], Tensor]:
    """Draw by the Gumbel trick: the argmax of log-probabilities plus Gumbel noise has just their distribution."""
    rng = np.random.default_rng([sampling.seed, *batch])  # batches are drawn on several threads, in any order

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
        hints=[texts[k] for k, _ in keys],
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
