"""W&B without an account."""

import pytest

from tests.conftest import SMALL, WHOLE, Workplace


@pytest.mark.slow
def test_offline(prepared):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install -e '.[wandb]')")
    prepared.ok("plan", "name=wandb")
    prepared.ok("train", "name=wandb", "wandb=offline")
    found = list((prepared.directory("wandb") / "perturbed").glob("wandb/offline-run-*/*.wandb"))
    assert len(found) == 1
    assert b"tokens_per_second" in found[0].read_bytes()


@pytest.mark.slow
def test_the_report_as_an_artefact(finished):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install -e '.[wandb]')")
    Workplace(finished.parents[2], SMALL).ok("report", *WHOLE, "wandb=offline")
    (found,) = finished.glob("wandb/offline-run-*/*.wandb")
    kept = found.read_bytes()
    assert b"loglik_per_byte/perturbed/dose 16" in kept
    assert b"report.html" in kept
