"""Impossible training settings are refused when they are made, by name."""

from dataclasses import replace

import pytest

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RuntimeConfig,
    TrainConfig,
)

MODEL = ModelConfig(name="m", layers=2, hidden=32, heads=4, ffn=64)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=3)
TRAIN = TrainConfig(
    steps=20, global_batch_size=8, micro_batch_size=2, sequence_length=64, seed=1, checkpoint_every=7
)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (MODEL, "kv_heads", 0),
        (MODEL, "kv_heads", -2),
        (MODEL, "kv_heads", 3),
        (MODEL, "init_std", 0.0),
        (OPTIMIZER, "beta1", 1.0),
        (OPTIMIZER, "beta2", -0.1),
        (OPTIMIZER, "beta2", float("nan")),
        (OPTIMIZER, "weight_decay", -0.1),
        (OPTIMIZER, "clip_grad", -1.0),
        (OPTIMIZER, "warmup_steps", -1),
        (OPTIMIZER, "learning_rate", float("nan")),
        (TRAIN, "seed", -1),
        (TRAIN, "seed", 2**32),
        (ParallelConfig(), "tensor", 3),
        (ParallelConfig(), "virtual_pipeline", 2),
        (ParallelConfig(), "context", 0),
        (ParallelConfig(), "expert", -1),
        (RuntimeConfig(), "workers", 0),
        (RuntimeConfig(), "threads", -1),
    ],
)
def test_out_of_range(config, field, value):
    with pytest.raises(UserError, match=rf"\.{field}={value}"):
        replace(config, **{field: value})


def test_at_the_edge():
    replace(OPTIMIZER, beta1=0.0, weight_decay=0.0, clip_grad=0.0, warmup_steps=0)
    replace(TRAIN, seed=2**32 - 1)
    replace(MODEL, kv_heads=2)
    OPTIMIZER.check(replace(TRAIN, steps=4), MODEL, ParallelConfig())


def test_warm_up_as_long_as_the_run():
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps=3 must be below train\.steps=3"):
        OPTIMIZER.check(replace(TRAIN, steps=3), MODEL, ParallelConfig())


@pytest.mark.parametrize(
    ("model", "parallel", "told"),
    [
        (MODEL, ParallelConfig(tensor=2), "parallel.tensor=2"),
        (replace(MODEL, experts=4), ParallelConfig(), "model.experts=4"),
    ],
)
def test_muon_needs_whole_matrices(model, parallel, told):
    muon = replace(OPTIMIZER, kind="muon")
    muon.check(TRAIN, MODEL, ParallelConfig(pipeline=2))
    OPTIMIZER.check(TRAIN, model, parallel)
    with pytest.raises(UserError, match=rf"optimizer\.kind=muon does not support {told}"):
        muon.check(TRAIN, model, parallel)


LAYERED = replace(MODEL, layers=12, kv_heads=2)
EXPERTS = replace(MODEL, experts=6)


