"""README and docs as their readers meet them: blocks, the commands in them, and code in the text."""

import re
import shlex
from dataclasses import dataclass

from palimpsest.launch import cli
from tests.conftest import REPO

PAGES = [
    REPO / "README.md",
    *(path for path in sorted((REPO / "docs").rglob("*.md")) if "figures" not in path.parts),
]
"""The README first; without the gallery's page, which `palimpsest gallery` writes."""
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
NOT_TESTED = "# not tested: "
OWN = {
    "plan": {"show", "item", "step", "checkpoint", "ledger", "family", "power", "effect"},
    "train": {"preflight", "gpu_gib"},
}
"""Settings that a program takes off its command line before the others are read."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    title: str
    text: str

    @property
    def tested(self):
        return not self.text.startswith(NOT_TESTED)

    @property
    def lines(self):
        """Commands as they are typed, joined over a backslash at the end of a line."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in joined if line.strip() and not line.startswith("#")]


@dataclass(frozen=True)
class Command:
    """A program's command line."""

    program: str
    words: list[str]
    ranks: int = 1

    @property
    def settings(self):
        """Words that make the configuration; None of a line that has a run's directory instead of an experiment."""
        if not any(word.startswith(("+experiment=", "+sweep=")) for word in self.words):
            return None
        own = OWN.get(self.program, set())
        return [word for word in self.words if word.partition("=")[0] not in own]


def name_of(path):
    return str(path.relative_to(REPO))


def blocks(path):
    return [Block(*found) for found in FENCE.findall(path.read_text(encoding="utf-8"))]


def command(line):
    """The command of a line; None if it starts no program of this project."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["palimpsest"]:
        return Command(words[1], words[2:])
    if words[:1] == ["torchrun"]:
        module = words.index("-m")
        ranks = [int(words[words.index(key) + 1]) for key in ("--nnodes", "--nproc-per-node") if key in words]
        return Command(
            words[module + 1].removeprefix("palimpsest.launch."),
            words[module + 2 :],
            ranks[-1] * (ranks[0] if len(ranks) > 1 else 1),
        )
    return None


def commands(path):
    """Every command of a page's shell blocks that starts a program."""
    for block in blocks(path):
        # What the page itself adds to a checkout is run by test_examples.py.
        added = not block.tested and "in the checkout" in block.text.splitlines()[0]
        for line in block.lines if block.language in ("bash", "sh") and not added else []:
            if (found := command(line)) is not None:
                yield found


def code(path):
    """Code in the text of a page, outside blocks."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [" ".join(part.split()) for part in re.findall(r"`([^`]+)`", text)]


def programs():
    return set(cli.PROGRAMS)
