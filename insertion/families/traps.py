"""Copyright traps: sequences sampled from a reference model, of given lengths and perplexities (Meeus et al., 2024,
"Copyright Traps for Large Language Models").

Candidates are sampled at several temperatures, mostly at those that give perplexities in the bucket to be filled; if
none does, intermediate temperatures are added. A trap is the earliest candidate whose perplexity lies in its bucket and
whose set of tokens has a Jaccard similarity of at most ``jaccard`` to that of every trap before it. Perplexity is the
reference model's, at temperature 1, after its start token alone.

Traps are reproducible on one machine; another processor rounds differently and occasionally samples another token.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files
from palimpsest.insertion.families.registry import TRAINED, FamilyContext, Reference, family
from palimpsest.insertion.items import Item, Probe

NAME = "traps"
_BATCH = 64
log = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    text: str
    tokens: npt.NDArray[np.int64]
    """Distinct token ids, ascending."""
    nll: float
    """Sum of -ln p over all tokens under the reference model, nats."""
    temperature: float


@dataclass(slots=True)
class _Accepted:
    """Index from tokens to accepted traps, for the similarity of a candidate to all of them."""

    sizes: list[int] = field(default_factory=list)
    holders: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def alike(self, tokens: npt.NDArray[np.int64]) -> float:
        """Largest Jaccard similarity to any trap."""
        if not self.sizes:
            return 0.0
        holders = [k for token in tokens.tolist() for k in self.holders.get(token, ())]
        shared = np.bincount(np.array(holders, dtype=np.int64), minlength=len(self.sizes))
        return float((shared / (np.array(self.sizes) + len(tokens) - shared)).max())

    def add(self, tokens: npt.NDArray[np.int64]) -> None:
        for token in tokens.tolist():
            self.holders[token].append(len(self.sizes))
        self.sizes.append(len(tokens))


@dataclass(slots=True)
class _Stream:
    """Candidates of one length, sorted into the buckets of perplexity."""

    family_context: FamilyContext
    model: Reference
    length: int
    edges: Sequence[float]
    temperatures: Sequence[float]
    most: int
    """Largest number of batches."""
    batches: int = 0
    tried: Counter[float] = field(default_factory=Counter)
    """Number of batches sampled at each temperature."""
    level: dict[float, float] = field(default_factory=dict)
    """Temperature -> mean ln perplexity of its latest batch."""
    useful: Counter[tuple[int, float]] = field(default_factory=Counter)
    """Number of accepted candidates by bucket and temperature."""
    waiting: dict[int, deque[_Candidate]] = field(default_factory=lambda: defaultdict(deque))
    counts: Counter[str] = field(default_factory=Counter)
    reported_at: float = field(default_factory=time.monotonic)
    """Time of the last progress report, seconds."""

    def sample(self, wanted: int) -> None:
        """Sample one more batch; report progress every ``_REPORT_SECONDS``."""
        if time.monotonic() - self.reported_at > _REPORT_SECONDS:
            self.reported_at = time.monotonic()
            log.info("sampling %s; batch %d of at most %d", _rates(self), self.batches, self.most)
        temperature = self._temperature(wanted)
        self.tried[temperature] += 1
        rng = self.family_context.generator(f"{NAME}/{self.length}", self.batches)
        self.batches += 1
        samples = self.model.sample(_BATCH, self.length, temperature, rng)
        self.counts["sampled"] += _BATCH
        self.counts["not the same tokens again"] += _BATCH - len(samples)
        losses = [lost / self.length for _, _, lost in samples]
        self.level[temperature] = float(np.mean(losses)) if losses else math.inf
        for text, ids, lost in samples:
            bucket = int(np.searchsorted(self.edges, math.exp(min(lost / self.length, 700)), "right")) - 1
            if not 0 <= bucket < len(self.edges) - 1:
                self.counts["outside the perplexities"] += 1
            elif not text.strip():
                self.counts["not the same tokens again"] += 1
            else:
                self.useful[bucket, temperature] += 1
                self.waiting[bucket].append(_Candidate(text, np.unique(ids), lost, temperature))

    def _temperature(self, wanted: int) -> float:
        """Choose the next temperature for a bucket: each once, then the one with most candidates in the bucket. If none
        has any, a temperature between the two whose perplexities enclose the bucket, because perplexities of long
        sequences hardly vary.
        """
        for temperature in self.temperatures:
            if not self.tried[temperature]:
                return temperature
        best = max(self.tried, key=lambda t: self.useful[wanted, t] / self.tried[t])
        middle = math.log((self.edges[wanted] + self.edges[wanted + 1]) / 2)
        below = [t for t in self.tried if self.level[t] <= middle]
        above = [t for t in self.tried if self.level[t] > middle]
        if self.useful[wanted, best] or not below or not above:
            return best
        return round(math.sqrt(max(below) * min(above)), 4)


@family(NAME)
def make(
    family_context: FamilyContext,
    count: int,
    *,
    path: str = TRAINED,
    lengths: Sequence[int] = (100,),
    temperatures: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0),
    low: float = 1.0,
    high: float = 101.0,
    buckets: int = 10,
    jaccard: float = 0.2,
    max_batches: int = 400,
    context: int = 0,
) -> list[Item]:
    """Traps; lengths take turns, and within a length the buckets of perplexity do. Each combination is a stratum.

    ``bits`` is the surprisal under the reference model, -log2 p: with the score of the verbatim probe it gives the
    detection ratio to the reference.

    Args:
        family_context: what gives seed, reference model, and held-out documents for ``context``.
        count: traps.
        path: of the reference model: a checkpoint of a run over the same corpus (``.../checkpoints/step_<number>``), or
            a directory of ``save_pretrained`` (a causal model with its ``tokenizer.json``); ``trained``: a model of the
            run's own shape is trained on the corpus first.
        lengths: tokens of the reference model.
        temperatures: of sampling; others between them are added where a bucket needs them.
        low: perplexity at which the first bucket begins.
        high: perplexity at which the last bucket ends.
        buckets: of equal width.
        jaccard: largest similarity of two traps' sets of tokens.
        max_batches: of 64 candidates, for each length, before giving up on a bucket.
        context: tokens of a held-out document after which the trap is also asked; 0: it is not.
    """
    what = f"insertion.families.{NAME}"
    if not path:
        raise UserError(
            f"{what}.path is empty; set it to the directory of a reference model, or to {TRAINED!r} for one that is "
            "trained on the corpus without insertions"
        )
    if low >= high or low < 1:
        raise UserError(
            f"{what}.low={low} and {what}.high={high} must be perplexities, 1 or above, the low one first"
        )
    for setting, values in (("lengths", lengths), ("temperatures", temperatures)):
        if not values or any(isinstance(v, bool) or not isinstance(v, int | float) or v <= 0 for v in values):
            raise UserError(f"{what}.{setting}={list(values)} must be numbers above 0")
    model = family_context.reference(path)
    edges = np.linspace(low, high, buckets + 1).tolist()
    streams = {
        length: _Stream(family_context, model, length, edges, temperatures, max_batches) for length in lengths
    }
    before = _contexts(family_context, context, what)
    accepted = _Accepted()
    items = []
    for index in range(count):
        length, bucket = lengths[index % len(lengths)], index // len(lengths) % buckets
        candidate = _next(streams[length], bucket, accepted, jaccard, what)
        items.append(
            _item(index, candidate, family_context, length, edges[bucket : bucket + 2], before, path)
        )
    for stream in streams.values():
        log.info(_rates(stream))
    return items


def _next(stream: _Stream, bucket: int, accepted: _Accepted, jaccard: float, what: str) -> _Candidate:
    """The earliest candidate of a bucket that is dissimilar to all traps; candidates that are too similar are
    dropped.
    """
    while True:
        while stream.waiting[bucket]:
            candidate = stream.waiting[bucket].popleft()
            if accepted.alike(candidate.tokens) <= jaccard:
                accepted.add(candidate.tokens)
                stream.counts["accepted"] += 1
                return candidate
            stream.counts["too alike"] += 1
            stream.useful[bucket, candidate.temperature] -= 1
        if stream.batches >= stream.most:
            raise UserError(
                f"{what}: no trap of {stream.length} tokens with a perplexity of {stream.edges[bucket]:g} to "
                f"{stream.edges[bucket + 1]:g} was found ({_rates(stream)}); change {what}.temperatures, low, high or "
                "jaccard, or raise max_batches"
            )
        stream.sample(bucket)


def _rates(stream: _Stream) -> str:
    """Counts of accepted and rejected candidates, in one line."""
    sampled = max(stream.counts["sampled"], 1)
    waiting = sum(len(queue) for queue in stream.waiting.values())
    parts = [f"{stream.counts['accepted']} accepted ({stream.counts['accepted'] / sampled:.2%})"]
    parts += [
        f"{stream.counts[name]} {name}"
        for name in ("outside the perplexities", "not the same tokens again", "too alike")
    ]
    said = ", ".join(parts)
    return f"traps of {stream.length} tokens: {stream.counts['sampled']} sampled, {said}, {waiting} left over"


def _contexts(family_context: FamilyContext, tokens: int, what: str) -> list[str]:
    if not tokens:
        return []
    if not family_context.heldout:
        raise UserError(f"{what}.context={tokens} needs held-out documents; prepare a corpus, or set it to 0")
    return [
        family_context.tokenizer.decode(family_context.tokenizer.encode(text)[:tokens])
        for _, text in family_context.heldout
    ]


def _item(
    index: int,
    candidate: _Candidate,
    family_context: FamilyContext,
    length: int,
    bucket: Sequence[float],
    before: Sequence[str],
    path: str,
) -> Item:
    probes = [Probe("verbatim", "", candidate.text)]
    if before:
        gap = "" if candidate.text[0].isspace() else "\n"
        prompt = before[int(family_context.generator(f"{NAME}/context", index).integers(len(before)))] + gap
        probes.append(Probe("cloze", prompt, candidate.text, "after other text"))
    perplexity = math.exp(candidate.nll / length)
    return Item(
        f"trap-{files.text_id(candidate.text)}",
        NAME,
        candidate.text,
        tuple(probes),
        f"seed {family_context.seed}, {path} at temperature {candidate.temperature:g}, perplexity {perplexity:.3f}",
        stratum=f"tokens{length} perplexity{bucket[0]:g}-{bucket[1]:g}",
        bits=candidate.nll / math.log(2),
    )
