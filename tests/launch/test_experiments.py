"""Every file in conf/experiment can be run: it composes, says what it costs, and what it says to type can be typed; its
nano twin runs from the text to the report."""

import re
import shlex

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.insertion.families.hubble_stand_ins import SETS
from palimpsest.launch.compose import CONF, build, scaled
from palimpsest.launch.sweep import expand
from palimpsest.launch.train import dry_run
from tests.conftest import Workplace

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NANO = [name for name in EXPERIMENTS if name.endswith("_nano")]
ALIKE = {"bios_capacity_nano", "derived_nano", "fewshot_memories_nano", "hubble_8b_nano", "kk_puzzles_nano"}
"""What runs in these runs in another one or in the tests of families, too: they are not for every time."""
GIVEN = {"all_families": ["insertion.families.traps.path=reference"]}
"""What an experiment cannot know."""

AS_THEY_ARE = {"quickstart", "all_families", "replicate"}
"""Experiments that are for a laptop as they are."""
LAPTOP = {*AS_THEY_ARE, *NANO}

SMALL = [
    *(
        "train.steps=20",
        "train.checkpoint_every=20",
        "train.global_batch_size=32",
        "train.micro_batch_size=16",
    ),
    *(
        "model.layers=2",
        "model.hidden=32",
        "model.heads=4",
        "model.ffn=64",
    ),
    *(
        "corpus.source.packages=false",
        "corpus.tokenizer.vocab_size=1024",
        "corpus.heldout_fraction=0.05",
    ),
    *(
        "insertion.max_share=0.9",
        "insertion.heldout_probes=8",
        "optimizer.warmup_steps=2",
    ),
    "runtime.device=cpu",
]
"""Twenty steps of a model that is smaller still, over the documentation of Python alone. Families, doses and whatever
else makes an arm stay as they are; there are fewer items to an arm."""
FEW = ["insertion.items_per_dose=2"]
HUBBLE = [*FEW, "insertion.doses=[0,1,4]", "insertion.max_share=0.5"]
"""Two items of each of sixteen sets at each dose, 160 exposures."""
OWN = {
    # The moments of exposure, which lie beyond twenty steps.
    "facts_7b_nano": [
        f"insertion.named_arms.{name}.phase={{at:[0,2,4,6,8,10,12,14,16,18]}}"
        for name in ("duplicated", "paraphrased")
    ]
    + [f"insertion.named_arms.{name}.items=2" for name in ("never", "once", "duplicated", "paraphrased")],
    "continue_olmo2_nano": [
        "insertion.named_arms.once.phase={at:[2]}",
        *(
            f"insertion.named_arms.{name}.phase={{at:[0,2,4,6,8,10,12,14,16,18]}}"
            for name in ("duplicated", "paraphrased")
        ),
        *(f"insertion.named_arms.{name}.items=2" for name in ("never", "once", "duplicated", "paraphrased")),
    ],
    "continue_pythia_nano": [
        f"insertion.named_arms.{name}.items=2" for name in ("never", "once", "four", "sixteen", "sixty_four")
    ],
    "hubble_1b_nano": HUBBLE,
    "hubble_8b_nano": HUBBLE,
    # A reference of twenty steps has no traps of low perplexity.
    "traps_1b_nano": [*FEW, "insertion.families.traps.high=10001", "insertion.families.traps.buckets=1"],
}


