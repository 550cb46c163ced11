"""What ``launch/adaptive.py`` makes of its decisions, for learners whose thresholds are known."""

import re

import numpy as np

from palimpsest.insertion.placement.adaptive import POLICIES, AdaptiveConfig
from palimpsest.launch.adaptive import doses, estimate


def recorded(config, thresholds, rounds):
    """Decisions as ``adaptive/decisions.json`` has them; an item is remembered from its threshold on."""
    had, state, found = dict.fromkeys(thresholds, 0), {}, []
    for _ in range(rounds):
        scores = {item: 2.0 * (had[item] >= thresholds[item]) for item in thresholds}
        counts, state = POLICIES[config.policy](scores, state, 3, config)
        had = {item: count + counts.get(item, 0) for item, count in had.items()}
        found.append({"seen": scores, "exposures": counts, "state": state})
    found[-1]["after"] = {item: 2.0 * (had[item] >= thresholds[item]) for item in thresholds}
    assert doses(found)[-1] == {item: count for item, count in had.items() if count}
    return found


def number(text):
    return float(re.match(r"[\d.]+", text)[0])


def test_insert_until():
    """Thresholds around 12, log-normal by a factor of 1.5: so is the estimate, and its interval holds 12."""
    rng = np.random.default_rng(1)
    thresholds = {f"i{k}": 12 * 1.5 ** rng.normal() for k in range(200)}
    config = AdaptiveConfig(policy="insert_until", at=(1,), threshold=1.0, each=2)
    told = estimate(config, recorded(config, thresholds, 25))
    low, high = map(float, re.findall(r"[\d.]+", told)[1:])
    assert low < 12 < high
    assert high / low < 1.3


def test_staircase():
    rng = np.random.default_rng(2)
    thresholds = {f"i{k:04d}": 12 * 1.5 ** rng.normal() for k in range(1000)}
    config = AdaptiveConfig(policy="staircase", at=(1,), threshold=1.0, trials=20)
    told = estimate(config, recorded(config, thresholds, 30))
    assert 10 < number(told) < 14.5


def test_nothing_to_estimate():
    config = AdaptiveConfig(policy="insert_until", at=(1,), threshold=1.0)
    assert estimate(config, recorded(config, dict.fromkeys("abc", 99), 5)) is None
    config = AdaptiveConfig(policy="maintain", at=(1,), threshold=1.0)
    assert estimate(config, recorded(config, dict.fromkeys("abc", 2), 5)) is None
