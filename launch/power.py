"""Smallest effects that a design can show: ``palimpsest plan power=true``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from palimpsest.data.errors import UserError
from palimpsest.insertion.settings import InsertionConfig
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import say


def power(experiment: Experiment, wanted: float) -> None:
    """Print the minimum detectable effect of each arm, and the number of items needed for a given standardised effect.

    Only the design is read.

    Raises:
        UserError: if the effect is not a plausible number of standard deviations.
    """
    from palimpsest.analysis.statistics import power as powers

    if not 0 < wanted < 10:
        raise UserError(f"effect={wanted:g} must lie between 0 and 10 standard deviations")
    say(
        "smallest differences from dose 0 that the report's test (one-sided, alpha .05) shows with power .8, in "
        "standard deviations: of an item's difference from itself in the twin, or, without a twin, of its score; "
        "items of one cluster count as one"
    )
    for name, insertion in experiment.insertion.designs():
        if name:
            say(f"experiment {name}")
        _power_of(insertion, wanted)
    say(
        f"an effect of {wanted:g} standard deviations takes {math.ceil(powers.items_each(wanted)):,} items with as "
        "many controls"
    )


def _power_of(insertion: InsertionConfig, wanted: float) -> None:
    from palimpsest.analysis.statistics import power as powers

    arms = insertion.arms
    alike: dict[tuple[int, ...], list[str]] = {}
    for family in insertion.families:
        alike.setdefault(tuple(insertion.arm_sizes(family)), []).append(family)
    for sizes, families in alike.items():
        say(f"{', '.join(families)}: {sizes[0]:,} items are never inserted")
        treated = [(arm, size) for (arm, _), size in zip(arms[1:], sizes[1:], strict=True)]
        effects = powers.of_arms([size for _, size in treated], sizes[0], wanted)
        width = max(len(arm) for arm, _ in treated)
        head = f"{'effect':>7}  {'rate above 0':>12}  {f'items for {wanted:g}':>14}"
        say(f"  {'arm':{width}}  {'items':>6}  {head}")
        for (arm, size), row in zip(treated, effects, strict=True):
            needed = "more controls" if math.isinf(row.needed) else f"{math.ceil(row.needed):,}"
            say(f"  {arm:{width}}  {size:6,}  {row.effect:7.3f}  {row.rate:12.3f}  {needed:>14}")


def effect_of(asked: Mapping[str, str]) -> float:
    """Effect in standard deviations, from ``effect=`` on the command line; 0.2 without it.

    Raises:
        UserError: if ``effect`` is not a number, or ``power`` has a value other than ``true``.
    """
    if asked["power"] != "true":
        raise UserError(f"power={asked['power']}: write power=true, or leave it out")
    given = asked.get("effect", "0.2")
    try:
        return float(given)
    except ValueError:
        raise UserError(
            f"effect={given} must be a number of standard deviations, such as effect=0.2"
        ) from None
