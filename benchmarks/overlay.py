"""Windows per second: the plain megatron-core dataset, the overlay, and splicing into a copy of the corpus.

    python benchmarks/overlay.py [--windows 40000] [--share 0.01] [--length 2048]

One process, warm page cache, the same windows in the same order, arms in turn. ``splice`` is what the in-place tools
do with the same exposures: copy the token file, then write every perturbed window back into it.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from palimpsest.data.order import Order
from palimpsest.data.tokens import TokenWriter
from palimpsest.insertion.adapters import MapStyle
from palimpsest.insertion.overlay import Edits, Overlay

EOD, VOCABULARY = 0, 50_000


def build(directory: Path, windows: int, length: int) -> Order:
    rng = np.random.default_rng(0)
    with TokenWriter(directory / "train", VOCABULARY, EOD) as writer:
        for _ in range(windows * length // 10_000_000 + 1):
            writer.add(np.split(rng.integers(1, VOCABULARY, 10_000_000).astype(np.int32), 10_000))
    return Order(directory, corpus_digest="b", vocab_size=VOCABULARY, eod=EOD, sequence_length=length, seed=1)


def exposures(windows: int, share: float, length: int, *, masks: bool = False) -> Overlay:
    """A plan; with ``masks`` one that also has an item without loss and a span of the corpus without loss."""
    rng = np.random.default_rng(2)
    count = int(windows * share)
    lengths = rng.integers(20, 120, 1000)
    flags = np.ones(count, dtype=np.bool_)
    return Overlay(
        position=np.sort(rng.choice(windows, count, replace=False)).astype(np.int64),
        item=rng.integers(0, 1000, count).astype(np.int32),
        wording=rng.integers(0, 1000, count).astype(np.int32),
        offset=rng.integers(2, length - 130, count).astype(np.int32),
        lead=flags,
        trail=flags,
        cut=np.zeros(count, dtype=np.int32),
        overwrite=~flags,
        tokens=rng.integers(1, VOCABULARY, lengths.sum()).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        eod=EOD,
        loss=(np.arange(count) == 0).astype(np.int8) if masks else None,
        edits=Edits(
            np.array([windows // 2]),
            np.array([5]),
            np.array([0, 3]),
            np.array([1, 2, 3], dtype=np.int32),
            np.array([0], dtype=np.float32),
        )
        if masks
        else None,
    )


def splice(directory: Path, order: Order, overlay: Overlay, length: int) -> tuple[float, float]:
    """Seconds for the copy and for the edits."""
    began = time.perf_counter()
    shutil.copyfile(directory / "train.bin", directory / "copy.bin")
    copied = time.perf_counter()
    tokens = np.memmap(directory / "copy.bin", dtype=np.uint16, mode="r+")
    index = order.dataset
    first = np.concatenate([[0], np.cumsum(index.dataset.sequence_lengths, dtype=np.int64)])
    for position in overlay.position.tolist():
        document, offset = index.sample_index[index.shuffle_index[position]]
        start = int(first[index.document_index[document]]) + int(offset)
        window = np.array(tokens[start : start + length + 1], dtype=np.int64)
        tokens[start : start + len(window)] = overlay.apply(position, window)
    tokens.flush()
    return copied - began, time.perf_counter() - copied


def rates(arms: list[object], windows: int, repeats: int) -> list[list[float]]:
    """Windows a second of each arm in each round. Arms take turns every 1,000 windows, and at going first."""
    found = []
    for round in range(repeats + 1):  # the first one warms the page cache
        seconds = [0.0] * len(arms)
        for number, start in enumerate(range(0, windows, 1000)):
            for k in range(len(arms)):
                turn = (k + number + round) % len(arms)
                arm, began = arms[turn], time.perf_counter()
                for position in range(start, min(start + 1000, windows)):
                    arm[position]
                seconds[turn] += time.perf_counter() - began
        found.append([windows / one for one in seconds])
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=40_000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        order = build(directory, given.windows, given.length)
        overlay = exposures(given.windows, given.share, given.length)
        laid = MapStyle(order.dataset, overlay)
        masked = MapStyle(order.dataset, exposures(given.windows, given.share, given.length, masks=True))
        perturbed = int(overlay.position[0])
        assert not laid[perturbed]["tokens"].equal(order.dataset[perturbed]["tokens"])
        assert masked[perturbed]["loss_mask"].min() == 0 == masked[given.windows // 2]["loss_mask"].min()
        found = rates([order.dataset, laid, masked], given.windows, given.repeats)
        copied, edited = splice(directory, order, overlay, given.length)
        size = (directory / "train.bin").stat().st_size
    plain = statistics.median(row[0] for row in found)
    print(f"{given.windows:,} windows of {given.length} tokens, {len(overlay.position):,} exposures")
    print(f"  plain dataset    {plain:10,.0f} windows/s")
    for k, name in ((1, "with the overlay"), (2, "with masks, too")):
        ratios = [row[k] / row[0] for row in found]
        print(
            f"  {name:16} {statistics.median(row[k] for row in found):10,.0f} windows/s, of plain "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    print(
        f"  in-place splice: {copied:.2f} s and {size / 2**20:,.0f} MiB for the copy, {edited:.2f} s for the "
        "edits; the overlay writes nothing"
    )


if __name__ == "__main__":
    main()
