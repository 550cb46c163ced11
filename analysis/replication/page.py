"""The page of a replication, ``NAME.md``, with its figure and tables; and the overview of all pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from palimpsest.analysis.figures import theme
from palimpsest.analysis.figures.export import csv_of
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.replication.claims import Claim, Outcome, Replication, overall
from palimpsest.analysis.replication.quantities import Posttrained, items
from palimpsest.analysis.report.unlearned import FORGET, LOGLIK
from palimpsest.analysis.run import Run

OVERVIEW = "README"
_OF_FORGET_SET = "of the forget set, its difference from the leave-out twin; "
ARMS = pl.Schema(
    {
        "metric": pl.String(),
        "family": pl.String(),
        "arm": pl.String(),
        "dose": pl.Int64(),
        "items": pl.UInt32(),
        "value": pl.Float64(),
        "gain": pl.Float64(),
    }
)
"""Columns of :func:`arms_of`."""
_VERDICTS = ("reproduced", "not reproduced", "not testable at this scale")


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Origin of a page's numbers."""

    date: str
    command: str
    hardware: str
    design: str
    """Commit that last changed the file of the replication, and whether it is before the runs."""
    made_by: str
    """Commit and versions that the runs were made with."""
    corpus: str
    """Digest of the prepared corpus."""
    minutes: float
    """Time that the runs took together; NaN if they were made by other calls."""


def arms_of(run: Run, metrics: Sequence[str]) -> pl.DataFrame:
    """Mean of every arm of a run at its last scored checkpoint; none of an adaptive run, whose doses differ by item.

    Returns:
        metric, family, arm, dose, items, value (in the perturbed run), gain (over the family's never-inserted items;
        of differences from the twin, where there is one). Of a post-trained run, the forget set at each dose instead of
        a family, and the gain over the leave-out twin.
    """
    if isinstance(run, Posttrained):
        return _forget_set(run)
    frames = [pl.DataFrame(schema=ARMS)]
    if (run.directory / "adaptive").is_dir():
        metrics = ()
    for metric in metrics:
        cell = {"metric": metric}
        raw = items(run, cell, paired=False)
        paired = items(run, cell)
        # What compares with the twin already, such as a loss ratio, has no value of the twin to be subtracted.
        net = (raw if paired.is_empty() else paired).rename({"value": "net"}).select("unit", "net")
        rows = raw.join(net, on="unit").with_columns(
            gain=pl.col("net") - pl.col("net").filter(pl.col("dose") == 0).mean().over("family")
        )
        means = rows.group_by("family", "arm", "dose").agg(
            items=pl.len(), value=pl.col("value").mean(), gain=pl.col("gain").mean()
        )
        frames.append(means.with_columns(metric=pl.lit(metric)).select(ARMS.names()).cast(ARMS))
    return pl.concat(frames).sort("metric", "family", "dose", "arm")


def _forget_set(run: Posttrained) -> pl.DataFrame:
    rows = run.comparison().filter(
        pl.col("group") == FORGET, pl.col("statistic") == "shift", pl.col("dose").is_not_null()
    )
    return rows.select(
        metric=pl.lit(LOGLIK),
        family=pl.lit(FORGET),
        arm=pl.format("dose {}", "dose"),
        dose="dose",
        items="n",
        value=pl.lit(None),
        gain="estimate",
    ).cast(ARMS)


def claim_rows(
    claims: Mapping[str, Claim], outcomes: Mapping[str, Outcome], seeds: Sequence[int]
) -> pl.DataFrame:
    """Table of ``NAME.csv``, NAME being the name of the replication: one row per claim, with its outcome."""
    return pl.DataFrame(
        [
            {
                "claim": name,
                "text": claims[name].text,
                "published": claims[name].published,
                "direction": claims[name].direction,
                "against": claims[name].against,
                "estimate": outcome.estimate,
                "low": outcome.low,
                "high": outcome.high,
                "unit": claims[name].unit,
                "p": outcome.p,
                "p_holm": outcome.p_holm,
                "alpha": claims[name].alpha,
                "power": claims[name].power(len(seeds), len(claims)),
                "verdict": outcome.verdict,
                "why": outcome.why,
                **{f"seed {seed}": value for seed, value in zip(seeds, outcome.values, strict=True)},
            }
            for name, outcome in outcomes.items()
        ],
        infer_schema_length=None,
    ).with_columns(pl.col(pl.Float64).fill_nan(None))


