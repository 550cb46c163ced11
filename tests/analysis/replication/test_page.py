"""Arms of a page: their means and gains, also of metrics that compare with the twin themselves."""

import polars as pl
import pytest

import palimpsest
from palimpsest.analysis.replication import page
from palimpsest.analysis.replication.page import arms_of
from tests.analysis.test_default_figures import nodes


@pytest.mark.parametrize("metric", ["loglik_per_byte", "negative_loss_ratio"])
def test_every_arm_has_a_gain_over_the_never_inserted(finished, metric):
    run = palimpsest.open_run(finished)
    arms = arms_of(run, [metric])
    assert arms.height == run.plan.items.select("family", "arm").n_unique()
    assert arms["gain"].null_count() == 0
    assert arms.filter(pl.col("dose") == 0)["gain"].to_list() == pytest.approx([0.0] * 3, abs=1e-9)
    assert arms.filter(pl.col("dose") == 16)["gain"].min() > 0


def test_doses_of_shared_experiments_are_on_one_line():
    """Their arms are called ``people: dose 4``; a line joins an experiment's doses, and the legend names it once."""
    made = [(f"{one}: dose {dose}", dose) for one in ("people", "places") for dose in (0, 1, 4)]
    arms = pl.DataFrame(
        {
            "metric": "loglik_per_byte",
            "family": "f",
            "arm": arm,
            "dose": dose,
            "gain": 0.1 * dose,
            "run": "a",
            "seed": 1,
        }
        for arm, dose in made
    )
    colours = {
        str(node["domain"])
        for node in nodes(page._figure(arms).to_dict())
        if "range" in node and "domain" in node
    }
    assert colours == {"['people', 'places']"}
