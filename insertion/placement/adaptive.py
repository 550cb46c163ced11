"""Adaptive arms: at declared checkpoints a policy reads the scores and decides the exposures of the next segment.

A policy is a function ``(scores, state, seed, settings) -> (exposures, state)``:

* ``scores``: item -> its score at the checkpoint minus the mean of the never-inserted items; higher = better
  remembered;
* ``state``: JSON values that the policy returned at the checkpoint before; empty at the first checkpoint;
* ``seed``: seed of its random draws;
* ``exposures``: item -> number of exposures in the next segment; other items get none.

A policy has no other inputs and no other state, so that ``launch/adaptive.py`` can replay every decision from the
stored scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.named_arms import NamedArm

Scores = Mapping[str, float]
State = dict[str, Any]
Policy = Callable[[Scores, State, int, "AdaptiveConfig"], tuple[dict[str, int], State]]

POLICIES: dict[str, Policy] = {}


def policy(function: Policy) -> Policy:
    """Register a policy under its function's name."""
    POLICIES[function.__name__] = function
    return function


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveConfig:
    """Settings of adaptive arms, whose doses a policy decides from the scores."""

    policy: str
    """Name of the policy: ``insert_until``, ``maintain``, ``staircase``, or another registered one."""
    at: tuple[int, ...]
    """Finished steps of the checkpoints at which it decides, ascending; the first segment begins at step 0."""
    threshold: float
    """Score above which an item counts as remembered: nats/byte above the mean of the never-inserted items."""
    each: int = 1
    """Exposures of an item in a segment; for ``staircase``, in the first trial."""
    most: int = 256
    """Largest total number of exposures of an item."""
    trials: int = 4
    """``staircase``: number of new items tried at each dose."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(
                f"insertion.adaptive.policy={self.policy} is unknown{nearest(self.policy, sorted(POLICIES))}"
            )
        if not self.at or list(self.at) != sorted(set(self.at)) or self.at[0] < 1:
            raise UserError(
                f"insertion.adaptive.at={list(self.at)} must be different steps above 0, ascending"
            )
        for name in ("each", "most", "trials"):
            if getattr(self, name) < 1:
                raise UserError(f"insertion.adaptive.{name}={getattr(self, name)} must be at least 1")
        if self.each > self.most:
            raise UserError(
                f"insertion.adaptive.each={self.each} is more than insertion.adaptive.most={self.most}"
            )


def _more(names: list[str], state: State, settings: AdaptiveConfig) -> dict[str, int]:
    """``each`` exposures of each item, limited by the item's largest total; the totals are stored in the state."""
    totals = state.setdefault("totals", {})
    given = {name: min(settings.each, settings.most - totals.get(name, 0)) for name in names}
    given = {name: count for name, count in given.items() if count}
    for name, count in given.items():
        totals[name] = totals.get(name, 0) + count
    return given


@policy
def insert_until(
    scores: Scores, state: State, seed: int, settings: AdaptiveConfig
) -> tuple[dict[str, int], State]:
    """Policy: insert each item until it is remembered for the first time."""
    done = {*state.get("done", []), *(name for name, score in scores.items() if score >= settings.threshold)}
    state = {**state, "totals": dict(state.get("totals", {})), "done": sorted(done)}
    return _more(sorted(set(scores) - done), state, settings), state


@policy
def maintain(
    scores: Scores, state: State, seed: int, settings: AdaptiveConfig
) -> tuple[dict[str, int], State]:
    """Policy: insert each item in every segment in which it is below the threshold."""
    state = {**state, "totals": dict(state.get("totals", {}))}
    low = sorted(name for name, score in scores.items() if score < settings.threshold)
    return _more(low, state, settings), state


@policy
def staircase(
    scores: Scores, state: State, seed: int, settings: AdaptiveConfig
) -> tuple[dict[str, int], State]:
    """Policy: new items at every checkpoint, at half the dose if half of the last ones were remembered, else at twice
    the dose.

    The trials (dose, remembered or not) are kept in the state, for ``analysis.statistics.staircase_ec50``.
    """
    trials = list(state.get("trials", []))
    used = list(state.get("used", []))
    running: dict[str, int] = state.get("running", {})
    dose: int = state.get("dose", settings.each)
    if running:
        hits = [name for name in running if scores[name] >= settings.threshold]
        trials += [[running[name], int(name in hits)] for name in sorted(running)]
        dose = max(1, dose // 2) if 2 * len(hits) >= len(running) else min(settings.most, dose * 2)
    fresh = sorted(set(scores) - set(used))
    chosen = np.random.default_rng([seed, len(used)]).permutation(fresh)[: settings.trials].tolist()
    given: dict[str, int] = {str(name): dose for name in sorted(chosen)}
    return given, {"trials": trials, "used": sorted([*used, *chosen]), "running": given, "dose": dose}


def arms_of_segment(assigned: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, NamedArm]:
    """Listed arms of one segment, by name, for ``insertion.named_arms``; its windows are then drawn at random.

    Args:
        assigned: item -> dose in the design of the whole run: 0 for controls, 1 for the policy's items.
        counts: item -> exposures in this segment; all others get none.
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for item, dose in assigned.items():
        count = counts.get(item, 0)
        groups.setdefault((f"dose {count}" if dose else "never inserted", count), []).append(item)
    return {name: NamedArm(dose=dose, items=tuple(items)) for (name, dose), items in sorted(groups.items())}
