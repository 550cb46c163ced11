"""Arms: what a treatment consists of, and the product of the factors that an experiment varies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from palimpsest.data.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """The part of training in which exposures fall: a range, or a list of steps."""

    unit: Literal["fraction", "step", "token"] = "fraction"
    """Of ``start`` and ``end``."""
    start: float = 0.0
    end: float = 1.0
    """Exclusive."""
    at: tuple[int, ...] = ()
    """Explicit steps instead of a range; exposure k of an item falls into the k-th of them."""

    def __post_init__(self) -> None:
        if self.at:
            if list(self.at) != sorted(set(self.at)) or min(self.at) < 0:
                raise UserError(f"insertion.phase: at={list(self.at)} must be different steps, ascending")
            return
        if not 0 <= self.start < self.end or (self.unit == "fraction" and self.end > 1):
            raise UserError(
                f"insertion.phase: start={self.start}, end={self.end} ({self.unit}) must have 0 <= start < end"
                + (" <= 1" if self.unit == "fraction" else "")
            )

    def steps(self, steps: int, tokens_a_step: int, begin: int = 0) -> tuple[int, int]:
        """First and end step of the range in a run.

        Args:
            steps: of the run, with those before ``begin``.
            tokens_a_step: for a phase in tokens.
            begin: step that the run goes on from; fractions are of the steps that follow, steps and tokens are counted
                from the very first.

        Raises:
            UserError: if it begins before the run or ends after it, or holds no step.
        """
        if self.at:
            first, end = self.at[0], self.at[-1] + 1
        elif self.unit == "fraction":
            first, end = (begin + round(share * (steps - begin)) for share in (self.start, self.end))
        else:
            size = 1 if self.unit == "step" else tokens_a_step
            first, end = int(self.start // size), int(-(-self.end // size))
        if first < begin:
            raise UserError(
                f"insertion.phase {self} begins at step {first}, but the run goes on from step {begin} "
                "(train.start_from); steps are counted from the very first"
            )
        if end > steps:
            raise UserError(f"insertion.phase {self} ends at step {end}, but the run has train.steps={steps}")
        if first >= end:
            raise UserError(f"insertion.phase {self} holds no step of a run of train.steps={steps}")
        return first, end

    def __str__(self) -> str:
        if self.at:
            shown = ", ".join(map(str, self.at[:3])) + (", ..." if len(self.at) > 3 else "")
            return f"steps {shown}"
        return (
            f"{self.start:g}-{self.end:g}" + {"fraction": "", "step": " steps", "token": " tokens"}[self.unit]
        )


_CHOICES: dict[str, tuple[str, ...]] = {
    "spacing": (r"uniform", r"even", r"massed:\d+", r"expanding"),
    "position": (r"boundary", r"start", r"token", r"sentence", r"word", r"offset:\d+(-\d+)?"),
    "displace": (r"tail", r"around", r"overwrite"),
    "frame": (r"document", r"inline"),
    "wording": (r"verbatim", r"rotate:\d+", r"fresh"),
    "batch": (r"any", r"apart", r"together"),
    "loss": (r"counted", r"masked", r"goldfish:\d+"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One treatment."""

    dose: int
    """Times that an item is inserted."""
    phase: Phase = Phase()
    """When."""
    spacing: str = "uniform"
    """How the exposures of an item are spread over the phase: ``uniform`` at random; ``even``, equal gaps;
    ``massed:K``, all within K consecutive steps; ``expanding``, each gap twice the one before."""
    last_exposure_within: int = 0
    """N > 0: the last exposure falls into the last N steps of the phase whatever the spacing, so
    that how long ago it was does not differ between spacings."""
    position: str = "boundary"
    """Where in the window: at a document's start (``boundary``), at the window's ``start``, at a uniform ``token``,
    where a ``sentence`` or a ``word`` begins, or at ``offset:N`` or in ``offset:N-M`` (tokens)."""
    displace: str = "tail"
    """Which corpus tokens give way: the window's ``tail``; some at both ends (``around``); or those whose place is
    taken (``overwrite``)."""
    frame: str = "document"
    """``document``: between end-of-document tokens; ``inline``: in the middle of the host's text."""
    wording: str = "verbatim"
    """``verbatim`` every time; ``rotate:K``, K of the item's wordings in turn; ``fresh``, another one each time."""
    batch: str = "any"
    """Repeats of an item in one global batch: ``any`` number, never (``apart``), or all of them (``together``)."""
    loss: str = "counted"
    """Of the item's tokens: ``counted``; ``masked``, the item is read but never predicted; or ``goldfish:K``, one token
    in K is not, always the same ones after the same 13 tokens (``overlay.counted``)."""

    def __post_init__(self) -> None:
        if self.dose < 0:
            raise UserError(f"insertion.doses: {self.dose} must be 0 or above")
        if self.last_exposure_within < 0:
            raise UserError(f"insertion.last_exposure_within={self.last_exposure_within} must be 0 or above")
        for name, patterns in _CHOICES.items():
            value = getattr(self, name)
            if not any(re.fullmatch(pattern, value) for pattern in patterns):
                known = [re.sub(r"\\d\+", "N", p).replace("(-N)?", "") for p in patterns]
                raise UserError(f"insertion.{name}='{value}' is unknown{nearest(value, known)}")
        if not 2 <= self.skipped <= 127 and self.loss.startswith("goldfish"):
            raise UserError(f"insertion.loss={self.loss}: the K of goldfish:K must lie between 2 and 127")
        if self.phase.at and self.dose > len(self.phase.at) and self.batch == "apart":
            raise UserError(
                f"insertion.doses: {self.dose} exposures do not fit apart into the {len(self.phase.at)} steps of "
                f"insertion.phase {self.phase}"
            )
        if self.batch == "together" and self.spacing != "uniform":
            raise UserError(
                f"insertion.batch=together puts all repeats into one step, so insertion.spacing={self.spacing} "
                "has no effect; use insertion.spacing=uniform"
            )

    @property
    def skipped(self) -> int:
        """The loss as the plan's tables and the overlay say it: 0 counted, 1 masked, K goldfish."""
        number = self.loss.removeprefix("goldfish:")
        return int(number) if number.isdigit() else int(self.loss == "masked")