def made(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", list(overrides)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes(name):
    given = GIVEN.get(name, [])
    experiment = made(f"+experiment={name}", *given)
    assert experiment.experiment == name
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.splitlines()[1].startswith("# ")  # what it is
    assert name in AS_THEY_ARE or name.endswith("_nano") or f"{name}_nano" in EXPERIMENTS
    # Whatever is chosen, other groups go with it.
    assert made(f"+experiment={name}", *given, "launcher=report", "seed=7").train.seed == 7
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


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_dry_run(name, tmp_path, monkeypatch):
    """The preview of its cost, on a machine that has neither its text nor its GPUs."""
    monkeypatch.chdir(tmp_path)
    experiment = made(f"+experiment={name}", *GIVEN.get(name, []), "dry_run=true")
    lines = list(dry_run(experiment))
    told = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    assert int(told["parameters"].split()[0].replace(",", "")) > (1e5 if name in LAPTOP else 5e7)
    assert float(told["FLOPs"]) > 0
    assert f"{experiment.train.steps:,} steps" in told["training"]
    assert all(family in lines[-1] for family in experiment.insertion.families)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One place for all experiments, so that those that read the same text prepare it once."""
    return Workplace(tmp_path_factory.mktemp("experiments"), SMALL)


@pytest.fixture(scope="module")
def reference(place):
    """The model that traps are sampled from: one that was trained here, and exported."""
    experiment = ["+experiment=ghost_1b_nano", *FEW]
    place.ok("run", *experiment, timeout=900)  # goes on where the test of ghost_1b_nano was
    place.ok("export", *experiment, "run=twin")
    return max(place.path.glob("runs/ghost_1b_nano/run-*/twin/export/step_*"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in ALIKE else pytest.mark.slow) for name in NANO],
)
def test_nano(place, name, request):
    """Twenty steps of both runs, audit, scores, report; every family and every dose comes out as it was asked for."""
    from palimpsest.insertion import plan as plans

    own = [f"+experiment={name}", *OWN.get(name, FEW)]
    if name == "traps_1b_nano":
        own.append(f"insertion.families.traps.path={request.getfixturevalue('reference')}")
    done = place.ok("run", *own, timeout=900)
    assert "audit: PASS" in done.out
    experiment = made(*SMALL, *own)
    directory = place.path / experiment.directory
    assert (directory / "report" / "report.html").is_file()
    for run in ("perturbed", "twin"):
        assert len((directory / run / "metrics.jsonl").read_text().splitlines()) == 20
        scores = pl.read_parquet(directory / "scores" / run / "step_00000020" / "scores.parquet")
        assert scores["probe_id"].to_list() == plans.read(directory / "plan").probes["probe_id"].to_list()

    found = plans.read(directory / "plan")
    usual = made(f"+experiment={name}").insertion
    assert set(found.items["family"]) == set(usual.families)
    doses = experiment.insertion.doses
    assert set(found.items["dose"]) == {0} | set(doses) | {arm.dose for arm in usual.named_arms.values()}
    counted = found.exposures.group_by("item").len().sort("item")
    doses = found.items["dose"].to_list()
    assert {row["item"]: row["len"] for row in counted.iter_rows(named=True)} == {
        item: dose for item, dose in enumerate(doses) if dose
    }

    if name.startswith("hubble"):
        asked = pl.read_csv(directory / "report" / "questions.csv")
        passages = {"gutenberg_popular", "gutenberg_unpopular", "wikipedia"}
        assert set(asked["family"]) == set(SETS) - passages
        told = pl.read_csv(directory / "report" / "estimates.csv")
        assert set(told["family"]) >= set(SETS)


@pytest.fixture(scope="module")
def as_shipped(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("shipped"))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(LAPTOP - {"all_families", "replicate"}))
def test_as_shipped_it_can_be_planned(as_shipped, name):
    """Text, windows, items and places suffice with the settings of the file itself."""
    as_shipped.ok("prepare", f"+experiment={name}", timeout=900)
    as_shipped.ok("plan", f"+experiment={name}", timeout=900)
    (directory,) = (as_shipped.path / "runs" / name).iterdir()
    assert (directory / "plan" / "manifest.json").is_file()


def test_nano_is_a_scale_of_any_experiment():
    """``+experiment=NAME +scale=nano`` is ``+experiment=NAME_nano`` where that is a file, whatever the order."""
    for name in NANO:
        big = name.removesuffix("_nano")
        for words in ([f"+experiment={big}", "+scale=nano"], ["+scale=nano", f"+experiment={big}"]):
            assert scaled([*words, "seed=2"]) == [f"+experiment={name}", "seed=2"]
    assert scaled(["+experiment=quickstart", "+scale=nano"]) == ["+experiment=quickstart", "+scale=nano"]
    assert made("+experiment=quickstart", "+scale=nano").directory == made("+experiment=quickstart").directory
    common = made("+experiment=hubble_1b", "+scale=nano")
    assert (common.model.name, common.corpus.source.kind, common.train.steps) == (
        "nano",
        "installed_docs",
        450,
    )
    assert made("+experiment=hubble_1b", "+scale=nano", "model=tiny", "train.steps=99").train.steps == 99


def test_nano_is_typed(tmp_path):
    place = Workplace(tmp_path)
    done = place.ok("plan", "+experiment=hubble_1b", "+scale=nano", "dry_run=true")
    assert done.lines == [f"plan: make {made('+experiment=hubble_1b_nano').directory}/plan"]
    wrong = place.run("plan", "+experiment=hubble_1b", "+scale=micro")
    assert (wrong.status, wrong.lines[-1].startswith("palimpsest: scale=micro: there is no such scale")) == (
        2,
        True,
    )
    plain = place.run("plan", "+experiment=hubble_1b", "scale=nano")
    assert plain.lines[-1] == "palimpsest: scale=nano lacks a plus: write +scale=nano"
