"""Continuations, where similarity of free text is asked for; exact extraction needs none (``metrics.extraction``).

Prompts of like length are continued together, and what those of one text have in common is read once; each stops at its
reference's length or at an end-of-document token. Up to the first token that differs from the reference the
teacher-forced pass has said it all (:func:`continue_greedily`); only what follows is generated, several tokens a step
where it says what it, its reference, or another continuation has said, as greedy continuations do.

Shapes: B rows, T tokens read at once, W places of the history, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis import threads
from analysis.decoder import Cache, Decoder, linear
from analysis.metrics.extraction import sampling_logprobs
from analysis.scoring import Sampling

COHORT = {"cpu": 32, "cuda": 128}
"""Texts that are begun together."""
TOGETHER = {"cpu": 64, "cuda": 256}
"""With so many rows or fewer another cohort begins."""
GUESSES = (0, 1, 3, 5, 9, 15)
"""Tokens guessed ahead, greedily."""
MORE, FEWER = 0.7, 0.35
"""More are guessed while at least this share of them is right, fewer while less than that is."""
TRY_AFTER = 8
"""Steps without guesses after which one is tried."""
CONTEXT, ORDERS, PHRASES = 5, (1, 2, 3, 5), 18
"""Tokens that a guess rests on at most; numbers of tokens that are tried; bits of a place in the table of guesses."""
ROOM = 64
"""Places in a cache are made in such numbers."""
SHARE = 4
"""So many times the texts that are begun together learn from one another what to guess."""
LEAVE = 0.25
"""Share of a cohort that must be done to leave it; below that, leaving rows out costs more than it saves."""


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
    size = COHORT[model.device.type]
    texts = _texts(prompts, hints)
    # Shares do not depend on the threads, nor does what is read together.
    share = max(size, min(SHARE * size, len(texts) // 8))
    with torch.inference_mode():
        head_VD = model.head[:vocab_size].float()

    def cohorts(number: int, phrases: _Phrases, spare: list[Cache]) -> Iterator[_Cohort]:
        for start in range(number * share, min((number + 1) * share, len(texts)), size):
            chosen = texts[start : min(start + size, (number + 1) * share)]
            begun = _begin(model, [prompts[rows[-1]] for rows in chosen], eod)
            line_of = {k: line for line, rows in enumerate(chosen) for k in rows}
            order = sorted(line_of, key=lambda k: (len(prompts[k]), lengths[k]))
            for first in range(0, len(order), size):
                rows = order[first : first + size]
                for k in rows if hints else ():
                    phrases.read(hints[k])
                draw = None if sampling is None else _sampler(sampling, start, first)
                yield _Cohort(model, begun, line_of, rows, prompts, lengths, eod, draw, spare)

    def work(number: int) -> dict[int, NDArray[np.int64]]:
        phrases = _Phrases()
        spare: list[Cache] = []
        return _carry_on(
            model, head_VD, cohorts(number, phrases, spare), phrases, spare, greedy=sampling is None
        )

    parts = threads.each(work, range(-(-len(texts) // share)), model.device)
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
    return model.begin(torch.from_numpy(ids).to(model.device))


class _Cohort:
    """Prompts of like length that are continued in step.

    Args:
        model: as for :func:`generate`.
        begun: keys and values of texts of which the prompts but their last tokens are the beginnings.
        line_of: row of ``begun`` for each prompt.
        names: of the prompts that are meant.
        prompts: token ids.
        lengths: most tokens to generate.
        eod: id before each prompt.
        draw: chooses tokens from logits; None: greedily.
        spare: caches that are not needed any more; their memory is used again, which is faster than new.
    """

    def __init__(
        self,
        model: Decoder,
        begun: Cache,
        line_of: Mapping[int, int],
        names: Sequence[int],
        prompts: Sequence[NDArray[np.integer]],
        lengths: Sequence[int],
        eod: int,
        draw: Callable[[Tensor], Tensor] | None,
        spare: list[Cache],
    ) -> None:
        self.names, self.eod, self.draw = names, eod, draw
        self.limit_B = np.array([lengths[k] for k in names])
        read_B = np.array([len(prompts[k]) for k in names])
        count, longest, room = int(read_B.max()), int(self.limit_B.max()), 2 * GUESSES[-1] + 2
        places = -(-(count + longest + room) // ROOM) * ROOM
        at = next((at for at, one in enumerate(spare) if one.fits(len(names), places)), None)
        self.cache = model.cache(len(names), places) if at is None else spare.pop(at)
        self.cache.rows = len(names)
        lines = torch.tensor([line_of[k] for k in names], device=model.device)
        for new, known in zip(self.cache.keys + self.cache.values, begun.keys + begun.values, strict=True):
            new[: len(names), :, :count] = known[lines, :, :count]
        self.start_B = CONTEXT + read_B + 1
        """Place of the first new token in the history."""
        self.history_BW = np.full((len(names), CONTEXT + count + 1 + longest + room), eod, np.int64)
        for row, k in enumerate(names):
            self.history_BW[row, CONTEXT + 1 : self.start_B[row]] = prompts[k]
        self.alive = np.arange(len(names))
        """Rows that are still in the cache; of each: tokens of its history that are there, and whether it is done."""
        self.size, self.done = self.start_B, np.zeros(len(names), np.bool_)

    @property
    def read(self) -> NDArray[np.int64]:
        """Tokens of each row whose keys and values are in the cache: all but the last."""
        return self.size - CONTEXT - 1

    @property
    def before(self) -> NDArray[np.int64]:
        """The last tokens of each row, (B, ``CONTEXT``)."""
        return self._before(self.alive, self.size)

    def _before(self, rows: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.history_BW[rows[:, None], size[:, None] + np.arange(-CONTEXT, 0)]
        return found

    def take(self, logits_BTV: Tensor, guessed_BT: NDArray[np.int64], phrases: _Phrases) -> NDArray[np.int64]:
        """Go on by what the model says after the last token and after each guess, as far as guesses are right.

        Returns:
            Right guesses of each row that was not done.
        """
        best_BT = logits_BTV.argmax(-1) if self.draw is None else self.draw(logits_BTV[:, 0])[:, None]
        best = best_BT.cpu().numpy()
        right = (best[:, :-1] == guessed_BT).cumprod(1).sum(1)
        line = np.arange(best.shape[1])
        self.history_BW[self.alive[:, None], self.size[:, None] + line] = best
        said, going = line <= right[:, None], ~self.done
        if self.draw is None:
            rows, steps = np.nonzero(said & going[:, None])
            phrases.learn(self._before(self.alive[rows], self.size[rows] + steps), best[rows, steps])
        self.size = np.where(going, self.size + right + 1, self.size)
        self.done |= ((best == self.eod) & said).any(1)
        self.done |= self.size - self.start_B[self.alive] >= self.limit_B[self.alive]
        if LEAVE < self.done.mean() < 1:
            stay = ~self.done
            self.cache.keep(
                torch.from_numpy(np.flatnonzero(stay)).to(logits_BTV.device), int(self.read.max())
            )
            self.alive, self.size, self.done = self.alive[stay], self.size[stay], self.done[stay]
        found: NDArray[np.int64] = right[going]
        return found

    @property
    def made(self) -> dict[int, NDArray[np.int64]]:
        """Each row's new tokens, up to its limit or its first end-of-document token."""
        found = {}
        for row, k in enumerate(self.names):
            new = self.history_BW[row, self.start_B[row] : self.start_B[row] + self.limit_B[row]]
            found[k] = new[: np.append(np.flatnonzero(new == self.eod), len(new))[0]]
        return found


