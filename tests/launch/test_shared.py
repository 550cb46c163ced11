"""Independent experiments in one run: each is the same whichever others there are, within a budget of its own."""

import polars as pl
import pytest

from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.launch.inputs import open_order
from palimpsest.launch.plan import plan
from tests.launch.test_schedules import audited, experiment

PEOPLE, SENTENCES = "insertion.experiments.people", "insertion.experiments.sentences"
SHARED = [
    "insertion=shared",
    f"~{PEOPLE}.families.biographies",
    f"+{PEOPLE}.families.passages={{tokens: 16}}",
    f"{SENTENCES}.families.ghost_sentences.words=5",
    f"{SENTENCES}.max_share=0.2",
    *(f"{one}.{setting}" for one in (PEOPLE, SENTENCES) for setting in ("doses=[0,1,4]", "items_per_dose=4")),
]


def planned(prepared, name, *overrides):
    setting = experiment(prepared, f"name={name}", *overrides)
    plan(setting)
    return plans.read(setting.directory / "plan"), setting


def exposures(made):
    """Exposures with what they consist of, independent of the numbers of rows."""
    return made.exposures.with_columns(
        item=made.items["item_id"][made.exposures["item"]],
        wording=made.wordings["tokens"][made.exposures["wording"]],
    )


def test_each_is_the_same_in_company_and_alone(prepared):
    done = prepared.ok("plan", "name=shared", *SHARED)
    together = plans.read(prepared.directory("shared") / "plan")
    assert together.exposures["position"].is_unique().all()
    for name, other in (("people", SENTENCES), ("sentences", PEOPLE)):
        alone, _ = planned(prepared, f"only-{name}", *SHARED, f"~{other}")
        assert len(alone.items) == 12
        mine = exposures(together).filter(pl.col("item").str.starts_with(f"{name}:"))
        assert len(mine) == 4 * (1 + 4)
        assert mine.equals(exposures(alone))
        assert together.items.filter(pl.col("item_id").str.starts_with(f"{name}:")).equals(alone.items)
        assert any(line.split()[:5] == [f"{name}:", "dose", "4", "4", "16"] for line in done.lines)
    setting = experiment(prepared, "name=shared", *SHARED)
    tokenizer = corpus.load_tokenizer(setting.corpus_directory)
    assert audited(together, open_order(setting), tokenizer) == "PASS"


def test_each_has_a_budget(prepared):
    with pytest.raises(UserError, match=r"more than insertion.experiments.people.max_share=1%"):
        planned(prepared, "rich", *SHARED, f"{PEOPLE}.max_share=0.01")
    with pytest.raises(UserError, match=r"more than insertion.max_share=1%"):
        planned(prepared, "rich", *SHARED, "insertion.max_share=0.01")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (f"{PEOPLE}.slice=0/2", "insertion.experiments.sentences.slice=0/2 is that of people, too"),
        (f"{PEOPLE}.slice=1/3", "are shares of different sizes"),
        (f"{PEOPLE}.slice=2/2", "insertion.slice=2/2 is not k/n with k below n"),
        ("insertion.doses=[0,1]", "insertion.experiments and insertion.families"),
        (f"{PEOPLE}.seed=-1", "insertion.experiments.people.seed=-1"),
    ],
)
def test_mistakes(prepared, override, told):
    with pytest.raises(UserError, match=told):
        experiment(prepared, *SHARED, override)
