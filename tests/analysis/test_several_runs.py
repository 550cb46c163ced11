"""Rows of several runs: told apart, drawn as such, or refused."""

import polars as pl
import pytest

from palimpsest.analysis import figures, tables
from palimpsest.analysis.statistics import PAIRED, estimates
from palimpsest.data.errors import UserError


def rows(statistic="mean", runs=("perturbed", "twin"), shift=0.0):
    return estimates(
        pl.DataFrame(
            [
                {
                    "run": run, "step": 8, "metric": "m", "statistic": statistic, "family": "all", "dose": dose,
                    "estimate": shift + dose / 64, "low": shift - 0.1, "high": shift + 1.1, "n": 30, "n_control": 30,
                }
                for run in runs
                for dose in (0, 1, 64)
            ]
        )
    )  # fmt: skip


def of(source, seed, **settings):
    return rows(**settings).with_columns(source=pl.lit(source), seed=pl.lit(seed), digest=pl.lit(f"d{seed}"))


def test_runs_that_are_mixed_without_saying_so_are_refused():
    mixed = pl.concat([rows(), rows(shift=0.5)])
    for make in (figures.dose_response, lambda r, m: tables.results(r, m, statistic="mean")):
        with pytest.raises(
            UserError, match=r"12 rows share run, step and dose \(run perturbed, step 8, dose 0\)"
        ):
            make(mixed, "m")


@pytest.mark.parametrize(
    ("sources", "named"),
    [
        ((("q/run-0000000a", 1), ("q/run-0000000b", 2)), ("seed 1", "seed 2")),
        ((("q/run-0000000a", 1), ("q/run-0000000b", 1)), ("q/run-0000000a", "q/run-0000000b")),
        ((("q/run-0000000a", 1), ("q/long-0000000b", 2)), ("q/run-0000000a", "q/long-0000000b")),
    ],
)
def test_several_runs_are_drawn_as_such(sources, named):
    both = pl.concat([of(*sources[0]), of(*sources[1], shift=0.5)])
    drawn = figures.dose_response(both, "m")
    wanted = {f"{run} · {name}" for run in ("perturbed", "twin") for name in named}
    assert set(drawn.rows["run"]) == wanted
    assert drawn.rows.height == both.height
    table = tables.results(both, "m", statistic="mean")
    assert table.height == 3
    assert wanted <= set(table.columns)


def test_gains_drop_no_pair():
    """The difference from the twin decides: it is in figures and tables of gains, of one run and of several."""
    gains = {"statistic": "gain", "runs": ("perturbed", "twin", PAIRED)}
    assert set(figures.dose_response(rows(**gains), "m", statistic="gain").rows["run"]) == {*gains["runs"]}
    both = pl.concat([of("q/run-0000000a", 1, **gains), of("q/run-0000000b", 2, **gains)])
    drawn = figures.dose_response(both, "m", statistic="gain")
    assert {f"{PAIRED} · seed 1", f"{PAIRED} · seed 2"} < set(drawn.rows["run"])
    assert "gain in m over dose 0" in str(drawn.chart.to_dict())
    levels = pl.concat([rows(), rows(runs=(PAIRED,))])
    assert PAIRED not in set(figures.dose_response(levels, "m").rows["run"])


def test_items_lie_behind_their_dose():
    items = pl.DataFrame({"dose": [0, 0, 1, 64], "value": [0.1, -0.1, 0.3, 2.5]})
    drawn = figures.dose_response(rows("gain", (PAIRED,)), "m", statistic="gain", dots=items)
    chart = drawn.chart.to_dict()
    dots = [value for data in ([chart["data"]] if "data" in chart else []) for value in data["values"]]
    dots += [v for layer in chart["layer"] for v in layer.get("data", {}).get("values", [])]
    assert sorted(v["value"] for v in dots if "value" in v) == [-0.1, 0.1, 0.3, 2.5]
