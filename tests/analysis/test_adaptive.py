"""Adaptive arms and shared runs: truths that data were made with, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from palimpsest.analysis.statistics import insert_until_ec50, rate, staircase_ec50

LADDER = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, math.inf])


def _thresholds(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Items with an EC50 of 11, checked at each step of the ladder, given up after 128."""
    u = rng.random(n)
    needed = 11 * 2 ** (np.log(u / (1 - u)) / 1.4)
    step = np.searchsorted(LADDER, needed, side="left")
    return LADDER[step - 1], LADDER[step]


def test_insert_until_recovers_the_ec50_and_keeps_who_never_remembered() -> None:
    rng = np.random.default_rng(0)
    lower, upper = _thresholds(rng, 2000)
    found = insert_until_ec50(lower, upper)
    assert found.ec50.low < 11 < found.ec50.high < 14
    assert found.ec50.slope == pytest.approx(1.4, rel=0.1)
    assert found.reached + found.censored == 2000
    assert found.censored == np.isinf(upper).sum() > 0
    with pytest.raises(ValueError, match="no item was ever remembered"):
        insert_until_ec50([4.0, 4.0], [math.inf, math.inf])


@pytest.mark.slow
def test_insert_until_covers() -> None:
    rng = np.random.default_rng(1)
    found = [insert_until_ec50(*_thresholds(rng, 60)).ec50 for _ in range(1000)]
    assert 0.93 <= np.mean([f.low <= 11 <= f.high for f in found]) <= 0.97


def test_a_staircase_finds_the_ec50() -> None:
    rng = np.random.default_rng(2)
    doses, hits, step = [0] * 40, [0] * 40, 8
    for _ in range(400):
        doses.append(int(LADDER[step]))
        hits.append(int(rng.random() < rate(LADDER[step], 11, 1.4, 0.0)))
        step = min(max(step + (-1 if hits[-1] else 1), 1), 8)
    found = staircase_ec50(doses, hits)
    assert found.estimate == pytest.approx(11, rel=0.2)
    assert found.low < 11 < found.high < 2 * found.low
