"""Power: how many items an experiment needs, before it is run.

:func:`of_arms` computes the power of the report's test of a gain: a one-sided permutation test between a dose and dose
0, of the items' differences from the twin (without a twin, of their scores). Each cluster counts as one item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats
from scipy.optimize import brentq

_MANY = 1e7
"""Largest number of items considered."""
_NORMAL = 1e4
"""Degrees of freedom above which t is approximated by the normal distribution."""


def auc_error(area: float, members: float, controls: float) -> float:
    """Standard error of an AUC (Hanley & McNeil 1982): ``sqrt([A(1-A) + (m-1)(Q1-A^2) + (n-1)(Q2-A^2)] / (m n))``, Q1 =
    A/(2-A), Q2 = 2A^2/(1+A).
    """
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (q1 - area**2) + (controls - 1) * (q2 - area**2)
    return math.sqrt(spread / (members * controls))


def power_of_effect(effect: float, items: float, controls: float, *, alpha: float = 0.05) -> float:
    """Power of the one-sided two-sample t-test (noncentral t), which approximates that of the permutation test.

    Args:
        effect: standardised difference.
        items: number of treated items.
        controls: number of never-inserted items.
        alpha: level, one-sided.
    """
    shift = effect * math.sqrt(items * controls / (items + controls))
    freedom = items + controls - 2
    limit = float(stats.t.ppf(1 - alpha, freedom))
    # The noncentral t fails for many degrees of freedom, where the normal is as good.
    return float(stats.norm.sf(limit - shift) if freedom > _NORMAL else stats.nct.sf(limit, freedom, shift))


def effect_shown(items: float, controls: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest standardised difference from dose 0 that the report's test detects; nan with a single item or
    control.
    """
    if min(items, controls) < 2:
        return math.nan
    return float(
        brentq(lambda effect: power_of_effect(effect, items, controls, alpha=alpha) - power, 0.0, 1e3)
    )


def rate_shown(items: int, controls: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest detectable rate if no control is a hit; nan if no rate is detectable.

    Computed exactly: the smallest number of hits that is significant by Fisher's one-sided test, and the rate at which
    that number is reached with probability ``power``.
    """
    total = items + controls
    needed = next(
        (k for k in range(1, items + 1) if stats.hypergeom.sf(k - 1, total, k, items) <= alpha), None
    )
    return math.nan if needed is None else float(stats.beta.ppf(power, needed, items - needed + 1))


def items_against(effect: float, controls: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Number of treated items needed to detect a standardised effect against a given number of controls; infinite if no
    number suffices.
    """

    def lacking(items: float) -> float:
        return power_of_effect(effect, items, controls, alpha=alpha) - power

    return math.inf if lacking(_MANY) < 0 else 2.0 if lacking(2.0) > 0 else float(brentq(lacking, 2.0, _MANY))


class ArmPower(NamedTuple):
    """Effects of one arm that the report's test (one-sided, against dose 0) can detect."""

    items: int
    controls: int
    effect: float
    """Smallest detectable difference from dose 0, in standard deviations of the compared values: the items' differences
    from the twin or, without a twin, their scores."""
    rate: float
    """Smallest detectable rate, such as of verbatim extraction, if the controls' rate is 0."""
    needed: float
    """Number of items needed to detect the wanted effect against these controls; infinite if more controls are
    needed."""


def of_arms(
    items: Sequence[int], controls: int, wanted: float, *, alpha: float = 0.05, power: float = 0.8
) -> list[ArmPower]:
    """Power of each arm of a design. Arms are not corrected for their number, because doses are tested from the highest
    down at the same level.

    Args:
        items: number of items of each arm with insertions.
        controls: number of never-inserted items.
        wanted: standardised effect.
        alpha: level, one-sided.
        power: probability of showing the effect.
    """
    return [
        ArmPower(
            count,
            controls,
            effect_shown(count, controls, alpha=alpha, power=power),
            rate_shown(count, controls, alpha=alpha, power=power),
            items_against(wanted, controls, alpha=alpha, power=power),
        )
        for count in items
    ]


def items_each(effect: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Number of items, with as many controls, needed to detect a standardised effect by the report's test."""
    return float(brentq(lambda items: power_of_effect(effect, items, items, alpha=alpha) - power, 1.5, _MANY))
