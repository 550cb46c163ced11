"""Placing a million exposures in a 500B-token run: time, memory, bytes on disk.

    python benchmarks/planning.py [--windows 244000000] [--exposures 1000000] [--directory DIR]

The order is synthetic but has the layout of megatron-core's index arrays for 244M windows of 2,048 tokens over 500M
documents of 1,000 tokens (7 GB, written once to DIR, mapped, and read once before the first run, so that it is not the
disk that is timed). Timed are what ``launch/plan.py`` does at this size: intervals, places, document starts, offsets,
and writing the exposures. Each run is a process of its own, so that the peak resident memory is its own.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

LENGTH, MEAN = 2048, 1000
BATCH = 1024


def arrays(directory: Path, windows: int) -> None:
    """Index arrays as megatron-core would map them."""
    if (directory / "done").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    documents = windows * LENGTH // MEAN + 1
    rng = np.random.default_rng(0)
    np.save(directory / "lengths.npy", np.full(documents, MEAN, dtype=np.int32))
    np.save(directory / "document.npy", rng.permutation(documents).astype(np.int32))
    tokens = np.arange(windows + 1, dtype=np.int64) * LENGTH
    sample = np.stack([tokens // MEAN, tokens % MEAN], axis=1).astype(np.int32)
    sample[-1] = [documents - 1, 0]
    np.save(directory / "sample.npy", sample)
    np.save(directory / "shuffle.npy", rng.permutation(windows).astype(np.uint32))
    (directory / "done").touch()


def peak() -> float:
    """Peak resident memory of this process, GiB (``ru_maxrss`` would count the parent's before exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def plan(directory: Path, windows: int, exposures: int) -> dict[str, float]:
    """Place and write; the figures."""
    from palimpsest.data.order import document_starts
    from palimpsest.insertion.arms import Arm
    from palimpsest.insertion.exposures import EXPOSURE_SCHEMA
    from palimpsest.insertion.placement.intervals import intervals
    from palimpsest.insertion.placement.offsets import locate
    from palimpsest.insertion.placement.windows import place

    index = [
        np.load(directory / f"{name}.npy", mmap_mode="r")
        for name in ("shuffle", "sample", "document", "lengths")
    ]
    base = peak()
    began = time.perf_counter()
    doses = np.array([1, 4, 16, 64, 256])
    items = -(-exposures // int(doses.sum()))
    arms = [Arm(dose=int(dose)) for dose in doses]
    rng = np.random.default_rng(1)
    low, high, item, arm = [], [], [], []
    for number, one in enumerate(arms):
        first, end = intervals(
            one, items, steps=windows // BATCH, batch=BATCH, tokens_a_step=BATCH * LENGTH, rng=rng
        )
        low.append(first.ravel())
        high.append(end.ravel())
        item.append(np.repeat(np.arange(items) + number * items, one.dose))
        arm.append(np.full(items * one.dose, number))
    low, high, item, arm = (np.concatenate(parts) for parts in (low, high, item, arm))
    position = place(low, high, slots=1, batch=BATCH, apart=np.full(len(low), -1), rng=rng)
    placed = time.perf_counter()
    ranked = np.argsort(position, kind="stable")
    lengths = np.random.default_rng(2).integers(20, 120, items * len(doses))
    places = locate(
        arms,
        arm[ranked],
        position[ranked],
        lengths[item[ranked]],
        sequence_length=LENGTH,
        starts=lambda kind, at: document_starts(at, *index),
        rng=rng,
    )
    located = time.perf_counter()
    target = directory / "exposures.parquet"
    columns = {"position": position[ranked], "item": item[ranked], "wording": item[ranked]}
    columns |= {name: getattr(places, name) for name in ("offset", "lead", "trail", "cut", "overwrite")}
    columns["loss"] = np.zeros(len(position), dtype=np.int8)
    pl.DataFrame(columns).cast(EXPOSURE_SCHEMA).write_parquet(target)
    done = time.perf_counter()
    return {
        "exposures": len(low),
        "seconds": done - began,
        "seconds placing": placed - began,
        "seconds locating": located - placed,
        "seconds writing": done - located,
        "peak GiB": peak(),
        "GiB before": base,
        "bytes an exposure": target.stat().st_size / len(low),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=244_000_000)
    parser.add_argument("--exposures", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, default=Path("build/planning"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(plan(given.directory, given.windows, given.exposures)))
        return
    arrays(given.directory, given.windows)
    for name in ("shuffle", "sample", "document", "lengths"):
        with (given.directory / f"{name}.npy").open("rb") as file:
            while file.read(1 << 26):
                pass
    command = [sys.executable, __file__, "--child", "--directory", str(given.directory)]
    command += ["--windows", str(given.windows), "--exposures", str(given.exposures)]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(given.repeats)]
    print(f"{given.exposures:,} exposures over {given.windows:,} windows, median of {given.repeats} runs")
    for name in runs[0]:
        values = sorted(run[name] for run in runs)
        print(f"  {name:18} {values[len(values) // 2]:12,.2f}   ({values[0]:,.2f} to {values[-1]:,.2f})")


if __name__ == "__main__":
    main()
