"""Figures of membership inference: ROC curves, AUC by covariate, perplexities of traps (default figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.figures import pieces, theme
from palimpsest.analysis.figures.registry import figure
from palimpsest.analysis.figures.theme import Figure
from palimpsest.analysis.statistics import pooled_auc
from palimpsest.analysis.statistics.recognition import Arm
from palimpsest.data.errors import UserError


@figure(
    number=8, title="Membership: ROC curves", needs=("score", "member"), optional=("run", "family", "cluster")
)
def roc(rows: pl.DataFrame, *, width: int = 300, height: int = 300) -> Figure:
    """ROC curves, on linear axes and on logarithmic axes that show low false-positive rates.

    ``TPR(t) = P(score >= t | member)`` against ``FPR(t) = P(score >= t | control)`` at every threshold; tied scores are
    one step. The area and its interval are those of :func:`analysis.statistics.auc`: within families if rows have
    ``family``, and over clusters if they have ``cluster``.

    Args:
        rows: one row per item and attack (``run``).
        width: of one panel, pixels.
        height: of one panel, pixels.

    Returns:
        The figure; its rows are the points of the curves, at most ``theme.MAX_POINTS`` per curve.

    Raises:
        UserError: if an attack lacks members or controls, or has scores that are not finite.
    """
    rows = pieces.as_runs(rows, "run")
    curves, lowest = [], 1.0
    for name in pieces.series(rows, "run"):
        own = rows.filter(pl.col("run") == name)
        if own["score"].cast(pl.Float64).is_finite().fill_null(False).not_().any():
            raise UserError(
                f"figure roc: scores of {name!r} are not all finite numbers; leave those items out, and count them"
            )
        member, score = own["member"].to_numpy().astype(bool), own["score"].to_numpy().astype(float)
        inside, outside = score[member], score[~member]
        if min(inside.size, outside.size) < 2:
            raise UserError(
                f"figure roc: {name!r} has {inside.size} members and {outside.size} controls; two of each are needed"
            )
        area = pooled_auc(_families(own))
        fpr, tpr = points(inside, outside)
        lowest = min(lowest, 1 / outside.size)
        counts = f"n={inside.size:,}+{outside.size:,}"
        label = f"{name} AUC {area['estimate']:.3f} [{area['low']:.3f}, {area['high']:.3f}], {counts}".strip()
        curves.append(pl.DataFrame({"run": label, "fpr": fpr, "tpr": tpr}))
    drawn = pl.concat(curves)
    names = pieces.series(drawn, "run")

    def panel(log: bool) -> Any:
        floor = 10 ** np.floor(np.log10(lowest))
        scale: dict[str, Any] = {"type": "log", "domain": [floor, 1]} if log else {"domain": [0, 1]}
        axis = pieces.log_axis(floor, 1, grid=True) if log else alt.Axis(format="~g", tickCount=6, grid=True)
        x = alt.X("fpr:Q", title="false-positive rate", scale=alt.Scale(**scale), axis=axis)
        y = alt.Y("tpr:Q", title="true-positive rate", scale=alt.Scale(**scale), axis=axis)
        shown = drawn.filter((pl.col("fpr") >= floor) & (pl.col("tpr") >= floor)) if log else drawn
        chance = pl.DataFrame({"fpr": [floor if log else 0.0, 1.0], "tpr": [floor if log else 0.0, 1.0]})
        diagonal = alt.Chart(theme.values(chance)).mark_line(
            color=theme.MUTED, strokeDash=[4, 4], strokeWidth=1
        )
        line = alt.Chart(theme.values(shown)).mark_line(strokeWidth=1.8)
        return alt.layer(
            diagonal.encode(x, y),
            line.encode(x, y, _stacked(names), strokeDash=theme.dash(names), order=alt.Order("fpr:Q")),
        ).properties(width=width, height=height, title="Logarithmic axes" if log else "Linear axes")

    return Figure(alt.hconcat(panel(False), panel(True)), drawn)


def _families(rows: pl.DataFrame) -> list[tuple[Arm, Arm]]:
    """Members and controls of each family, with their clusters."""
    own = rows.with_row_index("place").with_columns(
        family=pl.col("family") if "family" in rows.columns else pl.lit("all"),
        cluster=pl.col("cluster") if "cluster" in rows.columns else pl.col("place").cast(pl.String),
    )

    def arm(side: pl.DataFrame) -> Arm:
        return side["score"].to_numpy().astype(np.float64), side["cluster"].to_numpy()

    return [
        (arm(part.filter(pl.col("member"))), arm(part.filter(~pl.col("member"))))
        for part in own.with_columns(pl.col("member").cast(pl.Boolean)).partition_by(
            "family", maintain_order=True
        )
    ]


def _stacked(names: list[str]) -> alt.Color:
    """Colour scale whose legend has one long name per line."""
    scale = alt.Scale(domain=names, range=theme.colours(names))
    return alt.Color(
        "run:N", title=None, sort=names, scale=scale, legend=alt.Legend(columns=1, labelLimit=520)
    )


def points(
    members: NDArray[np.float64], controls: NDArray[np.float64], most: int = theme.MAX_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False- and true-positive rates at every threshold, from (0, 0) to (1, 1).

    Args:
        members: (m,) scores.
        controls: (n,) scores.
        most: largest number of points, evenly spaced along the curve; the first 50 and the ends are always kept.

    Returns:
        False-positive and true-positive rates, two rising float64 arrays of equal length.
    """
    thresholds = np.unique(np.concatenate([members, controls]))[::-1]
    inside, outside = np.sort(members), np.sort(controls)
    tpr = 1 - np.searchsorted(inside, thresholds, side="left") / inside.size
    fpr = 1 - np.searchsorted(outside, thresholds, side="left") / outside.size
    tpr, fpr = np.concatenate([[0.0], tpr]), np.concatenate([[0.0], fpr])
    if tpr.size > most:
        head = np.arange(50)
        rest = np.linspace(50, tpr.size - 1, most - 50).round().astype(int)
        keep = np.concatenate([head, rest])
        tpr, fpr = tpr[keep], fpr[keep]
    return fpr, tpr


