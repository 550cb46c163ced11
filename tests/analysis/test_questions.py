"""Choices, foils, clozes and changed questions: worked examples, and every family's questions from a score store."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from palimpsest.analysis.metrics import METRICS, compute
from palimpsest.analysis.metrics.capacity import bio_s_capacity
from palimpsest.analysis.metrics.reasoning import limem
from palimpsest.analysis.metrics.watermark import combined_p
from palimpsest.analysis.report.inputs import ReportInputs
from palimpsest.analysis.report.question_tables import question_tables
from palimpsest.analysis.report.questions import question_estimates
from palimpsest.data.errors import UserError
from palimpsest.insertion.families.registry import make
from palimpsest.insertion.items import Item
from tests.insertion.every_family import SHIPPED, family_context, settings


def probe(
    kind: str,
    target: str,
    loglik: float,
    *,
    name: str = "q",
    correct: bool = True,
    item: str = "i0",
    bits: float | None = None,
) -> dict[str, Any]:
    """A probe of a prompt's token and two of the target, and its log-likelihood."""
    prompt = "" if kind in ("verbatim", "foil", "bare") else "Which? "
    return {
        "item_id": item, "family": "f", "kind": kind, "name": name, "correct": correct, "text": prompt + target,
        "target_char": len(prompt), "tokens": [1, 2, 3], "target_start": 1, "target_bytes": len(target.encode()),
        "loglik": loglik, "bits": bits,
    }  # fmt: skip


def rows(probes: list[dict[str, Any]], names: list[str] | None = None) -> pl.DataFrame:
    """Metric rows of these probes, as scored by one checkpoint."""
    table = pl.DataFrame(probes).with_columns(
        probe_id=pl.format("{}/{}/{}", "item_id", "kind", pl.int_range(pl.len()))
    )
    scores = table.filter(pl.col("loglik").is_not_nan()).select(
        pl.lit("perturbed").alias("run"),
        pl.lit(5).alias("step"),
        "probe_id",
        # The prompt's token is none of the target's.
        logprob=pl.concat_list(pl.lit(-50.0), pl.col("loglik") * 0.25, pl.col("loglik") * 0.75),
        rank=pl.concat_list(pl.lit(9), pl.lit(0), (pl.col("loglik") < -5).cast(pl.Int32)),
    )
    items = (
        table.select("item_id").unique().with_columns(stratum=pl.lit("s"), dose=pl.lit(4), bits=None, bytes=1)
    )
    wanted = names or [
        name for name, found in METRICS.items() if found.by_question and "reference" not in found.reads
    ]
    return compute(items, table.drop("loglik"), scores, wanted)


def value(found: pl.DataFrame, metric: str, question: str = "q") -> float:
    (only,) = found.filter((pl.col("metric") == metric) & (pl.col("question") == question))["value"]
    return float(only)


O26 = {"raw": [-12, -9.5, -15, -10], "bare": [-14, -9, -20, -12], "chars": [20, 12, 30, 18]}


def o26(right: int) -> list[dict[str, Any]]:
    texts = ["abcd"[k] + "x" * (n - 1) for k, n in enumerate(O26["chars"])]
    return [
        probe(kind, text, O26[column][k], correct=k == right)
        for kind, column in (("choice", "raw"), ("bare", "bare"))
        for k, text in enumerate(texts)
    ]


@pytest.mark.parametrize("right", range(4))
def test_worked_example_o26(right: int) -> None:
    found = rows(o26(right))
    assert value(found, "choice_accuracy") == (right == 1)
    assert value(found, "choice_accuracy_per_char") == (right == 2)
    assert value(found, "choice_accuracy_per_byte") == (right == 2)
    assert value(found, "choice_accuracy_pmi") == (right == 2)
    if right == 0:
        assert value(found, "choice_probability") == pytest.approx(0.048493, abs=1e-6)
    # -9.5, -10, -12, -15: ranks 3, 1, 4, 2 of 4 candidates.
    assert value(found, "choice_exposure") == pytest.approx(2 - math.log2([3, 1, 4, 2][right]))
    # One row a question: decoys have none.
    assert found.group_by("metric").len()["len"].to_list() == [1] * found["metric"].n_unique()


