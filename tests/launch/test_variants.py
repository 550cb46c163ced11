"""Variants of a plan (``insertion.paired_with``): what the design allows stays where it was, and the rest is listed."""

import polars as pl
import pytest

from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.launch.inputs import open_order
from tests.launch.test_schedules import audited, experiment
from tests.launch.test_shared import exposures, planned


@pytest.fixture(scope="module")
def whole(prepared):
    made = plans.read(prepared.directory() / "plan")
    return exposures(made), made


def variant(prepared, name, *overrides):
    """A variant of the prepared plan, and what it lists as moved."""
    paired = f"insertion.paired_with={prepared.directory() / 'plan'}"
    made, setting = planned(prepared, name, paired, *overrides)
    moved = pl.read_parquet(setting.directory / "plan" / "moved.parquet")
    assert made.manifest.facts["moved"] == len(moved)
    assert audited(made, open_order(setting), corpus.load_tokenizer(setting.corpus_directory)) == "PASS"
    return made, moved


def test_one_family_alone(prepared, whole):
    """Interference: the other family is gone, and this one is exactly as it was."""
    before, original = whole
    made, moved = variant(prepared, "single", "~insertion.families.ghost_sentences")
    passages = original.items.filter(pl.col("family") == "passages")
    assert made.items.equals(passages)
    mine = before.filter(pl.col("item").is_in(passages["item_id"].implode()))
    assert len(mine) == 4 * (1 + 4)
    assert exposures(made).equals(mine)
    assert moved.is_empty()


def test_other_wordings(prepared, whole):
    """Every text is another one, of another length; each goes where the one before went."""
    before, _ = whole
    made, moved = variant(prepared, "reworded", "insertion.families.passages.tokens=11")
    assert exposures(made).select("position", "item").equals(before.select("position", "item"))
    both = exposures(made).join(before, on=["position", "item"], suffix="_before")
    assert (both["wording"] != both["wording_before"]).sum() == 20
    offsets = both.filter(pl.col("offset") != pl.col("offset_before"))
    listed = moved.filter(pl.col("position") == pl.col("position_before"))
    assert len(listed) == len(moved) == len(offsets) > 0
    assert sorted(listed["position"]) == sorted(offsets["position"])


def test_other_phase(prepared, whole):
    """What fell into the new phase anyway has not moved; the rest is in it now, and listed with where it was."""
    before, _ = whole
    made, moved = variant(prepared, "early", "insertion.phase=[{end: 0.5}]")
    half = 20 * 8 // 2
    assert made.exposures["position"].max() < half
    stayed = before.filter(pl.col("position") < half)
    where = set(exposures(made).select("item", "position").iter_rows())
    kept = [row for row in stayed.select("item", "position").iter_rows() if row in where]
    assert len(kept) == len(stayed) > 5
    assert len(before) - len(stayed) <= len(moved) < len(before)
    gone = set(moved.select("item_id", "position_before").iter_rows())
    assert set(before.filter(pl.col("position") >= half).select("item", "position").iter_rows()) <= gone


def test_spaced_evenly(prepared):
    """Steps that were drawn for each item are taken over, not drawn again for the items that are left."""
    even = "insertion.spacing=[even]"
    model, setting = planned(prepared, "even", even)
    paired = f"insertion.paired_with={setting.directory / 'plan'}"
    made, _ = planned(prepared, "even-ghosts", even, paired, "~insertion.families.passages")
    ghosts = made.items["item_id"]
    assert exposures(made).equals(exposures(model).filter(pl.col("item").is_in(ghosts.implode())))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "insertion.doses=[0,1,8]",
            r"item .* has the arm 'dose 4' there, and this design has none of that name",
        ),
        ("insertion.items_per_dose=5", r"that plan has no item"),
        ("train.steps=40", "that plan's run has steps=20, this one 40"),
    ],
)
def test_mistakes(prepared, override, told):
    with pytest.raises(UserError, match=told):
        variant(prepared, "wrong", override)


def test_experiments_are_not_paired(prepared):
    with pytest.raises(UserError, match=r"insertion\.paired_with works on one design"):
        experiment(prepared, "insertion=shared", "insertion.paired_with=here")
