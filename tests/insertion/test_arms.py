"""Arms: the product of the factors, and mistakes in them."""

import pytest

from data.errors import UserError
from insertion.arms import Arm, Phase, product
from insertion.plan import InsertionConfig


def test_product_has_dose_zero_once():
    arms = product(
        (4, 0, 16),
        {"phase": (Phase(end=0.25), Phase(start=0.75)), "spacing": ("uniform", "even"), "frame": ("inline",)},
    )
    assert [arm.dose for _, arm in arms] == [0] + [4] * 4 + [16] * 4
    assert arms[0][0] == "dose 0"
    assert arms[1][0] == "dose 4, phase 0-0.25, spacing uniform"
    assert len({name for name, _ in arms}) == 9
    assert all(arm.frame == "inline" for _, arm in arms[1:])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"spacing": "evn"}, "insertion.spacing='evn' is unknown; did you mean 'even'"),
        ({"spacing": "massed"}, "insertion.spacing='massed' is unknown; did you mean 'massed:N'"),
        ({"position": "offset:x"}, "insertion.position='offset:x' is unknown"),
        ({"displace": "head"}, "insertion.displace='head' is unknown"),
        ({"dose": -1}, "insertion.doses: -1"),
        ({"batch": "together", "spacing": "even"}, "insertion.batch=together"),
        ({"phase": Phase(at=(1, 2)), "batch": "apart"}, "3 exposures do not fit apart into the 2 steps"),
    ],
)
def test_mistakes(settings, told):
    with pytest.raises(UserError, match=told):
        Arm(**({"dose": 3} | settings))


@pytest.mark.parametrize(
    "settings",
    [{"start": 0.5, "end": 0.5}, {"end": 1.5}, {"at": (5, 3)}, {"unit": "step", "start": 9, "end": 3}],
)
def test_impossible_phases(settings):
    with pytest.raises(UserError, match=r"insertion\.phase"):
        Phase(**settings)


def config(**settings):
    return InsertionConfig(
        **({"families": {"f": {}}, "doses": (0, 4), "items_per_dose": 3, "seed": 1} | settings)
    )


def test_counts_of_arms():
    made = config(doses=(0, 1, 4), items_per_dose=(10, 5, 2), spacing=("uniform", "even"))
    assert [made.counts()[k] for k in range(5)] == [10, 5, 5, 2, 2]
    assert made.arms()[1][1].hold_last == 0
    assert config(hold_last=7).arms()[1][1].hold_last == 7


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"doses": (1, 4)}, "lacks 0"),
        ({"doses": (0, 4, 4)}, "different numbers"),
        ({"items_per_dose": (3,)}, "must be one number, or one for each"),
        ({"items_per_dose": 1}, "nothing has an error bar"),
        ({"spacing": ()}, "insertion.spacing is empty"),
        ({"families": {}}, "insertion.families is empty"),
        ({"per_window": 2, "displace": ("around",)}, "insertion.per_window=2 needs"),
        ({"per_window": 0}, "insertion.per_window=0"),
    ],
)
def test_mistakes_in_a_design(settings, told):
    with pytest.raises(UserError, match=told):
        config(**settings)