def product(doses: tuple[int, ...], factors: Mapping[str, tuple[Any, ...]]) -> list[tuple[str, Arm]]:
    """All arms: dose 0 once (it has no exposures that could differ), every other dose with every combination.

    Args:
        doses: levels of dose.
        factors: name of a field of ``Arm`` -> its levels.

    Returns:
        Names and arms. A name says the dose and the levels of those factors that vary.
    """
    for name, levels in factors.items():
        if not levels:
            raise UserError(f"insertion.{name} is empty; give it at least one level")
    arms = []
    for dose in sorted(doses):
        for levels in itertools.product(*factors.values()):
            chosen = dict(zip(factors, levels, strict=True))
            varying = [f"{name} {chosen[name]}" for name in factors if len(factors[name]) > 1 and dose]
            arm = Arm(dose=dose, **(chosen if dose else {}))
            arms.append((", ".join([f"dose {dose}", *varying]), arm))
            if not dose:
                break
    return arms


FACTORS = tuple(field.name for field in fields(Arm) if field.name not in ("dose", "last_exposure_within"))
"""What can vary besides the dose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedArm:
    """An arm that is no cell of the product. What is not given here, ``insertion``'s factors say."""

    dose: int
    items: int | tuple[str, ...]
    """Number of items of each family, drawn at random; or which ones: ``0-39`` (by number, both ends included), ``7``,
    or an id."""
    phase: Phase | None = None
    spacing: str | None = None
    position: str | None = None
    displace: str | None = None
    frame: str | None = None
    wording: str | None = None
    batch: str | None = None
    loss: str | None = None

    def __post_init__(self) -> None:
        listed = isinstance(self.items, tuple)
        if (listed and not self.items) or (isinstance(self.items, int) and self.items < 1):
            raise UserError(f"insertion.named_arms: items={self.items} holds no item")

    def arm(self, factors: Mapping[str, tuple[Any, ...]], name: str) -> Arm:
        """The treatment.

        Args:
            factors: levels of each factor, of which there must be one where this arm does not give its own.
            name: of the arm, for messages.
        """
        if not self.dose:
            return Arm(dose=0)
        chosen = {}
        for factor, levels in factors.items():
            own = getattr(self, factor)
            if own is None and len(levels) != 1:
                raise UserError(
                    f"insertion.named_arms.{name} says no {factor}, and insertion.{factor} has {len(levels)} levels; "
                    "named arms are not crossed with factors: give one level"
                )
            chosen[factor] = levels[0] if own is None else own
        return Arm(dose=self.dose, **chosen)

    def chosen(self, ids: Sequence[str]) -> list[int] | None:
        """Numbers of the family's items that are listed; None if they are drawn at random.

        Raises:
            UserError: for an item that is not there.
        """
        if isinstance(self.items, int):
            return None
        found: list[int] = []
        for entry in self.items:
            if span := self._span(entry):
                found += span
            elif entry in ids:
                found.append(ids.index(entry))
            else:
                raise UserError(f"insertion.named_arms: there is no item '{entry}'{nearest(entry, ids)}")
        if max(found) >= len(ids):
            raise UserError(
                f"insertion.named_arms: there is no item number {max(found)}; the last is {len(ids) - 1}"
            )
        return found

    @property
    def drawn(self) -> int:
        """Items of each family that are randomly assigned."""
        return self.items if isinstance(self.items, int) else 0

    @property
    def size(self) -> int:
        """Items of each family, randomly assigned or listed."""
        return (
            self.items
            if isinstance(self.items, int)
            else sum(len(self._span(entry)) or 1 for entry in self.items)
        )

    @property
    def reach(self) -> int:
        """How many items a family must have for those that are listed by number."""
        listed = () if isinstance(self.items, int) else self.items
        return max((self._span(entry).stop for entry in listed), default=0)

    @staticmethod
    def _span(entry: str) -> range:
        """The numbers that an entry means; none for an id."""
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", entry)
        return range(0) if found is None else range(int(found[1]), int(found[2] or found[1]) + 1)


