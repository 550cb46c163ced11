"""Arms: the treatments of a design, and the product of the factors that an experiment varies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.phases import Phase

_CHOICES: dict[str, tuple[str, ...]] = {
    "spacing": (r"uniform", r"even", r"massed:\d+", r"expanding"),
    "position": (r"boundary", r"start", r"token", r"sentence", r"word", r"offset:\d+(-\d+)?"),
    "displace": (r"tail", r"around", r"overwrite"),
    "frame": (r"document", r"inline"),
    "wording": (r"verbatim", r"rotate:\d+", r"fresh", r"fuzzy:\d+"),
    "batch": (r"any", r"apart", r"together"),
    "loss": (r"counted", r"masked", r"goldfish:\d+"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One treatment."""

    dose: int
    """Number of times that an item is inserted."""
    phase: Phase = field(default_factory=Phase)
    """The part of training in which the exposures fall."""
    spacing: str = "uniform"
    """Spread of an item's exposures over the phase: ``uniform`` at random; ``even``, equal gaps;
    ``massed:K``, all within K consecutive steps; ``expanding``, each gap twice the one before."""
    last_exposure_within: int = 0
    """N > 0: the last exposure is in the last N steps of the phase for every spacing, so that spacings do not differ in
    the time since the last exposure."""
    position: str = "boundary"
    """Place in the window: at a document's start (``boundary``), at the window's ``start``, at a uniform ``token``,
    where a ``sentence`` or a ``word`` begins, or at ``offset:N`` or in ``offset:N-M`` (tokens)."""
    displace: str = "tail"
    """Corpus tokens that are removed: at the window's ``tail``; at both ends (``around``); or those in the item's place
    (``overwrite``)."""
    frame: str = "document"
    """``document``: between end-of-document tokens; ``inline``: in the middle of the host's text."""
    wording: str = "verbatim"
    """Wording of each exposure: always ``verbatim``; ``rotate:K``, K of the item's wordings in turn; ``fresh``, a
    different one each time; ``fuzzy:P``, the text with P % of its words replaced, by other words each time."""
    batch: str = "any"
    """Repeats of an item in one global batch: ``any`` number, never (``apart``), or all of them (``together``)."""
    loss: str = "counted"
    """Loss of the item's tokens: ``counted``; ``masked``, all of them are excluded; or ``goldfish:K``, one in K is
    excluded, chosen by a hash of the 13 tokens before it (``overlay.counted``)."""

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
        if self.wording.startswith("fuzzy") and not 1 <= self.replaced <= 99:
            raise UserError(
                f"insertion.wording={self.wording}: the P of fuzzy:P must lie between 1 and 99 (percent)"
            )
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
        """The code of ``loss`` in the plan's tables and the overlay: 0 counted, 1 masked, K goldfish."""
        number = self.loss.removeprefix("goldfish:")
        return int(number) if number.isdigit() else int(self.loss == "masked")

    @property
    def replaced(self) -> int:
        """Percentage of words that ``wording`` replaces; 0 for all but ``fuzzy:P``."""
        return int(self.wording.removeprefix("fuzzy:")) if self.wording.startswith("fuzzy") else 0


def product(doses: tuple[int, ...], factors: Mapping[str, tuple[Any, ...]]) -> list[tuple[str, Arm]]:
    """All arms: dose 0 once, because it has no exposures, and every other dose with every combination of the other
    factors.

    Args:
        doses: levels of dose.
        factors: name of a field of ``Arm`` -> its levels.

    Returns:
        Names and arms. A name consists of the dose and the levels of the factors that vary.
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


FACTORS = tuple(one.name for one in fields(Arm) if one.name not in ("dose", "last_exposure_within"))
"""Names of the factors besides the dose."""
