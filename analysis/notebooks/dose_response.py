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
# # Dose-response
#
# How does what the model remembers grow with the number of insertions? Levels, gains over the never-inserted
# controls, the lowest dose that shows an effect, and the dose of half the effect.

# %%
import altair as alt
import polars as pl

import palimpsest
from palimpsest.analysis.statistics import (
    PAIRED,
    curve_ec50,
    difference_to_twin,
    minimum_effective_dose,
    per_item,
)

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()
METRIC = "loglik_per_byte"  # any of analysis.metrics.METRICS
run

# %% [markdown]
# ## Levels
# Means with 95 % intervals. The twin read the same windows and never saw the items: its line should be flat.

# %%
run.figures.dose_response(METRIC)

# %%
final = run.estimates(METRIC).filter((pl.col("step") == run.last_step) & (pl.col("family") == "all"))
final.filter(pl.col("statistic") == "mean").select("run", "dose", "estimate", "low", "high", "n", "method")

# %% [markdown]
# ## Gains over dose 0
# Items of one run also differ in how hard they are. `perturbed - twin` compares each item with itself, so its
# intervals are narrower; it decides. `p` is of a permutation test within strata.

# %%
gains = final.filter((pl.col("statistic") == "gain") & (pl.col("dose") > 0))
gains.select("run", "dose", "estimate", "low", "high", "n", "n_control", "p")

# %%
deciding = gains.filter(pl.col("run") == (PAIRED if PAIRED in gains["run"] else "perturbed"))
lowest = minimum_effective_dose(deciding)
print("no dose shows an effect" if lowest is None else f"the effect is shown from dose {lowest} on")

# %% [markdown]
# ## The dose of half the effect
# A logistic curve over log2(dose), fitted to the items' differences from the twin, with a profile interval. It takes
# four doses, 0 among them. Beyond the highest dose means: the curve had not bent yet; not reached: there is no effect.

# %%
items = per_item(difference_to_twin(run.metrics(METRIC, steps=[run.last_step]))).filter(
    pl.col("dose").is_not_null()
)
if items["dose"].n_unique() >= 4:
    ec50 = curve_ec50(*(items[name].to_numpy() for name in ("value", "dose", "stratum", "cluster")))
    print(f"EC50: {ec50.text} ({ec50.method})")
else:
    print(f"doses {sorted(items['dose'].unique())} with a twin are fewer than four: no curve is identified")

# %% [markdown]
# ## Families

# %%
run.figures.dose_response(METRIC, families=sorted(run.plan.items["family"].unique()), width=230, height=190)

# %% [markdown]
# ## Save it for a paper
# PNG, SVG and PDF in the width of a column, and the rows drawn as CSV.

# %%
from pathlib import Path
from tempfile import mkdtemp

from palimpsest.analysis import figures

target = Path(mkdtemp())
figures.save(run.figures.dose_response(METRIC), target / "dose_response", style="paper", width="single")
sorted(path.name for path in target.iterdir())
