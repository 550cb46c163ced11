"""The comparison of post-trained models with the leave-out twin, which never saw the forget set.

Values are log-likelihoods a byte of whole texts, in nats. An item's distance is the absolute difference between a model
and the leave-out twin: forgetting too little and forgetting too much are both distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from palimpsest.analysis.figures import theme
from palimpsest.analysis.figures.export import csv_of, write
from palimpsest.analysis.metrics import compute
from palimpsest.analysis.report.answer import interval
from palimpsest.analysis.report.html import inline, render
from palimpsest.analysis.report.inputs import DECLARED
from palimpsest.analysis.report.sections import FILES
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.scoring import scores as stored
from palimpsest.analysis.statistics import auc, mean_by_dose
from palimpsest.data import artifact
from palimpsest.data.artifact import json_digest
from palimpsest.insertion.plan import Plan

KIND = "posttrained report"
VERSION = 1
BEFORE, LEAVE_OUT = "perturbed", "leave_out"
FORGET, OTHERS, NEVER, HELD_OUT = "forget set", "other inserted items", "never inserted", "held-out text"
MEASURES = (DECLARED, "heldout_loglik_per_byte")
"""The same measure, of items and of held-out documents."""
GROUPS = {
    FORGET: "the items that are to be forgotten",
    OTHERS: "inserted items that are not",
    NEVER: "items that were never inserted",
    HELD_OUT: "documents kept out of training",
}
ESTIMATES = pl.Schema(
    {
        "run": pl.String(),
        "step": pl.Int64(),
        "group": pl.String(),
        "dose": pl.Int64(),
        "statistic": pl.String(),
        "estimate": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "n": pl.UInt32(),
    }
)
"""One row a post-trained run, checkpoint (steps of the method), group of texts and dose (null: all doses). Statistics:
``distance``, mean absolute difference from the leave-out twin; ``shift``, mean difference from it (above 0: likelier
than it should be); ``change``, mean difference from the model before; ``nearer``, mean decrease of the distance since
before; ``auc`` of the forget set against never-inserted items. Limits: 95 %, over clusters of items."""


def value_rows(plan: Plan, scores: pl.DataFrame, forgotten: Sequence[str]) -> pl.DataFrame:
    """Metric rows of whole texts with their ``group``; beside each ``value`` those of the model ``before`` and of the
    leave-out ``twin``.

    Args:
        plan: items and probes.
        scores: of :data:`BEFORE`, :data:`LEAVE_OUT` (the last checkpoint of either) and the post-trained runs.
        forgotten: ids of the forget set.
    """
    rows = compute(plan.items, plan.probes, scores, MEASURES).filter(pl.col("value").is_not_null())
    group = (
        pl.when(pl.col("item_id").is_null())
        .then(pl.lit(HELD_OUT))
        .when(pl.col("item_id").is_in(list(forgotten)))
        .then(pl.lit(FORGET))
        .when(pl.col("dose") == 0)
        .then(pl.lit(NEVER))
        .otherwise(pl.lit(OTHERS))
    )
    clusters = plan.items.select("item_id", "cluster")
    rows = rows.with_columns(group=group).join(clusters, on="item_id", how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("cluster").fill_null(""))
    for run, name in ((BEFORE, "before"), (LEAVE_OUT, "twin")):
        one = rows.filter(pl.col("run") == run).select("probe_id", pl.col("value").alias(name))
        rows = rows.join(one, on="probe_id", maintain_order="left")
    return rows


def estimates(rows: pl.DataFrame) -> pl.DataFrame:
    """Estimates (:data:`ESTIMATES`) of the rows of :func:`value_rows`."""
    shift, before = pl.col("value") - pl.col("twin"), pl.col("before") - pl.col("twin")
    statistics = {
        "distance": shift.abs(),
        "shift": shift,
        "change": pl.col("value") - pl.col("before"),
        "nearer": before.abs() - shift.abs(),
    }
    tables = []
    compared = rows.filter(pl.col("run") != LEAVE_OUT)
    for (group,), own in compared.partition_by("group", as_dict=True, maintain_order=True).items():
        for statistic, value in statistics.items():
            wanted = own.with_columns(value=value, metric=pl.lit(statistic))
            whole = wanted.with_columns(dose=pl.lit(-1, pl.Int64))
            for part in (whole, wanted) if group in (FORGET, OTHERS) else (whole,):
                tables.append(_means(part, str(group), statistic))
    tables.append(_areas(rows))
    return pl.concat(tables).sort("run", "step", "group", "statistic", "dose")


def _means(rows: pl.DataFrame, group: str, statistic: str) -> pl.DataFrame:
    means = mean_by_dose(rows.with_columns(family=pl.lit("texts"), stratum=pl.lit("texts")))
    if statistic == "distance":
        means = means.with_columns(pl.col("low").clip(0))
    return _shaped(means.filter(pl.col("family") == "all"), group, statistic)


def _areas(rows: pl.DataFrame) -> pl.DataFrame:
    """AUC of the forget set against never-inserted items within families, of every model."""
    both = rows.filter(pl.col("group").is_in([FORGET, NEVER]))
    member = both.with_columns(dose=(pl.col("group") == FORGET).cast(pl.Int64))
    found = auc(member).filter((pl.col("family") == "all") & pl.col("estimate").is_not_null())
    return _shaped(found.with_columns(dose=pl.lit(-1, pl.Int64)), FORGET, "auc")


def _shaped(found: pl.DataFrame, group: str, statistic: str) -> pl.DataFrame:
    dose = pl.when(pl.col("dose") < 0).then(None).otherwise(pl.col("dose"))
    table = found.with_columns(group=pl.lit(group), statistic=pl.lit(statistic), dose=dose)
    return table.select(ESTIMATES.names()).cast(ESTIMATES)


def verdict(name: str, found: pl.DataFrame) -> str:
    """One sentence: is the model nearer to the leave-out twin on the forget set than before?"""
    last = _last(found, name)
    nearer, distance = (_one(last, FORGET, statistic) for statistic in ("nearer", "distance"))
    shift, held_out = _one(last, FORGET, "shift"), _one(last, HELD_OUT, "change")
    was = distance["estimate"] + nearer["estimate"]
    if nearer["low"] > 0:
        moved = "nearer to"
    elif nearer["high"] < 0:
        moved = "FURTHER FROM"
    else:
        moved = "not shown to be nearer to or further from"
    too_much = "; what is left is forgotten too much" if shift["high"] < 0 else ""
    price = f", for {interval(held_out, signed=True)} on held-out text" if held_out else ""
    return (
        f"{name}: the forget set is {moved} the leave-out twin than before: distance {was:.3f} before, "
        f"{interval(distance)} nats a byte after {last['step'][0]} steps{price}{too_much}."
    )


def _last(found: pl.DataFrame, name: str) -> pl.DataFrame:
    own = found.filter(pl.col("run") == name)
    return own.filter(pl.col("step") == pl.col("step").max())


def _one(rows: pl.DataFrame, group: str, statistic: str) -> dict[str, Any]:
    chosen = rows.filter(
        (pl.col("group") == group) & (pl.col("statistic") == statistic) & pl.col("dose").is_null()
    )
    return chosen.row(0, named=True) if chosen.height else {}


def _table(found: pl.DataFrame, names: Sequence[str]) -> Table:
    def cell(rows: pl.DataFrame, group: str, statistic: str) -> str:
        one = _one(rows, group, statistic)
        return interval(one, signed=statistic in ("nearer", "change")) if one else "–"

    body = []
    for name in (BEFORE, *names):
        last = _last(found, name)
        steps = "–" if name == BEFORE else str(last["step"][0])
        here = last if name != BEFORE else last.filter(pl.col("statistic").is_in(["distance", "auc"]))
        cells = [
            (FORGET, "distance"),
            (FORGET, "nearer"),
            (FORGET, "auc"),
            (OTHERS, "distance"),
            (NEVER, "change"),
            (HELD_OUT, "change"),
        ]
        body.append(["before" if name == BEFORE else name, steps, *(cell(here, *one) for one in cells)])
    twin = _one(_last(found, LEAVE_OUT), FORGET, "auc")
    body.append(["leave-out twin", "–", "0", "–", interval(twin) if twin else "–", "0", "–", "–"])
    return Table(
        [
            *(
                "model",
                "steps",
                "forget set: distance",
                "nearer by",
                "AUC, forget set against never inserted",
            ),
            *("other inserted items: distance", "never inserted: change", "held-out text: change"),
        ],
        body,
        "Distance to the leave-out twin and changes since before, nats a byte, with 95 % intervals over items",
        deciding=frozenset({2, 3}),
        note="Distance: mean absolute difference from the leave-out twin. Change below 0: less likely than before. The "
        "AUC to reach is the leave-out twin's.",
    )


def _by_dose(found: pl.DataFrame, names: Sequence[str]) -> Table:
    doses = sorted(found.filter(pl.col("group") == FORGET)["dose"].drop_nulls().unique())
    body = []
    for name in (BEFORE, *names):
        own = _last(found, name).filter((pl.col("group") == FORGET) & (pl.col("statistic") == "distance"))
        by_dose = {row["dose"]: interval(row) for row in own.iter_rows(named=True)}
        body.append(["before" if name == BEFORE else name, *(by_dose.get(dose, "–") for dose in doses)])
    return Table(
        ["model", *(f"dose {dose}" for dose in doses)],
        body,
        "Distance of the forget set by dose: is a text that was seen often harder to remove?",
    )


def _frontier(found: pl.DataFrame, names: Sequence[str]) -> theme.Figure:
    """Distance of the forget set against the change on held-out text, a line a run along its steps."""
    sides = []
    for group, statistic, column in ((FORGET, "distance", "distance"), (HELD_OUT, "change", "change")):
        chosen = found.filter(
            (pl.col("group") == group) & (pl.col("statistic") == statistic) & pl.col("dose").is_null()
        )
        sides.append(
            chosen.select(
                "run", "step", **{column: "estimate", f"{column}_low": "low", f"{column}_high": "high"}
            )
        )
    rows = sides[0].join(sides[1], on=["run", "step"]).filter(pl.col("run").is_in(list(names)))
    base = alt.Chart(theme.values(rows)).encode(
        x=alt.X("change:Q", title="change on held-out text, nats a byte (left: worse)"),
        color=alt.Color("run:N", title=None, scale=alt.Scale(domain=list(names), range=list(theme.PALETTE))),
    )
    title = "distance of the forget set to the leave-out twin, nats a byte"
    y = alt.Y("distance:Q", title=title)
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y, order="step:Q"),
        base.mark_rule(strokeWidth=1, opacity=0.4).encode(
            y=alt.Y("distance_low:Q", title=title), y2="distance_high:Q"
        ),
        base.mark_point(filled=True, size=55, opacity=1).encode(y=y),
        alt.Chart(theme.data([{"change": 0.0, "distance": 0.0}]))
        .mark_point(shape="diamond", size=120, filled=True, color=theme.INK)
        .encode(x="change:Q", y="distance:Q"),
    ).properties(width=520, height=320)
    return theme.Figure(theme.styled(chart), rows)


def write_report(
    place: Path, plan: Plan, forgotten: Sequence[str], runs: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, str]:
    """Write ``report/``: ``report.html``, ``estimates.csv``, ``items.csv``, ``frontier`` as figures, ``summary.json``.

    Args:
        place: directory of the forget set, with ``scores/``.
        plan: of the perturbed run.
        forgotten: ids of the forget set.
        runs: all that were scored: :data:`BEFORE`, :data:`LEAVE_OUT`, and the post-trained ones.
        settings: of the last post-training, for the page.

    Returns:
        Post-trained run -> its verdict, a sentence.
    """
    scores, digests = stored.read(place / "scores", tuple(runs), plan=plan.digest)
    rows = value_rows(plan, scores, forgotten)
    found = estimates(rows)
    names = [run for run in runs if run not in (BEFORE, LEAVE_OUT)]
    verdicts = {name: verdict(name, found) for name in names}
    inputs = {"plan": plan.digest, "forget": json_digest(list(forgotten)), **digests}
    with artifact.writing(
        place / "report", kind=KIND, schema_version=VERSION, config={}, inputs=inputs
    ) as draft:
        write(draft.path / "estimates.csv", csv_of(found).encode())
        items = rows.select(
            "run", "step", "probe_id", "item_id", "family", "dose", "group", "value", "before", "twin"
        )
        write(draft.path / "items.csv", csv_of(items).encode())
        figure = _frontier(found, names)
        svg = theme.save(figure.chart, draft.path, "frontier", figure.rows, formats=FILES)
        artifact.write_json(draft.path / "summary.json", verdicts)
        page = render(
            "posttrained.html",
            title=place.parent.parent.parent.name,
            verdicts=list(verdicts.values()),
            forgotten=len(forgotten),
            groups=GROUPS,
            frontier=inline(
                svg, "frontier", "Distance of the forget set against the change on held-out text"
            ),
            tables=[_table(found, names), _by_dose(found, names)],
            settings={key: str(value) for key, value in settings.items()},
        )
        (draft.path / "report.html").write_text(page, encoding="utf-8")
    return verdicts