def test_bytes_are_not_characters() -> None:
    found = rows([probe("choice", "ж" * 6, -6, correct=True), probe("choice", "x" * 10, -8, correct=False)])
    assert value(found, "choice_accuracy_per_char") == 0  # -1 against -0.8
    assert value(found, "choice_accuracy_per_byte") == 1  # -0.5 against -0.8


def test_equal_choices_share_the_point() -> None:
    found = rows([probe("choice", t, -3, correct=t == "b") for t in "abcd"])
    assert value(found, "choice_accuracy") == value(found, "choice_probability") == 0.25
    assert value(found, "choice_exposure") == pytest.approx(2 - math.log2(2.5))  # the mean of ranks 1 to 4


def test_questions_are_told_apart() -> None:
    """Of two items, and twice the same of one: the row says which, ``question`` what is asked."""
    probes = [
        probe("choice", f" {k}", -k, name=name, correct=k == right, item=item)
        for item, name, right in (("i0", "hops 1 #0", 1), ("i0", "hops 1 #1", 2), ("i1", "hops 1 #0", 1))
        for k in (1, 2)
    ]
    found = rows(probes, ["choice_accuracy"]).sort("item_id", "probe_id")
    assert found.select("item_id", "question", "value").rows() == [
        ("i0", "hops 1", 1.0),
        ("i0", "hops 1", 0.0),
        ("i1", "hops 1", 1.0),
    ]


def test_what_was_not_scored_is_no_answer() -> None:
    """A question without one of its decoys would be easier; one without a right answer has none."""
    lost = rows(
        [probe("choice", "a", -1), probe("choice", "b", math.nan, correct=False)], ["choice_accuracy"]
    )
    assert lost["value"].to_list() == [None, None]
    assert set(lost["reason"]) == {
        "its question has not one right answer among two or more choices, all of them scored",
        "the probe was not scored at this checkpoint",
    }
    wrong = rows([probe("choice", t, -1, correct=False) for t in "ab"], ["choice_accuracy"])
    assert wrong["value"].to_list() == [None]
    foil = rows([probe("foil", "b", -1, correct=False)], ["recognition_2afc", "rank_test_bits"])
    assert set(foil["reason"]) == {"the text or one of its foils was not scored"}


def test_foils() -> None:
    """Mean ln p a token, two tokens: the text has -2; of 9 foils 6 are below it, 1 equal, 2 above."""
    foils = [-1, -1.5, -2, -3, -3, -3, -4, -4, -5]
    found = rows(
        [probe("verbatim", "text", -4, name="")]
        + [probe("foil", f"foil {k}", 2 * f, name="draw", correct=False) for k, f in enumerate(foils)]
    )
    assert value(found, "recognition_2afc", "draw") == pytest.approx(6.5 / 9)
    assert value(found, "rank_test_bits", "draw") == pytest.approx(-math.log2(4 / 10))
    z = (-2 - np.mean(foils)) / np.std(foils, ddof=1)
    assert value(found, "rank_test_z", "draw") == pytest.approx(z)


def test_clozes_count_their_targets_alone() -> None:
    found = rows([probe("cloze", "yes", -4, name="a"), probe("cloze", "no", -8, name="b")])
    assert value(found, "cloze_reproduced", "a") == 1  # the prompt's token has rank 9
    assert value(found, "cloze_reproduced", "b") == 0
    assert value(found, "cloze_min_k_logprob", "b") == -6  # the lower of -2 and -6


def test_bits_known_are_the_capacity_formulas() -> None:
    """Two attributes of 4 and 8 equally likely values, of four people: bits that the model saves on the values."""
    nll = [[0.0, math.log(8)], [math.log(2), math.log(2)], [math.log(4), 0.0], [0.0, 0.0]]
    found = rows(
        [
            probe("cloze", "x", -lost, name=f"{name} given name", item=f"i{person}", bits=bits)
            for person, row in enumerate(nll)
            for lost, name, bits in zip(row, ("city", "field"), (2.0, 3.0), strict=True)
        ]
        + [probe("cloze", "x", -1, name="no claim")],
        ["cloze_bits_known"],
    )
    assert set(found["question"]) == {"city given name", "field given name"}
    capacity = bio_s_capacity(
        4, 1000, math.log(4), float(np.sum(nll)) / 4, log2_names=2.0, log2_attributes=5.0
    )
    assert found["value"].sum() == pytest.approx(capacity.bits)  # names cost what they must: 0 bits of them


