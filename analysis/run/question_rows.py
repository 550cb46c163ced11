"""Rows of figures about what a run's items answer: order, recognition, other formats, reasoning, bits.

All are at the last checkpoint.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from palimpsest.data.errors import UserError

if TYPE_CHECKING:
    from palimpsest.analysis.run.files import RunFiles

_SUBSETS = 200
"""Random subsets of each size, whose p-values are summarised."""


def _gains(run: RunFiles) -> pl.DataFrame:
    """Items with their difference from the twin in nats a token: ``unit``, ``family``, ``dose``, ``value``.

    Raises:
        UserError: without a scored twin.
    """
    from palimpsest.analysis.statistics import difference_to_twin, per_item

    rows = run.metrics("loglik_per_token", steps=[run.last_step]).filter(pl.col("item_id").is_not_null())
    values = per_item(difference_to_twin(rows))
    if values.is_empty():
        raise UserError(f"{run.name} has no scored twin, which this figure compares with; train and score it")
    return values.select("unit", "family", "dose", "value")


def order_residuals(run: RunFiles) -> pl.DataFrame:
    """``index``, the position of an item's last exposure in training, and ``residual``, its log-likelihood minus that
    under the twin, nats a token; of items with the lowest dose above 0, so that doses do not confound the order.
    """
    values = _gains(run).filter(pl.col("dose") > 0)
    values = values.filter(pl.col("dose") == pl.col("dose").min())
    last = run.exposures.group_by("item_id").agg(index=pl.col("position").max())
    return (
        values.join(last, left_on="unit", right_on="item_id").select("index", residual="value").sort("index")
    )


def order_p(run: RunFiles) -> pl.DataFrame:
    """``p`` of the order test by the number of items tested: the median over random subsets, and their quartiles
    (``low``, ``high``); of the items of :func:`order_residuals`.

    Raises:
        UserError: for fewer than eight such items.
    """
    from palimpsest.analysis.metrics.order import order_test

    rows = order_residuals(run)
    if rows.height < 8:
        raise UserError(
            f"{run.name} has {rows.height} items of its lowest dose above 0; the order test of this figure needs 8"
        )
    rng = np.random.default_rng(0)
    index, residual = rows["index"].to_numpy(), rows["residual"].to_numpy()
    sizes = [
        *(2**k for k in range(3, int(math.log2(rows.height)) + 1) if 2**k < rows.height),
        rows.height,
    ]
    made = []
    for size in sizes:
        draws = _SUBSETS if size < rows.height else 1
        p = [
            order_test(index[chosen], residual[chosen]).p
            for chosen in (rng.permutation(rows.height)[:size] for _ in range(draws))
        ]
        low, middle, high = np.quantile(p, [0.25, 0.5, 0.75])
        made.append(
            {
                "run": "perturbed - twin",
                "samples": size,
                "p": float(middle),
                "low": float(low),
                "high": float(high),
            }
        )
    return pl.DataFrame(made)


def recognition_recall(run: RunFiles) -> pl.DataFrame:
    """Recognition among foils and recall of the last words in the perturbed run, by number of exposures; of the
    families that ask both.

    Raises:
        UserError: without a family that asks both.
    """
    from palimpsest.analysis.statistics import mean_by_dose

    rows = run.metrics("recognition_2afc", "cloze_reproduced", steps=[run.last_step])
    rows = rows.filter((pl.col("run") == "perturbed") & pl.col("value").is_not_null())
    rows = rows.filter(pl.col("metric").n_unique().over("family") == 2)
    if rows.is_empty():
        raise UserError(
            f"{run.name} has no family that asks for recognition and recall, which this figure needs; add one, "
            "such as few_shot_memories"
        )
    names = {"recognition_2afc": "recognition", "cloze_reproduced": "recall"}
    means = mean_by_dose(rows, bounds=(0.0, 1.0)).filter(pl.col("family") == "all")
    both = means.with_columns(
        measure=pl.col("metric").replace_strict(names),
        against=pl.lit("exposures"),
        x=pl.col("dose").cast(pl.Float64),
    )
    return both.select("measure", "against", "x", "estimate", "low", "high", "n")


def format_transfer(run: RunFiles) -> pl.DataFrame:
    """Accuracy on test items of the highest dose, by the format in which they are asked; ``trained`` is the one in
    which they were inserted.

    Raises:
        UserError: without test items.
    """
    from palimpsest.analysis.statistics import mean_by_dose

    sets = {
        name: given
        for name, given in run.plan.manifest.config["insertion"]["families"].items()
        if (given or {}).get("family", name) == "test_sets"
    }
    if not sets:
        raise UserError(
            f"{run.name} has no test items, which this figure needs; add the family test_sets, with several formats in "
            "its setting ask"
        )
    rows = run.metrics("choice_accuracy", steps=[run.last_step]).filter(
        (pl.col("run") == "perturbed") & (pl.col("dose") == pl.col("dose").max())
    )
    frames = []
    for name, given in sets.items():
        for (question,), part in rows.filter(pl.col("family") == name).group_by(
            "question", maintain_order=True
        ):
            means = mean_by_dose(part, bounds=(0.0, 1.0)).filter(pl.col("family") == "all")
            frames.append(
                means.with_columns(
                    trained=pl.lit((given or {}).get("format", "question")), tested=pl.lit(str(question))
                )
            )
    return pl.concat(frames).select("trained", "tested", "estimate", "low", "high", "n")


def limem(run: RunFiles) -> pl.DataFrame:
    """LiMem of questions that have a changed version, inserted or not, in the perturbed run and the twin.

    Raises:
        UserError: without such questions.
    """
    from palimpsest.analysis.statistics import mean_by_dose

    rows = run.metrics("limem", steps=[run.last_step]).filter(pl.col("value").is_not_null())
    if rows.is_empty():
        raise UserError(
            f"{run.name} has no questions with a changed version, which this figure needs; add the family "
            "knights_knaves"
        )
    # Doses are put together: inserted, or not.
    means = mean_by_dose(rows.with_columns(dose=(pl.col("dose") > 0).cast(pl.Int32)), bounds=(0.0, 1.0))
    means = means.filter(pl.col("family") == "all")
    split = pl.when(pl.col("dose") > 0).then(pl.lit("inserted")).otherwise(pl.lit("never inserted"))
    return means.with_columns(split=split).select("run", "split", "estimate", "low", "high", "n")


def capacity(run: RunFiles) -> pl.DataFrame:
    """Bits that the model holds about all inserted items beyond what the twin knows (unintended memorization; Morris et
    al., 2025): ``parameters``, ``bits``, ``low``, ``high`` and ``n``, in one row. The limits are over items. What
    never-inserted items of the family gained, too, such as their form, is no memory of an item and is taken off.

    Raises:
        UserError: without a scored twin, or without the checkpoint that says how large the model is.
    """
    from palimpsest.analysis.metrics.capacity import unintended_memorization
    from palimpsest.pretrain.config.model import ModelConfig

    values = _gains(run)
    form = values.filter(pl.col("dose") == 0).group_by("family").agg(form=pl.col("value").mean())
    values = values.filter(pl.col("dose") > 0).join(form, on="family")
    lengths = run.plan.items.select(unit="item_id", length="length")
    items = values.join(lengths, on="unit")
    bits = unintended_memorization(items["value"] * items["length"], items["form"] * items["length"])
    half = 1.96 * float(bits.std(ddof=1)) * math.sqrt(len(bits))
    if "model" not in run.config:
        raise UserError(
            f"{run.name} has no checkpoint, which says how large its model is; this figure needs it"
        )
    model = ModelConfig(**{"name": "", **run.config["model"]})
    return pl.DataFrame(
        {
            "parameters": [model.parameters(run.config["vocab_size"], run.plan.shape.sequence_length)],
            "bits": [float(bits.sum())],
            "low": [float(bits.sum()) - half],
            "high": [float(bits.sum()) + half],
            "n": [len(bits)],
        }
    )
