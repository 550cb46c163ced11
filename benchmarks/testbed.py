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
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import altair as alt
import polars as pl
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


def all_runs(methods: Sequence[str], seed: int, runs: Path) -> pl.DataFrame:
    """Estimates of all methods on a seed's pair; of those that unlearn also how soon relearning brings it back."""
    tables = []
    for method in methods:
        began = time.monotonic()
        name, own = post_trained(method, seed, runs)
        if method not in (*TUNING, "relearn"):
            _, again = post_trained("relearn", seed, runs, after=name)
            tables.append(
                again.filter(pl.col("statistic") == "half_back").with_columns(method=pl.lit(method))
            )
        tables.append(own.filter(pl.col("statistic") != "half_back"))
        print(f"seed {seed}, {method}: {time.monotonic() - began:.0f} s", flush=True)
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
    return means.with_columns(low=pl.col("estimate") - half, high=pl.col("estimate") + half).sort(by)


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
    base = alt.Chart(theme.values(rows)).encode(x=alt.X("change:Q", title=price))
    ends = alt.Chart(theme.values(rows.filter("last"))).encode(x=alt.X("change:Q", title=price))
    y = alt.Y("distance:Q", title=title, scale=alt.Scale(zero=True))
    chart = alt.layer(
        base.mark_line(strokeWidth=1, color=theme.MUTED, opacity=0.5).encode(
            y=y, detail="method:N", order="step:Q"
        ),
        ends.mark_rule(opacity=0.4).encode(y=alt.Y("distance_low:Q", title=title), y2="distance_high:Q"),
        ends.mark_rule(opacity=0.4).encode(x=alt.X("change_low:Q", title=price), x2="change_high:Q", y=y),
        ends.mark_point(filled=True, size=60, color=theme.PALETTE[0], opacity=1).encode(y=y),
        ends.mark_text(align="left", dx=7, dy=-6, fontSize=11, color=theme.INK).encode(y=y, text="method:N"),
    ).properties(width=720, height=460)
    return theme.Figure(theme.styled(chart), rows)


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
    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(lambda seed: all_runs(given.methods, seed, given.runs.resolve()), given.seeds))
    means = over_seeds(pl.concat(rows, how="diagonal_relaxed"))
    given.out.mkdir(parents=True, exist_ok=True)
    means.write_csv(given.out / "unlearning.csv")
    figure = frontier(means)
    save(figure.chart, given.out, "unlearning", figure.rows, formats=["png"])
    root = ["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(root, capture_output=True, text=True, check=False).stdout.strip()
    text = [
        "# Unlearning, judged by the leave-out twin",
        "",
        f"`make testbed`, {datetime.now(UTC):%Y-%m-%d}, commit {commit}, {platform.machine()}; seeds "
        f"{', '.join(map(str, given.seeds))}. The quickstart's model and items, a tenth of those inserted to forget;",
        "each method with the settings of its file in `conf/posttrain/`, none of them tuned. Values are nats a byte;",
        "means over the seeds with 95 % limits over them. Distance: mean absolute difference from the leave-out twin,",
        "item by item; nearer by: its decrease since before (below 0: further away than before). AUC: forget set",
        "against never-inserted items. Extraction, truth ratios and divergence are distances from the twin, too. Never",
        "inserted, held-out text: mean change since before (below 0: less likely). Half back after: steps of ordinary",
        "training on the forget set until half of what was lost is back (never: not in 20). Steps: of training that a",
        "method takes. By dose and along the steps: `unlearning.csv`.",
        "",
        *table(means),
        "",
        "![Distance against price](unlearning.png)",
    ]
    (given.out / "unlearning.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
