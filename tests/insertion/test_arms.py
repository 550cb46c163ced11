"""Arms: the product of the factors, and mistakes in them."""

import pytest

from palimpsest.data.errors import UserError
from palimpsest.insertion.arms import Arm, product
from palimpsest.insertion.item_counts import items_of_doses
from palimpsest.insertion.named_arms import NamedArm
from palimpsest.insertion.phases import Phase
from palimpsest.insertion.settings import InsertionConfig


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
    assert [made.counts("f")[k] for k in range(5)] == [10, 5, 5, 2, 2]
    assert made.arms[1][1].last_exposure_within == 0
    assert config(last_exposure_within=7).arms[1][1].last_exposure_within == 7


HUBBLE = [0, 1, 4, 16, 64, 256]


@pytest.mark.parametrize(
    ("total", "published"),
    [
        (5000, [2500, 893, 893, 446, 179, 89]),  # YAGO
        (8001, [4000, 1429, 1429, 714, 286, 143]),  # MMLU
        (4000, [2000, 714, 714, 357, 143, 72]),  # PersonaChat
    ],
)
def test_hubbles_grid_is_the_published_one(total, published):
    """The numbers of documents that Hubble states or that its fractions imply."""
    assert items_of_doses(f"hubble:{total}", HUBBLE) == dict(zip(HUBBLE, published, strict=True))


def test_families_may_have_counts_of_their_own():
    small = config(doses=(0, 1, 4), items_per_dose=(3, 0, 2))  # a family may lack a dose
    assert (small.counts("f"), small.size("f")) == ({0: 3, 1: 0, 2: 2}, 5)
    made = config(families={"f": {}, "g": {}}, doses=(0, 4), items_per_dose={"f": 3, "g": (5, 2)})
    assert (made.arm_sizes("f"), made.arm_sizes("g")) == ([3, 3], [5, 2])
    assert (made.size("f"), made.size("g")) == (6, 7)


NAMED = {
    "once": NamedArm(dose=1, items=("0-3", "f-9")),
    "often": NamedArm(dose=10, items=4, phase=Phase(at=tuple(range(10))), wording="rotate:2"),
    "control": NamedArm(dose=0, items=("4",)),
}


def test_named_arms():
    made = config(doses=(), named_arms=NAMED, position=("start",))
    names = [name for name, _ in made.arms]
    assert names == ["control", "once", "often"]
    assert [arm.dose for _, arm in made.arms] == [0, 1, 10]
    assert [arm.wording for _, arm in made.arms] == ["verbatim", "verbatim", "rotate:2"]
    assert made.arms[1][1].position == "start"
    assert (made.arm_sizes("f"), made.size("f")) == ([1, 5, 4], 10)
    assert NAMED["once"].chosen([f"f-{k}" for k in range(10)]) == [0, 1, 2, 3, 9]
    assert NAMED["often"].chosen(["f-0"]) is None
    with pytest.raises(UserError, match="there is no item 'f-9'; did you mean 'f-0'"):
        NAMED["once"].chosen(["f-0"])
    with pytest.raises(UserError, match="there is no item number 4; the last is 2"):
        NAMED["control"].chosen(["a", "b", "c"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"named_arms": NAMED}, r"write insertion.doses=\[\]"),
        ({"doses": (), "named_arms": {"a": NAMED["once"]}}, "lacks 0"),
        (
            {"doses": (), "named_arms": NAMED, "frame": ("document", "inline")},
            "named_arms.once says no frame, and insertion.frame has 2 levels",
        ),
        ({"items_per_dose": "hubble:50"}, "is a grid of 6 doses"),
        ({"items_per_dose": "many"}, "insertion.items_per_dose=many: give a number"),
        ({"items_per_dose": {"g": 3}}, "has no entry for family f"),
        ({"doses": (1, 4)}, "lacks 0"),
        ({"doses": (0, 4, 4)}, "different numbers"),
        ({"items_per_dose": (3,)}, "must be one number, or one for each"),
        ({"items_per_dose": 1}, "an error bar needs at least 2 items"),
        ({"items_per_dose": (0, 5)}, "an error bar needs at least 2 items; f needs 2"),
        ({"items_per_dose": (5, 0)}, "an error bar needs at least 2 items; f needs 2"),
        ({"items_per_dose": (5, -2)}, "an error bar needs at least 2 items; f needs 2"),
        ({"spacing": ()}, "insertion.spacing is empty"),
        ({"families": {}}, "insertion.families is empty"),
        ({"per_window": 2, "displace": ("around",)}, "insertion.per_window=2 needs"),
        ({"per_window": 0}, "insertion.per_window=0"),
    ],
)
def test_mistakes_in_a_design(settings, told):
    with pytest.raises(UserError, match=told):
        config(**settings)
