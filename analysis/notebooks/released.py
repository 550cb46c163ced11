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
# Models of `transformers`, by path or by name on the hub, on items of yours. So that this needs no network, the
# models here are two checkpoints of this run, exported: the perturbed one and its twin. Put others into `MODELS`,
# such as `"pythia": "EleutherAI/pythia-70m"`; nothing else changes, since likelihoods are compared per byte.

# %%
import json
import warnings
from pathlib import Path
from tempfile import mkdtemp

import altair as alt
import polars as pl
import torch

import palimpsest
from palimpsest.analysis.metrics import compute
from palimpsest.analysis.scoring import released
from palimpsest.analysis.statistics import mean_by_dose

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
for which in ("perturbed", "twin"):
    if not run.checkpoints(which):
        continue
    step = run.checkpoints(which)[-1]
    place = run.directory / which / "export" / f"step_{step:08d}"
    if not place.is_dir():
        place = work / which
        model = export.load(run.directory / which / "checkpoints", step, eod=run.tokenizer.eod)
        export.write(model, run.tokenizer, place)
    MODELS[which] = str(place)
MODELS

# %% [markdown]
# ## Items
# A line of JSON each: `text` is scored whole; `prompt` with `target` or `choices` is asked.

# %%
items = work / "items.jsonl"
with items.open("w") as file:
    for row in run.plan.items.iter_rows(named=True):
        file.write(json.dumps({"id": row["item_id"], "family": row["family"], "text": row["text"]}) + "\n")
print(items.read_text().splitlines()[0])

# %%
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tables, probes = [], None
for name, model in MODELS.items():
    released.score(model, items, work / f"scores-{name}", device=device)
    probes = pl.read_parquet(work / f"scores-{name}" / "probes.parquet")
    scores = pl.read_parquet(work / f"scores-{name}" / "step_00000000" / "scores.parquet")
    scores = scores.with_columns(run=pl.lit(name), step=pl.lit(0, pl.Int64))
    tables.append(compute(run.plan.items, probes, scores, ["loglik_per_byte", "exact_match"]))
rows = pl.concat(tables)
rows.head()

# %% [markdown]
# ## By dose

# %%
means = mean_by_dose(rows).filter(pl.col("family") == "all")
means.select("run", "metric", "dose", "estimate", "low", "high", "n")

# %%
likely = means.filter(pl.col("metric") == "loglik_per_byte").select("run", "dose", "estimate", "low", "high")
base = alt.Chart(alt.Data(values=likely.to_dicts())).encode(
    alt.X("dose:O", axis=alt.Axis(labelAngle=0)), color="run:N", shape="run:N"
)
alt.layer(
    base.mark_rule().encode(
        alt.Y("low:Q", title="log-likelihood (nats/byte)", scale=alt.Scale(zero=False)), alt.Y2("high")
    ),
    base.mark_point(filled=True, size=60).encode(alt.Y("estimate:Q")),
).properties(width=420, height=240)

# %% [markdown]
# ## The same as the run's own scores?
# The run scored its checkpoints by itself; `transformers` reads the exported ones. The largest difference of an
# item's log-likelihood should be rounding.

# %%
own = run.metrics("loglik_per_byte", steps=[run.last_step])
both = rows.filter(pl.col("metric") == "loglik_per_byte").join(own, on=["run", "item_id"], suffix="_own")
both.group_by("run").agg(items=pl.len(), largest=(pl.col("value") - pl.col("value_own")).abs().max()).sort(
    "run"
)
