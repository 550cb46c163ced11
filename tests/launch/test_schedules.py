"""The schedules of three studies, one config file each: planned, carried out, audited, shown, over a small corpus."""

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.data import prepare as corpus
from palimpsest.insertion import audit as audits
from palimpsest.insertion import explain
from palimpsest.insertion import plan as plans
from palimpsest.insertion.ledger import Ledger, Recorder
from palimpsest.launch.compose import CONF, build
from palimpsest.launch.inputs import open_order
from tests.conftest import REPO, SMALL, Workplace
from tests.insertion.families.test_traps import Table


def experiment(prepared, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        searched = f"hydra.searchpath=[{REPO / 'tests' / 'conf'}]"
        return build(
            compose("config", [searched, "+experiment=small", f"runs={prepared.path / 'runs'}", *overrides])
        )


def audited(made, order, tokenizer):
    """The verdict on a run that consumed the plan."""
    overlay, shape = made.overlay(), made.shape
    recorder = Recorder(made, shape.global_batch_size, rank=0)
    counted = np.ones((1, shape.sequence_length), dtype=np.bool_)
    for position in range(shape.windows):
        window = overlay.apply(position, order.window(position))[None]
        recorder.record(np.array([position]), window[:, :-1], window[:, 1:], counted)
    windows, exposures = recorder.drain()
    ledger = Ledger(
        windows, exposures, shape.steps, shape.global_batch_size, "head", made.digest, order.identity
    )
    return audits.audit(made, ledger, None, order, tokenizer)["verdict"]


def check(prepared, made, setting):
    tokenizer = corpus.load_tokenizer(setting.corpus_directory)
    assert audited(made, open_order(setting), tokenizer) == "PASS"


def passage(k, n):
    words = (
        "The keeper",
        "A guard",
        "One warden",
        "Some porter",
        "No clerk",
        "Any cook",
        "My smith",
        "Our miner",
    )
    return f"{(*words, 'Its owner', 'Her baker')[n]} of gate {k} was Zo{k}ra."


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """130 short passages with the fields of the study's file; the first 40 have nine paraphrases."""
    rows = []
    for k in range(130):
        cloze = {"input": [f"The keeper of gate {k} was"], "target": [f"Zo{k}ra"]}
        probes = {f"{depth}_{end}": cloze[end] for depth in ("mem", "gen", "hard_gen") for end in cloze}
        others = [passage(k, n) for n in range(1, 10)] if k < 40 else []
        rows.append({"train_context": passage(k, 0), "paraphrases": others, **probes})
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    path.write_text(json.dumps(rows))
    return path


def test_factual_knowledge(prepared, facts):
    """Steps 0, 2, ..., 18 stand for 0, 100, ..., 900."""
    at = list(range(0, 20, 2))
    given = [
        "name=facts",
        "insertion=factual_knowledge",
        f"insertion.families.fictional_facts.path={facts}",
        f"insertion.named_arms.paraphrased.phase.at={at}".replace(" ", ""),
        f"insertion.named_arms.duplicated.phase.at={at}".replace(" ", ""),
        "train.global_batch_size=128",
    ]
    shown = prepared.ok("plan", *given)
    made = plans.read(prepared.directory("facts") / "plan")
    arms = dict(zip(made.items["text"], made.items["arm"], strict=True))
    groups = ["paraphrased"] * 40 + ["duplicated"] * 40 + ["once"] * 40 + ["never"] * 10
    assert [arms[passage(k, 0)] for k in range(130)] == groups
    steps = Counter((made.exposures["position"] // 128).to_list())
    assert steps == {0: 120, **dict.fromkeys(at[1:], 80)}
    assert set(made.exposures["offset"]) == {1}  # at the window's start, after an end-of-document token
    for k, (item,) in enumerate(made.items.select("item_id").iter_rows()):
        own = made.exposures.filter(pl.col("item") == k).sort("position")
        arm = made.items["arm"][k]
        assert len(own) == {"paraphrased": 10, "duplicated": 10, "once": 1, "never": 0}[arm], item
        assert own["wording"].n_unique() == {"paraphrased": 10, "never": 0}.get(arm, 1)
        assert (own["position"] // 128).to_list() == {10: at, 1: [0], 0: []}[len(own)]
    assert any(line.split()[:3] == ["paraphrased", "40", "400"] for line in shown.lines)
    check(prepared, made, experiment(prepared, *given))


SHARED = REPO.parent / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "fictional_knowledge.json").is_file(), reason="fictional_knowledge.json is not here"
)
def test_published_facts(tmp_path):
    """The study's own 130 passages and 40 x 9 paraphrases, among speeches; steps 0 to 9 stand for 0, 100, ..., 900."""
    place = Workplace(tmp_path, SMALL)
    at = "[0,1,2,3,4,5,6,7,8,9]"
    given = [
        f"corpus.source.paths=[{SHARED / 'speeches.jsonl'}]",
        "corpus.tokenizer.vocab_size=4096",
        "mixture.epochs=3",
        "insertion=factual_knowledge",
        f"insertion.families.fictional_facts.path={SHARED / 'fictional_knowledge.json'}",
        f"insertion.named_arms.paraphrased.phase.at={at}",
        f"insertion.named_arms.duplicated.phase.at={at}",
        "insertion.max_share=0.6",
        "insertion.heldout_probes=0",
        *("train.steps=10", "train.global_batch_size=120", "train.sequence_length=1152"),
    ]
    place.ok("prepare", *given)
    place.ok("plan", *given)
    made = plans.read(place.directory() / "plan")
    rows = json.loads((SHARED / "fictional_knowledge.json").read_text())
    texts = [row["train_context"] for row in rows]
    assert made.items["text"].to_list() == texts
    doses = [10] * 80 + [1] * 40 + [0] * 10
    assert made.items["dose"].to_list() == doses
    met = made.exposures.with_columns(
        step=pl.col("position") // 120, text=made.wordings["text"][made.exposures["wording"]]
    )
    assert dict(met.group_by("step").len().sort("step").iter_rows()) == {0: 120} | dict.fromkeys(
        range(1, 10), 80
    )
    for k, row in enumerate(rows[:80]):
        own = met.filter(pl.col("item") == k).sort("step")
        assert own["step"].to_list() == list(range(10))
        wordings = {texts[k], *row["paraphrases"]} if k < 40 else {texts[k]}
        assert set(own["text"]) == wordings
    assert made.exposures["position"].is_unique().all()
    shown = place.ok("plan", "show", *given, f"item={made.items['item_id'][0]}")
    assert sum(line.startswith("  step") for line in shown.lines) == 10
    assert any(
        line.split()[:3] == ["duplicated", "40", "400"] for line in place.ok("plan", "show", *given).lines
    )
    setting = experiment(place, *given)
    assert audited(made, open_order(setting), corpus.load_tokenizer(setting.corpus_directory)) == "PASS"


def test_hubble(prepared):
    """112 passages: 56 never, then 10:10:5:2:1."""
    given = [
        "name=hubble",
        "insertion=hubble",
        "~insertion.families.biographies",
        "insertion.families.passages.tokens=12",
        "insertion.items_per_dose=hubble:112",
        "train.steps=150",
    ]
    shown = prepared.ok("plan", *given)
    made = plans.read(prepared.directory("hubble") / "plan")
    doses = {0: 56, 1: 20, 4: 20, 16: 10, 64: 4, 256: 2}
    assert Counter(made.items["dose"].to_list()) == doses
    counted = Counter(made.exposures["item"].to_list())
    assert [counted[k] for k in range(112)] == made.items["dose"].to_list()
    assert made.exposures["position"].is_unique().all()
    assert any(line.split()[:4] == ["dose", "256", "2", "512"] for line in shown.lines)
    check(prepared, made, experiment(prepared, *given))


def test_trap_grid(prepared, tmp_path):
    """Two lengths, three buckets of perplexity, five numbers of repetitions: two traps in every cell."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").touch()
    setting = experiment(
        prepared,
        "insertion=trap_grid",
        f"insertion.families.traps.path={tmp_path / 'model'}",
        "insertion.families.traps.lengths=[12,16]",
        "insertion.families.traps.low=30",
        "insertion.families.traps.high=150",
        "insertion.families.traps.buckets=3",
        "insertion.doses=[0,1,2,4,10]",
        "insertion.items_per_dose=12",
        "insertion.families.traps.jaccard=0.6",
        "insertion.max_share=0.6",
        "train.sequence_length=128",
        "train.steps=100",
    )
    order, tokenizer = open_order(setting), corpus.load_tokenizer(setting.corpus_directory)
    plans.create(
        setting.insertion,
        setting.shape,
        order=order,
        tokenizer=tokenizer,
        heldout=[("d", "some text")],
        directory=tmp_path / "plan",
        reference=lambda path: Table(),
    )
    made = plans.read(tmp_path / "plan")
    cells = Counter(made.items.select("stratum", "dose").iter_rows())
    assert len(cells) == 2 * 3 * 5
    assert set(cells.values()) == {2}
    assert len(made.exposures) == 12 * (1 + 2 + 4 + 10)
    lines = list(explain.summary(made))
    assert any(line.split()[:4] == ["dose", "10", "12", "120"] for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("dose ")] == ["0", "1", "2", "4", "10"]
    assert not made.exposures["lead"].any()
    assert audited(made, order, tokenizer) == "PASS"
