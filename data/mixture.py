"""Several corpora as one order: weighted blends, and a schedule of blends.

Inside a phase the choice is megatron-core's: at every position the corpus that lags most behind its weight comes next,
so a longer phase begins like a shorter one. Each corpus is read in its own order of one epoch, and goes on in the next
phase where the last one left it: nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.artifact import json_digest
from data.errors import UserError
from data.order import Order


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with one blend."""

    windows: int
    """How many windows it lasts."""
    weights: tuple[float, ...]
    """Of each corpus, in any unit; 0 leaves it out."""


def blend(weights: Sequence[float], windows: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Which corpus each position is from, int16 (windows,), and which of its windows, int64 (windows,).

    Equal to megatron-core's ``BlendedDataset`` of the same weights.

    Args:
        weights: positive, in any unit.
        windows: positions.
    """
    from megatron.core.datasets import helpers
    from megatron.core.datasets.utils import normalize

    corpus = np.zeros(windows, dtype=np.int16)
    window = np.zeros(windows, dtype=np.int64)
    helpers.build_blending_indices(corpus, window, normalize(list(weights)), len(weights), windows, False)
    return corpus, window


class Mixture:
    """The windows of several corpora in training order; positions are those of the whole training.

    Args:
        orders: one for each corpus, of one sequence length and one end-of-document id.
        phases: what is read when.

    Raises:
        UserError: if weights do not fit, orders do not go together, or a corpus would begin a second epoch.
    """

    def __init__(self, orders: Sequence[Order], phases: Sequence[Phase]) -> None:
        if not orders or not phases:
            raise UserError("a mixture needs at least one corpus and one phase")
        for name in ("sequence_length", "eod"):
            values = {getattr(order, name) for order in orders}
            if len(values) > 1:
                raise UserError(
                    f"the corpora of a mixture differ in {name}: {sorted(values)}; make them alike"
                )
        self.orders, self.phases = list(orders), list(phases)
        self.sequence_length, self.eod = orders[0].sequence_length, orders[0].eod
        used = np.zeros(len(orders), dtype=np.int64)
        corpora, windows = [], []
        for number, phase in enumerate(phases):
            corpus, window = self._phase(number, phase)
            windows.append(window + used[corpus])
            corpora.append(corpus)
            used += np.bincount(corpus, minlength=len(orders))
        for number, (order, count) in enumerate(zip(orders, used.tolist(), strict=True)):
            if count > len(order):
                raise UserError(
                    f"the mixture needs {count:,} windows of corpus {number} but one epoch of it has {len(order):,}; "
                    "lower its weights or the phases' windows, or prepare more text"
                )
        self.corpus = np.concatenate(corpora)
        """Which corpus each position is from: (positions,) int16."""
        self.windows = np.concatenate(windows)
        """Which window of that corpus's order: (positions,) int64."""

    def _phase(self, number: int, phase: Phase) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
        weights = np.asarray(phase.weights, dtype=np.float64)
        if len(weights) != len(self.orders):
            raise UserError(
                f"phase {number} has {len(weights)} weights for {len(self.orders)} corpora; give one for each"
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
        """Positions."""
        return len(self.corpus)

    @property
    def identity(self) -> str:
        """Digest of everything that the order depends on."""
        phases = [[phase.windows, list(phase.weights)] for phase in self.phases]
        return json_digest([[order.identity for order in self.orders], phases])

    def window(self, position: int) -> npt.NDArray[np.int64]:
        """The window at a position: (L + 1,) int64."""
        return self.orders[int(self.corpus[position])].window(int(self.windows[position]))
