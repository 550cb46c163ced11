"""The audit passes what is right and names item, step and row of what is not, even if the trainer was fooled."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from palimpsest.insertion import audit as audits
from palimpsest.insertion.exposures import EXPOSURE_SCHEMA
from palimpsest.insertion.ledger import PlanViolation
from palimpsest.insertion.overlay import Overlay
from tests.insertion.simulation import BATCH, consume, simulated


def audit(made, perturbed, twin, order):
    return audits.audit(made, perturbed, twin, order, order.tokenizer)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def twin(case):
    return consume(None, case[1])


def name_of(made, row):
    return made.items["item_id"][made.exposures["item"][row]]


def failed(result):
    return [check["name"] for check in result["checks"] if not check["passed"]]


def test_right_passes(case, twin):
    made, order = case
    result = audit(made, consume(made, order), twin, order)
    assert result["verdict"] == "PASS", result["failures"]
    assert len(result["checks"]) == 9
    assert audit(made, consume(made, order), None, order)["verdict"] == "PASS"


def test_steps_that_taught_nothing(case, twin):
    """Exposures in them are lost; others do harm if the twin learnt what the run did not."""
    made, order = case
    own = consume(made, order)
    exposed = int(made.exposures["position"][10]) // BATCH
    steps = set((made.exposures["position"] // BATCH).to_list())
    free = next(step for step in range(made.shape.steps) if step not in steps)
    both = audit(made, replace(own, skipped=(free,)), replace(twin, skipped=(free,)), order)
    assert both["verdict"] == "PASS", both["failures"]
    assert both["checks"][-1]["detail"] == f"skipped steps: {free}"
    assert audit(made, replace(own, skipped=(free,)), None, order)["verdict"] == "PASS"
    for ours, theirs, who in (((free,), (), "perturbed run"), ((), (free,), "twin")):
        alone = audit(made, replace(own, skipped=ours), replace(twin, skipped=theirs), order)
        assert failed(alone) == ["every exposure was learnt from"]
        assert alone["failures"] == [
            f"every exposure was learnt from: step {free}: skipped by the {who} alone"
        ]
    lost = audit(made, replace(own, skipped=(exposed,)), replace(twin, skipped=(exposed,)), order)
    assert failed(lost) == ["every exposure was learnt from"]
    assert any(
        f"item {name_of(made, 10)}, step {exposed}, row " in line
        and line.endswith("but the step was skipped")
        for line in lost["failures"]
    )


class Broken(Overlay):
    """The plan's overlay with one fault at one exposure."""

    def __init__(self, made, fault, row):
        good = made.overlay()
        names = (*EXPOSURE_SCHEMA, "tokens", "starts", "eod")
        super().__init__(**{name: getattr(good, name) for name in names})
        self.fault, self.row, self.free = fault, row, None
        self.free = next(p for p in range(20, 120) if not good.spans(p))

    def apply(self, position, window):
        if self.fault == "skip" and position == self.position[self.row]:
            return window
        found = super().apply(position, window)
        span = self._span(self.row)
        if self.fault == "token" and position == self.position[self.row]:
            found[span.offset] += 1
        item = self.wording_tokens(span.wording)
        if self.fault == "elsewhere" and position == self.free:
            found = np.concatenate([window[:7], [self.eod], item, [self.eod], window[7:]])[: len(window)]
        if self.fault == "same window" and position == self.position[self.row]:
            found = self._insert(found, span)
        return found


@pytest.mark.parametrize("fault", ["skip", "token", "same window", "elsewhere"])
def test_a_broken_overlay_is_named(case, twin, fault):
    made, order = case
    row = 10
    broken = Broken(made, fault, row)
    result = audit(made, consume(made, order, broken, checked=False), twin, order)
    assert result["verdict"] == "FAIL"
    position = broken.free if fault == "elsewhere" else int(made.exposures["position"][row])
    place = f"step {position // BATCH}, row {position % BATCH}"
    told = [line for line in result["failures"] if place in line and name_of(made, row) in line]
    assert told, result["failures"]