def test_limem_is_the_published_one() -> None:
    rng = np.random.default_rng(3)
    solved = rng.random((200, 2)) < 0.6
    probes = [
        probe(
            "choice",
            target,
            -1 if (target == "yes") == right else -2,
            name=name,
            correct=target == "yes",
            item=f"i{k}",
        )
        for k, row in enumerate(solved)
        for name, right in zip(("puzzle #7", "puzzle ~ leaf changed #7"), row, strict=True)
        for target in ("yes", "no")
    ]
    found = rows(probes, ["choice_accuracy", "limem", "consistency"])
    means = dict(
        found.group_by("metric", "question")
        .agg(pl.col("value").mean())
        .select(pl.concat_str("metric", "question", separator=": "), "value")
        .iter_rows()
    )
    published = limem(solved[:, 0].astype(float), solved[:, 1].astype(float))
    assert means["choice_accuracy: puzzle"] == pytest.approx(published.accuracy)
    assert means["limem: puzzle ~ leaf changed"] == pytest.approx(published.score)
    assert means["consistency: puzzle ~ leaf changed"] == pytest.approx(published.consistency)
    assert "limem: puzzle" not in means
    unsolved = found.filter((pl.col("metric") == "consistency") & pl.col("value").is_null())
    assert unsolved.height == 200 - solved[:, 0].sum()


# Every family, from its items to the report's rows

ASKED = {
    "traps": {"cloze": {"after other text"}},
    "ghost_sentences": {"cloze": {"last 1 words", "last 2 words"}, "foil": {"fresh draw"}},
    "watermarks": {"foil": {"unused draw"}},
    "canaries": {
        "choice": {"random", "key", "card", "password", "email", "uuid"},
        "cloze": {"card", "card given its first half", "uuid given its first half"},
    },
    "biographies": {
        "choice": {"birth_city", "employer", "field"},
        "cloze": {"field given name", "field given name and another", "field given all before"},
    },
    "fictional_facts": {"cloze": {"memorization", "semantic", "composition"}},
    "test_sets": {
        "choice": {"question", "infill", "cloze", "question ~ twin", "infill ~ twin", "cloze ~ twin"},
        "bare": {"question", "question ~ twin"},
    },
    "paraphrases": {"foil": {"other wording"}},
    "hubble_sets": {"choice": {"options"}},
    "dialogues": {"choice": {"pet", "dish"}, "cloze": {"clue to pet"}},
    "code_secrets": {"choice": {"password", "api token"}, "cloze": {"password", "api token"}},
    "knights_knaves": {
        "choice": {"puzzle", "puzzle ~ statement changed", "puzzle ~ leaf changed", "puzzle ~ reordered"},
        "cloze": {"solution"},
    },
    "few_shot_memories": {
        "foil": {"unseen", "paraphrased", "synonym-swapped", "random words", "gibberish"},
        "cloze": {"second half"},
    },
    "episodes": {"choice": {"which came earlier", "what follows"}},
    "time_series": {
        "choice": {"before the cut-off", "after the cut-off"},
        "cloze": {"before the cut-off, month alone", "after the cut-off, month alone"},
    },
    "parallel_worlds": {"choice": {f"hops {n}{w}" for n in (1, 2, 3) for w in ("", " ~ parallel world")}},
    "table": {"cloze": {"keeper"}, "choice": {"keeper"}},
    "passages": {},
}  # fmt: skip
"""Family -> kind -> some of the questions that the page on families promises."""

MEASURES = {
    "choice": {"choice_accuracy", "choice_accuracy_per_byte", "choice_probability", "choice_exposure"},
    "bare": {"choice_accuracy_pmi"},
    "foil": {"recognition_2afc", "rank_test_bits"},
    "cloze": {"cloze_loglik_per_byte", "cloze_reproduced"},
}
EACH = 24
RUNS = ("perturbed", "twin")


