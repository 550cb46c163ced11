"""All post-training methods on three pairs of the nano model: who comes near the leave-out twin, and at what price?

    PYTHONPATH=. python -m benchmarks.testbed [--seeds 1 2 3] [--methods npo rmu ...] [--runs runs] [--out results]

Each seed is a pair with items, doses, order and weights of its own, and a forget set drawn from it. The programs go on
where they were stopped. Writes ``unlearning.md``, ``unlearning.csv`` and ``unlearning.png``.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Sequence
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
COLUMNS = {
    "distance": (FORGET, "distance"),
    "nearer by": (FORGET, "nearer"),
    "AUC": (FORGET, "auc"),
    "other items: distance": (OTHERS, "distance"),
    "never inserted": (NEVER, "change"),
    "held-out text": (HELD_OUT, "change"),
}
"""Column of the table -> group of texts and statistic of a post-trained run's ``estimates.csv``."""


def post_trained(method: str, seed: int, runs: Path) -> pl.DataFrame:
    """Estimates of a method's last checkpoint on a seed's pair, after making whatever is missing.

    Raises:
        RuntimeError: if the program fails.
    """
    command = [sys.executable, str(REPO / "launch" / "posttrain.py"), "+experiment=unlearn_nano"]
    command += [f"posttrain={method}", f"seed={seed}", f"runs={runs}"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=REPO
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stdout[-1000:]}")
    lines = done.stdout.splitlines()
    report = next(line.removeprefix("report: ") for line in reversed(lines) if line.startswith("report: "))
    name = next(line.split(":")[0] for line in lines if line.endswith(" steps"))
    found = pl.read_csv((REPO / report).with_name("estimates.csv"), infer_schema_length=None)
    own = found.filter((pl.col("run") == name) & pl.col("dose").is_null())
    return own.filter(pl.col("step") == pl.col("step").max()).with_columns(
        method=pl.lit(method), seed=pl.lit(seed)
    )


def over_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """Mean over the seeds of each method's estimates, and its 95 % t limits over them; null with one seed."""
    means = rows.group_by("method", "group", "statistic").agg(
        estimate=pl.col("estimate").mean(), error=pl.col("estimate").std() / pl.len().sqrt(), seeds=pl.len()
    )
    half = pl.struct("error", "seeds").map_elements(
        lambda one: None if one["seeds"] < 2 else one["error"] * float(stats.t.ppf(0.975, one["seeds"] - 1)),
        return_dtype=pl.Float64,
    )
    return means.with_columns(low=pl.col("estimate") - half, high=pl.col("estimate") + half).sort(
        "method", "group", "statistic"
    )


def table(means: pl.DataFrame) -> list[str]:
    """The leaderboard in Markdown, the nearest method first."""
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in means.iter_rows(named=True):
        limits = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        text = f"{row['estimate']:.3f}{limits}"
        cells.setdefault(row["method"], {})[row["group"], row["statistic"]] = text
    nearest = means.filter((pl.col("group") == FORGET) & (pl.col("statistic") == "distance")).sort("estimate")
    lines = [f"| method | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    return lines + [
        f"| {method} | {' | '.join(cells[method].get(key, '-') for key in COLUMNS.values())} |"
        for method in nearest["method"]
    ]


def frontier(means: pl.DataFrame) -> theme.Figure:
    """Distance of the forget set against the change on held-out text, a point a method."""
    sides = [
        means.filter((pl.col("group") == group) & (pl.col("statistic") == statistic)).select(
            "method", **{name: "estimate", f"{name}_low": "low", f"{name}_high": "high"}
        )
        for name, (group, statistic) in (("distance", (FORGET, "distance")), ("change", (HELD_OUT, "change")))
    ]
    rows = sides[0].join(sides[1], on="method").sort("method")
    base = alt.Chart(theme.values(rows)).encode(
        x=alt.X("change:Q", title="change on held-out text, nats a byte (left: worse)")
    )
    title = "distance of the forget set to the leave-out twin, nats a byte"
    y = alt.Y("distance:Q", title=title, scale=alt.Scale(zero=True))
    chart = alt.layer(
        base.mark_rule(opacity=0.4).encode(y=alt.Y("distance_low:Q", title=title), y2="distance_high:Q"),
        base.mark_rule(opacity=0.4).encode(
            x=alt.X("change_low:Q", title="change on held-out text, nats a byte (left: worse)"),
            x2="change_high:Q",
            y=y,
        ),
        base.mark_point(filled=True, size=60, color=theme.PALETTE[0], opacity=1).encode(y=y),
        base.mark_text(align="left", dx=7, dy=-6, fontSize=11, color=theme.INK).encode(y=y, text="method:N"),
    ).properties(width=560, height=380)
    return theme.Figure(theme.styled(chart), rows)


def main(arguments: Sequence[str]) -> int:
    """Run all methods on all seeds and write the leaderboard."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--runs", type=Path, default=REPO / "runs")
    parser.add_argument("--out", type=Path, default=REPO / "results")
    given = parser.parse_args(arguments)
    rows = []
    for seed in given.seeds:
        for method in given.methods:
            rows.append(post_trained(method, seed, given.runs.resolve()))
            print(f"seed {seed}, {method}: done", flush=True)
    means = over_seeds(pl.concat(rows))
    given.out.mkdir(parents=True, exist_ok=True)
    means.write_csv(given.out / "unlearning.csv")
    save(frontier(means), given.out, "unlearning", formats=["png"])
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
        "against never-inserted items. The last two: mean change since before (below 0: less likely).",
        "",
        *table(means),
        "",
        "![Distance against price](unlearning.png)",
    ]
    (given.out / "unlearning.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