def test_a_skipped_exposure_is_called_untouched(case, twin):
    made, order = case
    result = audit(made, consume(made, order, Broken(made, "skip", 3), checked=False), twin, order)
    assert any("the corpus's window was consumed untouched" in line for line in result["failures"])
    assert "planned exposures = consumed exposures" in failed(result)


def test_a_lying_record_of_exposures_is_noticed(case, twin):
    """The windows are right but the ledger counts one exposure twice, or under another name."""
    made, order = case
    right = consume(made, order)
    twice = pl.concat([right.exposures, right.exposures[5:6]])
    renamed = right.exposures.with_columns(
        item_id=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("other")).otherwise("item_id")
    )
    for exposures, told in ((twice, "planned 1 times, consumed 2 times"), (renamed, "item other")):
        lie = type(right)(right.windows, exposures, right.steps, BATCH, "h", right.plan, right.order)
        result = audit(made, lie, twin, order)
        assert failed(result) == ["planned exposures = consumed exposures"]
        assert any(told in line for line in result["failures"])


def test_the_wrong_plan_order_and_twin_are_noticed(case, twin, tmp_path):
    made, order = case
    other, _ = simulated(tmp_path, seed=2)
    result = audit(other, consume(made, order), twin, order)
    assert "same plan, corpus and order" in failed(result)
    result = audit(made, consume(made, order), consume(made, order), order)
    assert "the twin saw the corpus alone" in failed(result)
    result = audit(made, twin, twin, order)
    assert "planned exposures = consumed exposures" in failed(result)


def test_a_window_consumed_twice_or_never_is_noticed(case, twin):
    made, order = case
    right = consume(made, order)
    for windows in (right.windows[1:], pl.concat([right.windows, right.windows[:1]])):
        lie = type(right)(windows, right.exposures, right.steps, BATCH, "h", right.plan, right.order)
        assert "every window consumed exactly once" in failed(audit(made, lie, twin, order))


@pytest.mark.parametrize("quantiles", [1, 2])
def test_placement_is_paired_across_texts(tmp_path_factory, quantiles):
    """Plans that differ in their texts alone fill the same windows, and without strata of length (which the text
    decides) with the same items."""
    one, _ = simulated(tmp_path_factory.mktemp("one"), length_quantiles=quantiles)
    other, _ = simulated(
        tmp_path_factory.mktemp("other"),
        length_quantiles=quantiles,
        families={"passages": {"tokens": 10}, "ghost_sentences": {"words": 7, "list_size": 25}},
    )
    assert one.items["text"].to_list() != other.items["text"].to_list()
    assert one.exposures["position"].to_list() == other.exposures["position"].to_list()
    if quantiles == 1:
        assert one.exposures["item"].to_list() == other.exposures["item"].to_list()


def altered(made, **tables):
    """The plan with tables of its own and the digest of the right one, so that nothing but its contents can tell."""
    from palimpsest.insertion.plan import Plan

    parts = {name: getattr(made, name) for name in ("items", "wordings", "probes", "exposures", "edits")}
    return Plan(**(parts | tables), manifest=made.manifest)


def test_a_plan_that_contradicts_itself_is_noticed(case, twin):
    made, order = case
    shifted = made.exposures.with_columns(
        offset=pl.when(pl.int_range(pl.len()) == 2).then(pl.lit(47)).otherwise("offset").cast(pl.Int32)
    )
    for tables in (
        {"exposures": made.exposures[3:]},
        {"exposures": shifted},
        {"items": made.items.with_columns(dose=(pl.col("dose") + 1).cast(pl.Int32))},
        {"wordings": made.wordings.with_columns(text=pl.lit("another text"))},
        {"wordings": made.wordings.with_columns(hash=pl.lit(1, dtype=pl.UInt64))},
    ):
        wrong = altered(made, **tables)
        assert "the plan agrees with itself" in failed(audit(wrong, consume(made, order), twin, order))


