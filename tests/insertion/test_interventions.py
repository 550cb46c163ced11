"""Replaced, removed and masked text: the windows are those of a corpus that was changed itself, and all is proven."""

from dataclasses import replace

import numpy as np
import pytest

from palimpsest.data.errors import UserError
from palimpsest.data.order import Order
from palimpsest.data.tokens import TokenWriter
from palimpsest.insertion import audit as audits
from palimpsest.insertion.interventions import Intervention
from palimpsest.insertion.ledger import PlanViolation
from palimpsest.insertion.overlay import Overlay
from palimpsest.insertion.phases import Phase
from tests.insertion.simulation import BATCH, LENGTH, STEPS, consume, simulated


def plain(overlay):
    """The same exposures without the changes to the corpus."""
    names = "position item wording offset lead trail cut overwrite tokens starts eod loss".split()
    return Overlay(**{name: getattr(overlay, name) for name in names})


def other_corpus(directory, order, change):
    """The windows of a corpus whose documents (lists of ids) were changed before they were written."""
    tokenizer = order.tokenizer
    documents = [change(ids.tolist()) for ids in tokenizer.encode_batch(order.texts)]
    directory.mkdir(exist_ok=True)
    with TokenWriter(directory / "train", tokenizer.vocab_size, tokenizer.eod) as writer:
        writer.add([np.array(ids, dtype=np.int32) for ids in documents])
    return Order(
        directory,
        corpus_digest="other",
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        sequence_length=LENGTH,
        seed=order.seed,
    )


def found_at(ids, pattern):
    """Places of a pattern, without overlaps, from the left."""
    places, k = [], 0
    while k <= len(ids) - len(pattern):
        if ids[k : k + len(pattern)] == pattern:
            places.append(k)
            k += len(pattern)
        else:
            k += 1
    return places


@pytest.fixture(scope="module")
def replaced(tmp_path_factory):
    return simulated(
        tmp_path_factory.mktemp("replaced"),
        doses=(0, 2),
        interventions={
            "swap": Intervention(kind="replace", find=(" parser reader",), by=(" reader parser",))
        },
    )


def test_replacing_equals_a_changed_corpus(replaced, tmp_path):
    made, order = replaced
    old, new = (order.tokenizer.encode(text).tolist() for text in (" parser reader", " reader parser"))
    assert len(old) == len(new)

    def change(ids):
        for k in found_at(ids, old):
            ids[k : k + len(old)] = new
        return ids

    other, overlay = other_corpus(tmp_path, order, change), made.overlay()
    changed = 0
    for p in range(STEPS * BATCH):
        expected = plain(overlay).apply(p, other.window(p))
        assert overlay.apply(p, order.window(p)).tolist() == expected.tolist()
        changed += other.window(p).tolist() != order.window(p).tolist()
    assert (
        changed
        == made.edits["position"].n_unique()
        == made.manifest.facts["interventions"]["swap"]["windows"]
        > 0
    )
    places = sum(len(found_at(ids.tolist(), old)) for ids in order.tokenizer.encode_batch(order.texts))
    assert made.manifest.facts["interventions"]["swap"]["places"] == places


def audit(made, ledger, order):
    return audits.audit(made, ledger, None, order, order.tokenizer)


def test_changes_are_proven_and_their_lack_is_noticed(replaced):
    made, order = replaced
    assert audit(made, consume(made, order), order)["verdict"] == "PASS"
    without = plain(made.overlay())
    with pytest.raises(
        PlanViolation, match=r"a planned change of the corpus's text is not in the batch: step \d+"
    ):
        consume(made, order, without)
    result = audit(made, consume(made, order, without, checked=False), order)
    assert result["verdict"] == "FAIL"
    assert any("the corpus's text is not changed as planned" in line for line in result["failures"])


def test_removed_documents_give_way_to_held_out_text(tmp_path):
    phase = Phase(end=0.5)
    made, order = simulated(
        tmp_path,
        doses=(0, 2),
        interventions={"gone": Intervention(kind="remove", find=(" parser reader",), phase=phase)},
    )
    pattern = order.tokenizer.encode(" parser reader").tolist()
    holding = {
        k
        for k, ids in enumerate(order.tokenizer.encode_batch(order.texts))
        if found_at(ids.tolist(), pattern)
    }
    assert holding
    overlay = made.overlay()
    hit = 0
    for p in range(STEPS * BATCH):
        base = order.window(p)
        window = overlay.apply(p, base)
        for document, start, end in order.documents(p):
            if overlay.spans(p) or end - start < 4:
                continue
            removed = document in holding and p < STEPS * BATCH // 2
            assert np.array_equal(window[start : end - 1], base[start : end - 1]) != removed
            hit += removed
    assert hit
    assert made.edits["position"].max() < STEPS * BATCH // 2
    assert audit(made, consume(made, order), order)["verdict"] == "PASS"


