"""W&B without an account."""

import pytest

from palimpsest.pretrain.telemetry import WeightsAndBiases
from tests.conftest import SMALL, WHOLE, Workplace


@pytest.mark.slow
def test_offline(prepared):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install -e '.[wandb]')")
    prepared.ok("plan", "name=wandb")
    prepared.ok("train", "name=wandb", "wandb=offline")
    found = list((prepared.directory("wandb") / "perturbed").glob("wandb/offline-run-*/*.wandb"))
    assert len(found) == 1
    assert b"tokens_per_second" in found[0].read_bytes()


def test_a_run_that_is_started_again_goes_on_in_the_same_run_of_wandb(tmp_path):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (pip install -e '.[wandb]')")
    ids, given = [], []
    for _ in range(2):
        writer = WeightsAndBiases("offline", "a-run", {}, tmp_path, "traps", "a-team", "seeds")
        ids.append(writer._run.id)
        given.append((writer._run.project, writer._run.entity, writer._run.group))
        writer.write({"step": 1, "loss": 2.0})
        writer.close()
    assert ids[0] == ids[1] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert given == [("traps", "a-team", "seeds")] * 2
    assert wandb.run is None


@pytest.mark.slow
def test_the_report_as_an_artefact(finished):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install -e '.[wandb]')")
    Workplace(finished.parents[2], SMALL).ok("report", *WHOLE, "wandb=offline")
    (found,) = finished.glob("wandb/offline-run-*/*.wandb")
    kept = found.read_bytes()
    assert b"loglik_per_byte/perturbed/dose 16" in kept
    assert b"report.html" in kept
