"""Families that read files: every layout, ids that do not depend on the order of rows, errors that name the row."""

import json
import random

import polars as pl
import pytest

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion.families import files, test_sets
from palimpsest.insertion.families.registry import FamilyContext, files_of, make
from palimpsest.insertion.items import Probe, tokenize_probes
from tests.conftest import REPO


@pytest.fixture(scope="module")
def context():
    return FamilyContext(5, build(iter([]), TokenizerConfig(vocab_size=257)), [])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stable(name, context, tmp_path, rows, count, settings):
    """The items, after checking that neither the order of rows nor rows added at random change what each one is."""
    items = make(name, context, count, {"path": write(tmp_path / "one.jsonl", rows), **settings})
    shuffled = random.Random(4).sample(rows, len(rows))
    again = make(name, context, count, {"path": write(tmp_path / "one.jsonl", shuffled), **settings})
    assert list(items) == list(again)
    fewer = make(name, context, count - 2, {"path": write(tmp_path / "one.jsonl", rows), **settings})
    assert list(items[: count - 2]) == list(fewer)
    return items


# Every format of a file


def test_formats_agree(tmp_path):
    rows = [{"id": f"r{k}", "text": f"text, number {k}"} for k in range(5)]
    table = pl.DataFrame(rows)
    table.write_csv(tmp_path / "a.csv")
    table.write_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for ending in ("csv", "parquet", "jsonl", "json"):
        assert files.rows(str(tmp_path / f"a.{ending}"), "x") == rows
    with pytest.raises(UserError, match=r"x=a.txt must end in \.jsonl"):
        files.rows("a.txt", "x")
    with pytest.raises(UserError, match=r"x=none.csv cannot be read"):
        files.rows("none.csv", "x")
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"b\.jsonl row 2: not valid JSON"):
        files.rows(str(tmp_path / "b.jsonl"), "x")


def test_files_are_inputs_of_the_plan(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "one"}])
    first = files_of("table", {"path": path})
    assert first.keys() == {"path"}
    write(tmp_path / "a.jsonl", [{"text": "two"}])
    assert files_of("table", {"path": path}) != first
    with pytest.raises(UserError, match=r"insertion\.families\.table\.path=gone: there is no such file"):
        files_of("table", {"path": "gone"})
    assert files_of("table", {"path": "", "prefix": "x"}) == {}


# Your own


ROWS = [
    {
        "id": f"own{k}",
        "text": f"The keeper of lamp {k} is Una.",
        "wordings": [f"Una keeps lamp {k}.", f"Lamp {k} is kept by Una."],
        "stratum": "odd" if k % 2 else "even",
        "bits": 4,
        "licence": "CC0-1.0",
        "probes": [
            {"target": " Una", "prompt": f"The keeper of lamp {k} is", "name": "keeper"},
            {"kind": "foil", "target": f"The keeper of lamp {k} is Ole.", "correct": False},
        ],
    }
    for k in range(12)
]


def test_table(context, tmp_path):
    items = stable("table", context, tmp_path, ROWS, 8, {})
    by_id = {f"table-{row['id']}": row for row in ROWS}
    for item in items:
        row = by_id[item.id]
        assert (item.text, list(item.paraphrases), item.stratum) == (
            row["text"],
            row["wordings"],
            row["stratum"],
        )
        assert (item.bits, item.licence) == (4.0, "CC0-1.0")
        assert item.probes == (
            Probe("verbatim", "", row["text"]),
            Probe("cloze", row["probes"][0]["prompt"], " Una", "keeper"),
            Probe("foil", "", row["probes"][1]["target"], "", correct=False),
        )


def test_table_of_csv_and_parquet(context, tmp_path):
    expected = make("table", context, 12, {"path": write(tmp_path / "a.jsonl", ROWS)})
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    nested = ("wordings", "probes")
    flat = [{k: json.dumps(v) if k in nested else v for k, v in row.items()} for row in ROWS]
    pl.DataFrame(flat).write_csv(tmp_path / "a.csv")
    for ending in ("parquet", "csv"):
        found = make("table", context, 12, {"path": str(tmp_path / f"a.{ending}")})
        for one, other in zip(found, expected, strict=True):
            assert (one.id, one.text, one.paraphrases, one.probes, one.stratum, one.bits) == (
                (other.id, other.text, other.paraphrases, other.probes, other.stratum, other.bits)
            )


