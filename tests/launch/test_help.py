"""``--help`` is about the program that is asked; messages and hints lead to what mends, never to Hydra's pages."""

import shlex
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from palimpsest.launch import help
from palimpsest.launch.compose import CONF, build, one_line
from palimpsest.launch.sweep import expand
from tests.conftest import REPO, Workplace

OWN = {
    "plan": "family=NAME",
    "export": "step=S",
    "score": "shard=K/N",
    "train": "preflight=RANKS",
    "run": "dry_run=true",
    "sweep": "launcher.nodes=N",
}


@pytest.mark.parametrize("program", help.PROGRAMS)
def test_help_is_of_the_program(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"launch/{program}.py", "--help"])
    told = help.asked(sys.argv[1:])
    assert (REPO / "launch" / f"{program}.py").is_file()
    assert told.startswith(f"usage: palimpsest {program} (")
    assert len(told.splitlines()) < 30
    assert told.count(f"  palimpsest {program} ") >= 3
    assert OWN.get(program, "") in told
    assert ("RUN" in told) == (program != "sweep")
    assert sum("family=NAME" in line for line in told.splitlines()) == (program == "plan")
    assert help.asked([help.EVERY]) is None


@pytest.mark.parametrize(
    "example",
    [
        e
        for p in help.PROGRAMS.values()
        for e in p.examples
        if "+experiment=" in e and "=items.jsonl" not in e
    ],
)
def test_examples_can_be_typed(example):
    words = [
        w for w in shlex.split(example) if w.split("=")[0] not in ("power", "effect", "preflight", "gpu_gib")
    ]
    for arguments, _ in expand(words):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            build(compose("config", list(arguments)))


@pytest.mark.parametrize("program", ["gallery", "manual", "replicate", "runs", "show", "watch"])
def test_help_is_text_without_markup(program, tmp_path):
    told = Workplace(tmp_path).ok(program, "--help").out
    assert f"palimpsest {program}" in told or f"launch/{program}.py" in told
    assert "``" not in told


def test_help_of_a_program_that_runs(tmp_path):
    place = Workplace(tmp_path)
    for program in ("score", "sweep"):
        told = place.ok(program, "--help").out
        assert told.startswith(f"usage: palimpsest {program} ")
        assert "sequence_length" not in told
        assert f"{help.EVERY} lists all settings" in told
        assert "sequence_length: 256" in place.ok(program, help.EVERY).out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["corpus=tokenized", "corpus.tokenizer.vocab_size=9"],
            "give it one with a plus: +corpus.tokenizer.vocab_size=...",
        ),
        (["nodes=2"], "nodes: there is no such setting; did you mean launcher.nodes?"),
        (["insertion.bogus=1"], "insertion.bogus: there is no such setting"),
        (["corpus.source.keep.x=1"], "corpus.source.keep.x: there is no such setting"),
        (["train.steps=[1,"], "'train.steps=[1,' cannot be read; a setting is typed KEY=VALUE"),
        (["train.steps"], "'train.steps' cannot be read; a setting is typed KEY=VALUE"),
        (["mixture.corpora.x.y=1"], "there is no such setting"),
    ],
)
def test_hints(words, told):
    GlobalHydra.instance().clear()
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises((HydraException, OmegaConfBaseException)) as error,
    ):
        compose("config", ["+experiment=quickstart", *words])
    line = one_line(error.value)
    assert told in line
    assert "hydra" not in line.lower()
    assert "\n" not in line
