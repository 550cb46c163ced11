"""Arm against arm: levels of factors, and named arms, compared among items alike in all else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest.analysis.metrics import compute
from palimpsest.analysis.report import ReportInputs, build
from palimpsest.analysis.report.contrasts import arm_contrasts
from palimpsest.data.errors import UserError
from palimpsest.insertion.contrasts import chosen
from tests.analysis.synthetic import experiment

ARMS = [f"dose {dose}, phase {phase}, spacing even" for dose in (4, 64) for phase in ("0-0.5", "0.5-1")]


def in_two_phases(more: float, seed: int = 0, contrasts: tuple[str, ...] = ()) -> ReportInputs:
    """Every second inserted item is of the late phase and ``more`` nats a token likelier in the perturbed run."""
    base = experiment(steps=(0, 250), seed=seed, per_cell=6)
    late = pl.int_range(pl.len()) % 2 == 0
    phase = pl.when(late).then(pl.lit("0.5-1")).otherwise(pl.lit("0-0.5"))
    arm = (
        pl.when(pl.col("dose") > 0)
        .then(pl.format("dose {}, phase {}", "dose", phase))
        .otherwise(pl.lit("dose 0"))
    )
    items = base.items.with_columns(arm=arm)
    ids = items.filter(pl.col("arm").str.ends_with("phase 0.5-1"))["item_id"].to_list()
    probes = base.probes.filter(pl.col("item_id").is_in(ids) & (pl.col("kind") == "verbatim"))[
        "probe_id"
    ].to_list()
    raised = pl.col("probe_id").is_in(probes) & (pl.col("run") == "perturbed") & (pl.col("step") == 250)
    # An item's tokens are raised together, by as much a byte: 4 bytes are a token here.
    logprob = pl.when(raised).then(pl.col("logprob").list.eval(pl.element() + more)).otherwise("logprob")
    return dataclasses.replace(
        base,
        items=items,
        scores=base.scores.with_columns(logprob=logprob),
        contrasts=contrasts,
        permutations=199,
    )


def primary(inputs: ReportInputs) -> pl.DataFrame:
    final = inputs.scores.filter(pl.col("step") == 250)
    return compute(inputs.items, inputs.probes, final, [inputs.primary], inputs.parameters)


def test_levels_of_a_factor_are_compared_by_default(tmp_path: Path) -> None:
    inputs = in_two_phases(0.2)
    build(inputs, tmp_path)
    row = pl.read_csv(tmp_path / "contrasts.csv").row(0, named=True)
    assert row["contrast"] == "phase 0.5-1 vs phase 0-0.5"
    assert row["low"] < 0.2 / 4 < row["high"]
    assert row["low"] > 0
    assert row["p"] == pytest.approx(1 / 200)
    assert row["n"] == row["n_control"] == inputs.items.filter(pl.col("dose") > 0).height / 2
    assert "phase 0.5-1 vs phase 0-0.5" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_arms_that_are_alike_show_nothing_more_often_than_alpha() -> None:
    found = []
    for seed in range(20):
        inputs = in_two_phases(0.0, seed)
        found.append(arm_contrasts(primary(inputs), inputs).row(0, named=True))
    covered = [row["low"] < 0 < row["high"] for row in found]
    # 20 experiments: 17 of 20 or fewer in 1.6 %.
    assert sum(covered) >= 17
    assert np.mean([row["p"] for row in found]) == pytest.approx(0.5, abs=0.2)


def test_declared_contrasts_take_levels_and_names() -> None:
    declared = ["phase 0.5-1 vs phase 0-0.5", f"{ARMS[0]} vs {ARMS[3]}", "dose 4, phase 0-0.5 vs dose 64"]
    assert [str(one) for one in chosen(declared, ARMS)] == [
        "phase 0.5-1 vs phase 0-0.5",
        "dose 4, phase 0-0.5, spacing even vs dose 64, phase 0.5-1, spacing even",
        "dose 4, phase 0-0.5 vs dose 64",
    ]
    # A list of steps has commas of its own.
    steps = "phase steps 0, 2, 4, ... vs once"
    assert [str(one) for one in chosen([steps], ["dose 1, phase steps 0, 2, 4, ...", "once"])] == [steps]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("phase 0.5-1", "must be FIRST vs SECOND"),
        ("phase 0.5-1 vs phase 0-0.4", "no arm has 'phase 0-0.4'; did you mean 'phase 0-0.5'"),
        ("dose 4 vs phase 0-0.5", "is on both sides"),
    ],
)
def test_contrasts_that_name_no_two_sides_are_refused(declared: str, said: str) -> None:
    inputs = in_two_phases(0.0, contrasts=(declared,))
    rows = primary(inputs)
    with pytest.raises(UserError, match=r"report\.contrasts.*") as caught:
        arm_contrasts(rows, inputs)
    assert said in str(caught.value)
