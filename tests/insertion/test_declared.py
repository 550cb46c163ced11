"""Items with declared doses: every format and spelling of a column, what rows with one text become, errors by row."""

import gzip
import json

import polars as pl
import pytest
import zstandard

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion import declared, plan

ROWS = [
    {
        "id": "a",
        "text": "The first line\u2028and its second.",
        "dose": 4,
        "stratum": "long",
        "cluster": "one",
    },
    {"id": "b", "text": "Another text.", "dose": 0, "family": "own", "licence": "CC0-1.0"},
    {"id": "c", "prompt": "The capital of France is", "target": " Paris", "dose": 1},
    {"id": "d", "prompt": "Two and two are", "choices": [" five", " four"], "answer": 1, "dose": 0},
]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read(path, **settings):
    return declared.read({"set": str(path)}, settings.pop("fields", {}), **settings)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_format_gives_the_same_items(place):
    (place / "a.jsonl").write_bytes(lines(ROWS))
    wanted = read("a.jsonl")
    assert [(one.item.id, one.item.family, one.dose) for one in wanted] == [
        ("a", "set", 4),
        ("b", "own", 0),
        ("c", "set", 1),
        ("d", "set", 0),
    ]
    assert [one.item.text for one in wanted[2:]] == ["The capital of France is Paris", "Two and two are four"]
    assert [[(p.kind, p.target, p.correct) for p in one.item.probes] for one in wanted[2:]] == [
        [("verbatim", "The capital of France is Paris", True), ("cloze", " Paris", True)],
        [("verbatim", "Two and two are four", True), ("choice", " five", False), ("choice", " four", True)],
    ]
    flat = [{k: json.dumps(v) if k == "choices" else v for k, v in row.items()} for row in ROWS]
    table = pl.DataFrame(flat, infer_schema_length=None)
    pl.DataFrame(ROWS, infer_schema_length=None).write_parquet(place / "a.parquet")
    csv = table.write_csv().encode()
    (place / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(ROWS))
    (place / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    (place / "a.csv").write_bytes(b"\xef\xbb\xbf" + csv)
    (place / "a.csv.zst").write_bytes(zstandard.compress(csv))
    (place / "a.parquet.zst").write_bytes(zstandard.compress((place / "a.parquet").read_bytes()))
    for name in ("b.jsonl", "a.jsonl.gz", "a.csv", "a.csv.zst", "a.parquet", "a.parquet.zst"):
        found = read(name)
        assert [(one.item, one.dose) for one in found] == [(one.item, one.dose) for one in wanted], name


def test_other_names_of_columns(place):
    rows = [
        {"passage": "One.", "meta": json.dumps({"copies": 16, "who": "Una"})},
        {"passage": "Two.", "meta": json.dumps({"copies": 0, "who": "Ole"})},
    ]
    (place / "a.jsonl").write_bytes(lines(rows))
    found = read("a.jsonl", fields={"text": "passage", "dose": "meta.copies", "cluster": "meta.who"})
    assert [(one.item.text, one.dose, one.item.cluster) for one in found] == [
        ("One.", 16, "Una"),
        ("Two.", 0, "Ole"),
    ]
    rows = [{"text": "One.", "duplicates": 256}, {"text": "Two.", "meta": {"duplicates": 1}}]
    (place / "b.jsonl").write_bytes(lines(rows))
    assert [one.dose for one in read("b.jsonl")] == [256, 1]


def test_a_data_set_is_read_with_all_of_its_splits(place):
    pytest.importorskip("datasets")
    (place / "owner" / "set").mkdir(parents=True)
    for split, dose in (("train", 4), ("test", 0)):
        rows = [{"text": f"{split} {k}", "duplicates": dose, "meta": "{}"} for k in range(3)]
        (place / "owner" / "set" / f"{split}.jsonl").write_bytes(lines(rows))
    found = read("owner/set")
    assert [(one.item.text, one.dose) for one in found] == [
        (f"{split} {k}", dose) for split, dose in (("train", 4), ("test", 0)) for k in range(3)
    ]
    assert len(read("owner/set", limit=4)) == 4


def test_rows_with_one_text(place):
    same = {"text": "Said twice.", "duplicates": 4}
    (place / "a.jsonl").write_bytes(lines([same, same, {"text": "Once.", "duplicates": 0}]))
    assert [one.dose for one in read("a.jsonl")] == [
        4,
        0,
    ]  # Hubble's files repeat a row as often as it was inserted
    (place / "b.jsonl").write_bytes(lines([same, {**same, "duplicates": 16}]))
    with pytest.raises(
        UserError, match=r"b\.jsonl row 2 has the text of items=b\.jsonl row 1, .*same_text=add"
    ):
        read("b.jsonl")
    assert [one.dose for one in read("b.jsonl", same_text="add")] == [20]
    assert [one.dose for one in read("b.jsonl", same_text="first")] == [4]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "dose": -1}, r"row 2: dose=-1 must be a whole number"),
        ({"text": "x", "dose": "often"}, r"row 2: dose=often must be a whole number"),
        ({"text": "x", "dose": True}, r"row 2: dose=True must be a whole number"),
        ({"text": "x", "dose": 1.5}, r"row 2: dose=1\.5 must be"),
        ({"text": "x"}, r"row 2 declares no dose"),
        ({"text": 3, "dose": 1}, r"row 2: text=3 must be a text, not a int"),
        ({"text": " ", "dose": 1}, r"row 2 has neither text, nor prompt and target"),
        (
            {"prompt": "x", "target": "", "dose": 1},
            r"row 2 has neither.*its columns: prompt, target \(empty\), dose",
        ),
        ({"text": "x", "id": ["b"], "dose": 1}, r"row 2: id=\['b'\] must be one text or number, not a list"),
        ({"prompt": "x", "answer": [" a", " b"], "dose": 1}, r"row 2: answer=.* must be one text or number"),
        ({"prompt": "x", "answer": {"text": " a"}, "dose": 1}, r"row 2: answer=.* not a dict"),
        ({"passage": "x", "dose": 1}, r"row 2 has neither text.*its columns: passage, dose"),
        (
            {"prompt": "x", "choices": [" a", " b"], "answer": 2, "dose": 1},
            r"row 2: answer=2 is none of the 2 choices",
        ),
        ({"prompt": "x", "choices": [" a", ""], "dose": 1}, r"row 2: choices must be a list of texts"),
        ({"text": "x", "id": "one", "dose": 1}, r"row 2: its id 'one' is that of items=a\.jsonl row 1, too"),
        ({"text": "x", "family": "all", "dose": 1}, r"row 2: family=all"),
        ({"text": "x", "dose": 1, "bits": "many"}, r"row 2: bits=many must be a number"),
        ({"text": "x", "dose": 1, "probes": [{"prompt": "x"}]}, r"row 2: a probe is an object with a target"),
        ("not json", r"row 2: not valid JSON"),
        ('{"id": "bad", "text": "\\ud800"}', r"row 2 \(id 'bad'\): a text holds a lone surrogate"),
    ],
)
def test_bad_rows_are_named(place, row, message):
    text = row if isinstance(row, str) else json.dumps(row)
    (place / "a.jsonl").write_text(json.dumps({"text": "fine", "id": "one", "dose": 0}) + "\n" + text + "\n")
    with pytest.raises(UserError, match=message):
        read("a.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": "a", "text": "one"}\r{"id": "b", "text": "two"}\r'),
        ("a.csv", "id,text\ra,one\rb,two\r"),
        ("b.csv", 'id,text\r\na,"one"\r\nb,two\r\n'),
        ("b.jsonl", '\n{"id": "a", "text": "one"}\r\n\r\n{"id": "b", "text": "two"}\r\n'),
    ],
)
def test_line_ends(place, name, content):
    (place / name).write_text(content, newline="")
    assert [(one.item.id, one.item.text) for one in read(name)] == [("a", "one"), ("b", "two")]


