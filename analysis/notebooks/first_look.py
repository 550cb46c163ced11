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
# # First look at a run
#
# What was inserted, whether the model saw exactly that, and what it remembers. All notebooks open the run that the
# environment variable `PALIMPSEST_RUN` names, or else the newest in `runs/`. Every number comes from the run's files.

# %%
import altair as alt
import polars as pl

import palimpsest
from palimpsest.analysis.report import answer
from palimpsest.analysis.report.results import item_gains

alt.renderers.enable("svg")  # charts are drawn here, without a network
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()  # or palimpsest.open_run("runs/quickstart")
run

# %% [markdown]
# ## What was inserted
# Items by family and dose. Dose 0 is the control: assigned by the same randomisation, never inserted.

# %%
run.plan.items.sort("dose").pivot("dose", index="family", values="item_id", aggregate_function="len")

# %%
run.exposures.select("step", "item_id", "position", "offset").head()

# %% [markdown]
# ## Did the model see exactly that?
# The ledger is what the trainer consumed. Every planned exposure should be in it, at its place, and no other.

# %%
planned = run.exposures.select("position", "item_id", "offset")
consumed = run.ledger.exposures.select("position", "item_id", "offset")
pl.DataFrame(
    {
        "planned": [planned.height],
        "consumed": [consumed.height],
        "planned, not consumed": [planned.join(consumed, on=planned.columns, how="anti").height],
        "consumed, not planned": [consumed.join(planned, on=planned.columns, how="anti").height],
    }
)

# %% [markdown]
# The audit proves more: hashes of all windows, against the plan, the corpus and the twin.

# %%
pl.DataFrame(run.audit["checks"]).select(
    "name", "passed", "detail"
) if run.audit else "no audit yet: run launch/audit.py"

# %% [markdown]
# ## Training

# %%
run.figures.training_curves()

# %% [markdown]
# ## What it remembers

# %%
conclusion = answer(run.inputs(), run.results)
print(conclusion.headline)
print(conclusion.detail)

# %%
run.figures.dose_response()

# %% [markdown]
# ## One item, token by token
# The inserted item that gained most over the twin, which read the same text without it. Likely tokens are dark. It
# was chosen for being extreme: an example, not an estimate.

# %%
item = item_gains(run.results, run.inputs()).row(0, named=True)["item_id"]
by_token = run.tokens(item)
run.figures.token_strip(by_token)

# %%
by_token.pivot("run", index=["position", "token"], values="logprob")
