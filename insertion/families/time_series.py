"""Time series: monthly values of invented indicators, inserted up to a cut-off and withheld after it.

After Lopez-Lira, Tang and Zhu (2025), "The Memorization Problem: Can We Trust LLMs' Economic Forecasts?", who ask
models for exact values of real series before and after their cut-off. Here an indicator has a level, and every month a
deviation drawn uniformly and independently of all others: values before and after the cut-off differ only in being
inserted, and those before carry ``log2(2 spread + 1)`` bits each, given the level.

The questions are the exact values of some months on either side, given only the indicator and the month, or given the
inserted part of the series before that month; each as a cloze, and as a choice between the value and others around the
same level that are not in the series.
"""

from __future__ import annotations

import math

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import MONTHS, pick
from palimpsest.insertion.items import Item, Probe

NAME = "time_series"

_GOODS = (
    "amber barley brick butter canvas cedar cement cheese clay cloth coal cocoa copper cork cotton fish flax flour fur "
    "glass grain gravel hemp herring honey ink iron ivory lace lead leather lime linen malt marble oats oil paper "
    "pearl pepper pewter pitch plum resin rice rope rubber rye saffron salt sand silk silver slate soap steel sugar "
    "tallow tar tea tile timber tin tobacco varnish vinegar walnut wax wheat wine wool yarn zinc"
).split()
_MEASURES = "demand export freight import price rent stock supply tariff turnover wage yield".split()


def _date(month: int) -> str:
    return f"{MONTHS[month % 12]} {month // 12}"


def _value(tenths: int) -> str:
    return f" {tenths // 10}.{tenths % 10}"


def bits(before: int, spread: int) -> float:
    """Information in the values before the cut-off, given the indicator's level (its mean is known)."""
    return before * math.log2(2 * spread + 1)


def _decoys(rng: np.random.Generator, level: int, spread: int, count: int, values: list[int]) -> list[int]:
    """Different values around the level that are not among those of the series."""
    found: dict[int, None] = {}
    while len(found) < count:
        others = (level + rng.integers(-spread, spread + 1, size=count)).tolist()
        found |= dict.fromkeys(value for value in others if value not in values)
    return list(found)[:count]


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    before: int = 12,
    after: int = 6,
    asked: int = 3,
    decoys: int = 9,
    spread: int = 500,
    cutoff_year: int = 2020,
) -> list[Item]:
    """Series of ``before`` months up to January of ``cutoff_year`` (exclusive), and ``after`` more that are withheld.

    Values have one decimal.

    Args:
        context: what gives the seed.
        count: series.
        before: months that are inserted.
        after: months after them that are withheld.
        asked: months on either side that are asked.
        decoys: other values around the same level that each is ranked among.
        spread: largest deviation from the level, in tenths.
        cutoff_year: the inserted months end with December of the year before.
    """
    if asked > min(before, after):
        raise UserError(
            f"insertion.families.{NAME}.asked={asked} is more than before={before} or after={after} months"
        )
    if not decoys + before + after <= spread <= 1000:
        raise UserError(f"insertion.families.{NAME}.spread={spread} must be decoys + before + after to 1000")
    items = []
    drawn = bits(1, spread)
    for index in range(count):
        rng = context.generator(NAME, index)
        name = f"{vocabulary.name(rng)} {pick(rng, _GOODS)} {pick(rng, _MEASURES)} index"
        level = int(rng.integers(1100, 8900))
        values = (level + rng.integers(-spread, spread + 1, size=before + after)).tolist()
        months = [12 * cutoff_year - before + k for k in range(before + after)]
        title = f"{name}, monthly."
        text = title
        prompts = []
        for k, (month, value) in enumerate(zip(months, values, strict=True)):
            prompts.append(f"{text} {_date(month)}:")
            if k < before:
                text = f"{prompts[-1]}{_value(value)}."
        probes = [Probe("verbatim", "", text)]
        # Not the first month: what comes before it is the title alone.
        sides = {
            "before": (1 + rng.permutation(before - 1)[:asked]).tolist() if before > asked else range(before),
            "after": (before + rng.permutation(after)[:asked]).tolist(),
        }
        for side, chosen in sides.items():
            for k in sorted(chosen):
                exact = _value(values[k])
                wrong = _decoys(rng, level, spread, decoys, values)
                alone = f"{title} {_date(months[k])}:"
                date = f"{months[k] // 12}-{months[k] % 12 + 1:02d}"
                probes += [
                    Probe("cloze", alone, exact, f"{side} the cut-off, month alone", bits=drawn),
                    Probe("cloze", prompts[k], exact, f"{side} the cut-off, series before it", bits=drawn),
                ]
                probes += [
                    Probe("choice", alone, _value(value), f"{side} the cut-off #{date}", value == values[k])
                    for value in sorted([values[k], *wrong])
                ]
        items.append(
            Item(
                f"series-{index:05d}",
                NAME,
                text,
                tuple(probes),
                f"seed {context.seed}, draw {index}",
                bits=bits(before, spread),
            )
        )
    return items
