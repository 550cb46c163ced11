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
# # Biographies and capacity
#
# Invented people, whose attributes were drawn uniformly: how many bits each attribute carries is known, so what the
# model knows can be counted in bits. Runs on any run with the family `biographies`, such as the quickstart.

# %%
import altair as alt
import polars as pl

import palimpsest
from palimpsest.analysis.metrics.capacity import bio_s_capacity
from palimpsest.analysis.metrics.contamination import choose
from palimpsest.analysis.metrics.personal import bits_leaked
from palimpsest.analysis.statistics import clopper_pearson, cluster_mean
from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import ModelConfig

alt.renderers.enable("svg")
pl.Config.set_fmt_str_lengths(100).set_tbl_rows(20)
run = palimpsest.open_run()
people = run.plan.items.filter(pl.col("family") == "biographies")
if people.is_empty():
    raise UserError(f"{run.name} has no biographies; open a run that has, such as the quickstart")
people.select("item_id", "dose", "bits", "text").head()

# %% [markdown]
# ## What is asked
# Clozes: the value of an attribute given the name, the name and another attribute, or all of the text before. The
# score of an answer is the sum of its tokens' log-probabilities.

# %%
asked = run.probes.filter((pl.col("family") == "biographies") & pl.col("kind").is_in(["cloze", "choice"]))
answers = (
    run.scores.filter(pl.col("step") == run.last_step)
    .join(asked, on="probe_id")
    .with_columns(
        loglik=pl.col("logprob").list.slice(pl.col("target_start")).list.sum().cast(pl.Float64),
        given=pl.col("name").str.extract(r" (given .*)$"),
        attribute=pl.col("name").str.split(" ").list.first(),
    )
    .join(people.select("item_id", "dose"), on="item_id")
)
answers.select("run", "item_id", "dose", "kind", "name", "correct", "loglik").head()

# %% [markdown]
# ## Bits leaked
# `log2 p(answer) - log2 p(answer under the twin)`: what the insertions told. Intervals are over people, since the
# answers of one person are not independent.

# %%
clozes = answers.filter(pl.col("kind") == "cloze")
pairs = clozes.filter(pl.col("run") == "perturbed").join(
    clozes.filter(pl.col("run") == "twin").select("probe_id", twin="loglik"), on="probe_id"
)
pairs = pairs.with_columns(bits=pl.Series(bits_leaked(pairs["loglik"].to_numpy(), pairs["twin"].to_numpy())))


def over_people(rows: pl.DataFrame) -> dict[str, float]:
    """Mean bits with a 95 % interval over people."""
    mean = cluster_mean(rows["bits"].to_numpy(), rows["item_id"].rank("dense").to_numpy())
    return {
        "bits": mean.estimate,
        "low": mean.low,
        "high": mean.high,
        "people": rows["item_id"].n_unique(),
    }


leaked = pl.DataFrame(
    [
        {"attribute": attribute, "given": given, "dose": dose, **over_people(part)}
        for (attribute, given, dose), part in pairs.group_by("attribute", "given", "dose")
    ]
).sort("attribute", "given", "dose")
leaked

# %%
base = alt.Chart(alt.Data(values=leaked.to_dicts())).encode(
    alt.X("dose:O", axis=alt.Axis(labelAngle=0)),
    xOffset="given:N",
    color=alt.Color("given:N", legend=alt.Legend(orient="bottom", columns=1, labelLimit=400)),
)
alt.layer(
    base.mark_rule().encode(alt.Y("low:Q", title="bits leaked"), alt.Y2("high")),
    base.mark_point(filled=True).encode(alt.Y("bits:Q")),
).properties(width=230, height=200).facet(column=alt.Column("attribute:N", title=None))

# %% [markdown]
# ## Choice among decoys
# The value against reserved decoys from the same space, which were inserted nowhere. Recognising is easier than
# recalling: look at both.

# %%
questions = [
    {
        "run": which,
        "dose": dose,
        "right": bool(part["correct"][choose(part["loglik"].to_numpy()).raw]),
        "of": part.height,
    }
    for (which, dose, _, _), part in answers.filter(pl.col("kind") == "choice").group_by(
        "run", "dose", "item_id", "name", maintain_order=True
    )
]
accuracy = (
    pl.DataFrame(questions)
    .group_by("run", "dose")
    .agg(pl.col("right").sum(), n=pl.len(), chance=(1 / pl.col("of")).mean())
)
low, high = clopper_pearson(accuracy["right"].to_numpy(), accuracy["n"].to_numpy())
accuracy.with_columns(accuracy=pl.col("right") / pl.col("n"), low=pl.Series(low), high=pl.Series(high)).sort(
    "run", "dose"
)

# %%
run.figures.personal()

# %% [markdown]
# ## Capacity
# Bits of the attributes that the model knows, given the name: what they carry less what the model still misses. Of
# the people of one dose, and never below 0; by parameter over all parameters, embeddings included. Names are not
# counted here, since each was given.

# %%
size = ModelConfig(name=run.name, **run.config["model"]).parameters(
    run.config["vocab_size"], run.plan.shape.sequence_length
)
known_bits = float(people["bits"].mean())
rows = []
for (which, dose), part in clozes.filter(pl.col("given") == "given name").group_by("run", "dose"):
    count = part["item_id"].n_unique()
    missed = -part["loglik"].sum() / count  # nats a person, over all attributes
    capacity = bio_s_capacity(count, size, 0.0, missed, log2_names=0.0, log2_attributes=known_bits)
    rows.append(
        {
            "run": which,
            "dose": dose,
            "people": count,
            "bits a person": capacity.bits / count,
            "bits a parameter": capacity.per_parameter,
        }
    )
print(f"{known_bits:.1f} bits a person, {size:,} parameters")
pl.DataFrame(rows).sort("run", "dose")