_AXES = {
    "dose": "dose: times inserted",
    "length": "length (tokens)",
    "step": "training step",
    "perplexity": "perplexity under the reference model",
}
"""Axis titles of known values of ``against``; other values are their own titles."""


@figure(
    number=8,
    title="Membership: AUC against dose, length, step and perplexity",
    needs=("against", "x", "estimate", "low", "high", "n"),
    optional=("run",),
)
def auc_against(rows: pl.DataFrame, *, width: int = 270, height: int = 230) -> Figure:
    """AUC with intervals, one panel per covariate; a dashed line marks 0.5, chance.

    For the perplexity of traps, the least-squares line weighted by n is drawn as well, with its slope in the panel's
    title.

    Args:
        rows: AUCs by ``against`` (dose, length, step, perplexity, or another name) and ``x``; ``run`` names the lines.
        width: of one panel, pixels.
        height: of one panel, pixels.
    """
    rows = pieces.as_runs(rows, "run")
    names = pieces.series(rows, "run")

    def draw(against: str, part: pl.DataFrame) -> Any:
        x = pieces.x_axis(part, _AXES.get(against, against))
        y = pieces.y_axis(rows, "AUC", 0.5)
        layers = [theme.line(y=0.5), pieces.curves(part, x, y, names=names)]
        heading = f"against {against}"
        if against == "perplexity" and part["x"].n_unique() > 1:
            slope, base = line_of(part["x"], part["estimate"], part["n"])
            ends = pl.DataFrame({"x": [part["x"].min(), part["x"].max()]})
            ends = ends.with_columns(estimate=base + slope * pl.col("x"))
            layers = [
                theme.line(y=0.5),
                alt.Chart(theme.values(ends)).mark_line(color=theme.INK, strokeDash=[6, 3]).encode(x, y),
                _scattered(part, x, y, names),
            ]
            heading += f" (slope {slope:+.2g})".replace("-", "−")
        return alt.layer(*layers).properties(width=width, height=height, title=heading)

    return Figure(pieces.panels(rows, "against", draw, columns=2), rows)


def _scattered(rows: pl.DataFrame, x: alt.X, y: alt.Y, names: list[str]) -> Any:
    """Points with their intervals, without a line."""
    several = len(names) > 1
    base = alt.Chart(theme.values(rows)).encode(x, color=theme.colour(names, legend=several))
    return alt.layer(
        base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(pieces.same(y, "low"), alt.Y2("high")),
        base.mark_point(filled=True, size=50, opacity=1).encode(y, shape=theme.shape(names, legend=several)),
    )


