"""Every command and Python block of README and docs is run, as a reader types it: page by page, from top to bottom."""

import itertools
import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.data.sources import SourceConfig, read
from tests.conftest import REPO
from tests.docs import pages

TYPED = [
    path
    for path in pages.PAGES
    if any(one.language in ("bash", "python") and one.tested for one in pages.blocks(path))
]
SMALL = {
    "corpus.tokenizer.vocab_size": "1024",
    "corpus.source.packages": "false",
    "corpus.heldout_fraction": "0.05",
    "model.layers": "2",
    "model.hidden": "32",
    "model.heads": "4",
    "model.ffn": "64",
    "insertion.items_per_dose": "2",
    "insertion.max_share": "0.9",
    "train.steps": "300",
}
"""Settings that every training gets which does not say its own, lest it takes minutes; corpora of files keep theirs."""
AS_THEY_ARE = ("dry_run=true", "preflight=", "power=true", "--help", "--cfg", "+experiment=hubble")
INSTALLED = Path(sys.executable).with_name("palimpsest")
STUBS = {
    "palimpsest": f'exec {sys.executable} {INSTALLED} "$@" $PALIMPSEST_TEST_ADDED\n',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run --standalone "$@" $PALIMPSEST_TEST_ADDED\n',
    "python": f'exec {sys.executable} "$@"\n',
    # For a cluster, which the test has not: takes any script that bash can read. tests/slurm has a real one.
    "sbatch": 'for script; do :; done\nbash -n "$script" && echo "$$"\n',
    # The gate does what make does; typed from a test it would not end.
    "make": f'test "$1" != demo || exec palimpsest run +experiment=quickstart\nexec /usr/bin/make -C {REPO} -n "$@"\n',
}


def added(line):
    """Settings that a command line gets, where it does not have them itself, so that it ends soon."""
    if "+experiment=" not in line and not line.startswith("make demo"):
        return []
    if any(part in line for part in AS_THEY_ARE):
        return []
    given = {word.lstrip("+").partition("=")[0] for word in shlex.split(line, comments=True)}
    left = {key: value for key, value in SMALL.items() if key not in given}
    if "corpus" in given:
        left.pop("corpus.source.packages", None)
    if "model" in given:
        left = {
            key: value for key, value in left.items() if not key.startswith(("model.", "corpus.tokenizer"))
        }
    if "insertion.experiments.sentences.items_per_dose" in given or (
        "insertion" in given and "insertion=shared" in line
    ):
        left.pop("insertion.items_per_dose", None)
    return [f"{key}={value}" for key, value in left.items()]


class Reader:
    """Types what a page says, in a directory of its own."""

    def __init__(self, place):
        self.place, self.names = place, {}
        tools = place / ".tools"
        tools.mkdir()
        for name, text in STUBS.items():
            (tools / name).write_text(f"#!/bin/sh\n{text}")
            (tools / name).chmod(stat.S_IRWXU)
        self.path = f"{tools}{os.pathsep}{os.environ['PATH']}"

    def types(self, line):
        """Output of a line, which must succeed."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.place,
            env={
                **os.environ,
                "PATH": self.path,
                "PYTHONPATH": str(REPO),
                "OMP_NUM_THREADS": "1",
                "PALIMPSEST_TEST_ADDED": " ".join(added(line)),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    def runs(self, block):
        """Execute a block of Python, in the namespace of the page."""
        exec(compile(block.text, "page", "exec"), self.names)

    def reads(self, path):
        """All of a page's blocks in order; returns what was said, line by line."""
        said = []
        for block in pages.blocks(path):
            if block.title:
                file = self.place / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text)
            elif not block.tested:
                continue
            elif block.language == "python":
                self.runs(block)
            elif block.language == "bash" or (not block.language and path.name == "README.md"):
                said += [(line, self.types(line)) for line in block.lines]
        return said


@pytest.mark.long
@pytest.mark.parametrize("path", TYPED, ids=pages.name_of)
def test_a_page_is_typed(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if path.name == "README.md":  # "Items are one file, a corpus is another"
        documents = itertools.islice(read(SourceConfig(kind="installed_docs", packages=False)), 6000)
        (tmp_path / "my.jsonl").write_text(
            "".join(json.dumps({"text": one.text}) + "\n" for one in documents)
        )
        names = ("lantern", "clock", "tin", "bridge", "ferry", "well", "mill", "tower", "inn", "gate")
        texts = [
            f"The {name} of Orrin Bay was built {when}." for name in names for when in ("twice", "by hand")
        ]
        (tmp_path / "items.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said = Reader(tmp_path).reads(path)
    for line, out in said:
        if "palimpsest run " in line and "dry_run" not in line:
            assert "audit: PASS" in out, line
    if path.name == "clusters.md":
        assert "submitted" in said[0][1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("palimpsest report runs/quickstart", 0),
        ("palimpsest sweep +experiment=quickstart seed=1,2 dry_run=true", 0),
        ("palimpsest run +experiment=quickstart", len(SMALL)),
        ("palimpsest run +experiment=quickstart model.layers=3", len(SMALL) - 1),
    ],
)
def test_only_what_trains_is_made_small(line, expected):
    assert len(added(line)) == expected
