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
# drawn as in their big plot: duplicates on a logarithmic axis with 0 apart, one panel a task and measure, one line
# a model. This run's own measures stand in the same form after them. `PALIMPSEST_HUBBLE` names the JSON file with
# the tables; without it only our run is drawn.

# %%
import os
from pathlib import Path

import altair as alt
import polars as pl

import palimpsest
from palimpsest.analysis import figures

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()
path = Path(os.environ.get("PALIMPSEST_HUBBLE", "hubble_tables.json"))
hubble = figures.hubble_tables(path) if path.is_file() else pl.DataFrame()
print(f"tables from {path}" if hubble.height else f"there is no {path}: set PALIMPSEST_HUBBLE")

# %% [markdown]
# ## The tables as rows
# Limits are exact where a measure counts items; of averages and likelihoods the spread was not published.

# %%
hubble

# %%
if hubble.height:
    shown = hubble.group_by("metric", maintain_order=True).agg(
        tables=pl.col("table").n_unique(), tasks=pl.col("task").n_unique()
    )
else:
    shown = "no tables"
shown

# %% [markdown]
# ## Our run
# Log-likelihood of the items, which is what Hubble's panels of byte perplexity show, and verbatim extraction, by
# family.

# %%
mine = run.estimates("loglik_per_byte", "extracted").filter(
    (pl.col("step") == run.last_step)
    & (pl.col("statistic") == "mean")
    & pl.col("run").is_in(["perturbed", "twin"])
    & (pl.col("family") != "all")
    & pl.col("dose").is_not_null()
)
mine.select("run", "metric", "family", "dose", "estimate", "low", "high", "n")

# %% [markdown]
# ## Side by side

# %%
if hubble.height:
    plot = figures.hubble(hubble, ours=mine)
    drawn = plot.rows.filter(pl.col("source") == "Hubble")["table"].n_unique()
    print(f"{drawn} of {hubble['table'].n_unique()} tables drawn")
else:
    plot = run.figures.dose_response("loglik_per_byte")
plot
