"""What the audit misses when it is gone, and what it is told of."""

import shutil

import pytest

from palimpsest.pretrain import saved
from tests.conftest import SMALL, WHOLE, Workplace

STEP = "step_00000040"


@pytest.fixture
def place(finished, tmp_path):
    """A copy of the finished run that may be damaged, and its workplace."""
    shutil.copytree(finished.parents[2], tmp_path, dirs_exist_ok=True)
    return Workplace(tmp_path, SMALL), tmp_path / finished.relative_to(finished.parents[2])


def test_a_lost_checkpoint_is_missed_and_a_pruned_one_is_not(place):
    workplace, run = place
    checkpoints = run / "perturbed" / "checkpoints"
    lost = saved.finished(checkpoints)[1]
    manifest = saved.path_of(checkpoints, lost) / "manifest.json"
    manifest.rename(manifest.with_name("away"))
    done = workplace.run("audit", *WHOLE)
    assert done.status == 2
    assert f"{manifest.parent.name} is missing" in done.out
    manifest.with_name("away").rename(manifest)
    saved.remove(checkpoints, [lost])
    done = workplace.ok("audit", *WHOLE)
    assert "the scores are whole, and of these checkpoints" in done.out
    assert "audit: PASS" in done.out


def test_scores_of_another_checkpoint_fail(place):
    workplace, run = place
    scores = run / "scores" / "perturbed"
    shutil.rmtree(scores / STEP)
    shutil.copytree(run / "scores" / "twin" / STEP, scores / STEP)
    done = workplace.run("audit", *WHOLE)
    assert done.status == 3
    assert "was scored at another checkpoint" in done.out
