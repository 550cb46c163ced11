"""Continuations, where similarity of free text is asked for; exact extraction needs none (``metrics.extraction``).

Prompts are continued some at a time; what those of one text have in common is read once, and each stops at its
reference's length or at an end-of-document token. Up to the first token that differs from the reference the
teacher-forced pass has said it all (:func:`continue_greedily`, which scores the texts as it goes); only what follows is
generated, several tokens a step where they can be guessed (:mod:`analysis.guesses`).

Shapes: B rows, N tokens of all rows, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palimpsest.analysis import scoring, threads
from palimpsest.analysis.decoder import Decoder, Output, Rows
from palimpsest.analysis.guesses import CONTEXT, Guesses
from palimpsest.analysis.metrics.extraction import sampling_logprobs
from palimpsest.analysis.scoring import Sampling

TOGETHER = {"cpu": 64, "cuda": 256}
"""Prompts that are continued at a time."""
BEGIN = 4
"""Texts are read when one in so many of these places is free."""
SHARE = (64, 256)
"""Least and most texts that learn from one another what to guess; an eighth of all in between."""


Numbers = dict[str, NDArray[Any]]
"""By name (``scoring.NUMBERS``), of one text or of all."""


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
    texts, asked = [], []
    for rows in _texts(prompts, hints):
        ids = [np.concatenate([[eod], prompts[k]]).astype(np.int64) for k in rows]
        texts.append(_Text(ids[-1][:-1], _in(hints[rows[-1]], vocab_size, eod) if hints else None))
        pairs = zip(rows, ids, strict=True)
        asked.append([_Prompt(k, len(one) - 1, int(one[-1]), lengths[k]) for k, one in pairs])
    quick = model.quick
    with torch.inference_mode():
        head = Output(model.head[:vocab_size].float())

    def work(share: slice) -> dict[int, NDArray[np.int64]]:
        def of_text(chosen: Sequence[int], _: Tensor) -> list[list[_Prompt]]:
            return [asked[share.start + k] for k in chosen]

        most = max(map(len, asked[share])), max(one.limit for some in asked[share] for one in some)
        return _Continuing(model, quick, head, texts[share], of_text, *most, eod, sampling).all()

    found = {
        k: new for part in threads.each(work, _shares(len(texts)), model.device) for k, new in part.items()
    }
    return [found[k] for k in range(len(prompts))]


def continue_greedily(
    model: Decoder,
    texts: Sequence[NDArray[np.integer]],
    prefixes: Sequence[int],
    *,
    longest: int,
    eod: int,
    vocab_size: int,
) -> tuple[Numbers, dict[int, list[NDArray[np.int64]]]]:
    """Score texts, and continue them greedily after several prefixes, generating only what scoring does not say.

    As long as the argmax hits, the continuation is the text itself; the first miss is known as well. Two prefixes of a
    text between which nothing misses have the same continuation from there on.

    Args:
        model: as for :func:`generate`.
        texts: token ids, at least one of each.
        prefixes: tokens of context.
        longest: most tokens to continue; a text that ends before ends the continuation.
        eod: end-of-document token; ends a continuation.
        vocab_size: as for :func:`generate`.

    Returns:
        The six numbers of every token, as :func:`analysis.scoring.score_tokens` gives them; and for each prefix one
        array of ids a text: empty where the text is not longer than the prefix.
    """
    quick = model.quick
    with torch.inference_mode():
        head = Output(model.head[:vocab_size].float())

    def work(share: slice) -> tuple[dict[int, Numbers], dict[tuple[int, int], NDArray[np.int64]]]:
        numbers: dict[int, Numbers] = {}

        def of_text(chosen: Sequence[int], hidden_ND: Tensor) -> list[list[_Prompt]]:
            own = [share.start + k for k in chosen]
            ids = torch.from_numpy(np.concatenate([texts[k] for k in own]).astype(np.int64))
            said = scoring.numbers(head, scoring.statistics, hidden_ND.float(), ids.to(model.device))
            ends = np.cumsum([len(texts[k]) for k in own])[:-1]
            split = zip(*(np.split(values, ends) for values in said.values()), strict=True)
            numbers.update(
                {k: dict(zip(said, values, strict=True)) for k, values in zip(own, split, strict=True)}
            )
            return [_asked(k, texts[k], numbers[k]["argmax"], prefixes, longest, eod) for k in own]

        read = [
            _Text(np.concatenate([[eod], text[:-1]]).astype(np.int64), _in(text, vocab_size, eod))
            for text in texts[share]
        ]
        found = _Continuing(
            model, quick, head, read, of_text, max(1, len(prefixes)), longest, eod, None
        ).all()
        return numbers, found

    numbers: dict[int, Numbers] = {}
    after: dict[tuple[int, int], NDArray[np.int64]] = {}
    for some, found in threads.each(work, _shares(len(texts)), model.device):
        numbers |= some
        after |= found
    continued: dict[int, list[NDArray[np.int64]]] = {prefix: [] for prefix in prefixes}
    for prefix in prefixes:
        for k, text in enumerate(texts):
            stop, argmax = min(len(text), prefix + longest), numbers[k]["argmax"]
            miss = _first_miss(text, argmax, prefix, stop, eod)
            parts = [np.asarray(text[prefix:miss], np.int64)]
            if miss < stop and argmax[miss] != eod:
                parts += [argmax[miss : miss + 1].astype(np.int64), after.get((k, miss), parts[0][:0])]
            continued[prefix].append(np.concatenate(parts)[: max(0, stop - prefix)])
    if not texts:
        return scoring.score_tokens(model, texts, eod=eod, vocab_size=vocab_size), continued
    flat = {name: np.concatenate([numbers[k][name] for k in range(len(texts))]) for name in scoring.NUMBERS}
    return flat, continued


def _in(hint: NDArray[np.integer], vocab_size: int, eod: int) -> NDArray[np.int64]:
    """A hint without what is not in the vocabulary."""
    return np.where(np.asarray(hint) < vocab_size, hint, eod).astype(np.int64)


def _first_miss(
    text: NDArray[np.integer], argmax: NDArray[np.integer], start: int, stop: int, eod: int
) -> int:
    """The first token from ``start`` on that is not the argmax or ends a document; ``stop`` if there is none before."""
    given, said = text[start:stop], argmax[start:stop]
    found = np.flatnonzero((said != given) | (given == eod))
    return start + int(found[0]) if len(found) else max(start, stop)


def _asked(
    k: int,
    text: NDArray[np.integer],
    argmax: NDArray[np.integer],
    prefixes: Sequence[int],
    longest: int,
    eod: int,
) -> list[_Prompt]:
    """What is to be generated of text ``k``: after each first miss, as many tokens as any prefix wants."""
    wanted: dict[int, int] = {}
    for prefix in prefixes:
        stop = min(len(text), prefix + longest)
        miss = _first_miss(text, argmax, prefix, stop, eod)
        if miss + 1 < stop and argmax[miss] != eod:
            wanted[miss] = max(wanted.get(miss, 0), stop - miss - 1)
    return [_Prompt((k, miss), miss + 1, int(argmax[miss]), limit) for miss, limit in wanted.items()]


def _shares(count: int) -> list[slice]:
    """Texts that are worked on together; they do not depend on the threads, nor does what is read together."""
    size = min(max(-(-count // 8), SHARE[0]), SHARE[1])
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _texts(prompts: Sequence[NDArray[np.integer]], hints: Sequence[NDArray[np.integer]]) -> list[list[int]]:
    """Prompts that are, but for their last token, beginnings of one text: shortest first."""
    texts: dict[int, list[int]] = {}
    for k in sorted(range(len(prompts)), key=lambda k: len(prompts[k])):
        prompt = prompts[k]
        shared = len(hints) and np.array_equal(hints[k][: len(prompt) - 1], prompt[:-1])
        texts.setdefault(id(hints[k]) if shared else -k - 1, []).append(k)
    return list(texts.values())


@dataclass(frozen=True, slots=True)
class _Text:
    """What is read before its prompts are continued."""

    ids: NDArray[np.int64]
    """An end-of-document token and what follows."""
    hint: NDArray[np.int64] | None
    """What its prompts may go on as."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A beginning of a text, and one more token."""

    name: Any
    """Hashable; a number where tokens are drawn."""
    shared: int
    """Tokens of the text."""
    last: int
    """The token after them."""
    limit: int
    """Most tokens to generate."""


