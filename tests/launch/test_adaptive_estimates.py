"""EC50 from the decisions of ``launch/adaptive.py``, for learners whose thresholds are known."""

import numpy as np
import pytest

from palimpsest.analysis.statistics import decided_ec50, total_doses
from palimpsest.insertion.placement.adaptive import POLICIES, AdaptiveConfig


def recorded(config, thresholds, rounds):
    """Decisions as ``adaptive/decisions.json`` has them; an item is remembered from its threshold on."""
    had, state, found = dict.fromkeys(thresholds, 0), {}, []
    for _ in range(rounds):
        scores = {item: 2.0 * (had[item] >= thresholds[item]) for item in thresholds}
        counts, state = POLICIES[config.policy](scores, state, 3, config)
        had = {item: count + counts.get(item, 0) for item, count in had.items()}
        found.append({"seen": scores, "exposures": counts, "state": state})
    found[-1]["after"] = {item: 2.0 * (had[item] >= thresholds[item]) for item in thresholds}
    assert total_doses(found)[-1] == {item: count for item, count in had.items() if count}
    return found


def estimate(config, found):
    return decided_ec50(found, config.policy, config.threshold)


def test_insert_until():
    """Thresholds around 12, log-normal by a factor of 1.5: so is the estimate, and its interval holds 12."""
    rng = np.random.default_rng(1)
    thresholds = {f"i{k}": 12 * 1.5 ** rng.normal() for k in range(200)}
    config = AdaptiveConfig(policy="insert_until", at=(1,), threshold=1.0, each=2)
    found = estimate(config, recorded(config, thresholds, 25))
    assert found.low < 12 < found.high
    assert found.high / found.low < 1.3


def test_staircase():
    rng = np.random.default_rng(2)
    thresholds = {f"i{k:04d}": 12 * 1.5 ** rng.normal() for k in range(1000)}
    config = AdaptiveConfig(policy="staircase", at=(1,), threshold=1.0, trials=20)
    found = estimate(config, recorded(config, thresholds, 30))
    assert found.estimate == pytest.approx(12, rel=0.2)
    assert found.low < found.estimate < found.high
    assert found.high / found.low < 1.5


def test_nothing_to_estimate():
    config = AdaptiveConfig(policy="insert_until", at=(1,), threshold=1.0)
    assert estimate(config, recorded(config, dict.fromkeys("abc", 99), 5)) is None
    config = AdaptiveConfig(policy="maintain", at=(1,), threshold=1.0)
    assert estimate(config, recorded(config, dict.fromkeys("abc", 2), 5)) is None
    config = AdaptiveConfig(policy="staircase", at=(1,), threshold=1.0, most=1)
    assert estimate(config, recorded(config, {f"i{k}": k % 3 for k in range(40)}, 5)) is None
