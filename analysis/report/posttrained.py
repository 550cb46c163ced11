"""The page that compares post-trained models with the leave-out twin, which never saw the forget set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from palimpsest.analysis.figures import theme
from palimpsest.analysis.figures.export import csv_of, write
from palimpsest.analysis.report.answer import interval, number, p_value
from palimpsest.analysis.report.html import inline, render
from palimpsest.analysis.report.sections import FILES
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.report.unlearned import (
    BEFORE,
    FORGET,
    HELD_OUT,
    LEAVE_OUT,
    NEVER,
    OTHERS,
    estimates,
    value_rows,
)
from palimpsest.analysis.scoring import scores as stored
from palimpsest.data import artifact
from palimpsest.data.artifact import json_digest
from palimpsest.insertion.plan import Plan

KIND = "posttrained report"
VERSION = 2
SHOWN = {BEFORE: "before", LEAVE_OUT: "leave-out twin"}
CAPTIONS = (
    "Forgetting against its price. Each line is a method, from the model before (right end, as a rule) on, a point a "
    "checkpoint; bars are 95 % intervals over the forget set. The diamond is the leave-out twin, at no price.",
    "Is a text that was seen often harder to remove? Distance of the forget set by dose, with 95 % intervals over its "
    "items.",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Lineage of a post-trained run."""

    method: str
    parent: str
    """Name of the run that it started from."""
    cost: int
    """Training steps that its last checkpoint took."""

    @property
    def relearns(self) -> bool:
        """True if it trains on the forget set again, so that it is to be far from the leave-out twin."""
        return self.method == "relearn"


def verdict(name: str, found: pl.DataFrame, origin: Origin) -> str:
    """One sentence: is the model nearer to the leave-out twin on the forget set than before? Of a run that relearns:
    how soon is half of what was forgotten back?
    """
    last = _last(found, name)
    if origin.relearns:
        back = _one(last, FORGET, "half_back")
        if not back or back["estimate"] is None:
            return f"{name}, from {origin.parent}: half of what was lost is not back after {last['step'][0]} steps."
        high = "later than the last" if back["high"] is None else number(back["high"], 1)
        return (
            f"{name}, from {origin.parent}: half of what was lost on the forget set is back after "
            f"{number(back['estimate'], 1)} [{number(back['low'], 1)}, {high}] steps."
        )
    shift, held_out = _one(last, FORGET, "shift"), _one(last, HELD_OUT, "change")
    nearer, distance = (_one(last, FORGET, statistic) for statistic in ("nearer", "distance"))
    was = distance["estimate"] + nearer["estimate"]
    if nearer["low"] > 0:
        moved = "nearer to"
    elif further(name, found):
        moved = "FURTHER FROM"
    else:
        moved = "not shown to be nearer to or further from"
    too_much = "; what is left is forgotten too much" if shift["high"] < 0 else ""
    price = f", for {interval(held_out, signed=True)} on held-out text" if held_out else ""
    return (
        f"{name}: the forget set is {moved} the leave-out twin than before: distance {was:.3f} before, "
        f"{interval(distance)} nats a byte after {_steps(origin.cost)}{price}{too_much}."
    )


def further(name: str, found: pl.DataFrame) -> bool:
    """True if a model's last checkpoint is shown to be further from the leave-out twin on the forget set than the
    perturbed run is: the upper 95 % limit of ``nearer`` is below 0.
    """
    return bool(_one(_last(found, name), FORGET, "nearer")["high"] < 0)


def headline(found: pl.DataFrame, verdicts: Mapping[str, str], origins: Mapping[str, Origin]) -> str:
    """The page's title: the verdict of one model, or how many are nearer, and which are further."""
    judged = [name for name in verdicts if not origins[name].relearns]
    if len(verdicts) == 1 or not judged:
        return next(iter(verdicts.values()))
    worse = [name for name in judged if further(name, found)]
    nearer = sum(_one(_last(found, name), FORGET, "nearer")["low"] > 0 for name in judged)
    title = f"{nearer} of {len(judged)} post-trained models are nearer to the leave-out twin than before"
    if worse:
        title += f"; FURTHER FROM it: {', '.join(worse)}"
    return title


def _steps(count: int) -> str:
    return "no training step" if not count else "1 step" if count == 1 else f"{count} steps"


def _last(found: pl.DataFrame, name: str) -> pl.DataFrame:
    own = found.filter(pl.col("run") == name)
    return own.filter(pl.col("step") == pl.col("step").max())


