"""Cost of the ledger: the share of a training step that goes into hashing, checking and recording its windows.

    python benchmarks/ledger.py [--model nano] [--steps 30] [--length 256] [--batch 16] [--share 0.05]

Trains on this machine's CPU (or GPU) with everything that the trainer does, and times what the ledger does: ``record``
at every micro-batch, and the part that is written with the checkpoint at the end. Then, without a model, the time that
a window of 2,048 tokens takes, from which follows how many windows a second one rank may consume before the ledger
costs 1 % of its time.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir

from palimpsest.data.artifact import Manifest
from palimpsest.data.order import Order
from palimpsest.data.tokens import TokenWriter
from palimpsest.insertion.exposures import EXPOSURE_SCHEMA
from palimpsest.insertion.items import WORDING_SCHEMA, span_hash
from palimpsest.insertion.ledger import Recorder
from palimpsest.insertion.plan import Plan
from palimpsest.launch.compose import CONF
from palimpsest.launch.compose import build as build_config

EOD, VOCABULARY, ITEMS = 0, 4096, 200


def order_of(directory: Path, windows: int, length: int) -> Order:
    rng = np.random.default_rng(0)
    with TokenWriter(directory / "train", VOCABULARY, EOD) as writer:
        writer.add(
            np.array_split(rng.integers(1, VOCABULARY, (windows + 2) * length).astype(np.int32), windows)
        )
    return Order(directory, corpus_digest="b", vocab_size=VOCABULARY, eod=EOD, sequence_length=length, seed=1)


def plan_of(windows: int, length: int, share: float) -> Plan:
    rng = np.random.default_rng(2)
    count = max(int(windows * share), 1)
    texts = [rng.integers(1, VOCABULARY, rng.integers(20, 80)).astype(np.int32) for _ in range(ITEMS)]
    item = np.arange(count) % ITEMS
    wordings = pl.DataFrame(
        {
            "item": np.arange(ITEMS),
            "wording": np.zeros(ITEMS, dtype=np.int32),
            "text": [""] * ITEMS,
            "tokens": [text.tolist() for text in texts],
            "hash": [span_hash(text) for text in texts],
        },
        schema=WORDING_SCHEMA,
    )
    flags = np.ones(count, dtype=np.bool_)
    exposures = pl.DataFrame(
        {
            "position": np.sort(rng.choice(windows, count, replace=False)),
            "item": item,
            "wording": item,
            "offset": rng.integers(2, length - 100, count),
            "lead": flags,
            "trail": flags,
            "cut": np.zeros(count),
            "overwrite": ~flags,
            "loss": np.zeros(count),
        }
    ).cast(EXPOSURE_SCHEMA)
    dose = np.bincount(item, minlength=ITEMS)
    items = pl.DataFrame(
        {"item_id": [str(k) for k in range(ITEMS)], "family": ["f"] * ITEMS, "dose": dose.astype(np.int32)}
    )
    manifest = Manifest(kind="plan", schema_version=0, config={}, inputs={}, contents={}, facts={"eod": EOD})
    edits = pl.DataFrame(
        schema={
            "position": pl.Int64,
            "start": pl.Int32,
            "intervention": pl.String,
            "original": pl.List(pl.Int32),
            "replacement": pl.List(pl.Int32),
            "weight": pl.Float32,
        }
    )
    return Plan(items, wordings, pl.DataFrame(), exposures, edits, manifest)


class Stopwatch:
    """Adds up the time inside a method."""

    def __init__(self, owner: object, name: str) -> None:
        self.seconds, self.calls, method = 0.0, 0, getattr(owner, name)

        def timed(*args: object) -> object:
            began = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1

        setattr(owner, name, timed)


def in_training(given: argparse.Namespace, directory: Path) -> None:
    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.settings import Settings
    from palimpsest.pretrain.trainer import Trainer

    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["+experiment=quickstart", f"model={given.model}", f"train.steps={given.steps}"]
        overrides += [f"train.global_batch_size={given.batch}", f"train.sequence_length={given.length}"]
        overrides += [f"train.checkpoint_every={given.steps}", "optimizer.warmup_steps=1"]
        experiment = build_config(compose("config", overrides))
    windows = given.steps * given.batch
    settings = Settings(
        model=experiment.model,
        optimizer=experiment.optimizer,
        train=experiment.train,
        parallel=experiment.parallel,
    )
    with parallel.start(experiment.parallel, experiment.runtime) as world:
        trainer = Trainer(
            settings,
            world,
            order=order_of(directory, windows, given.length),
            plan=plan_of(windows, given.length, given.share),
            vocab_size=VOCABULARY,
            directory=directory,
        )
        shares, steps = [], []
        trainer.run([], until=2)  # warms up; not counted
        while trainer.step < given.steps:
            record = Stopwatch(trainer.recorder, "record")
            began = time.perf_counter()
            trainer._train_step(stop=False)
            trainer.step += 1
            steps.append(time.perf_counter() - began)
            shares.append(record.seconds / steps[-1])
            del trainer.recorder.record  # the class's own again
        began = time.perf_counter()
        trainer.ledger.before_checkpoint(trainer.step)
        written = time.perf_counter() - began
    print(f"{given.model}, {given.steps} steps of {given.batch} windows of {given.length} tokens")
    print(f"  a step           {statistics.median(steps):9.3f} s, median")
    print(
        f"  recording        {statistics.median(shares):9.3%} of a step, median "
        f"({min(shares):.3%} to {max(shares):.3%})"
    )
    print(f"  writing a part   {written * 1000:9.1f} ms a checkpoint ({windows:,} windows)")


def alone(given: argparse.Namespace, directory: Path, length: int = 2048, windows: int = 2000) -> None:
    order, plan = order_of(directory, windows, length), plan_of(windows, length, given.share)
    overlay = plan.overlay()
    laid = np.stack([overlay.apply(p, order.window(p)) for p in range(windows)])
    counted = np.ones((8, length), dtype=np.float32)
    seconds = []
    for _ in range(5):
        recorder = Recorder(plan, 8, rank=0)
        began = time.perf_counter()
        for first in range(0, windows, 8):
            batch = laid[first : first + 8]
            recorder.record(np.arange(first, first + 8), batch[:, :-1], batch[:, 1:], counted)
        seconds.append((time.perf_counter() - began) / windows)
    each = statistics.median(seconds)
    print(f"one window of {length:,} tokens, {given.share:.0%} of the windows with an exposure")
    print(f"  recording        {each * 1e6:9.1f} us ({min(seconds) * 1e6:.1f} to {max(seconds) * 1e6:.1f})")
    rate = 0.01 / each
    print(f"  1 % of a rank's time at {rate:,.0f} windows a second, {rate * length / 1e6:.2f} million tokens")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.05)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"(megatron|torch)")
    with tempfile.TemporaryDirectory() as place:
        for name, run in (("training", in_training), ("alone", alone)):
            (Path(place) / name).mkdir()
            run(given, Path(place) / name)


if __name__ == "__main__":
    main()
