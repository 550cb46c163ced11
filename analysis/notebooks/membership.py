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
# # Membership attacks on your run
#
# Can an attacker who sees the model's token probabilities tell inserted items from others? Here members and
# non-members were drawn from one generator, so a difference can only come from the insertions. The twin, which
# never saw any of them, is the check: every attack must be at chance there.

# %%
import altair as alt
import polars as pl

import palimpsest
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.metrics.membership import bag_of_words_auc
from palimpsest.analysis.statistics import auc, per_item, tpr_at_fpr

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()
ATTACKS = ["loglik_per_token", "zlib_ratio", "min_k_logprob", "min_k_plus_plus", "reference_difference"]
pl.DataFrame({"attack": ATTACKS, "score": [METRICS[name].formula for name in ATTACKS]})

# %% [markdown]
# ## AUC by dose
# Within families, DeLong intervals. `reference_difference` takes the twin as reference model: the best an attacker
# could have, and not defined on the twin itself.

# %%
rows = run.metrics(*ATTACKS, steps=[run.last_step])
areas = auc(rows).filter(pl.col("family") == "all")
areas.filter(pl.col("run") == "perturbed").pivot("dose", index="metric", values="estimate")

# %%
chart = alt.Chart(
    alt.Data(values=areas.select("run", "metric", "dose", "estimate", "low", "high").to_dicts())
)
x, attack = alt.X("dose:O", axis=alt.Axis(labelAngle=0)), alt.XOffset("metric:N")
alt.layer(
    chart.mark_rule().encode(x, alt.Y("low:Q", title="AUC"), alt.Y2("high"), attack, alt.Color("metric:N")),
    chart.mark_point(filled=True).encode(
        x, alt.Y("estimate:Q"), attack, alt.Color("metric:N"), alt.Shape("metric:N")
    ),
).properties(width=260, height=240).facet(column=alt.Column("run:N", title=None))

# %% [markdown]
# ## ROC
# Of the highest dose, on linear axes and on logarithmic ones, where low false positive rates show.

# %%
run.figures.roc()

# %% [markdown]
# ## At a low false positive rate
# Of the highest dose, at most 5 % of the controls called: with n controls no rate below 1/n can be told apart from 0,
# and scores that say nothing would reach `chance_high` once in forty times. Scores are standardised by the controls
# of their family first, since kinds of text differ.

# %%
items = per_item(rows).filter(pl.col("dose").is_not_null())
control = pl.col("value").filter(pl.col("dose") == 0)
standard = items.with_columns(
    score=(pl.col("value") - control.mean().over("run", "metric", "family"))
    / control.std().over("run", "metric", "family")
).filter(pl.col("score").is_finite())
highest = standard["dose"].max()


def low_fpr(part: pl.DataFrame) -> dict[str, object]:
    """TPR at FPR <= 5 % with its exact interval, and what chance gives."""
    rate = tpr_at_fpr(
        part.filter(pl.col("dose") == highest)["score"].to_numpy(),
        part.filter(pl.col("dose") == 0)["score"].to_numpy(),
        0.05,
    )
    columns = ("tpr", "low", "high", "fpr", "chance_high", "members", "controls")
    return {name: getattr(rate, name) for name in columns}


pl.DataFrame(
    [
        {"run": which, "attack": name, **low_fpr(part)}
        for (which, name), part in standard.group_by("run", "metric", maintain_order=True)
    ]
)

# %% [markdown]
# ## The blind baseline
# A classifier that sees the texts and no model. Where members and controls are exchangeable it is at 0.5, give or
# take the chance of so few texts; a data set on which it is not shows a difference between texts, not memory.

# %%
for (family,), part in run.plan.items.group_by("family", maintain_order=True):
    members = part.filter(pl.col("dose") == highest)["text"].to_list()
    controls = part.filter(pl.col("dose") == 0)["text"].to_list()
    folds = min(5, len(members), len(controls))
    print(
        f"{family}: {bag_of_words_auc(members, controls, folds=folds):.2f} (n = {len(members)} + {len(controls)})"
    )

# %% [markdown]
# ## Over training

# %%
attack = "min_k_plus_plus"
every = auc(run.metrics(attack)).filter((pl.col("family") == "all") & (pl.col("dose") == highest))
alt.Chart(alt.Data(values=every.select("run", "step", "estimate", "low", "high").to_dicts())).mark_line(
    point=True
).encode(
    alt.X("step:Q"),
    alt.Y("estimate:Q", title="AUC", scale=alt.Scale(zero=False)),
    alt.Color("run:N"),
    alt.StrokeDash("run:N"),
).properties(width=520, height=220, title=f"{attack}, dose {highest}")
