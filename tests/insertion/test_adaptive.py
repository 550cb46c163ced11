"""Policies against learners whose threshold is known."""

import pytest

from palimpsest.data.errors import UserError
from palimpsest.insertion import audit as audits
from palimpsest.insertion.named_arms import NamedArm
from palimpsest.insertion.placement.adaptive import POLICIES, AdaptiveConfig
from tests.insertion.simulation import consume, simulated


def settings(policy, **given):
    return AdaptiveConfig(**{"policy": policy, "at": (1,), "threshold": 1.0, **given})


def course(config, thresholds, rounds, forget=()):
    """Exposures of each round, for items that are remembered once they had so many exposures in all."""
    had, state, found = dict.fromkeys(thresholds, 0), {}, []
    for number in range(rounds):
        scores = {item: float(had[item] >= thresholds[item]) * 2 for item in thresholds}
        if number in forget:
            scores = dict.fromkeys(scores, 0.0)
        counts, state = POLICIES[config.policy](scores, state, 7, config)
        for item, count in counts.items():
            had[item] += count
        found.append(counts)
    return found, had, state


def test_insert_until():
    """The exposures that it takes, in rounds of two; none afterwards, not even when it is forgotten."""
    thresholds = {"a": 1, "b": 4, "c": 5, "d": 100}
    rounds, had, _ = course(settings("insert_until", each=2, most=9), thresholds, 8, forget=(6, 7))
    assert had == {"a": 2, "b": 4, "c": 6, "d": 9}
    assert rounds[0] == dict.fromkeys("abcd", 2)
    assert [round.get("d", 0) for round in rounds] == [2, 2, 2, 2, 1, 0, 0, 0]


def test_maintain():
    """As often as it falls below, and only then."""
    rounds, had, _ = course(settings("maintain"), {"a": 1, "b": 2}, 6, forget=(4,))
    assert had == {"a": 2, "b": 3}
    assert rounds == [{"a": 1, "b": 1}, {"b": 1}, {}, {}, {"a": 1, "b": 1}, {}]


def test_staircase_goes_to_the_threshold_and_stays_around_it():
    """Remembered from 6 exposures on: 1, 2, 4, 8 up, then 4 and 8 in turn; every trial on fresh items."""
    items = {f"item{k:03d}": 6 for k in range(100)}
    rounds, _, state = course(settings("staircase", trials=3), items, 9)
    assert [set(round.values()) for round in rounds] == [{d} for d in (1, 2, 4, 8, 4, 8, 4, 8, 4)]
    used = [item for round in rounds for item in round]
    assert len(used) == len(set(used)) == 27
    assert state["trials"] == [[d, int(d >= 6)] for d in (1, 2, 4, 8, 4, 8, 4, 8) for _ in range(3)]
    again, _, _ = course(settings("staircase", trials=3), items, 9)
    assert again == rounds


def test_staircase_ends_with_its_items():
    rounds, _, _ = course(settings("staircase", trials=3), dict.fromkeys("abcde", 9), 4)
    assert [len(round) for round in rounds] == [3, 2, 0, 0]


def test_a_segment_may_insert_nothing(tmp_path):
    """A satisfied policy decides for a plan without exposures, whose windows are the corpus's."""
    made, order = simulated(tmp_path, doses=(), named_arms={"none": NamedArm(dose=0, items=12)})
    assert made.exposures.is_empty()
    assert len(made.items) == 24
    assert audits.audit(made, consume(made, order), None, order, order.tokenizer)["verdict"] == "PASS"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"policy": "insert_untill"}, r"policy=insert_untill is unknown; did you mean 'insert_until'"),
        ({"at": (5, 3)}, r"at=\[5, 3\] must be different steps above 0, ascending"),
        ({"each": 0}, "each=0 must be at least 1"),
        ({"each": 9, "most": 3}, "each=9 is more than insertion.adaptive.most=3"),
    ],
)
def test_mistakes(given, told):
    with pytest.raises(UserError, match=told):
        settings(given.pop("policy", "maintain"), **given)
