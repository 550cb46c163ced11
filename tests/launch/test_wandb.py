"""W&B without an account."""

import pytest


@pytest.mark.slow
def test_offline(prepared):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install -e '.[wandb]')")
    prepared.ok("plan", "name=wandb")
    prepared.ok("train", "name=wandb", "wandb=offline")
    found = list((prepared.directory("wandb") / "perturbed").glob("wandb/offline-run-*/*.wandb"))
    assert len(found) == 1
    assert b"tokens_per_second" in found[0].read_bytes()