def line_of(x: pl.Series, y: pl.Series, weight: pl.Series) -> tuple[float, float]:
    """Slope and intercept of the least-squares line weighted by n."""
    across, up, w = (values.to_numpy().astype(float) for values in (x, y, weight))
    slope, base = np.polyfit(across, up, 1, w=np.sqrt(w))
    return float(slope), float(base)


@figure(number=8, title="Membership: perplexity of traps", needs=("group", "perplexity"))
def perplexities(rows: pl.DataFrame, *, bins: int = 40, width: int = 560, height: int = 260) -> Figure:
    """Histogram of perplexities under the reference model, by group: the histograms of members and controls should
    coincide.

    Args:
        rows: one row per text.
        bins: number of bins, of equal width in log10 perplexity, from the lowest to the highest.
        width: pixels.
        height: pixels.

    Returns:
        The figure; its rows are the bins (``low``, ``high``, ``share`` of the group, ``count``).
    """
    rows = rows.filter(pl.col("perplexity").is_not_null() & (pl.col("perplexity") > 0))
    drawn = histogram(rows, "perplexity", "group", bins, log=True)
    if drawn.is_empty():
        return theme.nothing("Membership: perplexity of traps", drawn, reason="no perplexity is above 0")
    return Figure(
        steps(drawn, "perplexity under the reference model", log=True, width=width, height=height), drawn
    )


def histogram(
    rows: pl.DataFrame, column: str, by: str, bins: int | Sequence[float], *, log: bool = False
) -> pl.DataFrame:
    """Histogram of each group on common bins; the group's name includes its n.

    Args:
        rows: one row per counted object.
        column: column of the values.
        by: column of the groups.
        bins: number of bins, or their edges.
        log: true for bins of equal width in log10.

    Returns:
        ``run`` (group and n), ``low``, ``high``, ``count``, ``share``.
    """
    values = rows[column].to_numpy().astype(float)
    if not values.size:
        numbers = {"low": pl.Float64, "high": pl.Float64, "count": pl.Int64, "share": pl.Float64}
        return pl.DataFrame(schema={"run": pl.String, **numbers})
    scaled = np.log10(values) if log else values
    edges = np.histogram_bin_edges(scaled, bins)
    shown = 10**edges if log else edges
    frames = []
    for name in pieces.series(rows, by):
        own = scaled[(rows[by] == name).to_numpy()]
        count = np.histogram(own, edges)[0]
        frames.append(
            pl.DataFrame(
                {
                    "run": pieces.with_n(name, [own.size]),
                    "low": shown[:-1],
                    "high": shown[1:],
                    "count": count,
                    "share": count / own.size,
                }
            )
        )
    return pl.concat(frames)


def _outlined(names: list[str]) -> alt.Color:
    """Colour scale whose legend shows a piece of the histogram's outline."""
    legend = alt.Legend(symbolType="stroke", symbolSize=300, symbolStrokeWidth=2.5)
    return alt.Color(
        "run:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=theme.colours(names)),
        legend=legend,
    )


def whole_bins(values: pl.Series, most: int) -> list[float]:
    """Edges of at most ``most`` bins of whole numbers, from the lowest value to the highest."""
    low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
    each = max(1, -(-(high - low + 1) // most))
    return [float(edge) for edge in range(low, high + each + 1, each)]


def steps(drawn: pl.DataFrame, title: str, *, log: bool = False, width: int, height: int) -> Any:
    """Overlaid histograms as lightly filled outlines."""
    names = pieces.series(drawn, "run")
    # The last bin once more at its upper end, so that the outline closes.
    last = drawn.group_by("run", maintain_order=True).agg(pl.all().last()).with_columns(low="high")
    closed = pl.concat([drawn, last.select(drawn.columns)])
    kind: dict[str, Any] = {"type": "log"} if log else {}
    ends = float(drawn["low"].min()), float(drawn["high"].max())  # type: ignore[arg-type]
    axis = pieces.log_axis(*ends) if log else alt.Axis(tickCount=6, labelExpr=pieces.SHORT)
    base = alt.Chart(theme.values(closed)).encode(
        alt.X("low:Q", title=title, scale=alt.Scale(nice=False, zero=False, **kind), axis=axis),
        alt.Y("share:Q", title="share of the group", stack=None),
        color=_outlined(names),
    )
    return alt.layer(
        base.mark_area(interpolate="step-after", opacity=0.13),
        base.mark_line(interpolate="step-after", strokeWidth=1.6).encode(
            strokeDash=theme.dash(names, legend=False)
        ),
    ).properties(width=width, height=height)
