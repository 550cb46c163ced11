"""The leave-out twin's plan differs from the plan in the forget set's windows alone."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from palimpsest.data.errors import UserError
from palimpsest.insertion import leave_out, plan


@pytest.fixture(scope="module")
def crowded(prepared):
    """A plan with several exposures a window."""
    given = ["name=crowded", "insertion.per_window=3", "insertion.doses=[0,4,16]", "insertion.max_share=0.9"]
    prepared.ok("plan", *given)
    return plan.read(prepared.directory("crowded") / "plan")


def test_windows_without_the_forget_set_are_the_same(crowded, tmp_path):
    chosen = leave_out.forget_set(crowded, 3, 0.3).to_list()
    other = leave_out.write(crowded, chosen, tmp_path / "plan")
    number = {name: row for row, name in enumerate(crowded.items["item_id"])}
    gone = {number[name] for name in chosen}
    before, after = crowded.overlay(), other.overlay()
    length = crowded.shape.sequence_length + 1
    touched = shared = 0
    for position in crowded.shape.positions:
        corpus = np.arange(10_000, 10_000 + length)
        spans = before.spans(position)
        inserted, left = before.apply(position, corpus), after.apply(position, corpus)
        if not {span.item for span in spans} & gone:
            assert (inserted == left).all()
            continue
        touched += 1
        kept = [span for span in spans if span.item not in gone]
        shared += bool(kept)
        # The other exposures are where they were in the corpus's text: the same token of it comes before them.
        assert [span.wording for span in after.spans(position)] == [span.wording for span in kept]
        for old, new in zip(kept, after.spans(position), strict=True):
            lead = int(before.lead[old.exposure])
            neighbours = [
                window[span.offset - lead - 1]
                for window, span in ((inserted, old), (left, new))
                if span.offset > lead
            ]
            of_corpus = [token for token in neighbours if token >= 10_000]
            assert len(set(of_corpus)) <= 1
    assert touched > 0
    assert shared > 0
    assert not other.exposures["item"].is_in(sorted(gone)).any()
    doses = dict(other.items.select("item_id", "dose").iter_rows())
    assert all(doses[name] == 0 for name in chosen)
    assert other.manifest.facts["exposures"] == len(other.exposures)


def test_a_forget_set_is_of_the_families_and_doses_that_were_named(crowded):
    family = crowded.items["family"][0]
    chosen = crowded.items.filter(
        pl.col("item_id").is_in(leave_out.forget_set(crowded, 0, 1.0, [family], [16]).to_list())
    )
    wanted = crowded.items.filter((pl.col("family") == family) & (pl.col("dose") == 16))
    assert sorted(chosen["item_id"]) == sorted(wanted["item_id"])
    with pytest.raises(UserError, match="no inserted item has the dose 8"):
        leave_out.forget_set(crowded, 0, 1.0, doses=[8])
    with pytest.raises(UserError, match="no inserted item has the family poems"):
        leave_out.forget_set(crowded, 0, 1.0, families=["poems"])


def test_items_of_a_cluster_are_forgotten_together():
    people = [f"person {number // 4}" for number in range(80)]
    items = pl.DataFrame({"item_id": [f"i{n:02}" for n in range(80)], "family": "lives", "cluster": people})
    items = items.with_columns(dose=pl.when(pl.int_range(80) < 40).then(0).otherwise(4))
    items = items.with_columns(arm=pl.format("dose {}", "dose"))
    drawn = [leave_out.forget_set(SimpleNamespace(items=items), seed, 0.2).to_list() for seed in range(30)]
    owners = dict(items.select("item_id", "cluster").iter_rows())
    for chosen in drawn:
        # Two of the ten people that were inserted, each with all four texts.
        assert sorted(Counter(owners[item] for item in chosen).values()) == [4, 4]
    assert {owners[item] for chosen in drawn for item in chosen} == set(people[40:])
