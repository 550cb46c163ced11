"""Metrics against worked examples (measurement.md, part B2) and against naive loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.analysis.metrics import METRICS, Parameters, compute
from palimpsest.analysis.metrics.registry import Values, metric
from palimpsest.data.errors import UserError

O1 = [
    -0.105361,
    -2.302585,
    -0.693147,
    -4.605170,
    -0.051293,
    -1.609438,
    -0.223144,
    -3.506558,
    -0.010050,
    -0.356675,
]


def frames(
    logprobs: list[list[float]],
    ranks: list[list[int]] | None = None,
    *,
    size: int = 47,
    kind: str = "verbatim",
    start: int = 0,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    ranks = ranks or [[0] * len(row) for row in logprobs]
    ids = [f"i{k}" for k in range(len(logprobs))]
    items = pl.DataFrame({"item_id": ids, "stratum": "s", "dose": 4}, schema_overrides={"dose": pl.Int32})
    probes = pl.DataFrame(
        {
            "probe_id": [f"{name}/p" for name in ids],
            "item_id": ids if kind != "heldout" else [None] * len(ids),
            "family": "f",
            "kind": kind,
            "tokens": [list(range(len(row))) for row in logprobs],
            "target_start": start,
            "target_bytes": size,
        }
    )
    scores = pl.DataFrame(
        {
            "run": "perturbed",
            "step": 8,
            "probe_id": [f"{name}/p" for name in ids],
            "logprob": logprobs,
            "rank": ranks,
        },
        schema_overrides={"logprob": pl.List(pl.Float32), "rank": pl.List(pl.UInt16)},
    )
    return items, probes, scores


def value(name: str, *args: pl.DataFrame, parameters: Parameters | None = None) -> list[float | None]:
    return compute(*args, names=[name], parameters=parameters)["value"].to_list()


def test_worked_example_o1() -> None:
    data = frames([O1])
    assert value("loglik_per_byte", *data)[0] == pytest.approx(-0.286456, abs=1e-6)
    assert value("loglik_per_token", *data)[0] == pytest.approx(-1.346342, abs=1e-6)
    assert math.exp(-value("loglik_per_token", *data)[0]) == pytest.approx(3.843341, abs=1e-5)  # type: ignore[operator]


def test_only_the_target_of_a_cloze_counts() -> None:
    data = frames([[-9.0, -9.0, -1.0, -2.0]], kind="cloze", start=2, size=6)
    assert value("cloze_loglik_per_byte", *data) == [-0.5]
    assert value("loglik_per_byte", *data) == []  # a cloze is not the whole item
    unread = frames([[float("nan"), -9.0, -1.0, -2.0]], kind="cloze", start=2, size=6)
    assert value("cloze_loglik_per_byte", *unread) == [-0.5]  # its prompt follows nothing (score.bos)


def test_heldout_passages_have_no_item() -> None:
    rows = compute(*frames([[-1.0, -1.0]], kind="heldout", size=4), names=["heldout_loglik_per_byte"])
    assert rows.select("value", "item_id", "dose").row(0) == (-0.5, None, None)


def test_verbatim_wants_every_token_of_the_suffix_and_nothing_of_the_prefix() -> None:
    ranks = [[5, 5, 0, 0, 0, 9], [5, 5, 0, 1, 0, 0], [0, 0, 0, 0]]
    data = frames([[-1.0] * len(row) for row in ranks], ranks)
    rows = compute(*data, names=["extracted"], parameters=Parameters(prefix=2, suffix=3))
    assert rows["value"].to_list() == [1.0, 0.0, None]
    assert rows["reason"].to_list() == [None, None, "it is shorter than 2 + 3 tokens"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8),
    st.integers(0, 4),
    st.integers(1, 5),
)
def test_flat_arrays_say_what_a_loop_over_tokens_says(ranks: list[list[int]], k: int, m: int) -> None:
    rng = np.random.default_rng(len(ranks))
    logprobs = [rng.normal(-2, 1, len(row)).astype(np.float32).tolist() for row in ranks]
    data = frames(logprobs, ranks)
    assert value("loglik_per_byte", *data) == pytest.approx([sum(row) / 47 for row in logprobs])
    assert value("exact_match", *data) == pytest.approx(
        [sum(r == 0 for r in row) / len(row) for row in ranks]
    )
    expected = [float(all(r == 0 for r in row[k : k + m])) if len(row) >= k + m else None for row in ranks]
    assert value("extracted", *data, parameters=Parameters(prefix=k, suffix=m)) == expected


def test_sums_are_exact_where_float32_is_not() -> None:
    data = frames([[-1024.0] + [-1e-5] * 5000], size=1)
    assert value("loglik_per_byte", *data)[0] == pytest.approx(-1024.05, abs=1e-5)


def test_what_cannot_be_computed_is_a_row_with_a_reason() -> None:
    items, probes, scores = frames([[-1.0, float("nan")], [-1.0, -1.0], [-1.0, -1.0]])
    probes = probes.with_columns(target_bytes=pl.Series([47, 0, 47]))
    rows = compute(items, probes, scores.head(2), names=["loglik_per_byte"]).sort("probe_id")
    assert rows["value"].to_list() == [None, None, None]
    assert rows["reason"].to_list() == [
        "a score of it is not a finite number",
        "its target has no bytes",
        "the probe was not scored at this checkpoint",
    ]


def test_scores_that_do_not_fit_their_probes_are_refused() -> None:
    items, probes, scores = frames([[-1.0, -1.0]])
    with pytest.raises(ValueError, match="not among the probes: 'other'"):
        compute(items, probes, scores.with_columns(probe_id=pl.lit("other")))
    with pytest.raises(ValueError, match="another number of tokens"):
        compute(items, probes.with_columns(tokens=pl.lit([1, 2, 3])), scores)
    with pytest.raises(ValueError, match="scored twice"):
        compute(items, probes, pl.concat([scores, scores]))
    with pytest.raises(ValueError, match="begins beyond"):
        compute(items, probes.with_columns(target_start=pl.lit(2)), scores)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (np.zeros(1), r"'mine' \(.*test_metrics\) returns ndarray; it must return Values"),
        (Values(np.zeros(2), np.ones(1, bool), ""), r"returns value of shape \(2,\); it must be \(1,\)"),
        (Values(np.zeros(1), np.bool_(True), ""), r"returns valid of shape \(\); it must be \(1,\)"),
        (Values(np.zeros(1), np.ones(1, bool), "", np.ones(3, bool)), r"returns asked of shape \(3,\)"),
    ],
)
def test_a_metric_that_returns_something_else_is_named(
    monkeypatch: pytest.MonkeyPatch, returned: Any, told: str
) -> None:
    def mine(_scored: Any, _parameters: Parameters) -> Any:
        return returned

    monkeypatch.setattr("palimpsest.analysis.metrics.registry.METRICS", METRICS | {})
    metric(name="mine", needs=("verbatim",), formula="f", unit="u")(mine)
    with pytest.raises(UserError, match=told):
        compute(*frames([[-1.0]]), names=["mine"])


def test_names_are_checked_and_every_metric_states_its_formula() -> None:
    with pytest.raises(UserError, match="did you mean 'extracted'"):
        compute(*frames([[-1.0]]), names=["extractd"])
    with pytest.raises(UserError, match="suffix >= 1"):
        Parameters(suffix=0)
    for found in METRICS.values():
        assert found.formula
        assert found.unit
        assert found.compute.__doc__


def test_a_metric_of_probes_that_do_not_exist_is_refused():
    with pytest.raises(UserError, match="metric 'mine' needs 'verbatm'; did you mean 'verbatim'"):
        metric(name="mine", needs=("verbatm",), formula="x", unit="x")(lambda: None)
    with pytest.raises(UserError, match="metric 'mine' reads 'txt'"):
        metric(name="mine", needs=("verbatim",), formula="x", unit="x", reads=("txt",))(lambda: None)
