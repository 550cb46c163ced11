"""Figures of extraction: rates over prefix, suffix, size and queries; tokens; run lengths (default figures 11, 16)."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import polars as pl

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.export import FIXED
from palimpsest.analysis.figures.membership import histogram, steps, whole_bins
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure
from palimpsest.data.errors import UserError

_AXES: dict[str, tuple[str, pieces.Kind]] = {
    "prefix": ("prefix length (tokens)", "auto"),
    "suffix": ("suffix length (tokens)", "auto"),
    "parameters": ("parameters", "log"),
    "queries": ("queries", "log"),
}


@figure(
    number=11,
    title="Extraction",
    needs=("against", "x", "estimate", "low", "high", "n"),
    optional=("run",),
)
def extraction_rate(
    rows: pl.DataFrame, *, y_title: str = "share of items extracted", width: int = 270, height: int = 220
) -> Figure:
    """Extraction rate by prefix length, suffix length, model size and number of queries, one panel each.

    Args:
        rows: rates by ``against`` (prefix, suffix, parameters, queries) and ``x``; ``run`` names the lines, such as
            doses, or probabilities p of (n,p)-discoverable extraction.
        y_title: quantity.
        width: of one panel, pixels.
        height: of one panel, pixels.
    """
    rows = pieces.as_runs(rows, "run")

    def draw(against: str, part: pl.DataFrame) -> Any:
        title, kind = _AXES.get(against, (against, "auto"))
        x = pieces.x_axis(part, title, kind=kind)
        panel = pieces.curves(part, x, pieces.y_axis(part, y_title, 0.0), names=pieces.series(rows, "run"))
        return panel.properties(width=width, height=height, title=f"by {against}")

    return Figure(pieces.panels(rows, "against", draw, columns=2), rows)


@figure(
    number=11,
    title="Log-probability of every token",
    needs=("position", "token", "logprob"),
    optional=("run",),
)
def token_strip(rows: pl.DataFrame, *, columns: int = 76, lowest: float = -10.0) -> Figure:
    """A passage with every token coloured by its log-probability, one block a ``run`` (checkpoint, or twin).

    Args:
        rows: one row per token of the passage; ``logprob`` is null for a token that was not scored.
        columns: characters per line; about 50 fit in a single column of a paper.
        lowest: smallest log-probability of the colour scale, nats; lower values have its colour.

    Returns:
        The figure; its rows give each token's place (``line``, and ``start`` and ``stop`` in characters).

    Raises:
        UserError: if a run has two tokens of the same position.
    """
    rows = pieces.as_runs(rows, "run")
    if rows.select(pl.struct("run", "position").is_duplicated().any()).item():
        raise UserError(
            "figure token_strip: a position occurs twice in a run; give the tokens of one passage"
        )
    placed = pl.concat(
        _placed(rows.filter(pl.col("run") == name).sort("position"), columns)
        for name in pieces.series(rows, "run")
    )
    per = 7.4
    colour = alt.Color(
        "logprob:Q",
        title="log-probability (nats)",
        scale=alt.Scale(domain=[lowest, lowest / 2, 0], range=["#f7fbff", "#9ecae1", "#2171b5"], clamp=True),
        legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=200),
    )

    def draw(i: int, name: str, part: pl.DataFrame) -> Any:
        lines = int(part["line"].max()) + 1  # type: ignore[arg-type]
        x = alt.X("start:Q", axis=None, scale=alt.Scale(domain=[0, columns], nice=False))
        y = alt.Y("line:O", axis=None, scale=alt.Scale(domain=list(range(lines)), padding=0.08))
        base = alt.Chart(theme.values(part)).encode(x, y)
        ink = alt.condition(f"datum.logprob > {0.35 * lowest}", alt.value("white"), alt.value(theme.INK))
        text = base.mark_text(
            font="'DejaVu Sans Mono', Menlo, Consolas, monospace", fontSize=11, align="center"
        )
        scored = part["logprob"].drop_nulls().cast(pl.Float64).to_list()
        about = (
            f"mean {np.mean(scored):.2f} nats, n={len(scored)} tokens" if scored else "no token was scored"
        )
        heading = f"{name} ({about.replace('-', '−')})".strip()
        return alt.layer(
            base.mark_rect(stroke="white", strokeWidth=1).encode(alt.X2("stop:Q"), color=colour),
            text.encode(alt.X("middle:Q"), text="token:N", color=ink),
        ).properties(width=round(per * columns), height=24 * lines, title=heading, name=f"{FIXED}_{i}")

    names = pieces.series(placed, "run")
    blocks = [draw(i, name, placed.filter(pl.col("run") == name)) for i, name in enumerate(names)]
    chart = blocks[0] if len(blocks) == 1 else alt.vconcat(*blocks)
    return Figure(chart, placed.drop("middle"))


def _placed(tokens: pl.DataFrame, columns: int) -> pl.DataFrame:
    """Line and columns of every token in monospaced text whose lines break between tokens."""
    # Invisible characters would make a token vanish, or turn the text around.
    shown = tokens["token"].str.replace_all("\n", "⏎").str.replace_all(r"\p{C}", "�").to_list()
    line, at, places = 0, 0, []
    for token in shown:  # of one passage, for people to read
        width = min(max(len(token), 1), columns)
        if at + width > columns:
            line, at = line + 1, 0
        places.append((line, at, at + width, at + width / 2))
        at += width
    where = pl.DataFrame(places, schema=["line", "start", "stop", "middle"], orient="row")
    cut = pl.Series(
        "token", [token if len(token) <= columns else token[: columns - 1] + "…" for token in shown]
    )
    return tokens.with_columns(cut, *where.get_columns())


@figure(number=11, title="Longest verbatim runs", needs=("length",), optional=("run",))
def run_lengths(rows: pl.DataFrame, *, bins: int = 30, width: int = 560, height: int = 250) -> Figure:
    """Histogram by ``run`` of the longest sequence of tokens that greedy decoding reproduces.

    Args:
        rows: one row per item; ``run`` names the compared groups, such as doses.
        bins: at most; of equal width, whole tokens.
        width: pixels.
        height: pixels.

    Returns:
        The figure; its rows are the bins.
    """
    rows = pieces.as_runs(rows, "run").filter(pl.col("length").is_not_null())
    if rows.is_empty():
        return theme.nothing("Longest verbatim runs", rows, reason="no item has a length")
    drawn = histogram(rows, "length", "run", whole_bins(rows["length"], bins))
    return Figure(steps(drawn, "longest run (tokens)", width=width, height=height), drawn)


@figure(
    number=16,
    title="What kind of text is memorised",
    needs=("against", "x", "category", "estimate", "n"),
)
def taxonomy(rows: pl.DataFrame, *, width: int = 300, height: int = 250) -> Figure:
    """Stacked shares of the categories of memorised text by model size or training step (Prashanth et al. 2024).

    Args:
        rows: shares by ``against`` (one panel each: parameters, step), ``x`` and category; shares need not add up to 1.
            ``n`` counts the memorised texts at ``x``.
        width: of one panel, pixels.
        height: of one panel, pixels.

    Raises:
        UserError: if shares are negative or add up to more than 1.
    """
    total = rows.group_by("against", "x").agg(pl.col("estimate").sum(), least=pl.col("estimate").min())
    if (total["estimate"] > 1 + 1e-6).any() or (total["least"] < 0).any():
        raise UserError(
            "figure taxonomy: some shares in the column estimate are negative or add up to more than 1; "
            "give shares of one whole"
        )
    names = pieces.series(rows, "category")
    order = {name: i for i, name in enumerate(names)}
    drawn = rows.with_columns(rank=pl.col("category").replace_strict(order, return_dtype=pl.Int64)).sort(
        "against", "x", "rank"
    )
    drawn = drawn.with_columns(top=pl.col("estimate").cum_sum().over("against", "x")).with_columns(
        bottom=pl.col("top") - pl.col("estimate")
    )

    def draw(against: str, part: pl.DataFrame) -> Any:
        places = sorted(part["x"].unique().to_list())
        ns = {
            x: pieces.counted(n)
            for x, n in part.group_by("x").agg(pl.col("n").drop_nulls().unique().sort()).iter_rows()
        }
        labels = [pieces.short(x) for x in places]
        part = part.with_columns(
            at=pl.col("x").replace_strict(dict(zip(places, labels, strict=True)), return_dtype=pl.String)
        )
        pick = "".join(
            f"datum.label=='{text}'?['{text}','{ns[x]}']:" for text, x in zip(labels, places, strict=True)
        )
        axis = alt.Axis(labelAngle=0, labelExpr=f"{pick}''", labelLineHeight=14, ticks=False)
        base = alt.Chart(theme.values(part)).encode(alt.X("at:N", title=against, sort=labels, axis=axis))
        return (
            base.mark_bar(stroke="white", strokeWidth=0.6)
            .encode(
                alt.Y("bottom:Q", title="share of memorised texts", scale=alt.Scale(domain=[0, 1])),
                alt.Y2("top"),
                color=theme.colour(names, "category"),
            )
            .properties(width=width, height=height, title=f"over {against}")
        )

    return Figure(pieces.panels(drawn, "against", draw, columns=2), drawn.drop("rank"))
