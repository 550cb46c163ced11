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
# # Comparing released checkpoints
#
# Models of `transformers`, by path or by name on the hub, on items of yours, by the program `palimpsest released`. So
# that this needs no network, the models here are two checkpoints of this run, exported: the perturbed one and its twin.
# Put others into `MODELS`, such as `"EleutherAI/pythia-70m"`; likelihoods are compared per byte.

# %%
import json
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import mkdtemp

import altair as alt
import polars as pl

import palimpsest

warnings.filterwarnings("ignore", module="megatron")
from palimpsest.pretrain.huggingface import export

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()
work = Path(mkdtemp())

# %% [markdown]
# ## Models
# An export that `launch/export.py` has made is used; otherwise the last checkpoint is exported into a temporary
# directory.

# %%
MODELS = {}
for which, name in (("perturbed", "perturbed"), ("twin", "standard")):
    if not run.checkpoints(which):
        continue
    step = run.checkpoints(which)[-1]
    place = run.directory / which / "export" / f"step_{step:08d}"
    if not place.is_dir():
        place = work / which
        model = export.load(run.directory / which / "checkpoints", step, eod=run.tokenizer.eod)
        export.write(model, run.tokenizer, place)
    MODELS[name] = str(place)
MODELS

# %% [markdown]
# ## Items
# A line of JSON each, with the number of times that the model read it (`dose`): `text` is scored whole; `prompt` with
# `target` or `choices` is asked.

# %%
items = work / "items.jsonl"
with items.open("w") as file:
    for row in run.plan.items.iter_rows(named=True):
        item = {"id": row["item_id"], "family": row["family"], "dose": row["dose"], "text": row["text"]}
        file.write(json.dumps(item) + "\n")
print(items.read_text().split("\n")[0])

# %%
command = [
    sys.executable,
    "-m",
    "palimpsest.launch.released",
    "+experiment=released",
    f"items={items}",
    f"runs={work}",
]
subprocess.run([*command, *(f"models.{name}={place}" for name, place in MODELS.items())], check=True)
released = palimpsest.open_run(work / "released")
released

# %% [markdown]
# ## By dose
# The run of a released model opens like one of ours: estimates, figures, tables.

# %%
means = released.estimates("loglik_per_byte").filter(
    (pl.col("family") == "all") & (pl.col("statistic") == "mean")
)
means.select("run", "metric", "dose", "estimate", "low", "high", "n")

# %%
released.figures.dose_response()

# %% [markdown]
# ## The same as the run's own scores?
# The run scored its checkpoints by itself; `transformers` reads the exported ones. The largest difference of an
# item's log-likelihood should be rounding.

# %%
own = run.metrics("loglik_per_byte", steps=[run.last_step])
both = released.metrics("loglik_per_byte").join(own, on=["run", "item_id"], suffix="_own")
both.group_by("run").agg(items=pl.len(), largest=(pl.col("value") - pl.col("value_own")).abs().max()).sort(
    "run"
)
