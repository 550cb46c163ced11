"""``attack``: membership attacks with passes of their own, from one command to the report."""

import shutil

import polars as pl
import pytest

from palimpsest.analysis.attacks.values import KNOWN
from palimpsest.analysis.run import open_run
from tests.conftest import Workplace

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    """A copy of a finished run: its attacks must not show in the reports of other tests."""
    path = tmp_path_factory.mktemp("attacked")
    shutil.copytree(finished.parents[2], path, dirs_exist_ok=True)
    return Workplace(path)


@pytest.fixture(scope="module")
def attacked(place, finished):
    """The directory of the run, and what the program said."""
    run = f"runs/small/{finished.name}"
    done = place.ok("attack", run, "attack.neighbours=2", "attack.shots=2")
    return place.path / run, done


def test_one_command_ends_in_the_report(attacked):
    directory, done = attacked
    assert "1 of 1 parts done now" in done.out
    assert done.lines[-1].startswith("report: ")
    page = (directory / "report" / "report.html").read_text()
    for attack in KNOWN.values():
        assert f">{attack.label}</span>" in page, attack.label
    assert "palimpsest attack" not in page.split('id="membership"')[1].split("</section>")[0]
    run = open_run(directory)
    found = run.attacked
    assert set(found["run"]) == {"perturbed", "twin"}
    assert found["step"].unique().to_list() == [run.last_step]
    assert set(found["attack"]) == set(KNOWN)
    assert found.filter(pl.col("attack") == "gradient_norm")["value"].null_count() == 0
    texts = run.plan.probes.filter(pl.col("kind") == "verbatim").height
    assert found.height == 2 * texts * len(KNOWN)


def test_what_is_there_is_kept(attacked, place):
    directory, _ = attacked
    asked = ("attack", str(directory.relative_to(place.path)), "attack.neighbours=2", "attack.shots=2")
    assert "0 of 1 parts done now" in place.ok(*asked, "shard=0/1").out
    told = place.ok(*asked, "dry_run=true").lines
    assert "attacks/perturbed, 1 checkpoints, 1 of them attacked before" in told[0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["attack.names=[recal]"], "attack.names: there is no attack recal; did you mean 'recall'"),
        (["step=7000"], "step=7000: there is no such checkpoint in "),
    ],
)
def test_refusals_are_one_line(attacked, place, settings, told):
    done = place.run("attack", str(attacked[0].relative_to(place.path)), *settings)
    assert done.status == 2
    assert told in done.lines[-1]
