"""What changes the result is one thing: a run's directory and its checkpoints agree on it, setting by setting."""

from dataclasses import fields, replace

import pytest
from hydra import compose, initialize_config_dir

from palimpsest.launch.compose import CONF, build
from palimpsest.pretrain.settings import Settings

OTHER = {
    "micro_batch_size": 4,
    "global_batch_size": 32,
    "precision": "bf16",
    "non_finite": "skip",
    "start_from": "elsewhere/step_00000100",
    "stop_at": 200,
    "checkpoint_at": (7,),
    "checkpoint_after_last": (10,),
    "checkpoint_keep": 2,
    "schedule": "linear",
    "law": "step_law",
}


def experiment(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", ["+experiment=quickstart", *overrides]))


def of_checkpoint(one):
    settings = Settings(model=one.model, optimizer=one.optimizer, train=one.train, parallel=one.parallel)
    return settings.identity(4096)


PLAIN = experiment()
FREE = {
    "model": {"name", "tokenizer_size"},
    "optimizer": {"law"},
    "train": {
        *(
            "micro_batch_size",
            "checkpoint_every",
            "checkpoint_at",
            "checkpoint_after_last",
            "checkpoint_keep",
        ),
        *("checkpoint_async", "recompute", "deterministic", "non_finite"),
    },
}


def other(value, name):
    if name in OTHER:
        return OTHER[name]
    return (
        not value
        if isinstance(value, bool)
        else value + 1
        if isinstance(value, int)
        else value * 1.01 or 1e-6
    )


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, field.name)
        for section in ("train", "optimizer")
        for field in fields(getattr(PLAIN, section))
        if field.name not in ("kind", "decay_steps")  # of muon and wsd, which need more settings
    ],
)
def test_a_setting_changes_the_run_s_directory_if_and_only_if_it_changes_the_result(section, name):
    part = getattr(PLAIN, section)
    changed = replace(PLAIN, **{section: replace(part, **{name: other(getattr(part, name), name)})})
    free = name in FREE[section]
    assert (changed.directory == PLAIN.directory) is free
    if name not in ("start_from", "stop_at"):  # a checkpoint names what it starts from by its digest
        assert (of_checkpoint(changed) == of_checkpoint(PLAIN)) is free


def test_topology_device_and_evaluation_are_no_part_of_a_run_s_identity():
    same = experiment("parallel.overlap=true", "runtime.device=cpu", "eval.heldout_every=10", "wandb=offline")
    assert same.directory == PLAIN.directory
    assert of_checkpoint(same) == of_checkpoint(PLAIN)
    renamed = replace(PLAIN, model=replace(PLAIN.model, name="other", tokenizer_size=50_280))
    assert (renamed.directory, of_checkpoint(renamed)) == (PLAIN.directory, of_checkpoint(PLAIN))
    larger = replace(PLAIN, model=replace(PLAIN.model, ffn=2 * PLAIN.model.ffn))
    assert larger.directory != PLAIN.directory
    assert of_checkpoint(larger) != of_checkpoint(PLAIN)