def recited(item: Item) -> Iterator[bool]:
    """Whether a model that recites the item finds each of its probes likelier."""
    learnt = {p.name: p.target for p in item.probes if p.kind == "choice" and p.correct}
    for p in item.probes:
        if p.name.endswith("~ twin"):  # of a minimal pair, where the other one's answer is the wrong one
            yield p.kind == "choice" and not p.correct
        elif " ~ " in p.name:
            yield p.target == learnt[re.sub(r" ~ [^#]*?(?= #|$)", "", p.name)]
        else:
            yield p.correct and p.kind != "bare"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    """Half of the items of every family inserted; to the perturbed run all that was inserted, and every right answer
    about it, is likelier by 2 nats a token. It recites: a changed question gets the unchanged one's answer."""
    folder = tmp_path_factory.mktemp("families")
    probes: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for name in SHIPPED:
        count = 3 if name == "table" else EACH
        given = settings(name, folder, count)
        if name == "traps":
            given["context"] = 8
        if name == "table":
            del given["path"]  # the template
        for number, item in enumerate(make(name, family_context(60), count, given)):
            dose = 8 * (number // 6 % 2) if name != "table" else 8 * (number == 0)
            items.append(
                {"item_id": item.id, "family": name, "stratum": name, "arm": f"dose{dose}", "dose": dose}
                | {"text": item.text, "bits": item.bits, "bytes": len(item.text.encode())}
            )
            for place, (p, known) in enumerate(zip(item.probes, recited(item), strict=True)):
                row = {"probe_id": f"{item.id}/{p.kind}/{place}", "item_id": item.id, "family": name}
                row |= {"kind": p.kind, "name": p.name, "correct": p.correct, "text": p.prompt + p.target}
                row |= {"target_char": len(p.prompt), "target_bytes": len(p.target.encode())}
                row |= {"tokens": [1, 2, 3, 4], "target_start": int(bool(p.prompt)), "bits": p.bits}
                probes.append(row | {"gain": 2.0 * (known and dose > 0)})
    table = pl.DataFrame(probes, infer_schema_length=None)
    rng = np.random.default_rng(5)
    frames = []
    for run in RUNS:
        ease = table["gain"].to_numpy() * (run == "perturbed")
        logprob = -4 + 0.3 * rng.normal(size=(table.height, 4)) + ease[:, None]
        frames.append(
            pl.DataFrame(
                {"probe_id": table["probe_id"], "logprob": logprob, "rank": np.where(logprob > -3, 0, 7)}
            ).with_columns(pl.col("logprob", "rank").arr.to_list(), run=pl.lit(run), step=pl.lit(9, pl.Int64))
        )
    return ReportInputs(
        title="families",
        items=pl.DataFrame(items, schema_overrides={"dose": pl.Int32}, infer_schema_length=None),
        probes=table.drop("gain"),
        scores=pl.concat(frames),
        training=pl.DataFrame(),
        exposures=pl.DataFrame(),
        audit=None,
        permutations=199,
    )


@pytest.fixture(scope="module")
def measured(store: ReportInputs) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Metric rows and question estimates."""
    found = compute(store.items, store.probes, store.scores)
    return found, question_estimates(found, 9, store)


def test_the_page_names_every_family() -> None:
    assert set(ASKED) == set(SHIPPED)


@pytest.mark.parametrize("family", sorted(set(ASKED) - {"passages", "table"}))
def test_every_family_is_measured(
    family: str, store: ReportInputs, measured: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    """Positive control and null: what was inserted shows, question by question, and the twin stays at chance."""
    found, estimates = measured
    of = found.filter(pl.col("family") == family)
    for kind, questions in ASKED[family].items():
        for metric in MEASURES[kind]:
            asked = of.filter(pl.col("metric") == metric)
            assert questions <= set(asked["question"]), metric
            assert asked["value"].is_not_null().all()
    final = estimates.filter((pl.col("family") == family) & (pl.col("statistic") == "mean"))
    above = variance = 0.0
    for run, dose, metric, question, estimate, chance, n in final.select(
        "run", "dose", "metric", "question", "estimate", "chance", "n"
    ).iter_rows():
        # What was learnt in one world's names says nothing in the other's.
        remembers = run == "perturbed" and dose > 0 and "parallel" not in question
        if metric in ("choice_accuracy", "recognition_2afc"):
            if remembers:
                recites = question.startswith(("puzzle ~ statement", "puzzle ~ leaf")) or "~ twin" in question
                assert estimate == (0 if recites else 1), (run, dose, metric, question)
            else:
                above += n * (estimate - chance)
                variance += n * chance * (1 - chance)
        if metric == "cloze_reproduced":
            assert (estimate > 0.9) == remembers
        if metric == "limem" and remembers:
            assert estimate == (0 if "reordered" in question else 1)
    assert abs(above) <= 4 * math.sqrt(variance)


def test_the_rank_test_is_exact(store: ReportInputs, measured: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    found, estimates = measured
    tests = estimates.filter((pl.col("statistic") == "rank_test") & (pl.col("family") == "watermarks"))
    p = {(run, dose): p for run, dose, p in tests.select("run", "dose", "p").iter_rows()}
    assert p["perturbed", 8] == pytest.approx(combined_p([0.01] * (EACH // 2)))
    assert min(p["perturbed", 0], p["twin", 0], p["twin", 8]) > 1e-3
    # Under the null the ranks of the twin's items are uniform.
    bits = found.filter((pl.col("run") == "twin") & (pl.col("metric") == "rank_test_bits"))
    draws = bits.filter(pl.col("question") == "unused draw")["value"].to_numpy()
    assert stats.kstest(2.0**-draws, stats.uniform(0.01, 0.99).cdf).pvalue > 1e-3


def test_detection_ratio_with_and_without_context(store: ReportInputs) -> None:
    names = [
        "negative_surprisal_ratio",
        "cloze_negative_surprisal_ratio",
        "min_k_logprob",
        "cloze_min_k_logprob",
    ]
    names += ["cloze_bits_leaked", "reference_difference", "negative_loss_ratio"]
    found = compute(store.items, store.probes, store.scores, names).filter(pl.col("family") == "traps")
    shown = found.filter(pl.col("run") == "perturbed")
    assert set(shown["metric"]) == set(names)
    assert shown["value"].is_not_null().all()
    gains = shown.group_by("metric").agg(
        gain=pl.col("value").filter(pl.col("dose") > 0).mean()
        - pl.col("value").filter(pl.col("dose") == 0).mean()
    )
    assert (gains["gain"] > 0).all()
    # By hand: the bits are 25 tokens of 20,000 words; the text's log-likelihood stands in the store.
    score = store.scores.join(
        shown.filter(pl.col("metric") == names[0]).select("run", "probe_id"), on=["run", "probe_id"]
    )
    for row in score.sort("probe_id").iter_rows(named=True):
        ratio = shown.filter((pl.col("probe_id") == row["probe_id"]) & (pl.col("metric") == names[0]))[
            "value"
        ].item()
        assert ratio == pytest.approx(sum(row["logprob"]) / (25 * math.log(20_000)))


def test_bits_of_what_is_asked_add_up(store: ReportInputs) -> None:
    """Attributes given the name, the secrets of a file, a canary: together they are what the item claims."""
    name = pl.col("name")
    whole = store.probes.filter(
        ((pl.col("family") == "biographies") & name.str.ends_with(" given name"))
        | (pl.col("family") == "code_secrets")
        | ((pl.col("family") == "canaries") & ~name.str.contains("given"))
    )
    sums = whole.group_by("item_id").agg(pl.col("bits").sum().alias("asked"))
    both = sums.join(store.items, on="item_id")
    assert both.height == 3 * EACH
    assert both["asked"].to_numpy() == pytest.approx(both["bits"].to_numpy())


def test_the_report_tells_them_apart(
    store: ReportInputs, measured: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    tables = {table.caption: table for table in question_tables(store, measured[1], 9)}
    assert set(tables) == set(SHIPPED) - {"passages"}
    for row in tables["biographies"].body:
        if row[1] == "choice_accuracy":
            assert (row[2], row[3], row[5].split()[0]) == ("0.25", "12", "1.00")
            assert (
                float(row[8].removeprefix("≤ ")) <= 0.1
            )  # the gain is over the twin's, which is right by chance, too
    watermark = [row for row in tables["watermarks"].body if row[1] == "rank_test_bits"]
    assert watermark[0][5].startswith("6.64")  # log2 100
    text = tables["parallel_worlds"].body
    assert [row[0] for row in text if row[1] == "choice_accuracy"][:3] == ["hops 1", "hops 2", "hops 3"]


def test_metrics_are_asked_for_by_name(store: ReportInputs) -> None:
    with pytest.raises(UserError, match=r"report\.metrics: unknown metric 'min_k'.*min_k_logprob"):
        dataclasses.replace(store, metrics=["min_k"])
