"""Claims with their tests, declared before the runs, and the verdict over seeds.

A claim is about one number of a seed: a quantity of a cell, a contrast of two cells, or a slope over several. Each seed
draws items, their assignment, the order of the corpus and the initial weights anew, so that the test (Student's t over
seeds) speaks of other items and other runs alike. Its standard error is never below the one over items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from palimpsest.analysis.replication.quantities import CELL, QUANTITIES, Estimate
from palimpsest.analysis.statistics import holm
from palimpsest.data.errors import UserError, nearest

if TYPE_CHECKING:
    from palimpsest.analysis.run import Run

POWER = 0.8
"""Planned power below which a claim that does not show is undecided, and not refuted."""
REPRODUCED, NOT, UNTESTABLE = "reproduced", "not reproduced", "not testable at this scale"


@dataclass(frozen=True, kw_only=True, slots=True)
class Along:
    """The x-axis of a claim about a slope: where the quantity is estimated, such as at doses 4, 16 and 64."""

    field: str
    """Field of the claim's cell (:data:`CELL`) that varies, such as ``dose`` or ``run``."""
    values: tuple[Any, ...]
    """Its values."""
    x: tuple[float, ...] = ()
    """Place of each value on the x-axis; none: log2 of the values."""

    def __post_init__(self) -> None:
        if self.field not in CELL:
            raise UserError(f"along.field={self.field} is no field of a cell{nearest(self.field, CELL)}")
        if len(self.values) < 2 or (self.x and len(self.x) != len(self.values)):
            raise UserError(f"along.values={list(self.values)} must be at least two, with as many x or none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim and its test."""

    text: str
    published: str
    """Result of the literature, in words or numbers."""
    quantity: str
    cell: Mapping[str, Any]
    minus: Mapping[str, Any] | None = None
    """A contrast: fields in which the other cell differs."""
    along: Along | None = None
    direction: Literal["greater", "less", "within"] = "greater"
    """``within``: nearer to ``against`` than ``margin`` (two one-sided tests)."""
    against: float = 0.0
    margin: float = 0.0
    alpha: float = 0.05
    expected: float
    """Smallest difference from ``against`` worth finding; for ``within``, the difference that is assumed."""
    deviation: float
    """Standard deviation between seeds, from pilot runs on other seeds."""
    unit: str = ""
    control: bool = False
    """A positive control: if it fails, no other claim of the page can be judged."""

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise UserError(f"quantity={self.quantity} is unknown{nearest(self.quantity, QUANTITIES)}")
        for name in (*self.cell, *(self.minus or {})):
            if name not in CELL:
                raise UserError(f"cell.{name} is no field of a cell{nearest(name, CELL)}")
        if self.minus is not None and self.along is not None:
            raise UserError("a claim has minus or along, not both")
        if not 0 < self.alpha < 0.5:
            raise UserError(f"alpha={self.alpha} must lie between 0 and 0.5")
        if self.deviation <= 0:
            raise UserError(f"deviation={self.deviation} must be above 0; take it from pilot runs")
        if (self.margin > 0) != (self.direction == "within"):
            raise UserError(f"margin={self.margin} belongs to direction=within, and to no other")

    def measure(self, runs: Mapping[str, Run]) -> Estimate:
        """The claim's number in the runs of one seed.

        Args:
            runs: name -> run.

        Raises:
            UserError: for a cell that no run has.
        """
        if self.minus is not None:
            first, second = self._at(runs, self.cell), self._at(runs, {**self.cell, **self.minus})
            return Estimate(
                first.value - second.value,
                float(np.hypot(first.error, second.error)),
                first.reason or second.reason,
            )
        if self.along is None:
            return self._at(runs, self.cell)
        levels = [self._at(runs, {**self.cell, self.along.field: value}) for value in self.along.values]
        x = (
            np.array(self.along.x, np.float64)
            if self.along.x
            else np.log2(np.array(self.along.values, np.float64))
        )
        weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        return Estimate(
            float(weight @ [level.value for level in levels]),
            float(np.sqrt((weight**2) @ np.square([level.error for level in levels]))),
            next((level.reason for level in levels if level.reason), ""),
        )

    def _at(self, runs: Mapping[str, Run], cell: Mapping[str, Any]) -> Estimate:
        name = cell.get("run", next(iter(runs)))
        if name not in runs:
            raise UserError(
                f"cell.run={name} is not under runs{nearest(name, runs)}; give one of {', '.join(runs)}"
            )
        return QUANTITIES[self.quantity](runs[name], cell)

    def power(self, seeds: int, claims: int) -> float:
        """Planned power of the test with so many seeds, at the first and hardest step of Holm's procedure."""
        level = self.alpha / claims
        freedom, error = seeds - 1, self.deviation / np.sqrt(seeds)
        critical = float(stats.t.ppf(1 - level, freedom))
        if self.direction == "within":
            room = (self.margin - abs(self.expected)) / error
            return float(max(0.0, 2 * stats.nct.sf(critical, freedom, room) - 1))
        return float(stats.nct.sf(critical, freedom, abs(self.expected) / error))


class Outcome(NamedTuple):
    """A claim's estimate over seeds, and its test."""

    values: list[float]
    """One a seed; NaN where it does not exist."""
    estimate: float
    low: float
    high: float
    """95 % interval (two-sided) over seeds."""
    p: float
    """Of the declared test; NaN if a seed has no value."""
    p_holm: float
    verdict: str
    why: str
    """Reason, where it was not testable or undecided; else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replication:
    """A replication: runs, seeds and claims."""

    title: str
    finding: str
    """Published finding."""
    source: str
    """Its source."""
    pilots: str
    """How the setting was explored beforehand, and on which seeds."""
    arguments: tuple[str, ...]
    runs: Mapping[str, tuple[str, ...]]
    """Name -> its own arguments, the first of which may be the name of a program other than ``run``."""
    seeds: tuple[int, ...]
    claims: Mapping[str, Claim]
    notes: str = ""
    """Differences from the published setting, and limits."""
    corpus: str = ""
    """Expected digest of the prepared corpus; empty: none."""
    figure: tuple[str, ...] = field(default=("loglik_per_byte",))
    """Metrics whose arms the page shows."""

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 3:
            raise UserError(f"seeds={list(self.seeds)} must be at least three different ones")
        if not self.claims or not self.runs:
            raise UserError(
                f"a replication needs at least one run and one claim; it has {len(self.runs)} under runs and "
                f"{len(self.claims)} under claims"
            )

    def program_of(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Program that makes a run, and the run's own arguments for it."""
        own = self.runs[name]
        if own and "=" not in own[0] and own[0][0] not in "+~":
            return own[0], own[1:]
        return "run", own


def judge(claims: Mapping[str, Claim], measured: Mapping[str, Sequence[Estimate]]) -> dict[str, Outcome]:
    """Test every claim, with Holm's correction over all of ``claims``.

    Args:
        claims: name -> claim.
        measured: name -> estimate of the claim's quantity in each seed, at least two.
    """
    tests = {name: t_test(claim, measured[name]) for name, claim in claims.items()}
    corrected = dict(zip(tests, holm([test[3] for test in tests.values()]), strict=True))
    failed = [name for name, claim in claims.items() if claim.control and not corrected[name] <= claim.alpha]
    return {
        name: Outcome(
            [estimate.value for estimate in measured[name]],
            *tests[name],
            float(corrected[name]),
            *_verdict(name, claim, measured[name], tests[name], float(corrected[name]), failed, len(claims)),
        )
        for name, claim in claims.items()
    }


def t_test(claim: Claim, measured: Sequence[Estimate]) -> tuple[float, float, float, float]:
    """Estimate, 95 % interval over seeds (two-sided) and p of a claim's test; NaN if a seed has no value."""
    values = np.array([estimate.value for estimate in measured])
    mean = float(values.mean())
    if np.isnan(mean):
        return mean, mean, mean, mean
    errors = np.array([estimate.error for estimate in measured])
    within = float(np.sqrt(np.square(errors).sum())) / len(values)
    between = float(values.std(ddof=1)) / np.sqrt(len(values))
    error = float(np.nanmax([within, between]))
    freedom = len(values) - 1
    half = float(stats.t.ppf(0.975, freedom)) * error

    def above(limit: float) -> float:
        if error == 0:
            return 1.0 if mean <= limit else 0.0
        return float(stats.t.sf((mean - limit) / error, freedom))

    if claim.direction == "within":
        p = max(above(claim.against - claim.margin), 1 - above(claim.against + claim.margin))
    else:
        p = above(claim.against) if claim.direction == "greater" else 1 - above(claim.against)
    return mean, mean - half, mean + half, p


def _verdict(
    name: str,
    claim: Claim,
    measured: Sequence[Estimate],
    test: tuple[float, float, float, float],
    p: float,
    failed: Sequence[str],
    claims: int,
) -> tuple[str, str]:
    if reasons := [estimate.reason or "no value" for estimate in measured if np.isnan(estimate.value)]:
        return UNTESTABLE, f"{len(reasons)} of {len(measured)} seeds: {reasons[0]}"
    if p <= claim.alpha:
        return REPRODUCED, ""
    if failed and name not in failed:
        return UNTESTABLE, f"the positive control {failed[0]} failed"
    if (power := claim.power(len(measured), claims)) < POWER:
        return NOT, f"planned power {power:.2f}, too low to tell"
    _, low, high, _ = test
    planned = claim.against + (-1 if claim.direction == "less" else 1) * abs(claim.expected)
    if low <= planned <= high:
        return NOT, f"the interval holds the value planned for, {planned:.3g}, as well: too wide to tell"
    return NOT, ""


def overall(outcomes: Mapping[str, Outcome]) -> str:
    """Verdict of a page: that of all its claims, or how many of them were reproduced."""
    verdicts = [outcome.verdict for outcome in outcomes.values()]
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return f"reproduced in part ({verdicts.count(REPRODUCED)} of {len(verdicts)} claims)"