def test_hubble_layout(context, tmp_path):
    """Rows repeated as often as ``meta.duplicates`` says are one item."""
    rows = [
        {"text": f"Passage {k} of the set.", "meta": {"duplicates": level, "source": "x"}}
        for k, level in enumerate([0, 0, 1, 4, 4])
        for _ in range(max(level, 1))
    ]
    items = make("table", context, 5, {"path": write(tmp_path / "dup.jsonl", rows)})
    assert (
        sorted(item.stratum for item in items) == ["duplicates0"] * 2 + ["duplicates1"] + ["duplicates4"] * 2
    )
    assert len({item.id for item in items}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": " "}, "row 4 has no text in the column text"),
        ({"id": "own1"}, "row 4 has the id table-own1, as another text has"),
        ({"wordings": "[1]"}, "row 4: wordings must be a list of texts"),
        ({"wordings": "a; b"}, "row 4: wordings must be a list in JSON"),
        ({"bits": "many"}, "row 4: bits=many must be a number"),
        ({"probes": [{"prompt": "x"}]}, "row 4: a probe is an object with a target"),
        ({"probes": [{"target": "x", "kimd": "foil"}]}, "row 4: a probe has no 'kimd'; did you mean 'kind'"),
        ({"probes": [{"target": "x", "kind": "fool"}]}, "no probe of kind 'fool'; did you mean 'foil'"),
        ({"probes": [{"target": "x", "correct": "no"}]}, "row 4: correct=no must be true or false"),
    ],
)
def test_table_mistakes(context, tmp_path, change, message):
    rows = [*ROWS[:3], {**ROWS[3], **change}]
    with pytest.raises(UserError, match=message):
        make("table", context, 4, {"path": write(tmp_path / "a.jsonl", rows)})


def test_too_few_rows_and_the_template(context, tmp_path):
    with pytest.raises(UserError, match="13 items are needed, but there are 12"):
        make("table", context, 13, {"path": write(tmp_path / "a.jsonl", ROWS)})
    template = (REPO / "insertion" / "families" / "table.jsonl").read_text().splitlines()
    wanted = {row["text"]: row.get("wordings", []) for row in map(json.loads, template)}
    made = make("table", context, len(wanted), {})
    assert {item.text: list(item.paraphrases) for item in made} == wanted
    assert min(map(len, wanted.values())) == 1


# Passages


def books(count):
    rng = random.Random(2)
    words = "ash birch cedar dogwood elm fir gum holly iris juniper".split()
    return [{"id": f"b{k}", "text": f"Book {k}: " + " ".join(rng.choices(words, k=60))} for k in range(count)]


def test_passages_of_lengths_and_strata(context, tmp_path):
    rows = books(40)
    (tmp_path / "popular").write_text("\n".join(f"b{k}" for k in range(0, 40, 4)))
    settings = {
        "tokens": [20, 50],
        "window": "random",
        "popular_path": str(tmp_path / "popular"),
        "licence": "public domain",
    }
    items = make("passages", context, 12, {"path": write(tmp_path / "books.jsonl", rows), **settings})
    texts = {row["id"]: row["text"] for row in rows}
    openings = 0
    for item in items:
        book = item.id.removeprefix("passage-")
        group, length = item.stratum.split()
        assert group == ("popular" if int(book[1:]) % 4 == 0 else "unpopular")
        assert len(context.tokenizer.encode(item.text)) == int(length.removeprefix("tokens"))
        assert item.text in texts[book]
        assert item.licence == "public domain"
        openings += texts[book].startswith(item.text)
    assert openings < 4
    assert sum(item.stratum.startswith("popular") for item in items) == 6
    assert {item.stratum.split()[1] for item in items} == {"tokens20", "tokens50"}
    with pytest.raises(UserError, match=r"30 passages .*15 popular, 15 unpopular.* has 25"):
        make("passages", context, 30, {"path": str(tmp_path / "books.jsonl"), **settings})
    with pytest.raises(UserError, match=r"tokens=0 must be above 0"):
        make("passages", context, 3, {"tokens": [0]})


def test_passages_do_not_depend_on_the_order_of_rows(context, tmp_path):
    stable("passages", context, tmp_path, books(20), 10, {"window": "random"})


# Paraphrase pairs


def test_pairs_of_a_file(context, tmp_path):
    rows = [
        {"sentence1": f"One says {k}.", "sentence2": f"{k} is said.", "label": k % 3 != 0} for k in range(30)
    ]
    rows = [{**row, "label": int(row["label"])} for row in rows]
    rows += [
        {"sentence1": "One says 1.", "sentence2": "Twice.", "label": 1}
    ]  # shares a sentence with another pair
    items = stable("paraphrases", context, tmp_path, rows, 18, {"licence": "mine"})
    pairs = {frozenset((row["sentence1"], row["sentence2"])) for row in rows if row["label"]}
    assert all(frozenset((item.text, item.probes[1].target)) in pairs for item in items)
    assert not any("One says 1." in (item.text, item.probes[1].target) for item in items)
    assert {item.stratum for item in items} == {"first", "second"}
    with pytest.raises(UserError, match="20 items are needed, but there are 19"):
        make("paraphrases", context, 20, {"path": str(tmp_path / "one.jsonl")})


