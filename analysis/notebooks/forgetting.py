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
# # Forgetting across checkpoints
#
# What happens to an item after its exposures: the gain over the twin against the steps since the last exposure,
# before a checkpoint. Items differ in when they were exposed, at random, so time since exposure and time in training
# come apart.

# %%
import altair as alt
import numpy as np
import polars as pl

import palimpsest
from palimpsest.analysis.statistics import FAMILIES, cluster_mean, difference_to_twin, fit_curve, per_item

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()
METRIC = "loglik_per_byte"
run

# %% [markdown]
# ## Over training
# Gain over dose 0 at every checkpoint, by dose, with the exposures beneath.

# %%
run.figures.over_training(METRIC, statistic="gain", title="Gain over dose 0", y_title="gain (nats/byte)")

# %% [markdown]
# ## Since the last exposure
# One row an item and checkpoint: the difference from the twin, less that of the never-inserted items at the same
# checkpoint and family, and how many steps ago the item was last seen (1: in the last step before the checkpoint).
# Negative: the exposure is still to come (items of dose 1 only), where nothing but chance should be found. What was
# seen long ago was also seen early, by a model that had learned little: read this beside the figure above.

# %%
values = per_item(difference_to_twin(run.metrics(METRIC))).rename({"unit": "item_id"})
never = values.filter(pl.col("dose") == 0).group_by("step", "family").agg(control=pl.col("value").mean())
exposed = (
    values.filter(pl.col("dose") > 0)
    .join(never, on=["step", "family"])
    .with_columns(gain=pl.col("value") - pl.col("control"))
    .join(run.exposures.select("item_id", exposed="step"), on="item_id")
    .with_columns(since=pl.col("step") - pl.col("exposed"))
)
past = (
    exposed.filter(pl.col("since") > 0)
    .group_by("item_id", "family", "dose", "step", "gain")
    .agg(pl.col("since").min(), exposures=pl.len())
)
to_come = (
    exposed.filter((pl.col("dose") == 1) & (pl.col("since") <= 0))
    .select("item_id", "family", "dose", "step", "gain", "since")
    .with_columns(exposures=pl.lit(0, pl.UInt32))
)
rows = pl.concat([past, to_come.select(past.columns)])
rows.sort("item_id", "step").head(10)


# %%
def summary(rows: pl.DataFrame) -> dict[str, float]:
    """Mean gain with a 95 % interval over items, not over their checkpoints, which are not independent."""
    items = rows["item_id"].rank("dense").to_numpy()
    mean = cluster_mean(rows["gain"].to_numpy(), items)
    return {
        "estimate": mean.estimate,
        "low": mean.low,
        "high": mean.high,
        "items": rows["item_id"].n_unique(),
    }


# Stretches of time that double: 1, 2 to 3, 4 to 7, ... steps ago; what is to come is one stretch.
stretches = rows.with_columns(
    stretch=pl.when(pl.col("since") > 0).then(pl.col("since").cast(pl.Float64).log(2).floor()).otherwise(-1)
)
table = pl.DataFrame(
    [
        {"dose": int(dose), "stretch": stretch, "steps ago": part["since"].mean(), **summary(part)}
        for (dose, stretch), part in stretches.group_by("dose", "stretch")
        if part["item_id"].n_unique() > 1
    ]
).sort("dose", "stretch")
table

# %%
curves = alt.Chart(alt.Data(values=table.filter(pl.col("stretch") >= 0).to_dicts())).encode(
    alt.X("steps ago:Q", scale=alt.Scale(type="log"), title="steps since the last exposure (log scale)"),
    alt.Color("dose:O", scale=alt.Scale(scheme="viridis")),
)
alt.layer(
    curves.mark_area(opacity=0.15).encode(alt.Y("low:Q"), alt.Y2("high")),
    curves.mark_line(point=True).encode(alt.Y("estimate:Q", title="gain over controls (nats/byte)")),
).properties(width=520, height=280, title="Gain by time since the last exposure")

# %% [markdown]
# ## A single exposure
# Items of dose 1 before and after the one time that they were read; before it, shaded, the effect should be 0.

# %%
run.figures.event_study(y_title="gain over controls (nats/byte)")

# %% [markdown]
# ## Which curve?
# Six families by AICc, for the dose with the most stretches. Telling them apart takes eight checkpoints over three
# decades of time; with fewer, the ranking is a description of this run and nothing more.

# %%
usable = table.filter(pl.col("stretch") >= 0)
dose = usable.group_by("dose").len().sort("len", "dose")["dose"][-1]
curve = usable.filter(pl.col("dose") == dose).sort("steps ago")
times = curve["steps ago"].to_numpy()
if len(times) >= 4:
    fits = sorted(
        (fit_curve(times, curve["estimate"].to_numpy(), name) for name in FAMILIES), key=lambda f: f.aicc
    )
    print(f"dose {dose}: {len(times)} stretches over {np.log10(times[-1] / times[0]):.1f} decades")
    shown = pl.DataFrame(
        {
            "family": [fit.family for fit in fits],
            "formula": [FAMILIES[fit.family].formula for fit in fits],
            "AICc": [fit.aicc for fit in fits],
            "parameters": [", ".join(f"{k} = {v:.3g}" for k, v in fit.parameters.items()) for fit in fits],
        }
    )
else:
    shown = f"only {len(times)} stretches of time: a curve takes four"
shown