def test_a_file_of_another_kind_is_no_data_set(place):
    (place / "a.tsv").write_text("id\ttext\na\tone\n")
    with pytest.raises(UserError, match=r"a.tsv must end in \.jsonl, "):
        read("a.tsv")


@pytest.mark.parametrize(("answer", "right"), [(0, 0), ("1", 1), ("b", 1), ("four", 1), (" five", 0)])
def test_answers(place, answer, right):
    row = {"prompt": "Two and two are", "choices": [" five", " four"], "answer": answer}
    (place / "a.jsonl").write_bytes(lines([row]))
    (one,) = read("a.jsonl")
    assert [probe.correct for probe in one.item.probes if probe.kind == "choice"] == [right == 0, right == 1]


def test_the_plan_says_what_is_declared(place):
    rows = [{"text": f"Text number {k} of some.", "dose": 4 * (k % 2)} for k in range(8)]
    (place / "a.jsonl").write_bytes(lines(rows))
    words = build(iter([]), TokenizerConfig(vocab_size=257))
    run = {"steps": 0, "global_batch_size": 1, "sequence_length": 0, "begin": 0}
    declared.write(
        read("a.jsonl"),
        words,
        place / "plan",
        config={"released": {"models": {}}, "run": run},
        inputs={},
        seed=1,
    )
    found = plan.read(place / "plan")
    assert found.items["dose"].to_list() == [0, 4] * 4
    assert found.exposures.is_empty()
    assert found.manifest.facts["exposures_declared"] == 16
    assert {row["covariate"] for row in found.manifest.facts["balance"]} >= {"length", "bytes"}
    assert found.probes["kind"].unique().to_list() == ["verbatim"]