def test_a_claim_about_the_corpus_is_checked(case, twin):
    """A plan that says every item follows a document's end, where the corpus has none, and drops its own token."""
    made, order = case
    lying = altered(made, exposures=made.exposures.with_columns(lead=pl.lit(False)))
    result = audit(lying, consume(lying, order, checked=False), twin, order)
    assert "windows with an exposure are corpus + plan" in failed(result)


def test_a_fault_that_overlay_and_trainer_share_is_noticed(case, twin, monkeypatch):
    """The audit puts windows together by itself: a bug in the overlay's own code does not cancel out."""
    made, order = case
    right = Overlay._insert

    def wrong(self, window, span):
        found = right(self, window, span)
        found[0] = 7
        return found

    monkeypatch.setattr(Overlay, "_insert", wrong)
    result = audit(made, consume(made, order), twin, order)
    assert "windows with an exposure are corpus + plan" in failed(result)


def test_changed_index_arrays_are_noticed(tmp_path):
    made, order = simulated(tmp_path)
    right = consume(made, order)
    assert order.verify() == []
    shuffle = next((tmp_path / "order").glob("*/*shuffle_index.npy"))
    np.save(shuffle, np.zeros_like(np.load(shuffle)))
    again = type(order)(
        tmp_path,
        corpus_digest="corpus",
        vocab_size=order.tokenizer.vocab_size,
        eod=order.eod,
        sequence_length=order.sequence_length,
        seed=order.seed,
    )
    again.tokenizer = order.tokenizer
    result = audit(made, right, None, again)
    assert "the order of the windows is megatron-core's" in failed(result)


def test_items_and_times_are_independent(tmp_path_factory):
    """Items and times of exposures are independent: over many seeds, no rank correlation."""
    from scipy import stats

    found = []
    place = tmp_path_factory.mktemp("many")
    for seed in range(30):
        made, _ = (
            simulated(place, seed=seed) if seed == 0 else simulated(tmp_path_factory.mktemp("s"), seed=seed)
        )
        found.append(stats.spearmanr(made.exposures["item"], made.exposures["position"]).statistic)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.std(found) < 0.4


@pytest.fixture(scope="module")
def masking(tmp_path_factory):
    """Arms whose tokens count, do not, or do but for one in two."""
    return simulated(
        tmp_path_factory.mktemp("masking"),
        families={"ghost_sentences": {"words": 7, "list_size": 25}},
        loss=("counted", "masked", "goldfish:2"),
        max_share=0.5,
    )


def test_masked_arms_pass_and_say_what_counts(masking):
    made, order = masking
    assert audit(made, consume(made, order), None, order)["verdict"] == "PASS"
    overlay = made.overlay()
    shares = {0: [], 1: [], 2: []}
    for span in (span for position in made.exposures["position"] for span in overlay.spans(position)):
        shares[int(overlay.loss[span.exposure])].append(overlay.counted(span).mean())
    assert set(shares[0]) == {1.0}
    assert set(shares[1]) == {0.0}
    assert 0.5 < np.mean(shares[2]) < 1
    arms = made.items.join(
        made.exposures.with_columns(pl.col("item").cast(pl.UInt32)).join(
            made.items.with_row_index("item").select("item", "item_id"), on="item"
        ),
        on="item_id",
    )
    assert set(arms.filter(pl.col("arm").str.contains("masked"))["loss"]) == {1}


def test_a_trainer_that_ignores_the_masks_is_stopped_or_noticed(masking):
    made, order = masking
    with pytest.raises(
        PlanViolation, match="the loss is on on planned tokens where the plan says otherwise: item"
    ):
        consume(made, order, masked=False)
    result = audit(made, consume(made, order, checked=False, masked=False), None, order)
    assert result["verdict"] == "FAIL"
    assert "windows with an exposure are corpus + plan" in failed(result)
    first = made.exposures.filter(pl.col("loss") > 0).row(0, named=True)
    place = f"step {first['position'] // BATCH}, row {first['position'] % BATCH}"
    told = [line for line in result["failures"] if line.startswith("windows with an exposure")]
    assert f"item {made.items['item_id'][first['item']]}, {place}" in told[0]