class _Continuing:
    """Prompts that are continued, some at a time: where some have ended, others begin.

    Keys and values of what the prompts of a text have in common are in one line of ``common``; those of the rest of
    each, from the prompt's last token on, in a slot of its own.

    Args:
        model: as for :func:`generate`.
        quick: the same, for what is generated.
        head: output matrix.
        texts: what is to be read, and then continued.
        of_text: the prompts of some of the texts, given their places and what the output matrix is applied to.
        prompts: most that a text has.
        longest: most tokens that are generated of one.
        eod: end-of-document token.
        sampling: how to draw; greedy if None.
    """

    def __init__(
        self,
        model: Decoder,
        quick: Decoder,
        head: Output,
        texts: Sequence[_Text],
        of_text: Callable[[Sequence[int], Tensor], list[list[_Prompt]]],
        prompts: int,
        longest: int,
        eod: int,
        sampling: Sampling | None,
    ) -> None:
        self.model, self.quick, self.head = model, quick, head
        self.eod, self.sampling = eod, sampling
        self.texts, self.of_text, self.prompts, self.begun = texts, of_text, prompts, 0
        self.guesses = Guesses() if sampling is None else None
        count = max(prompts, min(TOGETHER[model.device.type], prompts * len(texts)))
        lines = max(1, min(len(texts), 2 * count // prompts))
        self.common = model.memory(lines, max(len(text.ids) for text in texts))
        self.memory = model.memory(count, longest)
        self.slots: list[_Prompt | None] = [None] * count
        """Who has each slot."""
        self.line, self.size = np.zeros(count, np.int64), np.zeros(count, np.int64)
        """Of each slot: its line in ``common``, and new tokens."""
        self.users = np.zeros(lines, np.int64)
        """Prompts that use each line of ``common``."""
        self.history = np.full((count, CONTEXT + longest), eod, np.int64)
        """The last tokens of each prompt, and the new ones."""
        self.random: dict[Any, np.random.Generator] = {}
        """What each prompt's tokens are drawn with."""

    def all(self) -> dict[Any, NDArray[np.int64]]:
        """New tokens of each prompt, by name."""
        found: dict[Any, NDArray[np.int64]] = {}
        while True:
            self._begin()
            taken = [(self.line[slot], slot) for slot, prompt in enumerate(self.slots) if prompt]
            if not taken and self.begun == len(self.texts):
                return found
            if not taken:  # nothing of these texts was asked for
                continue
            slots = np.array([slot for _, slot in sorted(taken)])  # what neighbours share is still in cache
            for slot in slots[self._step(slots)]:
                new = self.history[slot, CONTEXT : CONTEXT + self.size[slot]]
                found[self._prompt(slot).name] = new[: -1 if new[-1] == self.eod else None].copy()
                self.users[self.line[slot]] -= 1
                self.slots[slot] = None

    def _prompt(self, slot: int) -> _Prompt:
        prompt = self.slots[slot]
        assert prompt is not None, "only slots that are taken go on"
        return prompt

    def _begin(self) -> None:
        """Read the next texts, if enough slots are free, as many as surely have room."""
        free = [slot for slot, prompt in enumerate(self.slots) if prompt is None]
        lines = np.flatnonzero(self.users == 0)
        count = min(len(free) // self.prompts, len(lines), len(self.texts) - self.begun)
        if not count or BEGIN * len(free) < len(self.slots):
            return
        chosen, lines = range(self.begun, self.begun + count), lines[:count]
        self.begun += count
        ids = [self.texts[k].ids for k in chosen]
        counts, none = np.array([len(one) for one in ids]), np.zeros(count, np.int64)
        hidden_ND = self.model.extend(
            torch.from_numpy(np.concatenate(ids)).to(self.model.device),
            Rows(counts, self.common, lines, none, self.common, none, none),
        )
        rest = iter(free)
        for k, line, prompts in zip(chosen, lines, self.of_text(chosen, hidden_ND), strict=True):
            self.users[line] = len(prompts)
            for prompt in prompts:
                slot = next(rest)
                self.slots[slot], self.line[slot], self.size[slot] = prompt, line, 0
                known = np.append(self.texts[k].ids[: prompt.shared], prompt.last)[-CONTEXT:]
                self.history[slot, :CONTEXT] = self.eod
                self.history[slot, CONTEXT - len(known) : CONTEXT] = known
                if self.sampling is not None:
                    self.random[prompt.name] = np.random.default_rng([self.sampling.seed, prompt.name])
            hint = self.texts[k].hint
            if self.guesses is not None and hint is not None:
                self.guesses.hint(np.concatenate([np.full(CONTEXT, self.eod), hint]))

    def _step(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Go on, and say which are done.

        Greedily, guesses are read together with the last token; the argmax after each says whether the next is right,
        and what is kept is what the model says: it is greedy decoding whatever is guessed (Leviathan et al., 2023).
        """
        prompts = [self._prompt(slot) for slot in slots]
        limit, shared = (np.array([getattr(one, name) for one in prompts]) for name in ("limit", "shared"))
        history, size = self.history[slots], CONTEXT + self.size[slots]
        count = np.zeros_like(size)
        guess = kind = np.zeros((len(slots), 1), np.int64)
        if self.guesses is not None:
            guess, kind, count = self.guesses.guess(history, size, limit - self.size[slots] - 1)
        line = np.arange(guess.shape[1] + 1)
        tried = np.concatenate([history[np.arange(len(slots)), size - 1][:, None], guess], 1)
        read = line <= count[:, None]
        hidden_ND = self.quick.extend(
            torch.from_numpy(tried[read]).to(self.model.device),
            Rows(count + 1, self.memory, slots, self.size[slots], self.common, self.line[slots], shared),
        )
        said = np.full(tried.shape, -1)
        said[read] = self._choose(hidden_ND, prompts)
        # As far as guesses are right, and not beyond the end of the document.
        right = ((said[:, :-1] == guess) & read[:, 1:] & (said[:, :-1] != self.eod)).cumprod(1).sum(1)
        row, step = np.nonzero(line <= right[:, None])
        self.history[slots[row], size[row] + step] = said[row, step]
        self.size[slots] += right + 1
        if self.guesses is not None:
            self.guesses.learn(self.history[slots], size, right + 1, guess, kind, count)
        ended: NDArray[np.bool_] = said[np.arange(len(slots)), right] == self.eod
        return ended | (self.size[slots] >= limit)

    def _choose(self, hidden_ND: Tensor, prompts: Sequence[_Prompt]) -> NDArray[np.int64]:
        """The next token after each of N tokens; drawn, one for each prompt."""
        if self.sampling is None:
            best: NDArray[np.int64] = self.head.largest(hidden_ND.float()).cpu().numpy()
            return best
        logprob = sampling_logprobs(
            self.head.logits(hidden_ND.float()).cpu().numpy(),
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
        )
        # The argmax of log-probabilities plus Gumbel noise has just their distribution.
        noise = [self.random[prompt.name].gumbel(size=logprob.shape[1]) for prompt in prompts]
        found: NDArray[np.int64] = (logprob + np.stack(noise)).argmax(-1)
        return found
