"""Impossible training settings are refused when they are made, by name."""

from dataclasses import replace

import pytest

from data.errors import UserError
from pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig, TrainConfig

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
    OPTIMIZER.check(replace(TRAIN, steps=4))


def test_warm_up_as_long_as_the_run():
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps=3 must be below train\.steps=3"):
        OPTIMIZER.check(replace(TRAIN, steps=3))


@pytest.mark.parametrize(
    ("parallel", "told"),
    [
        (ParallelConfig(tensor=8), "parallel.tensor=8 must divide model.heads=4"),
        (ParallelConfig(pipeline=4), "parallel.pipeline=4 must divide model.layers=2"),
    ],
)
def test_topology_that_fits_no_number_of_ranks(parallel, told):
    with pytest.raises(UserError, match=told):
        parallel.check(parallel.tensor * parallel.pipeline, MODEL, TRAIN)


def test_the_vocabulary_is_padded_to_what_tensor_must_divide():
    from pretrain.config import _VOCABULARY_MULTIPLE
    from pretrain.model import VOCABULARY_MULTIPLE

    assert _VOCABULARY_MULTIPLE == VOCABULARY_MULTIPLE
