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
# # Writing your own metric
#
# A metric is a function from the scores of all tokens to one value a text. Registered, it is computed at every
# checkpoint of both runs, and statistics and figures take it by its name.

# %%
import altair as alt
import numpy as np
import polars as pl

import palimpsest
from palimpsest.analysis.metrics import METRICS, Parameters, Scored, Values, metric
from palimpsest.analysis.statistics import auc, mean_by_dose

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()

# %% [markdown]
# ## The metric
# The best remembered stretch of a text: the highest mean log-probability of eight tokens in a row. A model may know a
# line by heart and the rest not at all.
#
# `Scored` holds the tokens of all texts one after the other, so there is no loop over texts or tokens. What has no
# answer is told with a reason, never left out.

# %%
WINDOW = 8
METRICS.pop("best_stretch", None)  # so that this cell can be run again


@metric(
    name="best_stretch",
    needs=("verbatim",),
    formula=f"max over stretches of {WINDOW} tokens of the mean of ln p(token | before)",
    unit="nats/token",
    bounds=(-np.inf, 0.0),
    default=False,
)
def best_stretch(scored: Scored, parameters: Parameters) -> Values:
    """Highest mean log-probability of WINDOW tokens in a row."""
    total = np.concatenate([[0.0], np.cumsum(scored.logprob)])
    ends = np.minimum(np.arange(len(scored.logprob)) + WINDOW, len(scored.logprob))
    mean = (total[ends] - total[:-1]) / WINDOW
    # A stretch must end inside its own text.
    whole = scored.position + WINDOW <= np.repeat(scored.lengths, scored.lengths)
    best = np.maximum.reduceat(np.where(whole, mean, -np.inf), scored.starts) if len(mean) else np.zeros(0)
    return Values(best, scored.lengths >= WINDOW, f"it is shorter than {WINDOW} tokens")


# %% [markdown]
# ## Try it on an answer that you know
# Before it is believed, on a case worked out by hand: eight tokens of -1 among tokens of -3 give -1.

# %%
logprob = np.full(20, -3.0)
logprob[5 : 5 + WINDOW] = -1.0
case = Scored(
    rows=pl.DataFrame({"probe_id": ["a", "b"]}),
    starts=np.array([0, 20]),
    lengths=np.array([20, 3]),
    target_starts=np.zeros(2, np.int64),
    target_bytes=np.ones(2, np.int64),
    logprob=np.concatenate([logprob, [-1.0, -1.0, -1.0]]),
    rank=np.zeros(23, np.int64),
)
answer = best_stretch(case, Parameters())
assert np.isclose(answer.value[0], -1.0)
assert not answer.valid[1]  # three tokens have no stretch of eight
answer

# %% [markdown]
# ## On the run

# %%
rows = run.metrics("best_stretch", steps=[run.last_step])
mean_by_dose(rows).filter(pl.col("family") == "all").select("run", "dose", "estimate", "low", "high", "n")

# %%
rows.filter(pl.col("value").is_null()).group_by("family", "reason").len()

# %%
run.figures.dose_response("best_stretch")

# %% [markdown]
# ## Its null test
# With doses dealt out anew among the items of a family, there is nothing to find: an AUC that is far from 0.5 then
# would mean that the metric, not the memory, tells them apart.

# %%
own = rows.filter(pl.col("run") == "perturbed")
shuffled = own.with_columns(pl.col("dose").shuffle(seed=0).over("family"))
highest = own["dose"].max()
pl.concat(
    [
        auc(own).with_columns(doses=pl.lit("as inserted")),
        auc(shuffled).with_columns(doses=pl.lit("shuffled")),
    ]
).filter((pl.col("family") == "all") & (pl.col("dose") == highest)).select(
    "doses", "estimate", "low", "high", "n"
)

# %% [markdown]
# To keep it, put the function into a file of `analysis/metrics/`, with a test on the worked case and the null test.
