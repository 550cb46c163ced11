"""Preflight: findings name their items; dropped items are replaced; near duplicates are those of all pairs."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import registry
from palimpsest.insertion.items import Item, Probe
from palimpsest.insertion.preflight import PreflightConfig, near_duplicates
from tests.conftest import NOUNS
from tests.insertion.simulation import LENGTH, simulated


@settings(max_examples=200)
@given(
    st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=8), max_size=25),
    st.sampled_from([0.2, 0.5, 2 / 3, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_all_pairs(sets, threshold):
    expected = [
        (a, b)
        for b in range(len(sets))
        for a in range(b)
        if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b]) - 1e-9
    ]
    found = near_duplicates([np.array(sorted(one), dtype=np.int32) for one in sets], threshold)
    assert [(a, b) for a, b, _ in found] == expected
    for a, b, similar in found:
        assert similar == pytest.approx(len(sets[a] & sets[b]) / len(sets[a] | sets[b]))


def sentence(index):
    """Unlike anything in the corpus, where words stand apart."""
    rng = np.random.default_rng([9, index])
    return "-".join(rng.choice(NOUNS, 6, replace=False))


def corpus_document(index):
    """A document of the simulated corpus, shortened."""
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(NOUNS, rng.integers(8, 60))) for _ in range(index + 1)]
    return " ".join(texts[index].split()[:8])


def flawed(context, count):
    """Item 1 is in the corpus, item 4 has the words of item 2, item 5 is longer than a window."""
    made = {1: corpus_document(6), 4: "-".join(reversed(sentence(2).split("-"))), 5: sentence(5) * LENGTH}
    texts = [made.get(k, sentence(k)) for k in range(count)]
    return [
        Item(f"flawed-{k}", "flawed", text, (Probe("verbatim", "", text),), "t")
        for k, text in enumerate(texts)
    ]


def endless(context, count):
    """No item ever fits."""
    return [Item(f"endless-{k}", "endless", f"{sentence(k)} " * LENGTH, (), "t") for k in range(count)]


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """Families of these tests alone."""
    for made in (flawed, endless):
        monkeypatch.setitem(registry._FAMILIES, made.__name__, made)


SETTINGS = {"families": {"flawed": {}}, "doses": (0, 2), "items_per_dose": 6}


def test_findings_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"longer than a window: item flawed-5 .*preflight\.too_long=drop"):
        simulated(tmp_path, **SETTINGS)
    for finding, told in (
        ("in_corpus", r"are in the corpus already: item flawed-1 .*preflight\.in_corpus=drop"),
        ("near_duplicate", r"item flawed-4 \(like flawed-2: \d\.\d\d\).*preflight\.near_duplicate=drop"),
    ):
        rule = PreflightConfig(too_long="drop", **{finding: "refuse"})
        (tmp_path / finding).mkdir()
        with pytest.raises(UserError, match=told):
            simulated(tmp_path / finding, **SETTINGS, preflight=rule)
    assert not (tmp_path / "plan").exists()


def test_dropped_items_are_replaced_and_listed(tmp_path):
    rule = PreflightConfig(too_long="drop", in_corpus="drop", near_duplicate="drop")
    made, _ = simulated(tmp_path, **SETTINGS, preflight=rule)
    assert made.items["item_id"].to_list() == [f"flawed-{k}" for k in range(15) if k not in (1, 4, 5)]
    assert made.items["dose"].value_counts().sort("dose")["count"].to_list() == [6, 6]
    dropped = {
        name: [line.split()[0] for line in lines] for name, lines in made.manifest.facts["dropped"].items()
    }
    assert dropped == {
        "too_long": ["flawed-5"],
        "vocabulary": [],
        "in_corpus": ["flawed-1"],
        "near_duplicate": ["flawed-4"],
    }
    assert not any(made.manifest.facts["findings"].values())
    assert made.probes.filter(pl.col("item_id").is_in(["flawed-1", "flawed-4", "flawed-5"])).is_empty()


def test_what_stays_is_reported_and_what_is_skipped_is_not_looked_for(tmp_path):
    made, _ = simulated(tmp_path, **SETTINGS, preflight=PreflightConfig(too_long="drop"))
    assert [line.split()[0] for line in made.manifest.facts["findings"]["in_corpus"]] == ["flawed-1"]
    assert {"flawed-1", "flawed-4"} < set(made.items["item_id"])
    rule = PreflightConfig(too_long="drop", in_corpus="skip", near_duplicate="skip")
    (tmp_path / "skip").mkdir()
    made, _ = simulated(tmp_path / "skip", **SETTINGS, preflight=rule)
    assert not any(made.manifest.facts["findings"].values())


def test_a_family_none_of_whose_items_pass_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"items of family endless only 0 pass \(too_long: \d+\); 4 are needed"
    ):
        simulated(
            tmp_path,
            families={"endless": {}},
            doses=(0, 1),
            items_per_dose=2,
            preflight=PreflightConfig(too_long="drop"),
        )
