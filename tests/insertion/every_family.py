"""Every registered family as its configuration has it, over inputs that is made here; and digests of what it makes.

``python -m tests.insertion.every_family`` prints the digests as JSON; golden_families.json is its output.
"""

import hashlib
import json
import math
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion.families import registry
from palimpsest.insertion.families.registry import FamilyContext, make, names

CONF = Path(__file__).resolve().parents[2] / "conf" / "insertion"
GOLDEN = Path(__file__).with_name("golden_families.json")
FIRST = 5
SHIPPED = [
    name for name in names() if registry._FAMILIES[name].__module__.startswith("palimpsest.insertion.")
]
"""Families of the package; other tests register their own."""


class Reference:
    """A model under which all words have the same chance."""

    words = 20_000

    def sample(self, count, length, temperature, rng):
        ids = rng.integers(self.words, size=(count, length))
        return [
            (" ".join(f"w{k}" for k in row), np.array(row), length * math.log(self.words))
            for row in ids.tolist()
        ]


@cache
def family_context(documents: int) -> FamilyContext:
    """Held-out documents of invented words, and a tokenizer of bytes."""
    rng = np.random.default_rng(11)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(3000)])
    texts = [" ".join(row) for row in words[rng.integers(3000, size=(documents, 40))]]
    heldout = [(f"{k:05d}", text) for k, text in enumerate(texts)]
    tokenizer = build(iter([]), TokenizerConfig(vocab_size=257))
    return FamilyContext(1, tokenizer, heldout, reference=lambda path: Reference())


def settings(name: str, folder: Path, rows: int) -> dict:
    """The family's settings in conf/insertion; a family that reads a file gets one of ``rows`` rows."""
    given = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))["families"][name]
    if name == "traps":
        given |= {"path": "model", "lengths": [25], "high": 1e6, "buckets": 1, "max_batches": rows}
    if name == "table":
        path = folder / "table.jsonl"
        if not path.exists():
            texts = (text for _, text in family_context(rows).heldout)
            path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, t in enumerate(texts)))
        given["path"] = str(path)
    return given


def digest(name: str, folder: Path) -> str:
    """SHA-256 of the first items of a family with everything that belongs to them."""
    items = make(name, family_context(100), FIRST, settings(name, folder, 100))
    made = [asdict(item) | {"provenance": item.provenance.replace(str(folder), "")} for item in items]
    for item in made:
        if not item["cluster"]:  # as it was before there were any
            del item["cluster"]
    return hashlib.sha256(json.dumps(made, ensure_ascii=False).encode()).hexdigest()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(json.dumps({name: digest(name, folder) for name in SHIPPED}, indent=1))
