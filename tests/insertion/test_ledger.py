"""The recorder stops what is not planned; the ledger holds every window once, and notices damage."""

import numpy as np
import polars as pl
import pytest

from palimpsest.data.errors import UserError
from palimpsest.insertion import ledger, plan
from palimpsest.insertion.ledger import PlanViolation, Recorder
from tests.insertion.simulation import BATCH, LENGTH, STEPS, consume, simulated


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("case"))


def hand_over(case, position, change=lambda window, span: window, mask=None):
    made, order = case
    overlay = made.overlay()
    window = overlay.apply(position, order.window(position))
    window = change(window.copy(), overlay.spans(position)[0])
    recorder = Recorder(made, BATCH, rank=3)
    flags = np.ones((1, LENGTH), dtype=np.bool_) if mask is None else mask
    recorder.record(np.array([position]), window[None, :-1], window[None, 1:], flags)
    return recorder


def where(case, position):
    made, _ = case
    span = made.overlay().spans(position)[0]
    return (
        f"item {made.items['item_id'][span.item]}, step {position // BATCH}, rank 3, row {position % BATCH}, "
        f"offset {span.offset}"
    )


def test_what_is_planned_passes_and_is_recorded(case):
    position = int(case[0].exposures["position"][4])
    windows, exposures = hand_over(case, position).drain()
    assert windows["position"].to_list() == exposures["position"].to_list() == [position]


@pytest.mark.parametrize("token", [0, -1])
def test_a_changed_token_stops(case, token):
    position = int(case[0].exposures["position"][4])

    def change(window, span):
        window[span.offset : span.offset + span.length][token] += 1
        return window

    with pytest.raises(PlanViolation, match=f"planned tokens are not in the batch: {where(case, position)}"):
        hand_over(case, position, change)


def test_a_skipped_exposure_stops(case):
    position = int(case[0].exposures["position"][4])
    base = case[1].window(position)
    with pytest.raises(PlanViolation, match=where(case, position)):
        hand_over(case, position, lambda window, span: base)


def test_a_missing_frame_stops(case):
    position = int(case[0].exposures["position"][4])

    def change(window, span):
        window[span.offset + span.length] += 1
        return window

    with pytest.raises(PlanViolation, match="end-of-document tokens around the planned ones are missing"):
        hand_over(case, position, change)


def test_loss_that_is_off_on_the_first_or_last_planned_token_stops(case):
    position = int(case[0].exposures["position"][4])
    span = case[0].overlay().spans(position)[0]
    for off in (span.offset - 1, span.offset + span.length - 2):
        mask = np.ones((1, LENGTH), dtype=np.bool_)
        mask[0, off] = False
        with pytest.raises(
            PlanViolation,
            match=f"the loss is off on planned tokens where the plan says otherwise: {where(case, position)}",
        ):
            hand_over(case, position, mask=mask)
    mask = np.zeros((1, LENGTH), dtype=np.bool_)
    mask[0, span.offset - 1 : span.offset + span.length - 1] = True
    hand_over(case, position, mask=mask)  # elsewhere it may be off


def test_labels_that_are_not_shifted_tokens_stop(case):
    window = case[1].window(0)
    with pytest.raises(PlanViolation, match="labels are not the tokens shifted by one"):
        Recorder(None, BATCH, 0).record(
            np.array([0]), window[None, :-1], window[None, :-1], np.ones((1, LENGTH), dtype=np.bool_)
        )


def test_digest_sees_tokens_and_mask():
    window = np.arange(9)
    mask = np.ones(8, dtype=np.bool_)
    base = ledger.window_digest(window, mask)
    for k in range(9):
        other = window.copy()
        other[k] += 1
        assert ledger.window_digest(other, mask) != base
    for k in range(8):
        off = mask.copy()
        off[k] = False
        assert ledger.window_digest(window, off) != base
    # Flags are the same in any type; a weight is another digest, each.
    assert ledger.window_digest(window, mask.astype(np.float32)) == base
    weights = np.ones(8, dtype=np.float32)
    digests = {base}
    for k, weight in ((0, 0.0), (0, 0.5), (0, 2.0), (7, 2.0)):
        other = weights.copy()
        other[k] = weight
        digests.add(ledger.window_digest(window, other))
    assert len(digests) == 5


def write(directory, start, stop, positions, previous="", digest=1, plan="p"):
    return ledger.write_part(
        directory,
        start=start,
        stop=stop,
        global_batch_size=2,
        windows=[
            pl.DataFrame({"position": p, "digest": [digest] * len(p)}, schema=ledger.WINDOW_SCHEMA)
            for p in positions
        ],
        exposures=[pl.DataFrame(schema=ledger.EXPOSURE_SCHEMA)],
        previous=previous,
        plan=plan,
        order="o",
    )


def test_parts_chain_and_uncommitted_ones_are_discarded(tmp_path):
    first = write(tmp_path, 0, 2, [[2, 3], [0, 1]])
    second = write(tmp_path, 2, 3, [[4, 5]], previous=first)
    found = ledger.read(tmp_path, head=second)
    assert found.windows["position"].to_list() == [0, 1, 2, 3, 4, 5]
    assert (found.steps, found.plan, found.order) == (3, "p", "o")
    assert ledger.read(tmp_path, head=first).windows["position"].to_list() == [0, 1, 2, 3]
    ledger.discard_beyond(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["00000000-00000002"]


@pytest.mark.parametrize("positions", [[[0, 1], [1]], [[0]], [[0, 1, 2]], [[1, 2]]])
def test_windows_that_are_not_the_steps_are_refused(tmp_path, positions):
    with pytest.raises(PlanViolation, match="not consumed exactly once"):
        write(tmp_path, 0, 1, positions)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_noticed(tmp_path):
    first = write(tmp_path, 0, 1, [[0, 1]])
    second = write(tmp_path, 1, 2, [[2, 3]], previous=first)
    with pytest.raises(UserError, match="does not contain the part"):
        ledger.read(tmp_path, head="other")
    table = tmp_path / ledger.part_name(0, 1) / "windows.parquet"
    table.write_bytes(table.read_bytes().replace(b"position", b"positiom"))
    with pytest.raises(UserError, match="was changed since it was written"):
        ledger.read(tmp_path, head=second)


def test_a_missing_or_foreign_part_is_noticed(tmp_path):
    head = ""
    for step in range(3):
        head = write(tmp_path, step, step + 1, [[2 * step, 2 * step + 1]], previous=head)
    middle = tmp_path / ledger.part_name(1, 2)
    middle.rename(tmp_path / "aside")
    with pytest.raises(UserError, match="does not continue the part before it"):
        ledger.read(tmp_path, head=head)
    (tmp_path / "aside").rename(middle)
    assert ledger.read(tmp_path, head=head).heads[3] == head
    foreign = write(tmp_path, 3, 4, [[6, 7]], previous=head, plan="another")
    with pytest.raises(UserError, match="belongs to another plan"):
        ledger.read(tmp_path, head=foreign)


def test_a_plan_is_written_whole_and_read_back(case, tmp_path):
    made, _ = case
    assert made.shape == plan.RunShape(steps=STEPS, global_batch_size=BATCH, sequence_length=LENGTH)
    table = made.exposures.group_by("item").len().sort("item")
    doses = made.items.with_row_index("item").filter(pl.col("dose") > 0)
    assert table["len"].to_list() == doses["dose"].to_list()  # exposures per item = assigned dose
    spans = consume(made, case[1])
    assert spans.exposures.height == made.exposures.height
