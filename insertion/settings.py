"""Settings of the insertion, and the shape of the run that it is planned for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from palimpsest.data.errors import UserError
from palimpsest.insertion.arms import FACTORS, Arm, product
from palimpsest.insertion.interventions import Intervention
from palimpsest.insertion.item_counts import Counts, items_of_doses
from palimpsest.insertion.named_arms import NamedArm
from palimpsest.insertion.phases import Phase
from palimpsest.insertion.placement.adaptive import AdaptiveConfig
from palimpsest.insertion.placement.slices import WindowSlice
from palimpsest.insertion.preflight import PreflightConfig

_MOST_ITEMS, _MOST_EXPOSURES = 10_000_000, 1_000_000_000
"""Largest number of items of a family; a larger number would exhaust the memory and is refused."""


@dataclass(frozen=True, kw_only=True)  # without slots, so that the arms are computed once
class InsertionConfig:
    """The design of an insertion experiment: items, doses, factors, strata and randomisation."""

    families: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Family -> its settings; any other name -> those of the family that the setting ``family`` names."""
    doses: tuple[int, ...]
    """Numbers of insertions of an item; dose 0 is the never-inserted control."""
    items_per_dose: Counts | Mapping[str, Counts] = 10
    """Items of each family in each arm of a dose: one number for all doses, one for each, or ``hubble:N``
    (``insertion.item_counts.items_of_doses``); a mapping gives every family its own. 0: the family has no items of that
    dose."""
    named_arms: Mapping[str, NamedArm] = field(default_factory=dict)
    """Arms by name, if they are not a product of factors; ``doses`` is then empty and ``items_per_dose`` unused."""
    phase: tuple[Phase, ...] = (Phase(),)
    """This and the following are the factors besides the dose: every level of one is crossed with all levels of the
    others. ``insertion.arms.Arm`` describes the levels."""
    spacing: tuple[str, ...] = ("uniform",)
    position: tuple[str, ...] = ("boundary",)
    displace: tuple[str, ...] = ("tail",)
    frame: tuple[str, ...] = ("document",)
    wording: tuple[str, ...] = ("verbatim",)
    batch: tuple[str, ...] = ("any",)
    loss: tuple[str, ...] = ("counted",)
    last_exposure_within: int = 0
    """Steps; see ``Arm.last_exposure_within``."""
    per_window: int = 1
    """Largest number of exposures in one window."""
    max_share: float = 0.2
    """Largest share of the run's tokens that may be inserted."""
    length_quantiles: int = 2
    """Strata of length inside each family (of clusters: of their mean). Above 1, the assignment depends on the items'
    lengths: plans that differ in wording fill the same windows, but not each with the same item."""
    likelihood_quantiles: int = 1
    """Strata of likelihood under ``likelihood_model`` inside each of those; as for lengths."""
    likelihood_model: str | None = None
    """A causal model of ``transformers`` by path, or ``trained``, which is made here from the corpus alone. Its mean
    loss a token of each item enters the balance table."""
    heldout_probes: int = 64
    """Number of held-out documents whose likelihood is measured as well as the items'."""
    interventions: Mapping[str, Intervention] = field(default_factory=dict)
    """Changes to the corpus's own text, by name."""
    slice: str = ""
    """``k/n``: use only share k of n of the run's windows and of the held-out documents that families draw from, so
    that designs with other shares do not interfere. Empty: all of them."""
    experiments: Mapping[str, InsertionConfig] = field(default_factory=dict)
    """Independent designs that share the run, by name, each with its own ``slice``, seed and ``max_share``; then
    ``families`` and ``doses`` are empty. Each design's items and places are independent of the others."""
    paired_with: str | None = None
    """Directory of a plan that this one is a variant of (``insertion.placement.paired``): its items, or some of them,
    keep their arms and, where the design allows it, their places."""
    placements: str | None = None
    """Parquet file of exposures that were decided elsewhere (``insertion.placement.explicit``): the items' doses, and
    perhaps their places, come from it and are not drawn."""
    adaptive: AdaptiveConfig | None = None
    """Adaptive doses, decided by a policy from the scores (``launch/adaptive.py``). ``doses`` are then 0 and 1: each
    item is randomly assigned to the controls or to the policy."""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    """Action on items that are too long, contained in the corpus, or near duplicates."""
    coin_seed: int | None = None
    """Assignment by coins instead of exact counts: every item (or cluster) gets an arm at random, with the arms' shares
    of ``items_per_dose`` as probabilities, whatever the others get. The coins have this seed; the items, and everything
    else that ``seed`` decides, stay as they are, so that runs which differ in it alone include other items."""
    seed: int
    """Seed of items, assignment and placement."""

    def __post_init__(self) -> None:
        if self.experiments:
            self._check_experiments()
            return
        if not self.families:
            raise UserError("insertion.families is empty; name at least one family")
        _ = self.window_slice  # checks it
        if self.coin_seed is not None and (
            self.named_arms or self.placements or self.paired_with or self.adaptive
        ):
            raise UserError(
                f"insertion.coin_seed={self.coin_seed} draws the items' doses, which named_arms, placements, "
                "paired_with or adaptive decide already; leave out one of them"
            )
        if self.adaptive is not None and (len(self.families) > 1 or self.doses != (0, 1) or self.paired_with):
            raise UserError(
                "insertion.adaptive needs a single family, insertion.doses=[0,1] and no "
                f"insertion.paired_with, not the families {', '.join(self.families)} and doses {list(self.doses)}"
            )
        if self.placements is not None:
            self._check_placements()
        self._check_doses()
        self._check_quantiles()
        if self.per_window > 1 and {arm.displace for _, arm in self.arms if arm.dose} != {"tail"}:
            raise UserError(
                f"insertion.per_window={self.per_window} needs insertion.displace=[tail]: exposures that trim or "
                "overwrite would cut into each other"
            )
        _ = self.arms  # checks every combination
        self._check_counts()

    def _check_doses(self) -> None:
        if self.named_arms and self.doses:
            raise UserError(
                f"insertion.named_arms and insertion.doses={list(self.doses)} are two designs; to use the named arms "
                "write insertion.doses=[]"
            )
        named = {arm.dose for arm in self.named_arms.values()}
        doses = sorted(named) if self.named_arms else list(self.doses)
        if 0 not in doses:
            raise UserError(
                f"insertion.doses={doses} lacks 0; dose 0, the never-inserted controls, is needed for "
                f"every comparison; add it"
            )
        if len(doses) < 2 - bool(self.named_arms) or len(set(doses)) < len(doses) or min(doses) < 0:
            raise UserError(f"insertion.doses={doses} must be different numbers, 0 and at least one more")

    def _check_quantiles(self) -> None:
        for name in ("length_quantiles", "likelihood_quantiles", "per_window"):
            if getattr(self, name) < 1:
                raise UserError(f"insertion.{name}={getattr(self, name)} must be at least 1")
        if self.likelihood_quantiles > 1 and self.likelihood_model is None:
            raise UserError(
                f"insertion.likelihood_quantiles={self.likelihood_quantiles} needs insertion.likelihood_model, the "
                "path of a model or trained"
            )

    def _check_counts(self) -> None:
        for family in self.families:
            if isinstance(self.items_per_dose, Mapping) and family not in self.items_per_dose:
                raise UserError(f"insertion.items_per_dose has no entry for family {family}")
            if not (self.named_arms or self.placements):
                self._check_arms(family)
            items = self.size(family)
            exposures = sum(
                size * arm.dose for size, (_, arm) in zip(self.arm_sizes(family), self.arms, strict=True)
            )
            for count, most, what in (
                (items, _MOST_ITEMS, "items"),
                (exposures, _MOST_EXPOSURES, "exposures"),
            ):
                if count > most:
                    raise UserError(
                        f"insertion.items_per_dose={self.items_per_dose} with insertion.doses={list(self.doses)} asks "
                        f"for {count:,} {what} of {family}; {most:,} are the most: lower them"
                    )

    def _check_arms(self, family: str) -> None:
        """Check that a family has controls and inserted items, and at least two items of each of its arms."""
        never, *inserted = self.counts(family).values()
        if never < 2 or any(count < 2 and count != 0 for count in inserted) or not any(inserted):
            raise UserError(
                f"insertion.items_per_dose={self.items_per_dose}: an error bar needs at least 2 items; "
                f"{family} needs 2 "
                "or more items of dose 0 and of some other dose, and none or more than one of each of the rest"
            )

    def _check_experiments(self) -> None:
        if self.paired_with:
            raise UserError("insertion.paired_with works on one design, not on insertion.experiments")
        if self.families or self.doses or self.named_arms:
            raise UserError(
                "insertion.experiments and insertion.families (or doses, named_arms) cannot be combined: each is a "
                "whole design; remove one of them"
            )
        slices: dict[str, str] = {}
        for name, one in self.experiments.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise UserError(f"insertion.experiments: {name!r} must be letters, digits, '_' and '-'")
            here = f"insertion.experiments.{name}"
            if one.experiments or one.interventions or one.paired_with or one.adaptive or one.placements:
                raise UserError(
                    f"{here}: experiments, interventions, paired_with, placements and adaptive belong to insertion "
                    "itself"
                )
            if one.slice in slices:
                raise UserError(
                    f"{here}.slice={one.slice or 'none'} is that of {slices[one.slice]}, too; give each its own, "
                    f"such as 0/{len(self.experiments)}"
                )
            slices[one.slice] = name
        if len({one.window_slice.of for one in self.experiments.values()}) > 1:
            raise UserError(
                f"insertion.experiments: slices {', '.join(slices)} are shares of different sizes; "
                "write k/n with one n for all"
            )

    def _check_placements(self) -> None:
        setting = f"insertion.placements={self.placements}"
        if self.paired_with or self.adaptive or self.named_arms or self.slice:
            raise UserError(
                f"{setting} cannot be combined with other placements: leave out insertion.paired_with, "
                f"adaptive, named_arms and slice"
            )
        for name in FACTORS:
            if len(getattr(self, name)) != 1:
                raise UserError(
                    f"{setting}: items get their doses from the file, so insertion.{name} must have one "
                    f"value for all of them, not {len(getattr(self, name))}"
                )

    @property
    def window_slice(self) -> WindowSlice:
        """Slice of the windows."""
        if not self.slice:
            return WindowSlice()
        share = re.fullmatch(r"(\d+)/(\d+)", self.slice)
        if share is None or not int(share[1]) < int(share[2]):
            raise UserError(f"insertion.slice={self.slice} is not k/n with k below n, such as 0/4")
        return WindowSlice(int(share[1]), int(share[2]))

    def designs(self) -> list[tuple[str, InsertionConfig]]:
        """The experiments by name; without experiments, this design under an empty name."""
        return list(self.experiments.items()) or [("", self)]

    @cached_property
    def arms(self) -> list[tuple[str, Arm]]:
        """All arms with their names, dose 0 first."""
        factors = {name: getattr(self, name) for name in FACTORS}
        arms = product(self.doses, factors)
        if self.named_arms:
            arms = [(name, arm.arm(factors, name)) for name, arm in self.named_arms.items()]
            arms.sort(key=lambda entry: entry[1].dose > 0)
        if not self.last_exposure_within:
            return arms
        return [
            (n, Arm(**{**_fields(a), "last_exposure_within": self.last_exposure_within}))
            if a.dose
            else (n, a)
            for n, a in arms
        ]

    def counts(self, family: str) -> dict[int, int]:
        """Index of an arm -> number of a family's items in it."""
        if self.named_arms:
            return {n: self.named_arms[name].drawn for n, (name, _) in enumerate(self.arms)}
        given = self.items_per_dose
        per_dose = items_of_doses(given[family] if isinstance(given, Mapping) else given, self.doses)
        return {number: per_dose[arm.dose] for number, (_, arm) in enumerate(self.arms)}

    def arm_sizes(self, family: str) -> list[int]:
        """Number of items of a family in each arm."""
        if self.named_arms:
            return [self.named_arms[name].size for name, _ in self.arms]
        return list(self.counts(family).values())

    def size(self, family: str) -> int:
        """Number of items that a family makes."""
        listed = max((arm.reach for arm in self.named_arms.values()), default=0)
        return max(sum(self.arm_sizes(family)), listed)


def _fields(arm: Arm) -> dict[str, Any]:
    return {name: getattr(arm, name) for name in ("dose", *FACTORS)}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunShape:
    """Steps, batch and sequence length of the run that carries a plan out."""

    steps: int
    """Number of steps, including those before ``begin``."""
    global_batch_size: int
    sequence_length: int
    begin: int = 0
    """Number of steps finished at the checkpoint that the run starts from; 0 if it starts from none."""

    @property
    def windows(self) -> int:
        """Number of windows that all steps up to the last one read, those before a start from a checkpoint included."""
        return self.steps * self.global_batch_size

    @property
    def positions(self) -> range:
        """The run's sample indices."""
        return range(self.begin * self.global_batch_size, self.windows)


def identifying(values: dict[str, Any]) -> dict[str, Any]:
    """The values of an ``InsertionConfig`` that identify a design: all but an unset ``coin_seed``, so that runs and
    plans made before that setting existed keep their names.
    """
    experiments = {name: identifying(one) for name, one in values["experiments"].items()}
    kept = {name: value for name, value in values.items() if name != "coin_seed" or value is not None}
    return kept | {"experiments": experiments}
