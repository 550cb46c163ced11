"""One order of windows from several corpora: weighted blends, and schedules of blends.

Within a phase, the next window comes from the corpus whose share is furthest below its weight, as in megatron-core; a
longer phase therefore begins like a shorter one. Each corpus is read in its own order, which continues across phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from palimpsest.data import megatron_core
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.data.order import Order
from palimpsest.data.shards import SHUFFLED, CorpusConfig
from palimpsest.data.stored import StoredOrder
from palimpsest.data.tokenizer import TokenizerConfig

MAIN = "corpus"
"""Name of the first corpus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixturePhase:
    """Settings of a phase of training with one blend of corpora."""

    until: float
    """Share of training at which the phase ends; the last phase ends at 1."""
    weights: Mapping[str, float]
    """Name of a corpus -> its weight, in any unit; those not named are left out. The first corpus is ``corpus``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig:
    """Settings of the corpora that are read besides ``corpus``, by phase."""

    epochs: int = 1
    """Number of times that a corpus may be read, each time in another order; a run that needs more is refused."""
    corpora: Mapping[str, CorpusConfig] = field(default_factory=dict)
    """More corpora by name. They are tokenized with the tokenizer of ``corpus``."""
    phases: tuple[MixturePhase, ...] = ()
    """Phases in order. None: ``corpus`` alone throughout."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"mixture.epochs={self.epochs} must be at least 1")
        if MAIN in self.corpora:
            raise UserError(
                f"mixture.corpora.{MAIN}: that is the name of the first corpus; choose another name"
            )
        for name, config in self.corpora.items():
            if config.tokenizer != TokenizerConfig():
                raise UserError(
                    f"mixture.corpora.{name}.tokenizer: all corpora have the tokenizer of corpus.tokenizer; remove it"
                )
            if config.order != SHUFFLED:
                raise UserError(
                    f"mixture.corpora.{name}.order={config.order}: corpora of a mixture are shuffled; remove it"
                )
        if self.corpora and not self.phases:
            raise UserError(
                "mixture.corpora needs mixture.phases, which say when each is read: "
                f"mixture.phases=[{{until:1,weights:{{{MAIN}:1,{next(iter(self.corpora))}:1}}}}]"
            )
        ends = [phase.until for phase in self.phases]
        if ends and (ends[-1] != 1 or min(ends) <= 0 or sorted(set(ends)) != ends):
            raise UserError(f"mixture.phases: until={ends} must rise from above 0 to 1, where training ends")
        names = [MAIN, *self.corpora]
        for number, phase in enumerate(self.phases):
            for name in phase.weights:
                if name not in names:
                    raise UserError(
                        f"mixture.phases[{number}].weights.{name}: there is no such corpus{nearest(name, names)}"
                    )

    @property
    def plain(self) -> bool:
        """True if training reads the one corpus of the section ``corpus``, once."""
        return self.epochs == 1 and not self.phases

    def stretches(self, steps: int, batch: int) -> list[Phase]:
        """The phases in windows.

        Args:
            steps: number of steps of the run.
            batch: windows per step.

        Raises:
            UserError: if a phase has no step.
        """
        names = [MAIN, *self.corpora]
        phases = self.phases or (MixturePhase(until=1.0, weights={MAIN: 1.0}),)
        ends = [0, *(round(phase.until * steps) for phase in phases)]
        for number, (start, end) in enumerate(pairwise(ends)):
            if start == end:
                raise UserError(
                    f"mixture.phases[{number}] has no step in a run of train.steps={steps}; make it longer or leave it "
                    "out"
                )
        return [
            Phase((end - start) * batch, tuple(float(phase.weights.get(name, 0.0)) for name in names))
            for phase, (start, end) in zip(phases, pairwise(ends), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of training with one blend of corpora, in windows."""

    windows: int
    """Number of windows."""
    weights: tuple[float, ...]
    """Of each corpus, in any unit; 0 leaves it out."""


def blend(weights: Sequence[float], windows: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Assign positions to corpora, int16 (windows,), and to their windows, int64 (windows,).

    Equal to megatron-core's ``BlendedDataset`` of the same weights.

    Args:
        weights: positive, in any unit.
        windows: positions.
    """
    megatron_core.make_importable()
    from megatron.core.datasets import helpers
    from megatron.core.datasets.utils import normalize

    corpus = np.zeros(windows, dtype=np.int16)
    window = np.zeros(windows, dtype=np.int64)
    helpers.build_blending_indices(corpus, window, normalize(list(weights)), len(weights), windows, False)
    return corpus, window


class Mixture:
    """The windows of several corpora in training order; positions are those of the whole training.

    It does all that an ``Order`` does.

    Args:
        orders: for each corpus one ``Order``, or one for each of its epochs, all of one sequence length and one
            end-of-document id.
        phases: what is read when.

    Raises:
        UserError: if weights do not fit, orders do not go together, or a corpus has fewer windows than are read.
    """

    claim = Order.claim

    def __init__(self, orders: Sequence[Order | Sequence[Order]], phases: Sequence[Phase]) -> None:
        if not orders or not phases:
            raise UserError("a mixture needs at least one corpus and one phase")
        self._epochs = [[entry] if isinstance(entry, Order) else list(entry) for entry in orders]
        self.phases = list(phases)
        for name in ("sequence_length", "eod"):
            values = {getattr(order, name) for epochs in self._epochs for order in epochs}
            if len(values) > 1:
                raise UserError(
                    f"the corpora of a mixture differ in {name}: {sorted(values)}; prepare them with the same settings"
                )
        first = self._epochs[0][0]
        self.sequence_length, self.eod = first.sequence_length, first.eod
        used = np.zeros(len(orders), dtype=np.int64)
        corpora, windows = [], []
        for number, phase in enumerate(phases):
            corpus, window = self._phase(number, phase)
            windows.append(window + used[corpus])
            corpora.append(corpus)
            used += np.bincount(corpus, minlength=len(orders))
        for number, (epochs, count) in enumerate(zip(self._epochs, used.tolist(), strict=True)):
            if count > len(epochs[0]) * len(epochs):
                raise UserError(
                    f"the mixture needs {count:,} windows of corpus {number} but {len(epochs)} epoch(s) of it have "
                    f"{len(epochs[0]) * len(epochs):,}; lower its weights, shorten the run, raise mixture.epochs, or "
                    "prepare more text"
                )
        self.corpus = np.concatenate(corpora)
        """Index of the corpus at each position, (positions,) int16."""
        self.windows = np.concatenate(windows)
        """Index of the window within that corpus, counted through its epochs, (positions,) int64."""

    def _phase(self, number: int, phase: Phase) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
        weights = np.asarray(phase.weights, dtype=np.float64)
        if len(weights) != len(self._epochs):
            raise UserError(
                f"phase {number} has {len(weights)} weights for {len(self._epochs)} corpora; give one for each"
            )
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any() or phase.windows < 1:
            raise UserError(
                f"phase {number} of {phase.windows} windows with weights {list(phase.weights)} is not possible; "
                "weights are 0 or more, not all 0, and a phase has at least 1 window"
            )
        present = np.flatnonzero(weights)
        corpus, window = blend(weights[present].tolist(), phase.windows)
        return present.astype(np.int16)[corpus], window

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.corpus)

    @property
    def prefixes(self) -> list[Path]:
        """The token files of each corpus, without their endings."""
        return [epochs[0].prefix for epochs in self._epochs]

    @property
    def corpus_digest(self) -> str:
        """Digest of the corpora."""
        return digest_of([epochs[0].corpus_digest for epochs in self._epochs])

    @property
    def identity(self) -> str:
        """Digest of everything that the order depends on."""
        phases = [[phase.windows, list(phase.weights)] for phase in self.phases]
        return json_digest([[[order.identity for order in epochs] for epochs in self._epochs], phases])

    def verify(self) -> list[str]:
        """Faults in the index arrays of any of the orders; see ``Order.verify``."""
        return [
            f"{order.prefix}: {line}"
            for epochs in self._epochs
            for order in epochs
            for line in order.verify()
        ]

    def require(self, windows: int) -> None:
        """Check that a run is no longer than its mixture.

        Raises:
            UserError: if it is.
        """
        if windows > len(self):
            raise UserError(f"the run needs {windows:,} windows but the mixture's phases have {len(self):,}")

    def locate(self, position: int) -> tuple[int, Order, int]:
        """Index of the corpus at a position, the corpus's order, and the position in that order."""
        corpus, window = int(self.corpus[position]), int(self.windows[position])
        epochs = self._epochs[corpus]
        epoch, inside = divmod(window, len(epochs[0]))
        return corpus, epochs[epoch], inside

    def window(self, position: int) -> npt.NDArray[np.int64]:
        """The window at a position: (L + 1,) int64."""
        _, order, inside = self.locate(position)
        return order.window(inside)

    def boundaries(
        self, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Document starts inside windows; see ``Order.boundaries``."""
        corpora, windows = self.corpus[positions], self.windows[positions]
        counts = np.zeros(len(positions), dtype=np.int64)
        rows, starts = [], []
        for number, epochs in enumerate(self._epochs):
            for epoch, order in enumerate(epochs):
                own = np.flatnonzero((corpora == number) & (windows // len(epochs[0]) == epoch))
                if len(own):
                    splits, offsets = order.boundaries(windows[own] % len(epochs[0]))
                    counts[own] = np.diff(splits)
                    rows.append(np.repeat(own, np.diff(splits)))
                    starts.append(offsets)
        if not rows:
            return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64)
        ranked = np.argsort(np.concatenate(rows), kind="stable")
        return np.concatenate([[0], np.cumsum(counts)]), np.concatenate(starts)[ranked]


class Reshuffled:
    """The windows of another order, with those of one part of training in an order drawn anew.

    It does all that an ``Order`` does.

    Args:
        windows: the order.
        begin: first position of the part.
        end: position after its last one.
        seed: seed of the draw.
    """

    def __init__(self, windows: Windows, begin: int, end: int, seed: int) -> None:
        windows.require(end)
        self._windows, self._drawn = windows, [begin, end, seed]
        self.sequence_length: int = windows.sequence_length
        self.eod: int = windows.eod
        self.claim: tuple[str, str] = windows.claim
        self.source = np.arange(end)
        """Position in the other order of the window at each position, (end,) int64."""
        self.source[begin:] = begin + np.random.default_rng(seed).permutation(end - begin)

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.source)

    @property
    def prefixes(self) -> list[Path]:
        """The token files of each corpus, without their endings."""
        return self._windows.prefixes

    @property
    def corpus_digest(self) -> str:
        """Digest of the corpora."""
        return self._windows.corpus_digest

    @property
    def identity(self) -> str:
        """Digest of everything that the order depends on."""
        return json_digest([self._windows.identity, "reshuffled", self._drawn])

    def verify(self) -> list[str]:
        """Faults in the index arrays of the other order; see ``Order.verify``."""
        return self._windows.verify()

    def require(self, windows: int) -> None:
        """Check that a run ends with the part.

        Raises:
            UserError: if it does not.
        """
        if windows > len(self):
            raise UserError(
                f"the run needs {windows:,} windows but those up to {len(self):,} were reshuffled"
            )

    def locate(self, position: int) -> tuple[int, Order | StoredOrder, int]:
        """Index of the corpus at a position, the corpus's order, and the position in that order."""
        return self._windows.locate(int(self.source[position]))

    def window(self, position: int) -> npt.NDArray[np.int64]:
        """The window at a position: (L + 1,) int64."""
        return self._windows.window(int(self.source[position]))

    def boundaries(
        self, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Document starts inside windows; see ``Order.boundaries``."""
        return self._windows.boundaries(self.source[positions])


Windows = Order | StoredOrder | Mixture | Reshuffled
"""Windows in training order, before any insertion."""


def digest_of(digests: Sequence[str]) -> str:
    """Digest of some corpora: of one, its own."""
    return digests[0] if len(digests) == 1 else json_digest(list(digests))