Counts = int | str | tuple[int, ...]
"""Items of a dose: one number for all doses, one for each, or ``hubble:N``."""

_HUBBLE = (10, 10, 5, 2, 1)


def items_of_doses(counts: Counts, doses: Sequence[int]) -> dict[int, int]:
    """Dose -> items of a family in each of its arms, ascending by dose.

    ``hubble:N`` is the grid of Hubble (Wei et al., 2025): N items, of which half (rounded down) are never inserted, and
    the others are shared among the five other doses, ascending, as 10:10:5:2:1 (largest remainders).

    Raises:
        UserError: for counts that do not fit the doses.
    """
    told = f"insertion.items_per_dose={list(counts) if isinstance(counts, tuple) else counts}"
    if isinstance(counts, str):
        found = re.fullmatch(r"hubble:(\d+)", counts)
        if found is None:
            raise UserError(f"{told}: give a number, a list with one for each dose, or hubble:N")
        if len(doses) != 1 + len(_HUBBLE):
            raise UserError(f"{told} is a grid of {1 + len(_HUBBLE)} doses; insertion.doses={list(doses)}")
        total = int(found[1])
        shares = (total // 2, *_shared(total - total // 2, _HUBBLE))
        return dict(zip(sorted(doses), shares, strict=True))
    if isinstance(counts, tuple) and len(counts) != len(doses):
        raise UserError(f"{told} must be one number, or one for each of insertion.doses={list(doses)}")
    each = (counts,) * len(doses) if isinstance(counts, int) else counts
    return dict(sorted(zip(doses, each, strict=True)))


def _shared(total: int, ratio: tuple[int, ...]) -> list[int]:
    """A total in whole numbers as close to a ratio as can be: largest remainders, the first of equal ones."""
    parts = [divmod(total * weight, sum(ratio)) for weight in ratio]
    shares = [whole for whole, _ in parts]
    for k in sorted(range(len(ratio)), key=lambda k: -parts[k][1])[: total - sum(shares)]:
        shares[k] += 1
    return shares
