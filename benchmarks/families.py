"""Time that each family takes to make 10,000 items on one core, and the number of copyright traps made in an hour.

    PYTHONPATH=. python benchmarks/families.py [--items 10000] [--families NAME ...] [--write results/families_DATE.md]
    PYTHONPATH=. python benchmarks/families.py --reference MODEL --tokenizer TOKENIZER.json [--traps 20] [--write ...]

Every family with the settings of conf/insertion/NAME.yaml; held-out documents are random words, and the family
``table`` reads a file of as many rows. Timed is ``make`` alone, in processor seconds: items with all their wordings and
probes, as text. Not timed: importing, making the held-out documents, tokenizing.

Copyright traps take what their reference model takes: MODEL is a checkpoint (``.../reference/checkpoints/step_N`` of a
run whose traps were ``trained``), TOKENIZER.json its corpus's. So many are made of each length, on one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from palimpsest.data.tokenizer import TokenizerConfig, build, load
from palimpsest.insertion.families import registry

CONF = Path(__file__).resolve().parent.parent / "conf" / "insertion"
LIMIT = 30.0
"""Seconds that 10,000 items may take."""
LENGTHS = (25, 50, 100)
"""Tokens of the traps."""
FEWEST = 50
"""Traps that an hour on one core has to give."""


def family_context(documents: int) -> registry.FamilyContext:
    """Held-out documents of random words, and a tokenizer of bytes."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(3000)])
    texts = [" ".join(row) for row in words[rng.integers(3000, size=(documents, 60))]]
    tokenizer = build(iter([]), TokenizerConfig(vocab_size=257))
    return registry.FamilyContext(1, tokenizer, [(f"{k:06d}", text) for k, text in enumerate(texts)])


def measure(name: str, basis: registry.FamilyContext, items: int, folder: Path) -> dict[str, object]:
    """One family's row."""
    given = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))["families"][name]
    if name == "table":
        path = folder / "table.jsonl"
        rows = ({"id": digest, "text": text} for digest, text in basis.heldout)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given["path"] = str(path)
    began = time.process_time()
    made = registry.make(name, basis, items, given)
    seconds = time.process_time() - began
    return {
        "family": name,
        "seconds": seconds,
        "probes": sum(len(item.probes) for item in made) / len(made),
        "wordings": sum(1 + len(item.paraphrases) for item in made) / len(made),
        "characters": sum(len(item.text) for item in made) / len(made),
        "bits": made[0].bits,
    }


def traps(model: str, tokenizer: str, count: int) -> tuple[list[str], str]:
    """Rows of the table of traps, and what they come to."""
    import torch

    from palimpsest.pretrain.reference import Reference, open_reference

    torch.set_num_threads(1)
    words = load(tokenizer)
    opened: Reference = open_reference(model, words)
    weights = sum(parameter.numel() for parameter in opened.gpt.parameters())
    said = Said()
    logging.getLogger("palimpsest.insertion.families.traps").addHandler(said)
    logging.getLogger("palimpsest.insertion.families.traps").setLevel(logging.INFO)
    basis = registry.FamilyContext(1, words, [], reference=lambda path: opened)
    given = OmegaConf.to_container(OmegaConf.load(CONF / "traps.yaml"))["families"]["traps"]
    lines = [
        "| tokens | traps | processor seconds | accepted an hour and core | of the candidates |",
        "|---|---|---|---|---|",
    ]
    rates = []
    for length in LENGTHS:
        began = time.process_time()
        registry.make("traps", basis, count, {**given, "lengths": [length]})
        seconds = time.process_time() - began
        rates.append(3600 * count / seconds)
        lines.append(f"| {length} | {count} | {seconds:.0f} | {rates[-1]:,.0f} | {said.last} |")
        print(lines[-1], flush=True)
    kept = "All give" if min(rates) >= FEWEST else "Not all give"
    return lines, f"{kept} {FEWEST} traps an hour and core; the reference model has {weights:,} weights."


class Said(logging.Handler):
    """Keeps what became of the candidates."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage().partition(": ")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--families", nargs="*", default=[n for n in registry.names() if n != "traps"])
    parser.add_argument("--reference", help="make copyright traps alone, sampled from this model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--traps", type=int, default=20)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if given.reference:
        lines, said = traps(given.reference, given.tokenizer, given.traps)
        print(said)
        asked = f"--reference MODEL --tokenizer TOKENIZER.json --traps {given.traps}"
        write(given.write, "Making copyright traps", asked, lines, said)
        return
    basis = family_context(given.items)
    lines = [
        f"| family | processor seconds for {given.items:,} items | probes an item | wordings | characters | "
        "bits of the first |",
        "|---|---|---|---|---|---|",
    ]
    late = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.families:
            row = measure(name, basis, given.items, Path(folder))
            bits = "-" if row["bits"] is None else f"{row['bits']:.1f}"
            lines.append(
                f"| `{name}` | {row['seconds']:.1f} | {row['probes']:.1f} | {row['wordings']:.1f} | "
                f"{row['characters']:.0f} | {bits} |"
            )
            print(lines[-1], flush=True)
            if row["seconds"] > LIMIT * given.items / 10_000:
                late.append(name)
    kept = f"{', '.join(late)} exceed" if late else "All families keep"
    said = f"{kept} the limit of {LIMIT:.0f} s for 10,000 items."
    print(said)
    write(given.write, "Making items", f"--items {given.items}", lines, said)


def write(path: Path | None, title: str, asked: str, lines: list[str], said: str) -> None:
    """The result file: what was run, where, and its table."""
    if path is None:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    where = f"{platform.machine()}, {os.cpu_count()} cores of which one was used, Python {platform.python_version()}"
    head = (
        f"# {title}, {datetime.now(UTC):%Y-%m-%d}\n\n`PYTHONPATH=. python benchmarks/families.py {asked}` at commit "
        f"{commit}, on {where}, numpy {version('numpy')}.\n\n"
    )
    path.write_text(head + "\n".join(lines) + f"\n\n{said}\n")


if __name__ == "__main__":
    main()
