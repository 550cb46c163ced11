"""Smallest effects that a design can show: ``palimpsest plan power=true``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from palimpsest.data.errors import UserError
from palimpsest.insertion.settings import InsertionConfig
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import say


def power(experiment: Experiment, wanted: float) -> None:
    """Print the minimum detectable effect of each arm, and the items that a wanted standardised effect takes.

    Reads the design alone.

    Raises:
        UserError: if the effect is not a plausible number of standard deviations.
    """
    from palimpsest.analysis.statistics import power as powers

    if not 0 < wanted < 10:
        raise UserError(f"effect={wanted:g} must lie between 0 and 10 standard deviations")
    say(
        "smallest effects that show with power .8 at alpha .05 (two-sided), in standard deviations of a score"
    )
    for name, insertion in experiment.insertion.designs():
        if name:
            say(f"experiment {name}")
        _power_of(insertion, wanted)
    each, pairs = powers.items_for_effect(wanted), powers.pairs_for_effect(wanted)
    say(
        f"an effect of {wanted:g} takes {math.ceil(each):,} items with as many controls, or {math.ceil(pairs):,} items "
        "against their own twins"
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
        head = f"{'from dose 0':>11}  {f'of {len(effects)} arms':>10}  {'from its twin':>13}  {'rate above 0':>12}"
        say(f"  {'arm':{width}}  {'items':>6}  {head}  {f'items for {wanted:g}':>14}")
        for (arm, size), row in zip(treated, effects, strict=True):
            needed = "more controls" if math.isinf(row.needed) else f"{math.ceil(row.needed):,}"
            say(
                f"  {arm:{width}}  {size:6,}  {row.effect:11.3f}  {row.corrected:10.3f}  {row.paired:13.3f}"
                f"  {row.rate:12.3f}  {needed:>14}"
            )


def effect_of(asked: Mapping[str, str]) -> float:
    """``effect=`` of the command line as a number.

    Raises:
        UserError: if it is none, or ``power`` is not ``true``.
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
