"""Every notebook runs to its end on a small run, and its prose has no results in it."""

import json
import re

import pytest

from tests.conftest import REPO

NOTEBOOKS = sorted((REPO / "analysis" / "notebooks").glob("*.py"))
TABLES = [
    {
        "task": "a",
        "metric": "acc",
        "values": {"(1B, perturbed)": {"0": 0.3, "1": 0.3, "16": 0.7, "256": 1.0}},
    },
    {"task": "b", "metric": "acc", "values": {"1B-100B-perturbed": {"0": 0.2, "256": 0.9}}},
    {"task": "a", "metric": "byte_perplexity", "values": {"1B-100B-perturbed": {"0": 0.5, "4": 0.6}}},
]
"""In the form of Hubble's."""

HOLDS = {
    "biographies": """
import math
assert math.isclose(known_bits, math.log2(28 * 12 * 200 / 2) + math.log2(16 * 32 * 32 / 2))
assert set(leaked["people"]) == {4} and set(accuracy["chance"]) == {0.25}
from palimpsest.analysis.run.rows import choices
fields = choices(run).group_by("run", "dose").agg(right=(pl.col("estimate") * pl.col("n")).sum(), n=pl.col("n").sum())
both = accuracy.join(fields, on=["run", "dose"], suffix="_by_field")
assert both.height == 8 and (both["right"] - both["right_by_field"]).abs().max() < 1e-9
assert (both["n"] == both["n_by_field"]).all()
""",
    "dose_response": """
reported = pl.read_csv(run.directory / "report" / "estimates.csv", infer_schema_length=None).filter(
    (pl.col("metric") == METRIC) & (pl.col("statistic") == "gain") & (pl.col("family") == "all")
    & (pl.col("step") == 40) & (pl.col("run") == "perturbed - twin"))
assert deciding["estimate"].to_list() == reported["estimate"].to_list() and deciding.height == 3
""",
    "extraction": """
hits = run.scores.filter((pl.col("step") == 40) & (pl.col("run") == "perturbed")).join(
    run.probes.filter(pl.col("kind") == "verbatim"), on="probe_id").join(run.plan.items, on="item_id")
first = hits.filter((pl.col("dose") == 16) & (pl.col("length") >= 8))["rank"].list.slice(4, 4).list.max() == 0
shown = rates.filter((pl.col("run") == "perturbed") & (pl.col("dose") == 16) & (pl.col("prefix") == 4))
shown = shown.row(0, named=True)
assert suffix == 4 and (shown["estimate"], shown["n"]) == (first.mean(), len(first))
""",
    "first_look": """
assert planned.sort(planned.columns).equals(consumed.sort(planned.columns)) and planned.height == 4 * 3 * (1 + 4 + 16)
text = run.plan.items.filter(pl.col("item_id") == item)["text"][0]
assert "".join(by_token.filter(pl.col("run") == "twin")["token"]) == text
""",
    "forgetting": """
assert (rows.filter(pl.col("since") <= 0)["dose"] == 1).all() and rows["since"].max() <= 40
assert {-1.0, 0.0} <= set(table["stretch"])
""",
    "hubble": """
drawn = plot.rows.filter(pl.col("source") == "Hubble")
assert drawn.height == 4 + 2 + 2 and drawn["table"].n_unique() == 3
assert set(plot.rows.filter(pl.col("source") != "Hubble")["metric"]) == {"loglik_per_byte", "extracted"}
""",
    "membership": """
assert areas.filter(pl.col("run") == "twin")["metric"].n_unique() == 4  # the twin is no reference to itself
assert set(areas["n"]) == {12} and areas["estimate"].is_between(0, 1).all()
""",
    "own_metric": "assert 'best_stretch' in METRICS",
    "released": """
assert both.height == 96 and (both["value"] - both["value_own"]).abs().max() < 1e-5
""",
}
"""What must be so after a notebook: code that is run in its kernel."""


def read(path):
    return pytest.importorskip("jupytext", reason="pip install -e '.[notebooks]'").read(path)


def test_all_of_them_are_there():
    assert {path.stem for path in NOTEBOOKS} == set(HOLDS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_has_no_results(path):
    """A number that one run gave would be wrong in the next one."""
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert len(prose) > 200
    plain = re.sub(r"`[^`]*`|\b(?:19|20)\d\d\b", "", prose)  # code, years
    assert not re.findall(r"\d\.\d\d|\d\d+ (?:items|steps|exposures)", plain)


@pytest.mark.slow
def test_they_run(finished, tmp_path, monkeypatch):
    """One after the other in one kernel, which saves the imports; each begins with nothing defined."""
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[notebooks]'")
    import nbformat

    (tmp_path / "tables.json").write_text(json.dumps({"tables": TABLES}))
    monkeypatch.setenv("PALIMPSEST_RUN", str(finished))
    monkeypatch.setenv("PALIMPSEST_HUBBLE", str(tmp_path / "tables.json"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    whole = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
        whole.cells += [
            nbformat.v4.new_code_cell(source) for source in ("%reset -f", *code, HOLDS[path.stem])
        ]
    client = nbclient.NotebookClient(
        whole, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output for cell in whole.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/svg+xml" in output["data"] for output in shown) >= 16
