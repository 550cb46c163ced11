"""All metrics and 1,000-fold bootstraps for 12,000 documents from a Parquet store, timed.

    python benchmarks/metrics.py [--documents 12000] [--repeats 5] [--replicates 1000]

Timed: reading the store (Parquet, zstd), every registered metric that applies to passages, one stratified bootstrap
of all of them (means, gains with simultaneous bands, AUC at every dose), and, per metric, the exact limits of TPR at
1 % FPR. Not timed: making the store, importing packages. "paired" also reads the twin's scores of the same documents
and computes everything for both runs and the reference metrics.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from palimpsest.analysis.metrics import METRICS, Parameters, compute
from palimpsest.analysis.statistics import auc, gain_over_control, mean_by_dose, tpr_at_fpr

DOSES, SHARES = (0, 1, 4, 16, 64, 256), (0.263, 0.263, 0.263, 0.132, 0.053, 0.026)
COLUMNS = ("logprob", "rank", "entropy", "variance", "margin")


def make(documents: int, where: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and probes; the scores of both runs go to Parquet files under ``where``."""
    rng = np.random.default_rng(0)
    length = rng.integers(150, 351, documents)
    dose = rng.choice(DOSES, documents, p=np.array(SHARES) / sum(SHARES))
    family = rng.choice(["passage", "biography", "trap"], documents)
    stratum = family + np.where(length > 250, "/long", "/short").astype(object)
    ids = [f"i{k:05d}" for k in range(documents)]
    words = np.array("the of a to in was he by for with on as his that it is from at had were".split())
    items = pl.DataFrame({"item_id": ids, "stratum": list(stratum), "dose": dose.astype(np.int32)})
    probes = pl.DataFrame(
        {
            "probe_id": [f"{i}/verbatim" for i in ids],
            "item_id": ids,
            "family": list(family),
            "kind": "verbatim",
            "text": [" ".join(rng.choice(words, n)) for n in length],
            "tokens": pl.Series([np.arange(n, dtype=np.int32) for n in length]),
            "target_start": 0,
            "target_bytes": 4 * length,
        }
    )
    ends = np.cumsum(length)[:-1]
    for run in ("perturbed", "twin"):
        ease = np.repeat(0.35 * np.log2(1 + dose) * (run == "perturbed"), length)
        logprob = -rng.gamma(1.0, 3.0, length.sum()) * np.exp(-ease)
        flat = {
            "logprob": logprob,
            "rank": np.floor(np.expm1(-logprob)).clip(0, 65_535),
            "entropy": rng.gamma(2.0, 1.2, length.sum()) * np.exp(-ease),
            "variance": rng.gamma(2.0, 1.0, length.sum()) * np.exp(-ease),
            "margin": -logprob,
        }
        table = pl.DataFrame(
            {"run": run, "step": 100, "probe_id": probes["probe_id"]}
            | {name: pl.Series(np.split(flat[name], ends)) for name in COLUMNS},
        ).with_columns(
            pl.col("rank").cast(pl.List(pl.UInt16)),
            pl.col(COLUMNS[:1] + COLUMNS[2:]).cast(pl.List(pl.Float32)),
        )
        table.write_parquet(where / f"{run}.parquet", compression="zstd")
    return items, probes


def measure(
    items: pl.DataFrame, probes: pl.DataFrame, files: list[Path], names: list[str], replicates: int
) -> tuple[dict[str, float], pl.DataFrame, pl.DataFrame]:
    start = time.perf_counter()
    scores = pl.read_parquet(files)
    read = time.perf_counter()
    rows = compute(items, probes, scores, names, Parameters(prefix=50, suffix=50))
    metrics = time.perf_counter()
    found = pl.concat([mean_by_dose(rows), gain_over_control(rows), auc(rows)])
    bootstraps = time.perf_counter()
    for (_, _), part in (
        rows.filter(pl.col("value").is_not_null()).partition_by(["run", "metric"], as_dict=True).items()
    ):
        tpr_at_fpr(part.filter(pl.col("dose") > 0)["value"], part.filter(pl.col("dose") == 0)["value"], 0.01)
    end = time.perf_counter()
    times = {
        "read": read - start,
        "metrics": metrics - read,
        "bootstraps": bootstraps - metrics,
        "tpr": end - bootstraps,
    }
    return times | {"all": end - start}, rows, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=12_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--replicates", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        items, probes = make(given.documents, where)
        alone = [m.name for m in METRICS.values() if m.needs == ("verbatim",) and "reference" not in m.reads]
        every = [m.name for m in METRICS.values() if m.needs == ("verbatim",)]
        size = (where / "perturbed.parquet").stat().st_size
        tokens = int(probes["tokens"].list.len().sum())
        print(
            f"{given.documents:,} documents, {tokens:,} tokens, {size / 1e6:.1f} MB a run ({size / tokens:.1f} B/token)"
        )
        print(f"{platform.machine()}, Python {platform.python_version()}", end="")
        print("".join(f", {name} {version(name)}" for name in ("numpy", "polars", "scipy")))
        for label, files, names in (
            ("one run", [where / "perturbed.parquet"], alone),
            ("paired", [where / "perturbed.parquet", where / "twin.parquet"], every),
        ):
            runs = []
            for _ in range(given.repeats):
                times, rows, found = measure(items, probes, files, names, given.replicates)
                runs.append(times)
            print(f"{label}: {len(names)} metrics, {rows.height:,} rows, {found.height} estimates")
            for part in runs[0]:
                values = sorted(r[part] for r in runs)
                print(
                    f"  {part:10s} median {values[len(values) // 2]:.2f} s, {values[0]:.2f}-{values[-1]:.2f}"
                )


if __name__ == "__main__":
    main()
