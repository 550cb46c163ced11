# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Hubble's tables beside our run
#
# What the Hubble models (Wei et al., 2025) remembered at each number of duplicates, as their notebook printed it,
# drawn as in their big plot: duplicates on a logarithmic axis with 0 apart, one panel a task, one line a model.
# Below, this run's own measures in the same form. `PALIMPSEST_HUBBLE` names the JSON file with the tables: a list
# `tables` of `task`, `metric` and `values` (model -> duplicates -> value). Without it only our run is drawn.

# %%
import json
import os
from pathlib import Path

import altair as alt
import polars as pl
from IPython.display import display

import analysis
from analysis import figures

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = analysis.open_run()
path = Path(os.environ.get("PALIMPSEST_HUBBLE", "hubble_tables.json"))
tables = json.loads(path.read_text())["tables"] if path.is_file() else []
print(f"{len(tables)} tables in {path}" if tables else f"there is no {path}: set PALIMPSEST_HUBBLE")

# %% [markdown]
# ## The tables as rows
# The same columns as our estimates have; Hubble printed no intervals.

# %%
hubble = pl.DataFrame(
    [
        {
            "family": table["task"],
            "metric": table["metric"],
            "run": model.strip("()"),
            "dose": int(dose),
            "estimate": float(value),
        }
        for table in tables
        for model, by_dose in table["values"].items()
        for dose, value in by_dose.items()
    ],
    schema={
        "family": pl.String,
        "metric": pl.String,
        "run": pl.String,
        "dose": pl.Int32,
        "estimate": pl.Float64,
    },
).with_columns(
    step=pl.lit(0, pl.Int64),
    statistic=pl.lit("mean"),
    low=pl.lit(None, pl.Float64),
    high=pl.lit(None, pl.Float64),
    n=pl.lit(None, pl.Int64),
)
hubble.select("family", "metric").unique().group_by("metric").len().sort("metric")


# %%
def panels(rows: pl.DataFrame, metric: str) -> alt.TopLevelMixin:
    """One panel a task, one line a model."""
    own = rows.filter(pl.col("metric") == metric)
    tasks = own["family"].unique(maintain_order=True).to_list()
    return figures.dose_response(
        own, metric, title=metric, y_title=metric, families=tasks, width=230, height=170
    )


# %% [markdown]
# ## Hubble
# Each metric with all tasks that have it.

# %%
drawn = []
for metric in hubble["metric"].unique(maintain_order=True):
    figure = panels(hubble, metric)
    drawn.append(figure)
    display(figure)
f"{sum(figure.rows.select('family', 'metric').unique().height for figure in drawn)} of {len(tables)} tables drawn"

# %% [markdown]
# ## Our run
# Log-likelihood of the items, by family, which stands for Hubble's panels of byte perplexity; and verbatim
# extraction.

# %%
families = sorted(run.items["family"].unique())
run.figures.dose_response("loglik_per_byte", families=families, width=230, height=170)

# %%
run.figures.dose_response("verbatim", families=families, width=230, height=170)