# Test sets

LAYOUTS = {
    "mmlu": {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 2},
    "letters": {"question": "Q", "choices": '["a", "b", "c", "d"]', "answer": "C"},
    "words": {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": "c"},
    "arc": {
        "question": "Q",
        "choices": {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    },
    "hellaswag": {"ctx": "Q", "endings": ["a", "b", "c", "d"], "label": "2"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    assert test_sets.read(LAYOUTS[layout], "x") == test_sets.Question("Q", ("a", "b", "c", "d"), 2)


def test_other_layouts():
    piqa = test_sets.read({"goal": "Q", "sol1": "a", "sol2": "b", "label": 1}, "x")
    assert piqa == test_sets.Question("Q", ("a", "b"), 1)
    popqa = test_sets.read({"question": "Q", "possible_answers": '["a", "b"]'}, "x")
    assert popqa == test_sets.Question("Q", ("a",), 0)
    row = {"sentence": "So _ is.", "option1": "a", "option2": "b", "answer": "2", "qID": "XY-3-1"}
    assert test_sets.read(row, "x") == test_sets.Question("So _ is.", ("a", "b"), 1, "XY-3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "Q"}, "has no known layout; its columns are: q"),
        ({"question": "Q"}, "has no answer"),
        ({"question": "Q", "choices": ["a", "b"], "answer": 2}, "the answer 2 is none of its 2 choices"),
        ({"ctx": "Q", "endings": ["a", "b"], "label": ""}, "the answer '' is none of its 2 choices"),
        ({"sentence": "Q", "option1": "a", "option2": "b", "answer": "1"}, "must have one _"),
    ],
)
def test_rows_without_an_answer(row, message):
    with pytest.raises(UserError, match=message):
        test_sets.read(row, "row 7")


def test_formats_as_written(context, tmp_path):
    rows = [
        {"sentence": "The cup fits in _ easily.", "option1": "the box", "option2": "a hat", "answer": "1"}
    ]
    path = write(tmp_path / "w.jsonl", rows)
    written = {
        "question": "Question: The cup fits in _ easily.\nAnswer: the box",
        "options": "Question: The cup fits in _ easily.\nA. the box\nB. a hat\nAnswer: A",
        "infill": "The cup fits in the box easily.",
        "cloze": "The cup fits in the box easily.",
    }
    for form, text in written.items():
        item = make("test_sets", context, 1, {"path": path, "format": form, "ask": list(written)})[0]
        assert item.text == text
        asked = {p.name: p for p in item.probes if p.kind == "choice" and p.correct}
        assert {name: p.prompt + p.target for name, p in asked.items()} == written
        assert asked["cloze"].target == " easily."
        assert asked["infill"].target == " the box easily."
        wrong = {p.name: p.prompt + p.target for p in item.probes if p.kind == "choice" and not p.correct}
        assert wrong["infill"] == wrong["cloze"] == "The cup fits in a hat easily."
        # Choices that differ in their context have no likelihood of their own.
        assert {p.name for p in item.probes if p.kind == "bare"} == {"question", "options", "infill"}


def test_one_of_a_minimal_pair_is_inserted(context, tmp_path):
    rows = [
        {
            "sentence": f"A{k} hit B{k} as _ was {word}.",
            "option1": f"A{k}",
            "option2": f"B{k}",
            "answer": str(n + 1),
            "qID": f"S{k}-{n}",
        }
        for k in range(30)
        for n, word in enumerate(("cross", "rude"))
    ]
    items = stable("test_sets", context, tmp_path, rows, 30, {"format": "infill"})
    assert 5 < sum("cross" in item.text for item in items) < 25
    for item in items:
        twin = next(p for p in item.probes if p.name == "infill ~ twin" and p.correct)
        words = {"cross", "rude"}
        assert {word for word in words if word in item.text} != {
            word for word in words if word in twin.target
        }
    with pytest.raises(UserError, match="3 questions have the pair 'S0'"):
        make(
            "test_sets",
            context,
            1,
            {"path": write(tmp_path / "x.jsonl", [*rows, {**rows[0], "option1": "C"}])},
        )


def test_generative_questions(context, tmp_path):
    rows = [{"question": f"What is {k} and one?", "answer": str(k + 1)} for k in range(9)]
    for item in make("test_sets", context, 9, {"path": write(tmp_path / "a.jsonl", rows)}):
        kinds = [(p.kind, p.name) for p in item.probes]
        assert kinds == [("verbatim", ""), ("cloze", "question"), ("cloze", "cloze")]
    with pytest.raises(UserError, match=r"1 items are needed, but there are 0; .* format=options"):
        make("test_sets", context, 1, {"path": str(tmp_path / "a.jsonl"), "format": "options"})


def test_data_sets_from_disk(context, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"What is {k} and one?", "answer": str(k + 1)} for k in range(9)]
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "set"))
    local = make("test_sets", context, 5, {"path": write(tmp_path / "a.jsonl", rows)})
    found = make("test_sets", context, 5, {"dataset": str(tmp_path / "set")})
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda name, subset, **given: asked.update(given) or rows)
        pinned = make("test_sets", context, 5, {"dataset": "someone/set", "revision": "0a1b2c"})
    assert asked["revision"] == "0a1b2c"
    assert [item.text for item in pinned] == [item.text for item in found]
    assert all("0a1b2c" in item.provenance for item in pinned)
    assert [(item.id, item.text) for item in found] == [(item.id, item.text) for item in local]
    with pytest.raises(UserError, match="could not be loaded"):
        make("test_sets", context, 5, {"dataset": str(tmp_path / "set"), "split": "dev"})