def _one(rows: pl.DataFrame, group: str, statistic: str) -> dict[str, Any]:
    chosen = rows.filter(
        (pl.col("group") == group) & (pl.col("statistic") == statistic) & pl.col("dose").is_null()
    )
    return chosen.row(0, named=True) if chosen.height else {}


def _table(found: pl.DataFrame, names: Sequence[str], origins: Mapping[str, Origin]) -> Table:
    def cell(rows: pl.DataFrame, group: str, statistic: str) -> str:
        one = _one(rows, group, statistic)
        return interval(one, signed=statistic in ("nearer", "change")) if one else "–"

    body = []
    for name in (BEFORE, *names):
        last = _last(found, name)
        steps = "–" if name == BEFORE else str(origins[name].cost)
        here = last if name != BEFORE else last.filter(pl.col("statistic").is_in(["distance", "auc"]))
        cells = [
            (FORGET, "distance"),
            (FORGET, "nearer"),
            (FORGET, "auc"),
            (OTHERS, "distance"),
            (NEVER, "change"),
            (HELD_OUT, "change"),
        ]
        body.append([SHOWN.get(name, name), steps, *(cell(here, *one) for one in cells)])
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
        "Distance to the leave-out twin and changes since before, nats a byte, with 95 % intervals over clusters of "
        "items",
        deciding=frozenset({2, 3}),
        note="Distance: mean absolute difference from the leave-out twin. Change below 0: less likely than before. The "
        "AUC to reach is the leave-out twin's.",
    )


def _membership(found: pl.DataFrame, names: Sequence[str]) -> Table:
    """The forget set by other measures, of each model and of the leave-out twin."""
    columns = {
        "extraction strength": "extraction",
        "its distance": "extraction_distance",
        "truth ratios: distance D": "truth_distance",
        "p of D": "truth_p",
        "AUC minus the twin's": "leak",
        "divergence, at least": "divergence",
    }
    body = []
    for name in (BEFORE, *names, LEAVE_OUT):
        last = _last(found, name)
        ones = [(statistic, _one(last, FORGET, statistic)) for statistic in columns.values()]
        cells = [
            "–"
            if not one or (name == LEAVE_OUT and statistic != "extraction")
            else p_value(one["estimate"])
            if statistic == "truth_p"
            else interval(one, signed=statistic == "leak")
            for statistic, one in ones
        ]
        body.append([SHOWN.get(name, name), *cells])
    return Table(
        ["model", *columns],
        body,
        "The forget set by other measures, each against the leave-out twin, with 95 % intervals over clusters of items",
        note="Extraction strength: 1 minus the share of an item that has to be given before greedy decoding yields the "
        "rest. D: Kolmogorov-Smirnov distance between the truth ratios of the model and of the twin (0: alike), over "
        "the questions of the forget set. AUC minus the twin's: 0 is right; above it the forget set can still be told "
        "from never-inserted items, below it, too. Divergence: mean KL of the next token from the twin, nats a token; "
        "computed from the probability of the true token, which gives a lower bound.",
    )


def _by_dose(found: pl.DataFrame, names: Sequence[str], group: str, statistic: str, caption: str) -> Table:
    wanted = found.filter((pl.col("group") == group) & (pl.col("statistic") == statistic))
    doses = sorted(wanted["dose"].drop_nulls().unique())
    shown = (BEFORE, *names) if statistic == "distance" else names
    body = []
    for name in shown:
        by_dose = {
            row["dose"]: interval(row, signed=statistic == "change")
            for row in _last(wanted, name).iter_rows(named=True)
        }
        body.append([SHOWN.get(name, name), *(by_dose.get(dose, "–") for dose in doses)])
    return Table(["model", *(f"dose {dose}" for dose in doses)], body, caption)


def _dose_figure(found: pl.DataFrame, names: Sequence[str]) -> theme.Figure:
    """Distance of the forget set by dose, a line a model, with the model before."""
    wanted = found.filter(
        (pl.col("group") == FORGET) & (pl.col("statistic") == "distance") & pl.col("dose").is_not_null()
    )
    rows = pl.concat([_last(wanted, name) for name in (BEFORE, *names)]).with_columns(
        run=pl.col("run").replace(SHOWN)
    )
    shown = [SHOWN.get(name, name) for name in (BEFORE, *names)]
    title = "distance of the forget set to the leave-out twin, nats a byte"
    base = alt.Chart(theme.values(rows)).encode(
        x=alt.X("dose:Q", title="dose", scale=alt.Scale(type="log", base=2)),
        color=_colour(shown),
    )
    y = alt.Y("estimate:Q", title=title, scale=alt.Scale(zero=True))
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y),
        base.mark_rule(strokeWidth=1, opacity=0.4).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(y=y),
    ).properties(width=520, height=280)
    return theme.Figure(theme.styled(chart), rows)


