"""Real processes over gloo: every topology trains the same experiment, and reads the others' checkpoints."""

import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

ALONE = "alone"
WEIGHTS = 512 * 32 + 4 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
"""Of the small model: tied embeddings of 400 tokens, padded to 512, four layers, the last norm."""


# Gradients are clipped at every step, so a norm that is wrong on some topology shows in the losses too.
CLIPPED = ("optimizer.clip_grad=0.1", "model.layers=4")


def losses(place, name, column="loss"):
    lines = (place.directory(name) / "perturbed" / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)[column] for line in lines])


def ledger(place, name, table):
    parts = sorted((place.directory(name) / "perturbed" / "ledger").glob(f"*/{table}.parquet"))
    return pl.concat([pl.read_parquet(part) for part in parts])


@pytest.fixture(scope="module")
def alone(prepared):
    prepared.ok("plan", f"name={ALONE}", *CLIPPED)
    prepared.ok("train", f"name={ALONE}", *CLIPPED)
    return losses(prepared, ALONE)


TOPOLOGIES = {
    "tensor": ["parallel.tensor=2"],
    "pipeline": ["parallel.pipeline=2"],
    "interleaved": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    "context": ["parallel.context=2"],
    "data": [],
    "data_whole_optimizer": ["parallel.distributed_optimizer=false"],
    "sequence": ["parallel.tensor=2", "parallel.sequence=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_two_ranks_train_as_one(prepared, alone, name):
    """Same initial weights from the seed alone, same windows, same losses within 1e-4 for 20 steps."""
    prepared.ok("plan", f"name={name}", *CLIPPED)
    done = prepared.ok("train", f"name={name}", *CLIPPED, *TOPOLOGIES[name], ranks=2)
    # Adam holds two values a weight; those of the weights alone that this rank updates.
    told = re.search(r"holds ([\d,]+) weights, and the optimizer's state of ([\d,]+)", done.out)
    weights, updated = (int(number.replace(",", "")) for number in told.groups())
    assert weights == WEIGHTS or name not in ("context", "data", "data_whole_optimizer")
    # Padded to multiples of 64.
    assert abs(updated - weights // (2 if name in ("context", "data") else 1)) <= 64
    found = losses(prepared, name)
    assert len(found) == 20
    assert np.abs(found - alone).max() < 1e-4
    norms, own = (losses(prepared, which, "gradient_norm") for which in (name, ALONE))
    assert own.min() > 0.2  # clipped throughout
    assert np.allclose(norms, own, rtol=1e-3)
    for table in ("windows", "exposures"):  # what was consumed does not depend on who consumed it
        assert ledger(prepared, name, table).equals(ledger(prepared, ALONE, table))


@pytest.mark.slow
def test_communication_beside_computation_and_layers_computed_twice(prepared):
    """The losses of one rank that does neither; what is saved are the weights after the step, not before it."""
    from palimpsest.pretrain import checkpoint

    untied = ["optimizer.clip_grad=0.1", "model.tied_embeddings=false"]
    ends = []
    for name, more, ranks in (
        ("plain", [], 1),
        ("beside", ["parallel.overlap=true", "train.recompute=true"], 2),
    ):
        prepared.ok("plan", f"name={name}", *untied)
        prepared.ok("train", f"name={name}", *untied, *more, ranks=ranks)
        place = prepared.directory(name) / "perturbed" / "checkpoints"
        ends.append([checkpoint.tensors(checkpoint.path_of(place, step)) for step in (16, 20)])
    assert np.abs(losses(prepared, "beside") - losses(prepared, "plain")).max() < 1e-4
    ((before, own), (_, found)) = ends
    assert found.keys() == own.keys()
    for weight in (name for name in own if not name.startswith("optimizer.")):
        moved = (own[weight] - before[weight]).abs().mean()  # in four steps
        assert (found[weight] - own[weight]).abs().mean() < 0.01 * moved


@pytest.mark.slow
def test_experts_shared_by_two_ranks(prepared):
    """The losses and the routing of one rank; goes on with all experts cut by tensor-parallel ranks, too.

    There each has half of a window's tokens, and micro-batches are others: neither may change the balancing.
    """
    import shutil

    experts = ["optimizer.clip_grad=0.1", "model.experts=4", "model.balance_loss=3"]
    for name in ("mixture", "shared"):
        prepared.ok("plan", f"name={name}", *experts)
    prepared.ok("train", "name=mixture", *experts)
    prepared.ok("train", "name=shared", *experts, "parallel.expert=2", ranks=2)
    own, norms = losses(prepared, "mixture"), losses(prepared, "mixture", "gradient_norm")
    routed = losses(prepared, "mixture", "tokens_per_expert")
    assert np.abs(losses(prepared, "shared") - own).max() < 1e-4
    assert np.allclose(losses(prepared, "shared", "gradient_norm"), norms, rtol=1e-3)
    assert routed.shape == (20, 2, 4)
    assert (routed.sum(-1) == 2 * 8 * 64).all()  # two experts for each of 8 x 64 tokens
    assert np.abs(losses(prepared, "shared", "tokens_per_expert") - routed).max() <= 8  # ties by rounding
    shares = routed[:, 0] / routed[:, 0].sum(-1, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(-1)
    assert np.allclose(losses(prepared, "mixture", "routing_entropy/layer 1"), entropy, atol=1e-5)
    directory = prepared.directory("shared")
    for step in (14, 16, 20):
        shutil.rmtree(directory / "perturbed" / "checkpoints" / f"step_{step:08d}")
    cut = ["parallel.tensor=2", "parallel.sequence=true", "train.micro_batch_size=4"]
    prepared.ok("train", "name=shared", *experts, *cut, ranks=2)
    assert np.abs(losses(prepared, "shared") - own).max() < 1e-4
    assert (losses(prepared, "shared", "tokens_per_expert").sum(-1) == 2 * 8 * 64).all()
    prepared.ok("export", "name=shared", *experts)
    export = directory / "perturbed" / "export" / "step_00000020"
    assert json.loads((export / "config.json").read_text())["model_type"] == "mixtral"


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_as_one(prepared, alone):
    """Two torchrun agents that meet over loopback, as SLURM's would over the network; tensor- and data-parallel."""
    prepared.ok("plan", "name=nodes", *CLIPPED)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    program = prepared.command("train", "name=nodes", *CLIPPED, "parallel.tensor=2")[1:]
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"),
                *(f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *program,
            ],
            cwd=prepared.path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    told = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    found = losses(prepared, "nodes")
    assert len(found) == 20
    assert np.abs(found - alone).max() < 1e-4
    for table in ("windows", "exposures"):
        assert ledger(prepared, "nodes", table).equals(ledger(prepared, ALONE, table))


@pytest.mark.slow
def test_checkpoint_of_one_topology_goes_on_in_others(prepared, alone):
    """Written at TP=2, read at TP=1 and by an interleaved PP=2: the rest of the run is that of one rank."""
    import shutil

    prepared.ok("plan", "name=moved", *CLIPPED)
    prepared.ok("train", "name=moved", *CLIPPED, "parallel.tensor=2", ranks=2)
    directory = prepared.directory("moved")
    for overrides, ranks in (([], 1), (TOPOLOGIES["interleaved"], 2)):
        for step in (14, 16, 20):
            shutil.rmtree(directory / "perturbed" / "checkpoints" / f"step_{step:08d}")
        done = prepared.ok("train", "name=moved", *CLIPPED, *overrides, ranks=ranks)
        assert "going on from step 8" in done.out
        found = losses(prepared, "moved")
        assert len(found) == 20
        assert np.abs(found - alone).max() < 1e-4
    assert ledger(prepared, "moved", "windows").equals(ledger(prepared, ALONE, "windows"))


@pytest.mark.slow
def test_data_parallel_size_and_micro_batches_may_change_in_the_middle(prepared, alone):
    """2 ranks, then 1 with other micro-batches, then 2: the windows, the ledger and the losses of one rank.

    The optimizer's state is shared by two ranks, then whole on one, then shared again.
    """
    import shutil

    prepared.ok("plan", "name=resized", *CLIPPED)
    prepared.ok("train", "name=resized", *CLIPPED, ranks=2)
    directory = prepared.directory("resized")
    for lost, (overrides, ranks) in (
        ((8, 14, 16, 20), (["train.micro_batch_size=8"], 1)),
        ((16, 20), (["train.micro_batch_size=1"], 2)),
    ):
        for step in lost:
            shutil.rmtree(directory / "perturbed" / "checkpoints" / f"step_{step:08d}")
        prepared.ok("train", "name=resized", *CLIPPED, *overrides, ranks=ranks)
    found = losses(prepared, "resized")
    assert len(found) == 20
    assert np.abs(found - alone).max() < 1e-4
    for table in ("windows", "exposures"):
        assert ledger(prepared, "resized", table).equals(ledger(prepared, ALONE, table))


def test_world_size_that_does_not_divide(prepared, tmp_path):
    """One of the two ranks says so; torchrun itself always ends with 1, so they leave their status in a file."""
    status = tmp_path / "status"
    done = prepared.run(
        "train", "parallel.tensor=2", "parallel.pipeline=2", ranks=2, env={"PALIMPSEST_STATUS": str(status)}
    )
    assert done.status != 0
    (line,) = [line for line in done.lines if line.startswith("palimpsest: ")]
    assert "does not divide the world size 2" in line
    assert status.read_text().splitlines()[0] == "2"
