"""Every file in conf/experiment can be run: it composes, its nano twin plans, what it says to type can be typed."""

import os
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from launch.config import CONF, build
from launch.sweep import expand
from tests.conftest import Workplace, write_text

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# traps_1b_nano trains a reference model first, as tests/e2e/test_all_families.py does.
NANO = [name for name in EXPERIMENTS if name.endswith("_nano") and name != "traps_1b_nano"]

SMALL = [
    *("corpus=jsonl", "corpus.source.paths=[text.jsonl]", "corpus.tokenizer.vocab_size=400"),
    *(
        "corpus.heldout_fraction=0.2",
        "train.steps=20",
        "train.checkpoint_every=10",
        "train.global_batch_size=8",
        "train.micro_batch_size=4",
        "train.sequence_length=512",
    ),
    *(
        "optimizer.warmup_steps=2",
        "report.bootstrap=20",
        "insertion.max_share=0.9",
        "insertion.heldout_probes=8",
    ),
    *("model.layers=2", "model.hidden=32", "model.heads=4", "model.ffn=64", "runtime.device=cpu"),
]
"""Twenty steps over the text of the tests."""
FEW = ["insertion.doses=[0,1,4]", "insertion.items_per_dose=3"]
OWN = {
    "hubble_1b_nano": ["insertion.doses=[0,1,4]", "insertion.items_per_dose={passages:3,biographies:3}"],
    "facts_7b_nano": [
        f"insertion.named_arms.{name}.phase={{at:[0,2,4,6,8,10,12,14,16,18]}}"
        for name in ("duplicated", "paraphrased")
    ]
    + [f"insertion.named_arms.{name}.items=2" for name in ("never", "once", "duplicated", "paraphrased")],
    "continual_405m_nano": [
        *FEW,
        *("mixture.corpora.new.source.kind=jsonl", "mixture.corpora.new.source.paths=[new.jsonl]"),
        "~mixture.corpora.new.source.packages",
    ],
    "fewshot_memories_nano": [*FEW, "insertion.phase=[{end: 0.5}]", "insertion.doses=[0,1,3]"],
    "bios_capacity_nano": [*FEW, "insertion.doses=[0,1,5]"],
}
OWN["moe_sparsity_nano"] = [*FEW, "insertion.families.ghost_sentences={words: 5, list_size: 20}"]
OWN["hubble_8b_nano"] = OWN["hubble_1b_nano"]


def typed(name):
    return [f"+experiment={name}", *SMALL, *OWN.get(name, FEW)]


def made(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", list(overrides)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes(name):
    experiment = made(f"+experiment={name}")
    assert experiment.experiment == name
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.splitlines()[1].startswith("# ")  # what it is
    assert name in ("quickstart", "all_families") or name.endswith("_nano") or f"{name}_nano" in EXPERIMENTS
    # Whatever is chosen, other groups go with it.
    assert made(f"+experiment={name}", "launcher=report", "seed=7").train.seed == 7
    if name.endswith("_nano"):
        twin = made(f"+experiment={name.removesuffix('_nano')}")
        assert list(experiment.insertion.families) == list(twin.insertion.families)
        assert experiment.insertion.displace == twin.insertion.displace
        assert experiment.model.parameters(4096, 256) < 6e6


def variants():
    """Each override that an experiment's comment offers: what stands right of two or more spaces."""
    for name in EXPERIMENTS:
        for line in (CONF / "experiment" / f"{name}.yaml").read_text().splitlines():
            if found := re.match(r"#   \S.*?  +(.*=.*|~.*)", line):
                yield name, re.sub(r"\(.*?\)", "", found[1]).strip()


@pytest.mark.parametrize(("name", "line"), list(variants()))
def test_variants(name, line):
    words = shlex.split(line)
    if words[0].startswith("insertion.phase"):  # alternatives, for one and the same setting
        words = [words[0]]
    usual = made(f"+experiment={name}")
    for arguments, _ in expand([f"+experiment={name}", *words]):
        assert made(*arguments).directory != usual.directory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments")
    write_text(path / "text.jsonl", 1200)
    write_text(path / "new.jsonl", 1200)
    return Workplace(path)


@pytest.mark.parametrize("name", NANO)
def test_nano_plans(place, name):
    """Text, order and plan of twenty steps, made in this process; doses come out as they were asked for."""
    from insertion import plan as plans
    from launch.plan import plan
    from launch.prepare import prepare

    here = Path.cwd()
    os.chdir(place.path)
    try:
        experiment = made(*typed(name))
        prepare(experiment)
        plan(experiment)
        found = plans.read(experiment.directory / "plan")
    finally:
        os.chdir(here)
    assert set(found.items["family"]) == set(experiment.insertion.families)
    assert 0 in set(found.items["dose"])
    counted = found.exposures.group_by("item").len().sort("item")
    doses = found.items["dose"].to_list()
    assert {row["item"]: row["len"] for row in counted.iter_rows(named=True)} == {
        item: dose for item, dose in enumerate(doses) if dose
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["facts_7b_nano", "continual_405m_nano", "moe_sparsity_nano"])
def test_nano_runs(place, name):
    """All stages, those experiments whose parts no other test puts together."""
    done = place.run("run", *typed(name))
    assert done.status == 0, done.out
    assert "audit: PASS" in done.out
    assert list(place.path.glob(f"runs/{name}/run-*/report/report.html"))
