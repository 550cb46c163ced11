"""Every adapter hands out the windows that the trainer here reads."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from palimpsest.insertion.adapters import MapStyle, iterate
from palimpsest.insertion.interventions import Intervention
from tests.insertion.simulation import BATCH, LENGTH, STEPS, simulated


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("case"))


POSITIONS = range(STEPS * BATCH)


@pytest.mark.parametrize("form", ["array", "tensor", "list", "input_ids", "megatron"])
def test_map_style(case, form):
    made, order = case
    overlay = made.overlay()
    windows = [order.window(p) for p in POSITIONS]
    samples = {
        "array": windows,
        "tensor": [torch.from_numpy(w) for w in windows],
        "list": [w.tolist() for w in windows],
        "input_ids": [{"input_ids": torch.from_numpy(w), "index": p} for p, w in enumerate(windows)],
        "megatron": order.dataset,
    }[form]
    found = MapStyle(samples, overlay)
    changed = 0
    for p in POSITIONS:
        expected, sample = overlay.apply(p, windows[p]), found[p]
        if form == "megatron":
            assert sample["tokens"].tolist() == expected[:-1].tolist()
            assert sample["labels"].tolist() == expected[1:].tolist()
            assert sample["tokens"].dtype == torch.int64
            assert set(sample) == set(order.dataset[p])
            continue
        inner = sample["input_ids"] if form == "input_ids" else sample
        assert type(inner) is type(samples[p]["input_ids"] if form == "input_ids" else samples[p])
        assert np.asarray(inner).tolist() == expected.tolist()
        changed += expected.tolist() != windows[p].tolist()
        if form == "input_ids":
            assert sample["index"] == p
    assert form == "megatron" or changed == made.exposures["position"].n_unique()


def test_masked_arms(tmp_path):
    """Samples that come with a mask get the plan's; those without are refused where one is needed."""
    made, order = simulated(tmp_path, loss=("masked",), doses=(0, 2))
    overlay = made.overlay()
    position = int(made.exposures["position"][0])
    expected = overlay.loss_mask(position, LENGTH)
    assert not expected.all()
    found = MapStyle(order.dataset, overlay)[position]  # megatron-core's
    assert (found["loss_mask"].numpy() == expected).all()
    whole = {
        p: {"input_ids": order.window(p), "label_mask": np.ones(LENGTH + 1, dtype=np.bool_)}
        for p in POSITIONS
    }
    found = MapStyle(whole, overlay)[position]
    assert found["label_mask"].tolist() == [True, *expected.tolist()]
    assert whole[position]["label_mask"].all()  # the data set's own is left alone
    with pytest.raises(ValueError, match=f"window {position} from the loss, but its sample has no loss_mask"):
        MapStyle([order.window(p) for p in POSITIONS], overlay)[position]


def test_reweighted_text(tmp_path):
    """A mask of floating point takes the weights; one of flags is refused."""
    quiet = Intervention(kind="reweight", find=(" parser",), weight=0.25)
    made, order = simulated(tmp_path, doses=(0, 2), interventions={"quiet": quiet})
    overlay = made.overlay()
    position = int(made.edits["position"][0])
    found = MapStyle(order.dataset, overlay)[position]  # megatron-core's
    assert 0.25 in found["loss_mask"].tolist()
    assert (found["loss_mask"].numpy() == overlay.loss_mask(position, LENGTH)).all()
    flags = {
        position: {"input_ids": order.window(position), "label_mask": np.ones(LENGTH + 1, dtype=np.bool_)}
    }
    with pytest.raises(
        ValueError, match=f"weighs losses of window {position}, but its sample's label_mask is bool"
    ):
        MapStyle(flags, overlay)[position]


def test_another_order(case):
    """A dataset that is not in training order says where each index comes."""
    made, order = case
    overlay = made.overlay()
    shuffled = np.random.default_rng(0).permutation(len(POSITIONS))  # training position -> index
    stored = [None] * len(POSITIONS)
    for position, index in enumerate(shuffled):
        stored[index] = order.window(position)
    found = MapStyle(stored, overlay, position=np.argsort(shuffled).__getitem__)
    for position, index in enumerate(shuffled):
        assert found[index].tolist() == overlay.apply(position, order.window(position)).tolist()


@pytest.mark.parametrize("ranks", [1, 3])
def test_streams(case, ranks):
    made, order = case
    overlay = made.overlay()
    for rank in range(ranks):
        own = range(rank, len(POSITIONS), ranks)
        stream = iterate((order.window(p) for p in own), overlay, itertools.count(rank, ranks))
        for p, window in zip(own, stream, strict=True):
            assert window.tolist() == overlay.apply(p, order.window(p)).tolist()


def test_the_overlay_needs_numpy_alone():
    code = (
        "import sys, insertion.overlay, insertion.adapters; "
        "sys.exit(bool({'torch', 'polars', 'pyarrow', 'megatron'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