def test_masked_text_is_read_and_not_predicted(tmp_path):
    made, order = simulated(
        tmp_path,
        doses=(0, 2),
        displace=("around",),
        interventions={"quiet": Intervention(kind="mask", find=(" parser",))},
    )
    pattern, overlay = order.tokenizer.encode(" parser").tolist(), made.overlay()
    for p in range(STEPS * BATCH):
        window = order.window(p)
        assert np.array_equal(overlay.apply(p, window), plain(overlay).apply(p, window))
        if len(pattern) == 1 and not overlay.spans(p):
            off = np.flatnonzero(window[1:] == pattern[0])
            mask = overlay.loss_mask(p, LENGTH)
            assert off.tolist() == ([] if mask is None else np.flatnonzero(mask == 0).tolist())
    assert audit(made, consume(made, order), order)["verdict"] == "PASS"
    with pytest.raises(
        PlanViolation, match="the loss on changed text has the weight 1 where the plan says 0"
    ):
        consume(made, order, masked=False)
    result = audit(made, consume(made, order, masked=False, checked=False), order)
    assert result["verdict"] == "FAIL"


def test_reweighted_text_counts_so_many_times(tmp_path):
    """Each target that the texts hold has its weight; items that are inserted have 1, wherever they go."""
    made, order = simulated(
        tmp_path,
        doses=(0, 2),
        displace=("around",),
        interventions={
            "loud": Intervention(kind="reweight", find=(" parser",), weight=2.5),
            "low": Intervention(kind="reweight", find=(" reader",), weight=0.1, phase=Phase(end=0.5)),
        },
    )
    overlay, hit = made.overlay(), 0
    texts = {3: " parser", 4: " reader"}
    assert order.tokenizer.eod not in {2, *texts}

    def change(ids):  # a corpus that says in the place of each token what it weighs
        marked = [2] * len(ids)
        for mark, text in texts.items():
            pattern = order.tokenizer.encode(text).tolist()
            for k in found_at(ids, pattern):
                marked[k : k + len(pattern)] = [mark] * len(pattern)
        return marked

    other = other_corpus(tmp_path / "marks", order, change)
    for p in range(STEPS * BATCH):
        window = order.window(p)
        assert np.array_equal(overlay.apply(p, window), plain(overlay).apply(p, window))
        found = overlay.loss_mask(p, LENGTH)
        found = np.ones(LENGTH, dtype=np.float32) if found is None else found
        targets = plain(overlay).apply(p, other.window(p))[1:]
        expected = np.ones(LENGTH, dtype=np.float32)
        expected[targets == 3] = 2.5
        expected[(targets == 4) & (p < STEPS * BATCH // 2)] = 0.1
        for span in overlay.spans(p):
            expected[max(span.offset - 1, 0) : span.offset + span.length - 1] = 1
        assert np.array_equal(found, expected)
        hit += (found != 1).any()
    assert hit > 50
    assert audit(made, consume(made, order), order)["verdict"] == "PASS"
    with pytest.raises(
        PlanViolation, match=r"changed text has the weight 1 where the plan says (2\.5|0\.1): step"
    ):
        consume(made, order, masked=False)
    for wrong in (1.0, 0.0, 2.0):  # a trainer that counts them as ever, not at all, or otherwise than planned
        tampered = made.overlay()
        tampered.edits = replace(tampered.edits, weight=np.full(len(made.edits), wrong, dtype=np.float32))
        result = audit(made, consume(made, order, tampered, checked=False), order)
        assert result["verdict"] == "FAIL", wrong


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "mask", "find": ("zebra",)}, "interventions.it: 'zebra' does not occur in the corpus"),
        (
            {"kind": "replace", "find": (" parser",), "by": (" parser parser",)},
            r"' parser' has \d+ tokens and its replacement",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, settings, told):
    with pytest.raises(UserError, match=told):
        simulated(tmp_path, interventions={"it": Intervention(**settings)})


def test_mistakes():
    for settings, told in (
        ({"kind": "mask", "find": ()}, "find holds no text"),
        ({"kind": "replace", "find": ("a",)}, "kind=replace with 1 texts to find and 0 in by"),
        ({"kind": "mask", "find": ("a",), "by": ("b",)}, "the others none"),
        ({"kind": "reweight", "find": ("a",)}, "kind=reweight with weight=None"),
        ({"kind": "mask", "find": ("a",), "weight": 0.5}, "kind=mask with weight=0.5"),
        *(
            ({"kind": "reweight", "find": ("a",), "weight": weight}, f"weight={weight:g} must lie above 0")
            for weight in (0.0, 1.0, -1.0, 1e4, float("nan"))
        ),
    ):
        with pytest.raises(UserError, match=told):
            Intervention(**settings)
