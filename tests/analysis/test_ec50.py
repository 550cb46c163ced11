"""Dose-response: worked example O24, Hubble's printed rates, and truths that data were made with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from palimpsest.analysis.statistics import (
    clopper_pearson,
    clustered_ec50,
    cochran_armitage,
    curve_ec50,
    dilution_exponent,
    fit_means,
    fit_rates,
    profile_ec50,
    rate,
    trend_permutation_p,
)

DOSES = [0, 1, 4, 16, 64, 256]
TRIALS = [759, 759, 759, 379, 152, 76]
HITS = [1, 2, 5, 82, 136, 75]
TABLES = Path(__file__).parents[3] / "shared" / "reference" / "hubble_tables.json"


def test_o24_dose_response() -> None:
    fit = fit_rates(DOSES, HITS, TRIALS)
    assert fit.ec50 == pytest.approx(27.214192, abs=5.1e-7, rel=0)
    assert fit.slope == pytest.approx(1.745374, abs=5.1e-7, rel=0)
    assert fit.floor == pytest.approx(0.001571, abs=5.1e-7, rel=0)
    assert fit.nll == pytest.approx(307.183206, abs=5.1e-7, rel=0)
    assert not fit.extrapolated


def test_o24_trend_and_exact_tests() -> None:
    found = [cochran_armitage(DOSES, HITS, TRIALS, scores).z for scores in ("raw", "log", "rank")]  # type: ignore[arg-type]
    assert found == pytest.approx([36.145363, 37.423113, 33.809170], abs=5.1e-7, rel=0)
    low, high = clopper_pearson(5, 759)
    assert (float(low), float(high)) == pytest.approx((0.002142, 0.015306), abs=5.1e-7)


@pytest.mark.skipif(not TABLES.exists(), reason=f"Hubble's printed tables are not at {TABLES}")
def test_hubbles_wikipedia_ec50s_from_its_printed_rates() -> None:
    tables = json.loads(TABLES.read_text())["tables"]
    printed = next(
        t["values"]
        for t in tables
        if (t["task"], t["metric"]) == ("wikipedia_hubble_verbatim_p50", "exact_match_tokens_s100")
    )
    fits = {}
    for run, (ec50, low, high) in {
        "8B-100B": (27.2, 24.5, 29.9),
        "1B-100B": (100, 70, 117),
        "8B-500B": (132.6, 114, 160),
    }.items():
        hits = [round(r * n) for r, n in zip(printed[f"{run}-perturbed"].values(), TRIALS, strict=True)]
        found = fits[run] = profile_ec50(DOSES, hits, TRIALS)
        assert found.estimate == pytest.approx(ec50, rel=0.005)
        # The reference's limits come from 200 replicates of a bootstrap, which is too narrow for 1B-100B.
        assert found.low == pytest.approx(low, rel=0.03 if run != "1B-100B" else 0.3)
        assert found.high == pytest.approx(high, rel=0.03)
    beyond = [round(r * n) for r, n in zip(printed["1B-500B-perturbed"].values(), TRIALS, strict=True)]
    assert profile_ec50(DOSES, beyond, TRIALS).text == "> 256"
    dilution = dilution_exponent(fits["8B-100B"], fits["8B-500B"], 5)
    assert dilution.exponent == pytest.approx(0.984, abs=5e-4)
    assert 0.8 < dilution.low < dilution.exponent < dilution.high < 1.2


def test_rates_made_by_the_formula_give_it_back() -> None:
    p = rate(DOSES, 20, 1.3, 0.02, 0.9)
    assert p[0] == 0.02
    assert rate(20, 20, 1.3, 0.02, 0.9) == pytest.approx((0.02 + 0.9) / 2)
    fit = fit_rates(DOSES, p * 1e6, np.full(6, 1e6), ceiling=0.9)
    assert (fit.ec50, fit.slope, fit.floor) == pytest.approx((20, 1.3, 0.02), rel=1e-4)
    assert fit.ceiling == 0.9


def test_many_fits_at_once_equal_one_by_one() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(TRIALS, rate(DOSES, 30, 1.5, 0.01), (20, 6))
    together = fit_rates(DOSES, hits, TRIALS)
    apart = [fit_rates(DOSES, h, TRIALS) for h in hits]
    assert together.ec50 == pytest.approx([f.ec50 for f in apart], rel=1e-6)
    assert together.nll == pytest.approx([float(f.nll) for f in apart], rel=1e-9)


@pytest.mark.parametrize("hits", [[0] * 6, [8, 8, 8, 4, 2, 1], [40, 30, 20, 5, 1, 0]])
def test_without_a_response_the_ec50_is_not_reached(hits: list[int]) -> None:
    found = profile_ec50(DOSES, hits, TRIALS)
    assert (found.text, found.estimate, found.high) == ("not reached", math.inf, math.inf)


def test_profile_and_sandwich_agree_where_items_are_independent() -> None:
    profile = profile_ec50(DOSES, HITS, TRIALS)
    hits = [np.r_[np.ones(h), np.zeros(n - h)] for h, n in zip(HITS, TRIALS, strict=True)]
    table, trials = np.zeros((sum(TRIALS), 6)), np.zeros((sum(TRIALS), 6))
    start = 0
    for dose, own in enumerate(hits):
        table[start : start + own.size, dose], trials[start : start + own.size, dose] = own, 1
        start += own.size
    robust = clustered_ec50(DOSES, table, trials)
    assert (robust.low, robust.high) == pytest.approx((profile.low, profile.high), rel=0.02)
    # The same answers in clusters of two identical items carry half the information.
    twice = clustered_ec50(DOSES, 2 * table, 2 * trials)
    assert twice.error == pytest.approx(robust.error, rel=1e-6)


def test_a_continuous_curve_is_recovered_and_a_flat_one_is_not() -> None:
    exact = fit_means(DOSES, -0.65 + 0.6 / (1 + (12 / np.maximum(DOSES, 1e-12)) ** 1.9), TRIALS)
    assert (exact.ec50, exact.low, exact.rise) == pytest.approx((12, -0.65, 0.6), rel=2e-3)
    rng = np.random.default_rng(1)
    dose = np.repeat(DOSES, 40)
    truth = rate(dose, 12, 1.3, 0.0)
    found = curve_ec50(truth + rng.normal(0, 0.1, dose.size), dose)
    assert found.low < 12 < found.high < 20
    assert found.high / found.low < 1.3
    # Families of other levels change nothing, whatever their shares of the doses.
    family = rng.random(dose.size) < 0.2 + 0.6 * (dose > 4)
    shifted = curve_ec50(truth + rng.normal(0, 0.1, dose.size) + 3 * family, dose, family)
    assert shifted.low < 12 < shifted.high < 20
    # Five copies of an item in its cluster are the item.
    noisy = truth + rng.normal(0, 0.3, dose.size)
    single = curve_ec50(noisy, dose)
    copies = curve_ec50(*(np.repeat(a, 5) for a in (noisy, dose, np.zeros(dose.size), np.arange(dose.size))))
    assert copies[:3] == pytest.approx(single[:3])
    # Before the curve bends there is a lower limit only.
    rising = curve_ec50(np.exp2(np.log2(np.maximum(dose, 2**-9)) / 2) + rng.normal(0, 0.02, dose.size), dose)
    assert (rising.text, rising.high) == ("> 256", math.inf)
    assert rising.low > 256
    flat = [curve_ec50(rng.normal(0, 0.1, dose.size), dose).text for _ in range(40)]
    assert flat.count("not reached") >= 34


def test_permutation_p_of_a_trend_is_uniform_without_one_and_small_with_one() -> None:
    rng = np.random.default_rng(4)
    dose, stratum = np.tile([0, 1, 4, 16], 10), np.repeat([0, 1], 20)
    p = [
        trend_permutation_p(rng.normal(size=40) + 5 * stratum, dose, stratum, permutations=99, seed=k)
        for k in range(300)
    ]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)
    assert trend_permutation_p(rng.normal(size=40) + 0.5 * dose, dose, stratum, permutations=99) == 0.01
