"""Hubble's published tables are read with exact limits where items are counted, and drawn beside a run."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from palimpsest.analysis import figures
from palimpsest.data.errors import UserError
from tests.analysis.test_default_figures import estimates, records, svg, symbols

TABLES = Path(__file__).parents[3] / "shared" / "reference" / "hubble_tables.json"


def hubble_file(tmp_path: Path) -> Path:
    path = tmp_path / "tables.json"
    tables = [
        {
            "task": "wikipedia_hubble_verbatim_p50",
            "metric": "exact_match_tokens_s100",
            "values": {"8B": {"0": 1 / 759, "4": 5 / 759}},
        },
        {"task": "wikipedia_hubble", "metric": "byte_perplexity", "values": {"8B": {"0": -0.6, "4": -0.5}}},
    ]
    path.write_text(
        json.dumps(
            {"tables": tables, "n_per_level_inferred_from_fractions": {"wikipedia": {"0": 759, "4": 759}}}
        )
    )
    return path


def test_hubble_rows_have_exact_limits_where_items_are_counted(tmp_path: Path) -> None:
    rows = figures.hubble_tables(hubble_file(tmp_path))
    counted = rows.filter(pl.col("metric") == "exact_match_tokens_s100").row(1, named=True)
    assert (counted["dose"], counted["n"]) == (4, 759)
    assert (counted["low"], counted["high"]) == (
        pytest.approx(0.002142, abs=1e-6),
        pytest.approx(0.015306, abs=1e-6),
    )  # O24
    assert rows.filter(pl.col("metric") == "byte_perplexity")["low"].null_count() == 2
    ours = estimates(run=["perturbed"] * 2, metric="loglik_per_byte", dose=[0, 64], estimate=[-2.0, -1.0])
    figure = figures.hubble(rows, ours)
    assert {(r["source"], r["run"], r["metric"]) for r in figure.rows.to_dicts()} == {
        ("Hubble", "8B", "exact_match_tokens_s100"),
        ("Hubble", "8B", "byte_perplexity"),
        ("ours", "perturbed", "loglik_per_byte"),
    }
    text = svg(figure)
    assert "our run: all" in text
    assert len(symbols(text)) == 6
    with pytest.raises(UserError, match="no Hubble tables at"):
        figures.hubble_tables(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"tables": [{"task": 1}]}')
    with pytest.raises(UserError, match="holds no Hubble tables"):
        figures.hubble_tables(tmp_path / "bad.json")


@pytest.mark.slow
@pytest.mark.skipif(not TABLES.is_file(), reason=f"Hubble's tables are not at {TABLES}")
def test_all_57_published_tables_render_beside_a_run() -> None:
    rows = figures.hubble_tables(TABLES)
    assert rows["table"].n_unique() == 57
    assert rows.height == 1344 - 24 or rows.height == 1344
    ours = estimates(
        run=["perturbed"] * 3, metric="loglik_per_byte", dose=[0, 4, 64], estimate=[-2.0, -1.5, -1.0]
    )
    figure = figures.hubble(rows, ours)
    text = svg(figure)
    assert len(symbols(text)) == rows.height + 3
    mmlu = [
        r
        for r in records(figure.chart, "task")
        if r["task"] == "mmlu_hubble" and r["run"] == "(1B, perturbed)"
    ]
    assert {(r["dose"], r["estimate"]) for r in mmlu} == {
        (0, 0.25075),
        (1, 0.276417),
        (4, 0.335899),
        (16, 0.52381),
        (64, 0.993007),
        (256, 1.0),
    }
    assert mmlu[0]["low"] < mmlu[0]["estimate"] < mmlu[0]["high"]