# Fictional facts

RECORD = {
    "train_context": "Oro is a moon. It was found by Ada Quill in 1912. Its sea is called 'Mirror'.",
    "mem_input": ["It was found by", "Its sea is called '"],
    "mem_target": ["Ada Quill", "Mirror'"],
    "gen_input": ["The one who found Oro was"],
    "gen_target": ["Ada Quill"],
    "hard_gen_input": ["Oro was found by a person called"],
    "hard_gen_target": ["Ada"],
    "paraphrases": ["Ada Quill found Oro in 1912.", "Oro was found in 1912 by Ada Quill."],
}


def test_facts_of_a_file(context, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(
        json.dumps([RECORD, {**RECORD, "train_context": RECORD["train_context"] + "!", "paraphrases": []}])
    )
    assert len(make("fictional_facts", context, 2, {"path": str(path)})) == 2
    item = make(
        "fictional_facts", context, 1, {"path": str(path), "paraphrases": 2, "licence": "Apache-2.0"}
    )[0]
    assert item.paraphrases == tuple(RECORD["paraphrases"])
    assert item.licence == "Apache-2.0"
    assert [(p.name, p.prompt + p.target) for p in item.probes[1:]] == [
        ("memorization #0", "It was found by Ada Quill"),
        ("memorization #1", "Its sea is called 'Mirror'"),
        ("semantic #0", "The one who found Oro was Ada Quill"),
        ("composition #0", "Oro was found by a person called Ada"),
    ]
    with pytest.raises(UserError, match="2 items are needed, but there are 1"):
        make("fictional_facts", context, 2, {"path": str(path), "paraphrases": 1})
    path.write_text(json.dumps([{**RECORD, "mem_target": ["Eve Quill", "Mirror'"]}]))
    with pytest.raises(UserError, match="'It was found by Eve Quill' is not in its train_context"):
        make("fictional_facts", context, 1, {"path": str(path)})
    path.write_text(json.dumps([{"train_context": "x"}]))
    with pytest.raises(UserError, match="record 0 lacks paraphrases"):
        make("fictional_facts", context, 1, {"path": str(path)})


PUBLISHED = REPO.parent / "shared" / "data" / "fictional_knowledge.json"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="fictional_knowledge.json is not here")
def test_all_published_clozes_are_found(context):
    """130 passages, five clozes of each of three depths; all 650 of memorization stand in their passages."""
    items = make("fictional_facts", context, 130, {"path": str(PUBLISHED)})
    asked = [(item, probe) for item in items for probe in item.probes if probe.kind == "cloze"]
    assert len(asked) == 3 * 650
    found = [
        probe.prompt + probe.target in item.text for item, probe in asked if probe.name.startswith("mem")
    ]
    assert sum(found) == len(found) == 650
    table, left_out = tokenize_probes(
        [(item.id, item.family, probe) for item, probe in asked], context.tokenizer
    )
    assert len(table) == 1950
    assert not left_out
    assert len(make("fictional_facts", context, 40, {"path": str(PUBLISHED), "paraphrases": 9})) == 40