def write(
    name: str,
    replication: Replication,
    outcomes: Mapping[str, Outcome],
    arms: pl.DataFrame,
    provenance: Provenance,
    directory: Path,
) -> Path:
    """Write ``NAME.md``, ``NAME.csv`` (claims), ``NAME_arms.csv`` (all arms), ``NAME.svg`` and ``NAME.json``.

    Args:
        name: of the replication.
        replication: its declaration.
        outcomes: of its claims.
        arms: rows of :func:`arms_of` of every run and seed, with ``run`` and ``seed``.
        provenance: of the numbers.
        directory: of the pages.

    Returns:
        Path of the page.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = claim_rows(replication.claims, outcomes, replication.seeds)
    (directory / f"{name}.csv").write_bytes(csv_of(rows).encode())
    (directory / f"{name}_arms.csv").write_bytes(csv_of(arms).encode())
    theme.save(_figure(arms), directory, name, arms, formats=("svg",))
    record = {
        "title": replication.title,
        "finding": replication.finding,
        "source": replication.source,
        "verdict": overall(outcomes),
        "claims": rows.select(
            "claim",
            "text",
            "published",
            "direction",
            "estimate",
            "low",
            "high",
            "unit",
            "against",
            "p_holm",
            "power",
            "verdict",
        )
        .with_columns(
            scale=pl.Series([abs(claim.expected) or claim.margin for claim in replication.claims.values()])
        )
        .to_dicts(),
    }
    (directory / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = directory / f"{name}.md"
    page.write_text(_markdown(name, replication, outcomes, provenance), encoding="utf-8")
    return page


def _markdown(
    name: str, replication: Replication, outcomes: Mapping[str, Outcome], provenance: Provenance
) -> str:
    posttrained = any(replication.program_of(run)[0] == "posttrain" for run in replication.runs)
    lines = [
        f"# {replication.title}",
        "",
        f"Published: {replication.finding} ({replication.source})",
        "",
        f"Here: **{overall(outcomes)}**.",
        "",
        "| claim | published | here: mean over seeds [95 %] | each seed | p (Holm) | planned power | verdict |",
        "|---|---|---|---|---:|---:|---|",
    ]
    for key, outcome in outcomes.items():
        claim = replication.claims[key]
        verdict = f"{outcome.verdict}" + (f": {outcome.why}" if outcome.why else "")
        lines.append(
            f"| {claim.text}{' (positive control)' if claim.control else ''} | {claim.published} | "
            f"{_interval(outcome.estimate, outcome.low, outcome.high, claim.unit)} | "
            f"{', '.join(map(_number, outcome.values))} | {_p(outcome.p_holm)} | "
            f"{claim.power(len(replication.seeds), len(replication.claims)):.2f} | {verdict} |"
        )
    lines += ["", f"![{replication.title}]({name}.svg)", ""]
    lines += [
        "Gain of every arm over the never-inserted items of its family at the last checkpoint (of the differences from "
        "the twin, where there is one); "
        + (_OF_FORGET_SET if posttrained else "")
        + f"a dot for each seed, a line through "
        f"their mean. Tables: [claims]({name}.csv), "
        f"[all arms]({name}_arms.csv).",
        "",
        "## Tests, as declared",
        "",
    ]
    lines += [f"- **{key}**: {_test(claim)}" for key, claim in replication.claims.items()]
    lines += [
        "",
        f"Student's t over {len(replication.seeds)} seeds ({', '.join(map(str, replication.seeds))}), each with items, "
        "assignment, order and initial weights of its own; its standard error is not below the one over items. p is "
        f"corrected by Holm over the {len(replication.claims)} claims of this page.",
        "",
        f"Exploration: {_sentence(replication.pilots)}",
    ]
    if replication.notes:
        lines += ["", f"Differences from the published setting: {_sentence(replication.notes)}"]
    took = (
        ""
        if provenance.minutes != provenance.minutes
        else f" The runs took {provenance.minutes:.0f} minutes."
    )
    expected = (
        ""
        if not replication.corpus
        else (
            " (as declared)"
            if replication.corpus == provenance.corpus
            else f" (declared: {replication.corpus})"
        )
    )
    lines += [
        "",
        "## Provenance",
        "",
        f"{provenance.date}, `{provenance.command}`, on {provenance.hardware}.{took} Design committed in "
        f"{provenance.design}; runs made with {provenance.made_by}. "
        f"Corpus {provenance.corpus}{expected}. The audit of every run passed: what was planned was consumed.",
        "",
    ]
    return "\n".join(lines)


def _test(claim: Claim) -> str:
    def cell(fields: Mapping[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in fields.items())

    subject = f"{claim.quantity} ({cell(claim.cell)})"
    if claim.minus is not None:
        subject += f" minus that with {cell(claim.minus)}"
    if claim.along is not None:
        x = f"x = {', '.join(map(str, claim.along.x))}" if claim.along.x else "log2"
        subject = (
            f"slope over {claim.along.field} {', '.join(map(str, claim.along.values))} ({x}) of {subject}"
        )
    wanted = (
        f"within {claim.margin:g} of {claim.against:g}"
        if claim.direction == "within"
        else f"{claim.direction} than {claim.against:g}"
    )
    return (
        f"{subject}; {wanted}; alpha {claim.alpha:g}; planned for a difference of "
        f"{_of(f'{abs(claim.expected):g}', claim.unit)} with a standard deviation of {claim.deviation:g} between seeds."
    )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3g}".replace("-", "−")


def _of(number: str, unit: str) -> str:
    return f"{number} {unit}" if unit else number


def _interval(estimate: float | None, low: float | None, high: float | None, unit: str) -> str:
    return _of(f"{_number(estimate)} [{_number(low)}, {_number(high)}]", unit)


def _p(value: float) -> str:
    return "–" if value != value else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _figure(arms: pl.DataFrame) -> Any:
    """Gain by dose: a panel for each metric and family, a colour for each run and set of other levels."""
    doses = sorted(arms["dose"].unique().to_list())
    several = arms["run"].n_unique() > 1
    other = pl.col("arm").str.replace(r"(^|, |: )dose \d+", "").str.strip_prefix(", ")
    rows = arms.filter(pl.col("dose") > 0).with_columns(
        line=pl.concat_str(
            [pl.when(several).then(pl.col("run")).otherwise(pl.lit("")), other], separator=" "
        ).str.strip_chars()
    )
    lines = rows["line"].unique().sort().to_list()
    panels = []
    for metric in arms["metric"].unique(maintain_order=True):
        unit = METRICS[metric].unit
        for family in arms["family"].unique().sort():
            part = rows.filter((pl.col("metric") == metric) & (pl.col("family") == family))
            if part.is_empty():
                continue
            base = alt.Chart(theme.values(part.select("dose", "gain", "line", "seed"))).encode(
                x=alt.X("dose:O", title="dose: times inserted", sort=doses, axis=alt.Axis(labelAngle=0)),
                color=alt.Color(
                    "line:N",
                    title=None,
                    scale=alt.Scale(domain=lines, range=theme.colours(lines)),
                    legend=alt.Legend() if len(lines) > 1 else None,
                ),
            )
            title = f"gain, {unit}" if unit else "gain"
            panels.append(
                alt.layer(
                    base.mark_line(strokeWidth=1.6).encode(y=alt.Y("mean(gain):Q", title=title)),
                    base.mark_point(filled=True, size=36, opacity=0.8).encode(y=alt.Y("gain:Q", title=title)),
                ).properties(width=260, height=190, title=f"{family}: {metric}")
            )
    return theme.styled(alt.concat(*panels, columns=3))


def overview(directory: Path) -> Path | None:
    """Write the overview of all pages in a directory, ``README.md`` and ``overview.svg``.

    Returns:
        Its path; None if there is no page.
    """
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))
    }
    if not records:
        return None
    rows = pl.DataFrame(
        [
            {"page": name, "order": order, **claim}
            for name, record in records.items()
            for order, claim in enumerate(record["claims"])
        ],
        infer_schema_length=None,
    )
    theme.save(_forest(rows), directory, "overview", rows, formats=("svg",))
    lines = [
        "# Findings of the literature, found again",
        "",
        "![Every claim of every page, with its interval](overview.svg)",
        "",
        "Each claim's estimate and 95 % interval over seeds, in units of the smallest effect that its test was planned "
        "for. The dashed line is the value that the test is against; to its right lies what was published (for a claim "
        "of equivalence, the line itself).",
        "",
        "| page | published finding | verdict |",
        "|---|---|---|",
        *(
            f"| [{record['title']}]({name}.md) | {record['finding']} ({record['source']}) | {record['verdict']} |"
            for name, record in records.items()
        ),
        "",
    ]
    page = directory / f"{OVERVIEW}.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


_LIMIT = 8.0
"""Intervals are cut at so many times the planned effect."""


def _forest(rows: pl.DataFrame) -> Any:
    """Estimates and intervals of all claims, one row each, beside what was published and what was found."""
    sign = pl.when(pl.col("direction") == "less").then(-1).otherwise(1)

    def scaled(name: str) -> pl.Expr:
        value = sign * (pl.col(name) - pl.col("against")) / pl.col("scale")
        return value.clip(-_LIMIT, _LIMIT).alias(name)

    shown = rows.select(
        scaled("estimate"),
        scaled("low"),
        scaled("high"),
        "verdict",
        "published",
        label=pl.format("{}: {}", "page", "text"),
        here=pl.Series(
            [_interval(*row) for row in rows.select("estimate", "low", "high", "unit").rows()],
            dtype=pl.String,
        ),
    )
    y = alt.Y("label:N", title=None, sort=shown["label"].to_list(), axis=alt.Axis(labelLimit=600))
    base = alt.Chart(theme.values(shown)).encode(
        y=y,
        color=alt.Color(
            "verdict:N",
            title=None,
            scale=alt.Scale(domain=list(_VERDICTS), range=theme.colours(list(_VERDICTS))),
        ),
    )
    title = "estimate, in units of the planned effect"
    height = alt.Step(22)
    forest = alt.layer(
        theme.line(x=0),
        base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=title), alt.X2("high")),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=alt.X("estimate:Q", title=title)),
    ).properties(width=300, height=height)

    def column(field: str, title: str, width: int) -> Any:
        text = (
            alt.Chart(theme.values(shown))
            .mark_text(align="left", x=4, fontSize=12, limit=width)
            .encode(y=y.axis(None), text=f"{field}:N")
        )
        return text.properties(width=width, height=height, title=alt.TitleParams(title, anchor="start"))

    chart = alt.hconcat(forest, column("here", "here", 250), column("published", "published", 330), spacing=6)
    return theme.styled(chart)