def _carry_on(
    model: Decoder,
    head_VD: Tensor,
    waiting: Iterator[_Cohort],
    phrases: _Phrases,
    spare: list[Cache],
    *,
    greedy: bool,
) -> dict[int, NDArray[np.int64]]:
    """Continue cohorts to their ends, several at a time, so that matrix products stay large while rows end.

    Greedily, guesses are read together with the last token; the argmax after each says whether the next one is right,
    and what is kept is what the model says, so that it is greedy decoding whatever is guessed (Leviathan et al., 2023).
    """
    running: list[_Cohort] = []
    found: dict[int, NDArray[np.int64]] = {}
    level = plain = 0
    while True:
        while sum(len(one.alive) for one in running) <= TOGETHER[model.device.type]:
            if (fresh := next(waiting, None)) is None:
                break
            running.append(fresh)
        if not running:
            return found
        before = np.concatenate([one.before for one in running])
        guessed = phrases.guess(before, GUESSES[level])
        ids = torch.from_numpy(np.concatenate([before[:, -1:], guessed], 1)).to(model.device)
        caches = [(one.cache, one.read) for one in running]
        rows = [len(one.alive) for one in running]
        logits = linear(model.extend(ids, caches).float(), head_VD)[: ids.numel()].unflatten(0, ids.shape)
        split = zip(running, logits.split(rows), np.split(guessed, np.cumsum(rows)[:-1]), strict=True)
        right = np.concatenate([one.take(said, tried, phrases) for one, said, tried in split])
        if greedy:
            level, plain = _next_level(level, plain, right)
        for one in running:
            if one.done.all():
                found |= one.made
                spare.append(one.cache)
        running = [one for one in running if not one.done.all()]


class _Phrases:
    """What followed the last few tokens, the last time, in whichever text; the longest known context counts.

    A hash table whose entries overwrite each other: what it says is a guess.
    """

    def __init__(self) -> None:
        self.next = np.full(2**PHRASES, -1, np.int32)

    def guess(self, before_BC: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The next tokens, (B, count), each after those before it; the last one again where nothing is known."""
        line = np.concatenate([before_BC, np.zeros((len(before_BC), count), np.int64)], 1)
        for place in range(CONTEXT, CONTEXT + count):
            found = line[:, place - 1]
            for known in self.next[self._keys(line[:, place - CONTEXT : place])]:
                found = np.where(known < 0, found, known)
            line[:, place] = found
        return line[:, CONTEXT:]

    def learn(self, before_BC: NDArray[np.int64], tokens_B: NDArray[np.int64]) -> None:
        """After these contexts came these tokens."""
        self.next[self._keys(before_BC)] = tokens_B

    def read(self, text: NDArray[np.integer]) -> None:
        """After each few tokens of a text comes the next."""
        if len(text) > CONTEXT:
            windows = np.lib.stride_tricks.sliding_window_view(np.asarray(text, np.int64), CONTEXT + 1)
            self.learn(windows[:, :-1], windows[:, -1])

    @staticmethod
    def _keys(before_BC: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of the contexts in the table, (orders, B), shortest context first."""
        key = np.zeros(len(before_BC), np.uint64)
        found = np.empty((len(ORDERS), len(before_BC)), np.int64)
        for back in range(1, CONTEXT + 1):
            key = (key + before_BC[:, -back].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            if back in ORDERS:
                found[ORDERS.index(back)] = key >> np.uint64(64 - PHRASES)
        return found


def _next_level(level: int, plain: int, right_B: NDArray[np.int64]) -> tuple[int, int]:
    """How many to guess next (index of ``GUESSES``), and for how many steps nothing was guessed."""
    if not level:
        return (1, 0) if plain + 1 >= TRY_AFTER else (0, plain + 1)
    share = right_B.mean() / GUESSES[level]
    return min(max(level + int(share >= MORE) - int(share < FEWER), 0), len(GUESSES) - 1), 0


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
