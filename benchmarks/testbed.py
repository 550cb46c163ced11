"""All post-training methods on three pairs of the nano model: who comes near the leave-out twin, and at what price?

    PYTHONPATH=. python -m benchmarks.testbed [--seeds 1 2 3] [--methods npo rmu ...] [--jobs 2]

Each seed is a pair with items, doses, order and weights of its own, and a forget set drawn from it. The programs go on
where they were stopped. Writes ``unlearning.md``, ``unlearning.csv`` and ``unlearning.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from palimpsest.analysis.figures import theme
from palimpsest.analysis.figures.export import save
from palimpsest.analysis.report.unlearned import FORGET, HELD_OUT, NEVER, OTHERS

REPO = Path(__file__).resolve().parent.parent
METHODS = sorted(path.stem for path in (REPO / "conf" / "posttrain").glob("*.yaml") if path.stem != "base")
TUNING = ("distill", "finetune", "instruct", "retrain")
"""Methods that do not set out to unlearn, and the exact one, after which there is nothing to bring back."""
COLUMNS: dict[str, tuple[str | None, str]] = {
    "steps": (None, "cost"),
    "distance": (FORGET, "distance"),
    "nearer by": (FORGET, "nearer"),
    "AUC": (FORGET, "auc"),
    "AUC minus the twin's": (FORGET, "leak"),
    "extraction: distance": (FORGET, "extraction_distance"),
    "truth ratios: D": (FORGET, "truth_distance"),
    "divergence, at least": (FORGET, "divergence"),
    "other items: distance": (OTHERS, "distance"),
    "never inserted": (NEVER, "change"),
    "held-out text": (HELD_OUT, "change"),
    "half back after": (FORGET, "half_back"),
}
"""Column of the table -> group of texts and statistic of a post-trained run's ``estimates.csv``."""
BOUNDS = {
    **dict.fromkeys(("distance", "extraction_distance", "divergence", "half_back"), (0.0, None)),
    **dict.fromkeys(("auc", "truth_distance"), (0.0, 1.0)),
}
"""Statistic -> its least and greatest value, beyond which limits do not reach."""


def post_trained(method: str, seed: int, runs: Path, after: str | None = None) -> tuple[str, pl.DataFrame]:
    """Name of a method's run on a seed's pair and its estimates, after making whatever is missing.

    Args:
        method: name of a file in ``conf/posttrain/``.
        seed: of the pair, and of the forget set.
        runs: directory of the runs.
        after: run that it goes on from; None: the perturbed run.

    Raises:
        RuntimeError: if the program fails.
    """
    command = [sys.executable, str(REPO / "launch" / "posttrain.py"), "+experiment=unlearn_nano"]
    command += [f"posttrain={method}", f"seed={seed}", f"posttrain.forget.seed={seed}", f"runs={runs}"]
    command += [] if after is None else [f"posttrain.after={after}"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=REPO
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stdout[-1000:]}")
    lines = done.stdout.splitlines()
    report = next(line.removeprefix("report: ") for line in reversed(lines) if line.startswith("report: "))
    name = next(line.split(":")[0] for line in lines if line.endswith(" steps"))
    directory = (REPO / report).parent
    table = pl.read_csv(directory / "estimates.csv", infer_schema_length=None)
    cost = json.loads((directory / "summary.json").read_text())[name]["training_steps"]
    own = table.filter(pl.col("run") == name).drop("run", "low", "high", "n")
    before = pl.DataFrame({"step": [0], "statistic": ["cost"], "estimate": [float(cost)]})
    return name, pl.concat([own, before], how="diagonal_relaxed").with_columns(
        method=pl.lit(method), seed=pl.lit(seed), last=pl.col("step").max()
    )


def with_relearning(method: str, seed: int, runs: Path) -> pl.DataFrame:
    """Estimates of a method on a seed's pair; if it unlearns also how soon relearning brings the forget set back."""
    began = time.monotonic()
    name, own = post_trained(method, seed, runs)
    own = own.filter(pl.col("statistic") != "half_back")
    if method not in (*TUNING, "relearn"):
        _, again = post_trained("relearn", seed, runs, after=name)
        back = again.filter(pl.col("statistic") == "half_back").with_columns(method=pl.lit(method))
        own = pl.concat([own, back], how="diagonal_relaxed")
    print(f"seed {seed}, {method}: {time.monotonic() - began:.0f} s", flush=True)
    return own


def all_runs(methods: Sequence[str], seeds: Sequence[int], runs: Path, jobs: int) -> pl.DataFrame:
    """Estimates of all methods on all seeds' pairs, ``jobs`` seeds at a time: one program writes to a pair's report."""
    left = {seed: list(methods) for seed in seeds}
    free = deque(seeds)
    tables = []

    def work() -> None:
        while True:
            try:
                seed = free.popleft()
            except IndexError:  # the others' seeds are in use
                return
            tables.append(with_relearning(left[seed].pop(0), seed, runs))
            if left[seed]:
                free.append(seed)

    with ThreadPoolExecutor(jobs) as pool:
        for worker in [pool.submit(work) for _ in range(jobs)]:
            worker.result()
    return pl.concat(tables, how="diagonal_relaxed")


