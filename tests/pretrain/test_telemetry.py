"""What a run tells: every writer gets every step; a trace of chosen steps is written."""

import json
import sys

import pytest

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ProfileConfig
from tests.pretrain.test_training import records


@pytest.fixture(scope="module")
def traced(prepared):
    prepared.ok("plan", "name=traced")
    done = prepared.ok("train", "name=traced", "profile.steps=[10,12]")
    return prepared.directory("traced") / "perturbed", done.out


def test_a_trace_of_three_steps(traced):
    """The optimizer's step is in it three times; a viewer of Chrome's traces opens it."""
    directory, told = traced
    (path,) = (directory / "profile").iterdir()
    assert path.name == "steps_10-12.json"
    assert f"profile of steps 10 to 12: {path.relative_to(directory.parents[3])}" in told
    events = json.loads(path.read_text())["traceEvents"]
    steps = [event for event in events if event.get("name", "").startswith("Optimizer.step#")]
    assert len(steps) == 3
    assert any(event.get("name") == "aten::_log_softmax" for event in events)


def test_what_is_told_of_a_step(prepared, traced):
    """8 windows of 64 tokens; on a CPU the peak, and so the share of it, is not known."""
    rows = records(prepared, "traced")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert all(row["tokens"] == 512 * row["step"] for row in rows)
    assert all(row["mfu"] is None and row["tokens_per_second"] > 0 for row in rows)
    assert all(0.05 < row["memory_gib"] < 50 for row in rows)
    assert "GiB" in traced[1]
    assert "0 min 00 s left" in traced[1]


@pytest.mark.parametrize("steps", [(10,), (12, 10), (0, 3), (1, 2, 3)])
def test_steps_that_are_no_range(steps):
    with pytest.raises(UserError, match=r"profile\.steps=\[.*must be the first and the last"):
        ProfileConfig(steps=steps)


def test_share_of_the_peak(capsys):
    """The line says it where it is known."""
    from palimpsest.pretrain.telemetry import Live

    line = Live("run", 0, 10)
    line.write({"step": 10, "loss": 2.0, "tokens_per_second": 4e4, "mfu": 0.45, "memory_gib": 61.25})
    assert (
        "step 10/10  loss 2.000  40,000 tokens/s  MFU 45%  61.2 GiB  0 min 00 s left"
        in capsys.readouterr().err
    )


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    from palimpsest.pretrain.telemetry import TensorBoard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tensorboard\]'"):
        TensorBoard(tmp_path, 0)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -e '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from palimpsest.pretrain.telemetry import TensorBoard

    writer = TensorBoard(tmp_path, 0)
    for step in (1, 2):
        writer.write({"step": step, "loss": 3.0 - step, "mfu": None})
    writer.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
