"""Arms of a page: their means and gains, also of metrics that compare with the twin themselves."""

import polars as pl
import pytest

import palimpsest
from palimpsest.analysis.replication.page import arms_of


@pytest.mark.parametrize("metric", ["loglik_per_byte", "negative_loss_ratio"])
def test_every_arm_has_a_gain_over_the_never_inserted(finished, metric):
    run = palimpsest.open_run(finished)
    arms = arms_of(run, [metric])
    assert arms.height == run.plan.items.select("family", "arm").n_unique()
    assert arms["gain"].null_count() == 0
    assert arms.filter(pl.col("dose") == 0)["gain"].to_list() == pytest.approx([0.0] * 3, abs=1e-9)
    assert arms.filter(pl.col("dose") == 16)["gain"].min() > 0
