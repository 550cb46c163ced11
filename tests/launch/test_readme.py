"""What the README says to type can be typed: all of it is composed, and its programs are there."""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from launch.config import CONF, build
from launch.sweep import expand
from tests.conftest import REPO

README = (REPO / "README.md").read_text()


def table():
    """Each command of the table of "Change it": the code of its last column."""
    section = README.split("## Change it")[1].split("\n## ")[0].split("| family |")[0]
    for row in re.findall(r"^\| .* \| (`.*`) \|$", section, re.MULTILINE):
        yield from re.findall(r"`([^`]*)`", row)


def blocks():
    """(language, text) of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(block):
    """Each command of a block of the shell, as it is typed, with its comment."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def programs():
    """The arguments of each command line in a code block that starts a program with an experiment."""
    for language, block in blocks():
        for line in commands(block) if not language else []:
            if "+experiment=" in line:
                yield line.split("  # ")[0].split(" # ")[0].strip()


def experiment(words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", words))


def test_the_table_is_found():
    assert len(list(table())) > 15
    assert len(list(programs())) > 12


@pytest.mark.parametrize("command", list(table()))
def test_change(command):
    experiment(["+experiment=quickstart", *shlex.split(command)])


@pytest.mark.parametrize("line", list(programs()))
def test_program(line):
    words = shlex.split(line)
    program = next(k for k, word in enumerate(words) if word.startswith("launch/"))
    assert (REPO / words[program]).is_file()
    given = [word for word in words[program + 1 :] if word != "show"]
    given = [w for w in given if w.split("=")[0] not in ("item", "step", "checkpoint", "power", "effect")]
    for arguments, _ in expand(given):  # a sweep has several
        made = experiment(list(arguments))
    if "torchrun" in words:
        ranks = int(words[words.index("--nproc-per-node") + 1])
        made.parallel.check(ranks, made.model, made.train)