def _colour(names: Sequence[str]) -> alt.Color:
    """Colours of models; more than the palette has repeat, as the lines' ends and the table tell them apart."""
    palette = [theme.PALETTE[k % len(theme.PALETTE)] for k in range(len(names))]
    scale = alt.Scale(domain=list(names), range=palette)
    return alt.Color("run:N", title=None, scale=scale, legend=alt.Legend(columns=4))


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
        color=_colour(names),
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
    place: Path,
    plan: Plan,
    forgotten: Sequence[str],
    origins: Mapping[str, Origin],
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """Write ``report/``: ``report.html``, ``estimates.csv``, ``items.csv``, figures ``frontier`` and ``by_dose``,
    ``summary.json``.

    Args:
        place: directory of the forget set, with ``scores/``.
        plan: of the perturbed run.
        forgotten: ids of the forget set.
        origins: post-trained runs that were scored, beside :data:`BEFORE` and :data:`LEAVE_OUT`.
        settings: of the last post-training, for the page.

    Returns:
        Post-trained run -> its verdict, a sentence.
    """
    scores, digests = stored.read(place / "scores", (BEFORE, LEAVE_OUT, *origins), plan=plan.digest)
    rows = value_rows(plan, scores, forgotten)
    found = estimates(rows, scores, [name for name, origin in origins.items() if origin.relearns])
    verdicts = {name: verdict(name, found, origin) for name, origin in origins.items()}
    inputs = {"plan": plan.digest, "forget": json_digest(list(forgotten)), **digests}
    with artifact.writing(
        place / "report", kind=KIND, schema_version=VERSION, config={}, inputs=inputs
    ) as draft:
        write(draft.path / "estimates.csv", csv_of(found).encode())
        items = rows.select(
            "run",
            "step",
            "metric",
            "probe_id",
            "item_id",
            "family",
            "dose",
            "group",
            "value",
            "before",
            "twin",
        )
        write(draft.path / "items.csv", csv_of(items).encode())
        summary = {
            name: {
                "verdict": verdicts[name],
                "method": origin.method,
                "parent": origin.parent,
                "training_steps": origin.cost,
            }
            for name, origin in origins.items()
        }
        artifact.write_json(draft.path / "summary.json", summary)
        title = place.parent.parent.parent.name
        page = page_of(draft.path, title, found, verdicts, origins, len(forgotten), settings)
        (draft.path / "report.html").write_text(page, encoding="utf-8")
    return verdicts


def page_of(
    directory: Path,
    title: str,
    found: pl.DataFrame,
    verdicts: Mapping[str, str],
    origins: Mapping[str, Origin],
    forgotten: int,
    settings: Mapping[str, Any],
) -> str:
    """The page; its figures are written to ``directory``.

    Args:
        directory: of the report.
        title: name of the experiment.
        found: estimates.
        verdicts: post-trained run -> sentence.
        origins: lineage of the runs.
        forgotten: number of items in the forget set.
        settings: of the last post-training.
    """
    judged = [name for name, origin in origins.items() if not origin.relearns]
    worse = [name for name in judged if further(name, found)]
    figures = []
    if judged:
        for name, figure, caption in (
            ("frontier", _frontier(found, judged), CAPTIONS[0]),
            ("by_dose", _dose_figure(found, judged), CAPTIONS[1]),
        ):
            svg = theme.save(figure.chart, directory, name, figure.rows, formats=FILES)
            figures.append((name, inline(svg, name, caption), caption))
    return render(
        "posttrained.html",
        title=title,
        headline=headline(found, verdicts, origins),
        verdicts=[verdicts[name] for name in sorted(verdicts, key=lambda one: one not in worse)],
        forgotten=forgotten,
        figures=figures,
        tables=[
            _table(found, judged, origins),
            _membership(found, judged),
            _by_dose(found, judged, FORGET, "distance", "Distance of the forget set by dose"),
            _by_dose(
                found,
                judged,
                OTHERS,
                "change",
                "Other inserted items by dose: change since before, nats a byte",
            ),
        ],
        settings={key: str(value) for key, value in settings.items()},
    )
