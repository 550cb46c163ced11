"""Muon: what its steps look like, checkpoints, several ranks."""

import json
import shutil

import numpy as np
import pytest

MUON = ["optimizer=muon", "optimizer.warmup_steps=0", "optimizer.weight_decay=0"]


def losses(place, name):
    lines = (place.directory(name) / "perturbed" / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


@pytest.fixture(scope="module")
def trained(prepared):
    prepared.ok("plan", "name=muon", *MUON)
    prepared.ok("train", "name=muon", *MUON)
    return prepared


def saved(place, name, step):
    from palimpsest.pretrain import checkpoint

    return checkpoint.tensors(checkpoint.path_of(place.directory(name) / "perturbed" / "checkpoints", step))


def test_a_step_is_orthogonal_and_as_large_as_one_of_adamw(trained):
    """Singular values of a matrix's first step are near 0.2 sqrt(longer side) times the rate, whatever its gradient.

    Five steps of Newton-Schulz leave them between 0.6 and 1.3 times that (Jordan et al., 2024), but for those that were
    next to nothing. Embeddings and norms take Adam's first step: the rate, up or down, wherever there is a gradient.
    """
    import torch

    before, after = saved(trained, "muon", 0), saved(trained, "muon", 1)
    rate = json.loads(
        (trained.directory("muon") / "perturbed" / "metrics.jsonl").read_text().splitlines()[0]
    )["learning_rate"]
    seen = 0
    for name, old in before.items():
        moved = after[name] - old
        if "layers" in name and moved.dim() == 3:  # layers are stacked
            for layer in moved:
                size = torch.linalg.svdvals(layer) / (rate * 0.2 * max(layer.shape) ** 0.5)
                assert size.max() < 1.3, name
                assert (size > 0.6).float().mean() > 0.75, name
                seen += 1
        else:
            assert moved.abs().max() == pytest.approx(rate, rel=1e-2), name
    assert seen == 2 * 4  # queries, keys and values; output; gate and up; down
    states = {name.split(".")[2] for name in after if name.startswith("optimizer.state.")}
    assert states == {"exp_avg", "exp_avg_sq", "momentum_buffer"}
    kept = {name.split(".", 3)[3] for name in after if ".momentum_buffer." in name}
    assert kept == {name for name in before if "layers" in name and before[name].dim() == 3}
    assert not any(name.split(".", 3)[3] in kept for name in after if ".exp_avg" in name)


def test_it_learns(trained):
    found = losses(trained, "muon")
    assert found[-1] < found[0] - 0.7


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_goes_on_as_if_it_had_not_stopped(prepared, trained, precision):
    name, given = f"stopped-{precision}", [*MUON, f"train.precision={precision}"]
    prepared.ok("plan", f"name={name}", *given)
    prepared.ok("train", f"name={name}", *given)
    whole = saved(prepared, name, 20)
    for step in (14, 16, 20):
        shutil.rmtree(prepared.directory(name) / "perturbed" / "checkpoints" / f"step_{step:08d}")
    assert "going on from step 8" in prepared.ok("train", f"name={name}", *given).out
    again = saved(prepared, name, 20)
    assert whole.keys() == again.keys()
    assert all((whole[key] == again[key]).all() for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["parallel.pipeline=2"], ["train.micro_batch_size=2"]], ids=["pipeline", "data"]
)
def test_two_ranks_train_as_one(prepared, trained, more):
    """And go on as one, from the checkpoint of two."""
    name = more[0].split("=")[0].split(".")[1]
    prepared.ok("plan", f"name={name}", *MUON)
    done = prepared.ok("train", f"name={name}", *MUON, *more, ranks=2)
    own = losses(trained, "muon")
    assert np.abs(losses(prepared, name) - own).max() < 1e-3, done.out
    shutil.rmtree(prepared.directory(name) / "perturbed" / "checkpoints" / "step_00000020")
    prepared.ok("train", f"name={name}", *MUON)
    assert np.abs(losses(prepared, name) - own).max() < 1e-3