@pytest.mark.parametrize(
    ("parallel", "model", "ranks", "told"),
    [
        (ParallelConfig(tensor=8), MODEL, 8, "parallel.tensor=8 must divide model.heads=4; 1, 2 and 4 fit"),
        (ParallelConfig(tensor=4), LAYERED, 4, "parallel.tensor=4 must divide model.kv_heads=2; 1 and 2 fit"),
        (ParallelConfig(pipeline=4), MODEL, 4, "parallel.pipeline=4 must divide model.layers=2; 1 and 2 fit"),
        (
            ParallelConfig(pipeline=2, virtual_pipeline=4),
            LAYERED,
            2,
            "parallel.virtual_pipeline=4 must divide the 6 layers of each of the 2 pipeline ranks; 1, 2, 3 and 6 fit",
        ),
        (
            ParallelConfig(pipeline=3, virtual_pipeline=2),
            LAYERED,
            3,
            "works on micro-batches in groups of parallel.pipeline=3, and a step has 4 a data-parallel rank",
        ),
        (ParallelConfig(tensor=4, sequence=True), MODEL, 4, "must divide train.sequence_length=66"),
        (
            ParallelConfig(context=2),
            MODEL,
            2,
            "cuts windows into 4 blocks, which must divide train.sequence_length=66",
        ),
        (ParallelConfig(context=2), MODEL, 3, "x parallel.context=2 = 2 does not divide the world size 3"),
        (
            ParallelConfig(expert=2),
            MODEL,
            2,
            "parallel.expert=2 needs a mixture of experts; model.experts is null",
        ),
        (
            ParallelConfig(expert=4),
            EXPERTS,
            4,
            "parallel.expert=4 must divide model.experts=6; 1, 2, 3 and 6 fit",
        ),
        (
            ParallelConfig(expert=3),
            EXPERTS,
            4,
            "must divide the 4 data-parallel ranks .*; 1, 2 and 4 fit, or start a ",
        ),
        (
            ParallelConfig(tensor=2),
            EXPERTS,
            2,
            "parallel.tensor=2 with model.experts=6 needs parallel.sequence=true",
        ),
        (
            ParallelConfig(),
            MODEL,
            3,
            "must be a multiple of train.micro_batch_size=2 x 3 data-parallel ranks; 6 and 12 fit",
        ),
        (ParallelConfig(), MODEL, 8, "x 8 data-parallel ranks; with micro-batches, only 1 fits"),
    ],
)
def test_topology_that_does_not_fit(parallel, model, ranks, told):
    with pytest.raises(UserError, match=told):
        parallel.check(ranks, model, replace(TRAIN, sequence_length=66))


def test_topologies_that_fit():
    for parallel, model, ranks in (
        (ParallelConfig(tensor=2, pipeline=2, virtual_pipeline=3), LAYERED, 8),
        (ParallelConfig(tensor=2, sequence=True, expert=2), EXPERTS, 4),
        (ParallelConfig(context=4, tensor=2, sequence=True), MODEL, 8),
    ):
        parallel.check(ranks, model, TRAIN)


def test_sequence_parallelism_without_tensor_parallelism():
    with pytest.raises(UserError, match=r"parallel\.sequence=true needs parallel\.tensor above 1"):
        ParallelConfig(sequence=True)


def test_checkpoints_that_are_asked_for():
    """Worked: last exposures with steps 5 and 11, of 20."""
    train = replace(TRAIN, checkpoint_at=(13,), checkpoint_after_last=(0, 4, 100))
    assert train.checkpoint_steps([5, 11]) == [0, 1, 2, 4, 5, 7, 8, 9, 11, 13, 14, 15, 16, 20]


def test_only_regular_checkpoints_are_ever_deleted():
    """Every 3: of 0, 3, 6, 9, 12 the newest two stay; 0 stays anyway, 3 because it is listed; 10 was a signal's."""
    train = replace(TRAIN, checkpoint_every=3, checkpoint_keep=2, checkpoint_at=(3,))
    saved = [0, 1, 2, 3, 4, 6, 8, 9, 10, 12]
    assert train.deletable_checkpoints(saved) == [6, 10]
    assert train.deletable_checkpoints(saved[:-1]) == []  # the newest is what a run goes on from
    assert train.deletable_checkpoints(saved, [6]) == [6, 10]
    assert replace(train, checkpoint_after_last=(0,)).deletable_checkpoints(saved, [6]) == [10]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"checkpoint_at": (21,)}, "train.checkpoint_at: 21 must lie between 0 and train.steps=20"),
        ({"checkpoint_after_last": (-1,)}, "train.checkpoint_after_last: -1"),
        ({"checkpoint_keep": 0}, "train.checkpoint_keep=0"),
    ],
)
def test_impossible_checkpoints(change, told):
    with pytest.raises(UserError, match=told):
        replace(TRAIN, **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activation": "gelu"}, "it has gelu and null"),
        ({"experts": 4}, "it has swiglu and 4"),
    ],
)
def test_biases_of_attention_alone_need_gated_dense_blocks(change, told):
    llama = replace(MODEL, activation="swiglu", attention_biases="all")
    with pytest.raises(UserError, match=f"needs model.activation=swiglu and model.experts=null; {told}"):
        replace(llama, **change)
