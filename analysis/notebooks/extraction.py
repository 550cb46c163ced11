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
# # Extraction
#
# Which items does the model give back word for word? Greedy decoding reproduces a stretch exactly when each of its
# tokens is the model's first choice given those before, so one scoring pass answers for every length of prompt and of
# continuation, and nothing is generated here.

# %%
import altair as alt
import polars as pl

import palimpsest
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.statistics import mean_by_dose, per_item

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()
longest = int(run.plan.items["length"].max())
PREFIXES = [k for k in (1, 2, 4, 8, 16, 32, 50) if k + 4 <= longest]
SUFFIX = run.parameters.suffix
last = [run.last_step]
print(f"items have up to {longest} tokens; the report asks for {SUFFIX} tokens after {run.parameters.prefix}")

# %% [markdown]
# ## By length of the prompt
# Share of items of which the next tokens are reproduced, with exact (Clopper-Pearson) intervals; `n` falls as items
# become too short for the question.

# %%
suffix = min(SUFFIX, longest - max(PREFIXES))
rates = pl.concat(
    mean_by_dose(run.metrics("extracted", steps=last, prefix=k, suffix=suffix), bounds=(0, 1)).with_columns(
        prefix=pl.lit(k)
    )
    for k in PREFIXES
).filter((pl.col("family") == "all") & pl.col("estimate").is_not_null())
rates.filter(pl.col("run") == "perturbed").select("prefix", "dose", "estimate", "low", "high", "n")

# %%
base = alt.Chart(
    alt.Data(values=rates.select("run", "prefix", "dose", "estimate", "low", "high").to_dicts())
).encode(alt.X("prefix:O", title=f"tokens of prompt ({suffix} to reproduce)", axis=alt.Axis(labelAngle=0)))
offset, colour = alt.XOffset("dose:O"), alt.Color("dose:O", scale=alt.Scale(scheme="viridis"))
alt.layer(
    base.mark_rule().encode(alt.Y("low:Q", title="share extracted"), alt.Y2("high"), offset, colour),
    base.mark_point(filled=True).encode(alt.Y("estimate:Q"), offset, colour),
).properties(width=270, height=220).facet(column=alt.Column("run:N", title=None))

# %% [markdown]
# ## Short of extraction
# Few items are reproduced whole by a small model. These say how near they come: the share of tokens that are the
# first choice, the longest stretch reproduced after the prompt, and the share of an item that the rest of it gives
# away.

# %%
NEAR = ["exact_match", "longest_extracted", "extraction_strength"]
near = run.metrics(*NEAR, steps=last)
means = mean_by_dose(near, bounds=(0, 1)).filter(pl.col("family") == "all")
for name in NEAR:
    print(f"{name}: {METRICS[name].formula}, {METRICS[name].unit}")
means.pivot("metric", index=["run", "dose"], values="estimate")

# %% [markdown]
# ## By sampling
# Chance that at least one of n samples (temperature 1) contains the continuation: `1 - (1 - p)^n`, from the
# continuation's probability alone, whatever n.

# %%
samples = [1, 100, 10_000, 1_000_000]
discovered = pl.concat(
    mean_by_dose(
        run.metrics("np_discoverable", steps=last, suffix=suffix, queries=n), bounds=(0, 1)
    ).with_columns(samples=pl.lit(n))
    for n in samples
).filter((pl.col("family") == "all") & (pl.col("run") == "perturbed") & pl.col("estimate").is_not_null())
discovered.pivot("samples", index="dose", values="estimate")

# %% [markdown]
# ## The items that come nearest
# Examples, chosen for being extreme.

# %%
(
    per_item(near.filter((pl.col("metric") == "longest_extracted") & (pl.col("run") == "perturbed")))
    .rename({"unit": "item_id", "value": "tokens reproduced"})
    .join(run.plan.items.select("item_id", "length", "text"), on="item_id")
    .sort("tokens reproduced", descending=True)
    .select("item_id", "dose", "length", "tokens reproduced", "text")
    .head(8)
)
