"""Power: how many items an experiment needs, before it is run. Real numbers; round up for a design.

Alpha = .05 and power .8 unless told otherwise. The report's test of a gain is one-sided, of items' differences from the
twin (without a twin: of their scores) between a dose and dose 0, by permutation: :func:`of_arms`. Clusters count as
items do. The other functions are two-sided, as designs are usually quoted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats
from scipy.optimize import brentq

_MANY = 1e7
"""Items; more are no design."""
_NORMAL = 1e4
"""Degrees of freedom from which on t is as good as normal."""


def _z(alpha: float, power: float) -> tuple[float, float]:
    return float(stats.norm.ppf(1 - alpha / 2)), float(stats.norm.ppf(power))


def items_for_rates(p0: float, p1: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Items an arm to tell rate p1 from p0 (pooled normal test, Fleiss 1981).

    ``n = (z_a sqrt(2 p q) + z_b sqrt(p0 q0 + p1 q1))^2 / (p1 - p0)^2``, p the mean rate.
    """
    if p0 == p1:
        raise ValueError("equal rates cannot be told apart")
    a, b = _z(alpha, power)
    mean = (p0 + p1) / 2
    spread = a * math.sqrt(2 * mean * (1 - mean)) + b * math.sqrt(p0 * (1 - p0) + p1 * (1 - p1))
    return spread**2 / (p1 - p0) ** 2


def items_for_one_event(rate: float, confidence: float = 0.95) -> float:
    """Items to see at least one event: ``ln(1 - confidence) / ln(1 - rate)``."""
    if not (0 < rate < 1 and 0 < confidence < 1):
        raise ValueError(f"a rate and a confidence lie strictly between 0 and 1, not {rate} and {confidence}")
    return math.log1p(-confidence) / math.log1p(-rate)


def items_for_effect(
    effect: float, *, controls_per_item: float = 1.0, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Treated items to detect a standardised effect d by a two-sample t-test (noncentral t)."""
    from statsmodels.stats.power import TTestIndPower

    return float(TTestIndPower().solve_power(effect, power=power, alpha=alpha, ratio=controls_per_item))


def pairs_for_effect(effect: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Pairs (item and twin) to detect a standardised mean difference d_z by a paired t-test."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(effect, power=power, alpha=alpha))


def paired_share(correlation: float) -> float:
    """Share of the items that a paired design needs: ``1 - r^2`` (r: item with twin)."""
    return 1 - correlation**2


def detectable_effect(
    items: float, controls: float, *, alpha: float = 0.05, power: float = 0.8, comparisons: int = 1
) -> float:
    """Minimum detectable standardised effect; alpha is divided by the comparisons (Bonferroni)."""
    from statsmodels.stats.power import TTestIndPower

    return float(
        TTestIndPower().solve_power(
            None, nobs1=items, ratio=controls / items, alpha=alpha / comparisons, power=power
        )
    )


def auc_error(area: float, members: float, controls: float) -> float:
    """Hanley & McNeil (1982): ``sqrt([A(1-A) + (m-1)(Q1-A^2) + (n-1)(Q2-A^2)] / (m n))``, Q1 = A/(2-A), Q2 =
    2A^2/(1+A)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (q1 - area**2) + (controls - 1) * (q2 - area**2)
    return math.sqrt(spread / (members * controls))


def items_for_auc(area: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Members, with as many controls, to tell an AUC from .5: ``z_a se(.5, n) + z_b se(A, n) = A - .5``."""
    if not 0.5 < area < 1:
        raise ValueError("power is for an AUC between .5 and 1")
    a, b = _z(alpha, power)

    def lacking(n: float) -> float:
        return a * auc_error(0.5, n, n) + b * auc_error(area, n, n) - (area - 0.5)

    return float(brentq(lacking, 1.0, 1e9))


def items_for_spearman(rho: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Documents to tell a Spearman correlation from 0: ``3 + 1.06 ((z_a + z_b) / atanh rho)^2`` (Fieller et al.
    1957)."""
    if not 0 < abs(rho) < 1:
        raise ValueError(f"power is for a correlation strictly between 0 and 1, not {rho}")
    a, b = _z(alpha, power)
    return 3 + 1.06 * ((a + b) / math.atanh(rho)) ** 2


def power_of_effect(effect: float, items: float, controls: float, *, alpha: float = 0.05) -> float:
    """Power of the one-sided two-sample t-test, which that of the permutation test approaches (noncentral t).

    Args:
        effect: standardised difference.
        items: treated.
        controls: never inserted.
        alpha: level, one-sided.
    """
    shift = effect * math.sqrt(items * controls / (items + controls))
    freedom = items + controls - 2
    limit = float(stats.t.ppf(1 - alpha, freedom))
    # The noncentral t fails for many degrees of freedom, where the normal is as good.
    return float(stats.norm.sf(limit - shift) if freedom > _NORMAL else stats.nct.sf(limit, freedom, shift))


def effect_shown(items: float, controls: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest standardised difference from dose 0 that the report's test shows; nan with a single item or control."""
    if min(items, controls) < 2:
        return math.nan
    return float(
        brentq(lambda effect: power_of_effect(effect, items, controls, alpha=alpha) - power, 0.0, 1e3)
    )


def rate_shown(items: int, controls: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest rate that is shown to be above the controls' where none of these is a hit; nan if none is.

    Exactly: the fewest hits that Fisher's one-sided test calls, and the rate at which so many come with the power.
    """
    total = items + controls
    needed = next(
        (k for k in range(1, items + 1) if stats.hypergeom.sf(k - 1, total, k, items) <= alpha), None
    )
    return math.nan if needed is None else float(stats.beta.ppf(power, needed, items - needed + 1))


def items_against(effect: float, controls: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Treated items for a standardised effect against a given number of controls; infinite if no number does."""

    def lacking(items: float) -> float:
        return power_of_effect(effect, items, controls, alpha=alpha) - power

    return math.inf if lacking(_MANY) < 0 else 2.0 if lacking(2.0) > 0 else float(brentq(lacking, 2.0, _MANY))


class ArmPower(NamedTuple):
    """Effects that an arm can show by the report's test (one-sided, against dose 0)."""

    items: int
    controls: int
    effect: float
    """Smallest difference from dose 0, in standard deviations of what is compared: an item's difference from itself in
    the twin, or, without a twin, its score."""
    rate: float
    """Smallest rate, such as of verbatim extraction, where that of the controls is 0."""
    needed: float
    """Items that the wanted effect takes against these controls; infinite if it takes more controls."""


def of_arms(
    items: Sequence[int], controls: int, wanted: float, *, alpha: float = 0.05, power: float = 0.8
) -> list[ArmPower]:
    """Power of a design, arm by arm, each by itself: doses are tested from the highest down at the same level.

    Args:
        items: of each arm that inserts.
        controls: never-inserted items.
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
    """Items for a standardised effect with as many controls, by the report's test."""
    return float(brentq(lambda items: power_of_effect(effect, items, items, alpha=alpha) - power, 1.5, _MANY))
