"""Figures of the design: item lengths, covariate balance, assignment to doses, and p-values of A/A tests (default
figure 18).
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import polars as pl
from scipy import stats

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.membership import histogram, steps, whole_bins
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure
from palimpsest.data.errors import UserError


@figure(number=18, title="Lengths of the items", needs=("tokens", "group"))
def lengths(rows: pl.DataFrame, *, bins: int = 30, width: int = 560, height: int = 240) -> Figure:
    """Histogram of item lengths by group, such as dose; the histograms of randomised arms should coincide.

    Args:
        rows: one row per item.
        bins: largest number of bins, of equal width in whole tokens.
        width: pixels.
        height: pixels.

    Returns:
        The figure; its rows are the bins (``low``, ``high``, ``count``, ``share``).
    """
    rows = rows.filter(pl.col("tokens").is_not_null())
    if rows.is_empty():
        return theme.nothing("Lengths of the items", rows, reason="no item has a length")
    drawn = histogram(rows, "tokens", "group", whole_bins(rows["tokens"], bins))
    return Figure(steps(drawn, "length (tokens)", width=width, height=height), drawn)


@figure(
    number=18,
    title="Balance of the randomisation",
    needs=("covariate", "dose", "difference", "n"),
    optional=("low", "high"),
)
def balance(rows: pl.DataFrame, *, limit: float = 0.1, width: int = 420) -> Figure:
    """Love plot: standardised difference of each covariate from dose 0, by dose.

    Args:
        rows: differences by covariate and dose, drawn with ``low`` and ``high`` if these columns exist.
        limit: place of the dashed lines, plus and minus. Larger differences are usually called imbalance (Austin 2009);
            small arms exceed it by chance.
        width: pixels.
    """
    rows = rows.filter(pl.col("difference").is_not_null() & pl.col("dose").is_not_null())
    if rows.is_empty():
        return theme.nothing("Balance", rows, reason="no covariate has a difference")
    doses = sorted(int(dose) for dose in rows["dose"].unique())
    ns = {
        d: pieces.counted(n)
        for d, n in rows.group_by("dose").agg(pl.col("n").drop_nulls().unique().sort()).iter_rows()
    }
    names = {dose: f"dose {dose} ({ns[dose]})".replace(" ()", "") for dose in doses}
    drawn = rows.with_columns(arm=pl.col("dose").cast(pl.Int64).replace_strict(names, return_dtype=pl.String))
    limits = [name for name in ("low", "high") if name in rows.columns]
    most = max(
        2 * limit,
        *(
            float(np.nanmax(np.abs(rows[name].drop_nulls().to_numpy()), initial=0))
            for name in ("difference", *limits)
        ),
    )
    order, arms = pieces.series(rows, "covariate"), list(names.values())
    x = alt.X(
        "difference:Q",
        title="standardised difference from dose 0",
        scale=alt.Scale(domain=[-1.05 * most, 1.05 * most], nice=False),
    )
    y = alt.Y("covariate:N", title=None, sort=order, axis=alt.Axis(ticks=False, labelLimit=200, grid=True))
    colour = alt.Color(
        "arm:N", title=None, sort=arms, scale=alt.Scale(domain=arms, range=theme.dose_colours(doses))
    )
    base = alt.Chart(theme.values(drawn)).encode(y, yOffset=alt.YOffset("arm:N", sort=arms), color=colour)
    layers: list[Any] = [theme.line(x=0.0), theme.line(x=limit), theme.line(x=-limit)]
    if len(limits) == 2:
        layers.append(base.mark_rule(strokeWidth=1.2).encode(pieces.same(x, "low"), alt.X2("high")))
    layers.append(base.mark_point(filled=True, size=46, opacity=1).encode(x))
    height = max(60, 11 * len(order) * (len(doses) + 1))
    return Figure(alt.layer(*layers).properties(width=width, height=height), rows)


@figure(number=18, title="Assignment of items to doses", needs=("family", "dose"))
def assignment_flow(rows: pl.DataFrame, *, width: int = 460, height: int | None = None) -> Figure:
    """Flow diagram of each family's items to the doses; widths are numbers of items.

    Args:
        rows: one row per item, or one row per family and dose with ``n``. A null dose is labelled ``not assigned``.
        width: pixels.
        height: pixels.

    Returns:
        The figure; its rows are ``family``, ``dose`` and ``n``.

    Raises:
        UserError: if an ``n`` is negative.
    """
    counted = rows.group_by("family", "dose", maintain_order=True).agg(
        (pl.col("n").sum() if "n" in rows.columns else pl.len()).cast(pl.Int64).alias("n")
    )
    if (counted["n"] < 0).any():
        raise UserError("figure assignment_flow: the column n has a negative value; give numbers of items")
    counted = counted.filter(pl.col("n") > 0).sort("family", "dose", nulls_last=True)
    if counted.is_empty():
        return theme.nothing("Assignment of items to doses", counted, reason="no row counts an item")
    families = pieces.series(counted, "family")
    doses = counted["dose"].unique().sort(nulls_last=True).to_list()
    total = int(counted["n"].sum())
    height = height or max(200, 34 * max(len(families), len(doses)))
    gap = 0.02 * total
    left = _stack([int(counted.filter(pl.col("family") == f)["n"].sum()) for f in families], gap)
    right = _stack([int(counted.filter(pl.col("dose").eq_missing(pl.lit(d)))["n"].sum()) for d in doses], gap)
    most = max(left[-1][1], right[-1][1])
    used_left, used_right = [start for start, _ in left], [start for start, _ in right]
    along = np.linspace(0, 1, 16)
    smooth = along * along * (3 - 2 * along)
    ribbons = []
    for family, dose, n in counted.iter_rows():
        i, j = families.index(family), doses.index(dose)
        one, other = used_left[i], used_right[j]
        used_left[i], used_right[j] = one + n, other + n
        middle = one + (other - one) * smooth
        ribbons += [
            {"link": f"{i}-{j}", "family": family, "t": float(t), "low": float(m), "high": float(m + n)}
            for t, m in zip(along, middle, strict=True)
        ]
    ends: list[dict[str, Any]] = [
        {"family": name, "t": t, "side": side, "low": a, "high": b, "label": f"{name} (n={round(b - a):,})"}
        for side, t, names, stacked in (
            ("left", -0.015, families, left),
            ("right", 1.015, [_dose(d) for d in doses], right),
        )
        for name, (a, b) in zip(names, stacked, strict=True)
    ]
    x = alt.X("t:Q", axis=None, scale=alt.Scale(domain=[-0.55, 1.4], nice=False))
    y = alt.Y("low:Q", axis=None, scale=alt.Scale(domain=[most, 0], nice=False, zero=False))
    colour = theme.colour(families, "family", legend=False)
    flow = alt.Chart(theme.data(ribbons)).mark_area(opacity=0.45)
    bars = alt.Chart(theme.data(ends)).mark_rule(strokeWidth=7, color=theme.INK, opacity=0.75)
    layers = [
        flow.encode(x, y, alt.Y2("high"), color=colour, detail="link:N"),
        bars.encode(x, y, alt.Y2("high")),
    ]
    words = alt.Chart(theme.data([{**end, "low": (end["low"] + end["high"]) / 2} for end in ends])).encode(
        x, y, text="label:N"
    )
    beside: dict[str, Any] = {"baseline": "middle", "fontSize": 12, "color": theme.INK}
    layers += [
        words.transform_filter("datum.side == 'left'").mark_text(align="right", dx=-9, **beside),
        words.transform_filter("datum.side == 'right'").mark_text(align="left", dx=9, **beside),
    ]
    return Figure(alt.layer(*layers).properties(width=width, height=height), counted)


def _dose(dose: float | None) -> str:
    return "not assigned" if dose is None else f"dose {int(dose)}"


def _stack(sizes: list[int], gap: float) -> list[tuple[float, float]]:
    """Cumulated start and end of each bar."""
    places, at = [], 0.0
    for size in sizes:
        places.append((at, at + size))
        at += size + gap
    return places


@figure(number=18, title="p-values where nothing was done (A/A)", needs=("p",), optional=("run",))
def aa_pvalues(rows: pl.DataFrame, *, width: int = 320, height: int = 320) -> Figure:
    """Quantile plot of p-values of comparisons without an effect, with a pointwise 95 % band.

    The k-th smallest of n p-values is drawn at ``(k - 1/2) / n``. The band is given by the 2.5 % and 97.5 % points of
    Beta(k, n - k + 1), its distribution if p-values are uniform. A valid test lies on the diagonal; a test below it
    reports effects that do not exist.

    Args:
        rows: one row per comparison, such as one half of the controls against the other; ``run`` makes several curves.
        width: pixels.
        height: pixels.

    Returns:
        The figure; its rows are ``run``, ``expected``, ``p`` and the band.

    Raises:
        UserError: if a p-value is outside 0 to 1.
    """
    rows = pieces.as_runs(rows, "run").filter(pl.col("p").is_not_null() & pl.col("p").is_not_nan())
    if rows.is_empty():
        return theme.nothing("p-values where nothing was done", rows, reason="no comparison has a p-value")
    if not rows["p"].is_between(0, 1).all():
        raise UserError("figure aa_pvalues: the column p has values outside 0 to 1; give p-values")
    frames = []
    for name in pieces.series(rows, "run"):
        p = np.sort(rows.filter(pl.col("run") == name)["p"].to_numpy())
        rank = np.arange(1, p.size + 1)
        frames.append(
            pl.DataFrame(
                {
                    "run": pieces.with_n(name, [p.size]),
                    "expected": (rank - 0.5) / p.size,
                    "p": p,
                    "low": stats.beta.ppf(0.025, rank, p.size - rank + 1),
                    "high": stats.beta.ppf(0.975, rank, p.size - rank + 1),
                }
            )
        )
    drawn = pl.concat(frames)
    names = pieces.series(drawn, "run")
    x = alt.X("expected:Q", title="uniform quantile", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("p:Q", title="p-value", scale=alt.Scale(domain=[0, 1]))
    diagonal = alt.Chart(theme.data([{"expected": 0, "p": 0}, {"expected": 1, "p": 1}]))
    longest = max(frames, key=len)
    chart = alt.layer(
        alt.Chart(theme.values(longest))
        .mark_area(color=theme.MUTED, opacity=0.18)
        .encode(x, alt.Y("low:Q", title="p-value"), alt.Y2("high")),
        diagonal.mark_line(color=theme.MUTED, strokeDash=[4, 4], strokeWidth=1).encode(x, y),
        alt.Chart(theme.values(drawn))
        .mark_point(filled=True, size=28, opacity=0.9)
        .encode(x, y, theme.colour(names), shape=theme.shape(names)),
    )
    return Figure(chart.properties(width=width, height=height), drawn)