def over_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """Mean over the seeds of each method's estimates, and its 95 % t limits over them; null with one seed.

    The mean is null if a seed has no estimate, such as a forget set that did not come back.
    """
    by = ["method", "step", "group", "dose", "statistic"]
    means = rows.group_by(by).agg(
        last=(pl.col("step") == pl.col("last")).any(),
        estimate=pl.when(pl.col("estimate").null_count() == 0).then(pl.col("estimate").mean()),
        error=pl.col("estimate").std() / pl.len().sqrt(),
        seeds=pl.len(),
    )
    factor = {n: float(stats.t.ppf(0.975, n - 1)) for n in means["seeds"].unique() if n > 1}
    half = pl.col("error") * pl.col("seeds").replace_strict(factor, default=None, return_dtype=pl.Float64)
    limits = means.with_columns(low=pl.col("estimate") - half, high=pl.col("estimate") + half)
    return bounded(limits).sort(by)


def bounded(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with limits that stay within the range of their statistic (:data:`BOUNDS`)."""
    for name, (least, most) in BOUNDS.items():
        own = pl.col("statistic") == name
        rows = rows.with_columns(
            low=pl.when(own).then(pl.col("low").clip(least)).otherwise("low"),
            high=pl.when(own).then(pl.col("high").clip(upper_bound=most)).otherwise("high"),
        )
    return rows


def table(means: pl.DataFrame) -> list[str]:
    """The leaderboard in Markdown, the nearest method first."""
    cells: dict[str, dict[tuple[str | None, str], str]] = {}
    last = means.filter((pl.col("last") | (pl.col("statistic") == "cost")) & pl.col("dose").is_null())
    for row in last.iter_rows(named=True):
        limits = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        text = "never" if row["estimate"] is None else f"{row['estimate']:.3f}{limits}"
        text = f"{row['estimate']:.0f}" if row["statistic"] == "cost" else text
        cells.setdefault(row["method"], {})[row["group"], row["statistic"]] = text
    nearest = last.filter((pl.col("group") == FORGET) & (pl.col("statistic") == "distance")).sort("estimate")
    lines = [f"| method | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    return lines + [
        f"| {method} | {' | '.join(cells[method].get(key, '-') for key in COLUMNS.values())} |"
        for method in nearest["method"]
    ]


def frontier(means: pl.DataFrame) -> theme.Figure:
    """Distance of the forget set against the change on held-out text, a line a method along its steps."""
    means = means.filter(pl.col("dose").is_null())
    sides = [
        means.filter((pl.col("group") == group) & (pl.col("statistic") == statistic)).select(
            "method", "step", "last", **{name: "estimate", f"{name}_low": "low", f"{name}_high": "high"}
        )
        for name, (group, statistic) in (("distance", (FORGET, "distance")), ("change", (HELD_OUT, "change")))
    ]
    rows = sides[0].join(sides[1].drop("last"), on=["method", "step"]).sort("method", "step")
    price, title = (
        "change on held-out text, nats a byte (left: worse)",
        "distance of the forget set to the leave-out twin, nats a byte",
    )
    ends = rows.filter("last").drop_nulls(["distance", "change"])
    across, up = (_Axis.of(rows, names, size) for names, size in ((("change",), 760), (("distance",), 560)))
    x, y = across.encoding(alt.X, "change", price), up.encoding(alt.Y, "distance", title)
    base, points = alt.Chart(theme.values(rows)), alt.Chart(theme.values(labelled(ends, across, up)))
    chart = alt.layer(
        base.mark_line(strokeWidth=1, color=theme.MUTED, opacity=0.35).encode(
            x=x, y=y, detail="method:N", order="step:Q"
        ),
        points.mark_rule(opacity=0.3, clip=True).encode(
            x=x, y=up.encoding(alt.Y, "distance_low", title), y2="distance_high:Q"
        ),
        points.mark_rule(opacity=0.3, clip=True).encode(
            x=across.encoding(alt.X, "change_low", price), x2="change_high:Q", y=y
        ),
        points.mark_point(filled=True, size=50, color=theme.PALETTE[0], opacity=1).encode(x=x, y=y),
        points.mark_rule(strokeWidth=0.5, color=theme.MUTED).encode(x=x, y=y, x2="label_x:Q", y2="label_y:Q"),
        points.mark_text(align="left", dx=2, fontSize=10, color=theme.INK).encode(
            x=across.encoding(alt.X, "label_x", price),
            y=up.encoding(alt.Y, "label_y", title),
            text="method:N",
        ),
    ).properties(width=across.size, height=up.size)
    return theme.Figure(theme.styled(chart), rows)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A scale that is linear near 0 and logarithmic further away, so that extreme methods do not hide the others."""

    low: float
    high: float
    size: int
    """Pixels."""
    linear: float = 0.05

    @classmethod
    def of(cls, rows: pl.DataFrame, names: Sequence[str], size: int) -> _Axis:
        values = rows.select(names).to_numpy()
        low, high = min(0.0, float(np.nanmin(values))), max(0.0, float(np.nanmax(values)))
        return cls(low * 1.2, high * 1.2 + 0.05, size)

    def encoding(self, kind: Any, name: str, title: str) -> Any:
        """Encoding of a column on this axis."""
        scale = alt.Scale(type="symlog", constant=self.linear, domain=[self.low, self.high], nice=False)
        ticks = [k for one in (0.1, 0.2, 0.5, 1, 2, 5) for k in (-one, one) if self.low <= k <= self.high]
        return kind(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(values=sorted([0, *ticks])))

    def pixel(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance from the low end."""
        ends = self._bent(np.array([self.low, self.high]))
        return np.asarray((self._bent(values) - ends[0]) / (ends[1] - ends[0]) * self.size)

    def value(self, pixel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inverse of :meth:`pixel`."""
        ends = self._bent(np.array([self.low, self.high]))
        bent = ends[0] + pixel / self.size * (ends[1] - ends[0])
        return np.asarray(np.sign(bent) * self.linear * np.expm1(np.abs(bent)))

    def _bent(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sign(values) * np.log1p(np.abs(values) / self.linear))


def labelled(ends: pl.DataFrame, across: _Axis, up: _Axis) -> pl.DataFrame:
    """Last points of the methods with places of their names, ``label_x`` and ``label_y``, where none covers another."""
    ends = ends.sort("distance", descending=True)
    x, y = across.pixel(ends["change"].to_numpy()), up.pixel(ends["distance"].to_numpy())
    placed: list[tuple[float, float, float]] = []
    for left, height, method in zip(x + 8, y, ends["method"], strict=True):
        width = 6.0 * len(method)
        taken = sorted(
            (there for at, wide, there in placed if at < left + width and left < at + wide), reverse=True
        )
        for there in taken:
            if height > there - 11:
                height = min(height, there - 11)
        placed.append((left, width, height))
    return ends.with_columns(
        label_x=pl.Series(across.value(np.array([one[0] for one in placed]))),
        label_y=pl.Series(up.value(np.array([one[2] for one in placed]))),
    )


def write(means: pl.DataFrame, out: Path, when: str, seeds: Sequence[int]) -> None:
    """Write the leaderboard, the figure, and the estimates: along the steps, and by dose those of the last step.

    Args:
        means: of :func:`over_seeds`.
        out: directory.
        when: date and commit of the runs.
        seeds: of the pairs.
    """
    out.mkdir(parents=True, exist_ok=True)
    shown = means.filter(pl.col("dose").is_null() | pl.col("last"))
    shown.write_csv(out / "unlearning.csv", float_precision=5)
    figure = frontier(means)
    save(figure.chart, out, "unlearning", figure.rows, formats=["png"])
    prose = (
        f"`make testbed`, {when}, {platform.machine()}; seeds {', '.join(map(str, seeds))}. The quickstart's model and "
        "items, a tenth of those inserted to forget; each method with the settings of its file in `conf/posttrain/`, "
        "none of them tuned. Values are nats a byte; means over the seeds with 95 % limits over them. Distance: mean "
        "absolute difference from the leave-out twin, item by item; nearer by: its decrease since before (below 0: "
        "further away than before). AUC: forget set against never-inserted items. Extraction, truth ratios and "
        "divergence are distances from the twin, too. Never inserted, held-out text: mean change since before (below "
        "0: less likely). Half back after: steps of ordinary training on the forget set until half of what was lost is "
        "back (never: not in 20). Steps: of training that a method takes. By dose and along the steps: "
        "`unlearning.csv`."
    )
    text = [
        *(
            "# Unlearning, judged by the leave-out twin",
            "",
            *textwrap.wrap(prose, 120, break_on_hyphens=False),
            "",
        ),
        *(*table(means), "", "![Distance against price](unlearning.png)"),
    ]
    (out / "unlearning.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Run all methods on all seeds and write the leaderboard."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--runs", type=Path, default=REPO / "runs")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    parser.add_argument("--out", type=Path, default=REPO / "results")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // given.jobs)))
    means = over_seeds(all_runs(given.methods, given.seeds, given.runs.resolve(), given.jobs))
    root = ["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(root, capture_output=True, text=True, check=False).stdout.strip()
    write(means, given.out, f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}", given.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
