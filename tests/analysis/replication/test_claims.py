"""Claims: the test over seeds, its power, and the verdicts."""

import math

import numpy as np
import pytest

from palimpsest.analysis.replication.claims import NOT, REPRODUCED, UNTESTABLE, Claim, judge, overall, t_test
from palimpsest.analysis.replication.quantities import Estimate
from palimpsest.data.errors import UserError


def claim(**settings) -> Claim:
    usual = {
        "text": "it rises",
        "published": "it rises",
        "quantity": "gain",
        "cell": {"metric": "loglik_per_byte"},
    }
    return Claim(**{**usual, "expected": 1.0, "deviation": 1.0, **settings})


def seeds(*values: float, error: float = math.nan) -> list[Estimate]:
    return [Estimate(value, error) for value in values]


def one(declared: Claim, measured):
    return judge({"one": declared}, {"one": measured})["one"]


def test_students_t_over_seeds_as_worked_by_hand():
    """1, 2, 3: mean 2, standard error 1/sqrt(3), t = 3.464 on two degrees of freedom; p = (1 - t/sqrt(t^2 + 2)) / 2."""
    outcome = one(claim(), seeds(1, 2, 3))
    assert outcome.estimate == pytest.approx(2)
    assert (outcome.low, outcome.high) == pytest.approx(
        (2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4
    )
    assert outcome.p == pytest.approx((1 - math.sqrt(12 / 14)) / 2)
    assert outcome.verdict == REPRODUCED
    assert one(claim(direction="less"), seeds(1, 2, 3)).p == pytest.approx(1 - outcome.p)
    assert one(claim(against=2.0), seeds(1, 2, 3)).p == pytest.approx(0.5)


def test_equal_seeds_do_not_make_an_error_of_zero_where_items_vary():
    certain = one(claim(against=0.5), seeds(1, 1, 1, error=0.15))
    assert certain.low == pytest.approx(1 - 4.30265 * 0.15 / math.sqrt(3), abs=1e-4)
    assert 0 < certain.p < 0.05


def test_holm_over_the_claims_of_a_page():
    declared = {name: claim() for name in "abc"}
    outcomes = judge(declared, {name: seeds(1, 2, 3) for name in "abc"})
    assert outcomes["a"].p_holm == pytest.approx(3 * outcomes["a"].p)
    assert {outcome.verdict for outcome in outcomes.values()} == {NOT}
    assert overall(outcomes) == NOT


def test_an_equivalence_needs_both_sides():
    near = claim(direction="within", margin=1.0, expected=0.0, deviation=0.1)
    assert one(near, seeds(-0.1, 0.0, 0.1)).verdict == REPRODUCED
    assert one(near, seeds(1.9, 2.0, 2.1)).verdict == NOT
    assert one(near, seeds(-2.1, -2.0, -1.9)).verdict == NOT
    assert one(near, seeds(-3.0, 0.0, 3.0)).verdict == NOT


def test_power_is_that_of_the_test():
    """Of 1,000 simulated replications as many are significant as planned, and without effect at most alpha."""
    rng = np.random.default_rng(1)
    declared = claim(expected=1.5, deviation=1.0)
    for effect, wanted in ((1.5, declared.power(4, 1)), (0.0, 0.05)):
        shown = (
            sum(t_test(declared, seeds(*rng.normal(effect, 1, 4)))[-1] <= 0.05 for _ in range(1000)) / 1000
        )
        assert shown == pytest.approx(wanted, abs=0.04)
    assert declared.power(4, 3) < declared.power(4, 1) < declared.power(6, 1)


def test_power_of_an_equivalence_is_that_of_the_test():
    rng = np.random.default_rng(2)
    declared = claim(direction="within", margin=2.5, expected=0.0, deviation=1.0)
    shown = sum(t_test(declared, seeds(*rng.normal(0, 1, 5)))[-1] <= 0.05 for _ in range(1000)) / 1000
    assert declared.power(5, 1) == pytest.approx(shown, abs=0.04)


def test_nothing_is_judged_when_the_positive_control_fails():
    declared = {"control": claim(control=True), "effect": claim()}
    outcomes = judge(declared, {"control": seeds(-1, 0, 1), "effect": seeds(-1, 0, 1)})
    assert outcomes["control"].verdict == NOT
    assert outcomes["effect"].verdict == UNTESTABLE
    assert "control" in outcomes["effect"].why


def test_a_number_that_does_not_exist_is_untestable_and_says_why():
    outcome = one(claim(), [Estimate(1.0), Estimate(math.nan, reason="0.5 is not reached"), Estimate(2.0)])
    assert outcome.verdict == UNTESTABLE
    assert outcome.why == "1 of 3 seeds: 0.5 is not reached"


def test_a_claim_that_was_planned_too_small_is_called_so():
    outcome = one(claim(expected=0.1), seeds(-1, 0, 1))
    assert outcome.verdict == NOT
    assert "too low to tell" in outcome.why


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_that_holds_the_planned_value_refutes_nothing(sign):
    direction = "greater" if sign > 0 else "less"
    wide = one(claim(expected=3.0, direction=direction), seeds(-3, 1, 4 * sign, sign))
    assert wide.verdict == NOT
    assert f"{3 * sign:g}, as well: too wide to tell" in wide.why
    narrow = one(claim(expected=3.0, direction=direction), seeds(-0.1, 0.1, 0, 0.2))
    assert (narrow.verdict, narrow.why) == (NOT, "")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"quantity": "gian"}, "quantity=gian is unknown; did you mean 'gain'?"),
        ({"cell": {"metrik": "x"}}, "cell.metrik is no field of a cell; did you mean 'metric'?"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"deviation": 0.0}, "deviation=0.0 must be above 0"),
        ({"margin": 1.0}, "margin=1.0 belongs to direction=within"),
        ({"direction": "within"}, "margin=0.0 belongs to direction=within"),
    ],
)
def test_a_mistake_is_named(settings, part):
    with pytest.raises(UserError) as error:
        claim(**settings)
    assert part in str(error.value)


def test_a_cell_is_of_one_of_the_runs():
    runs = {"few": None, "many": None}
    with pytest.raises(
        UserError, match=r"cell\.run=fw is not under runs; did you mean 'few'.*give one of few, many"
    ):
        claim(cell={"run": "fw"}).measure(runs)
