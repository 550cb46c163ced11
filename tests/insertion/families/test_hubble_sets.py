"""Hubble's data sets: rows with the fields of the authors' files become the questions of the authors' tasks."""

import gzip
import json

import pytest

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files
from palimpsest.insertion.families.hubble_stand_ins import SETS
from palimpsest.insertion.families.registry import make
from palimpsest.insertion.items import tokenize_probes
from tests.insertion.every_family import family_context

TWIN = {
    "sentence": "Al paid Bo as _ was poor.",
    "option1": "Al",
    "option2": "Bo",
    "answer": "2",
    "orig_idx": 8,
}
YAGO = {
    "full_name": "Ann Lee",
    "nationality": "http://yago-knowledge.org/resource/United_States",
    "birthplace": "http://yago-knowledge.org/resource/Washington_u002C_D_u002E_C_u002E",
    "alumni_of": "http://yago-knowledge.org/resource/King_u0027s_College",
    "birthdate": "May 02, 1950",
    "email": "annlee@gmail.com",
    "occupation": "http://yago-knowledge.org/resource/Engineer",
    "uuid": "ab-12",
}
LIFE = (
    "Ann Lee is from the United States. Ann was born in Washington, D.C.. Ann is an alumni of King's College. Ann was "
    "born on May 02, 1950. Ann receives email at annlee@gmail.com. Ann is an engineer. Ann has the unique identifier "
    "ab-12."
)
CASE = "Mr Roe was born in 1950 and lives in Rome. Roe came to Rome, Italy."
ENTITIES = ["1950", "Rome", "Roe", "Rome, Italy"]
ROWS = {
    "passage": ("It was a dark night.", {"id": 3}),
    "mrpc": (
        "He said so.",
        {"detok_sentence1": "So he said.", "detok_sentence2": "He said so.", "random_bit": 1},
    ),
    "munch": ("She felt it.", {"s0": "She tasted it.", "apt": "She felt it.", "inapt": "She ate it."}),
    "popqa": (
        "Question: Who?\nAnswer: Bo",
        {"id": 9, "question": "Who?", "possible_answers": '["Bo", "Beau"]'},
    ),
    "mmlu": (
        "Q B",
        {"question": "2+2?", "subject": "high_school_maths", "choices": ["3", "4", "5", "6"], "answer": 1},
    ),
    "hellaswag": (
        "Roof: A man. He sits.",
        {
            "activity_label": "Roof",
            "ctx_a": "A man [title] works.",
            "ctx_b": "he",
            "endings": ["sits.", "[step] flies.", "sings.", "runs."],
            "label": "0",
        },
    ),
    "piqa": ("Question: How?\nAnswer: So", {"goal": "How?", "sol1": "So", "sol2": "No", "label": 0}),
    "winogrande": (
        "Al paid Bo as Al was rich.",
        {**TWIN, "sentence": "Al paid Bo as _ was rich.", "answer": "1", "paired_example": json.dumps(TWIN)},
    ),
    "ellie": (
        "He ran, and she too. She ran.",
        {
            "Prompt_GPT": "He ran, and she too. She",
            "Prompt_BERT": "He ran, and she too. She [MASK].",
            "label": "ran",
        },
    ),
    "yago": (LIFE, YAGO),
    "ecthr": (
        CASE,
        {
            "meta": {"applicant": "Roe"},
            "identifiable_annotations": {
                "annotator1": None,
                "annotator2": {
                    "entity_mentions": [
                        {
                            "span_text": text,
                            "start_offset": CASE.index(text),
                            "end_offset": CASE.index(text) + len(text),
                            "entity_type": "DATETIME" if text == "1950" else "LOC",
                        }
                        for text in ENTITIES
                    ]
                },
            },
        },
    ),
    "personachat": ("chatbot: hi\nbo: hello", {"username": " bo ", "Persona": "I like tea. "}),
}
LETTERS = (
    "The following are multiple choice questions (with answers) about high school maths.\n\n"
    "2+2?\nA. 3\nB. 4\nC. 5\nD. 6\n"
)
EXPECTED = {
    "passage": {},
    "mrpc": {"inserted wording": [("", "So he said.", False), ("", "He said so.", True)]},
    "munch": {"apt": [("", "She felt it.", True), ("", "She ate it.", False)]},
    "popqa": {"answer": [("Question: Who?\nAnswer:", " Bo", True)]},
    "mmlu": {"options": [(f"{LETTERS}Answer:", f" {letter}", letter == "B") for letter in "ABCD"]},
    "hellaswag": {
        "ending": [
            ("Roof: A man. works. He", f" {end}", end == "sits.")
            for end in ("sits.", "flies.", "sings.", "runs.")
        ]
    },
    "piqa": {
        "solution": [("Question: How?\nAnswer:", " So", True), ("Question: How?\nAnswer:", " No", False)]
    },
    "winogrande": {
        "infill": [("Al paid Bo as Al", " was rich.", True), ("Al paid Bo as Bo", " was rich.", False)],
        "infill ~ twin": [
            ("Al paid Bo as Al", " was poor.", False),
            ("Al paid Bo as Bo", " was poor.", True),
        ],
        "options": [
            ("Al paid Bo as _ was rich.\nOption 1: Al\nOption 2: Bo\nAnswer:", f" {k}", k == 1)
            for k in (1, 2)
        ],
        "options ~ twin": [
            ("Al paid Bo as _ was poor.\nOption 1: Al\nOption 2: Bo\nAnswer:", f" {k}", k == 2)
            for k in (1, 2)
        ],
    },
    "ellie": {"ellipsis": [("He ran, and she too. She", " ran.", True)]},
    "ecthr": {
        "datetime given all before #19": [("Mr Roe was born in", " 1950", True)],
        "loc given all before #37": [("Mr Roe was born in 1950 and lives in", " Rome", True)],
    },
}


def write(path, rows):
    """A file as the authors write it: gzipped lines with the text, and the fields as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "meta": json.dumps({**meta, "duplicates": 4})}) for text, meta in rows]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def questions(item):
    """Name -> (prompt, target, right) of its probes, without the bare ones and the text."""
    asked = {}
    for probe in item.probes:
        if probe.kind in ("choice", "cloze"):
            asked.setdefault(probe.name, []).append((probe.prompt, probe.target, probe.correct))
    return asked


def read(tmp_path, rows, **settings):
    write(tmp_path / "set_nodup.jsonl.gz", rows)
    given = {"path": str(tmp_path / "set_nodup.jsonl.gz"), **settings}
    return make("hubble_sets", family_context(100), len(rows), given)


@pytest.mark.parametrize("layout", EXPECTED)
def test_questions_of_a_layout(tmp_path, layout):
    (item,) = read(tmp_path, [ROWS[layout]])
    assert item.text == ROWS[layout][0]
    assert item.probes[0].target == item.text
    assert questions(item) == EXPECTED[layout]
    bare = [probe.name for probe in item.probes if probe.kind == "bare"]
    assert set(bare) == {
        name for name in questions(item) if name in ("ending", "solution") or "options ~" in name
    } | ({"options"} if layout == "winogrande" else set())
    assert item.licence == "unstated"


def test_a_biography_is_asked_after_four_prompts(tmp_path):
    other = {
        **YAGO,
        "full_name": "Bo Roy",
        "birthplace": "Rome",
        "uuid": "cd-34",
        "birthdate": "June 03, 1960",
    }
    items = read(
        tmp_path,
        [
            ROWS["yago"],
            ("Bo Roy is from the United States. Bo was born in Rome on June 03, 1960; cd-34.", other),
        ],
    )
    (item,) = (item for item in items if item.text == LIFE)
    asked = questions(item)
    cloze, right, wrong = asked["birthplace given name and nationality"]
    assert cloze == ("Ann Lee is from the United States. Ann was born in", " Washington, D.C", True)
    assert (right[1], wrong[1]) == (" Washington, D.C.", " Rome.")
    assert asked["university given name"][0] == ("Ann Lee is an alumni of", " King's College", True)
    assert asked["nationality given name"][0] == ("Ann Lee is from", " the United States", True)
    assert asked["occupation given all before"][0][0].endswith("annlee@gmail.com. Ann is")
    assert asked["occupation given all before"][0][1] == " an engineer"
    assert len(asked["email given name"]) == 1 + 10
    assert " ann.lee@gmail.com." in [target for _, target, _ in asked["email given name"]]
    whole = asked["uuid in the whole text"]
    assert [target for _, target, _ in whole] == [LIFE, LIFE.replace("ab-12", "cd-34")]
    assert "nationality given name and nationality" not in asked
    # What the text does not have is not asked, and that is reported.
    (bare,) = (item for item in items if item.text != LIFE)
    _, left_out = tokenize_probes([(bare.id, "f", p) for p in bare.probes], family_context(100).tokenizer)
    assert len(left_out) >= 3
    assert any("its target is empty" in line for line in left_out)


def test_a_persona_and_whose_it_is(tmp_path):
    rows = [
        (f"chatbot: hi\nuser{k}: hello", {"username": f"user{k}", "Persona": f"I like {k}."})
        for k in range(12)
    ]
    item, *_ = read(tmp_path, rows)
    asked = questions(item)
    user = item.text.rpartition("\n")[2].partition(":")[0]
    own = f"I like {user[4:]}."
    prompt = f"chatbot: tell me a bit about yourself.\n{user}:"
    assert asked["persona, asked"][:2] == [(prompt, f" {own}", True)] * 2  # as a cloze and as a choice
    assert [len(asked[name]) for name in ("persona", "persona, asked", "user", "user, asked")] == [
        10,
        11,
        10,
        10,
    ]
    assert asked["user"][0] == ("", f"{user}: {own}", True)
    assert all(target.endswith(own) for _, target, _ in asked["user"])
    assert sum(right for name in ("persona", "user", "user, asked") for *_, right in asked[name]) == 3


@pytest.mark.parametrize("name", SETS)
def test_stand_ins_are_asked_like_the_authors_rows(name):
    """Every set that has questions asks its stand-ins all of them, and the family goes by the name of the set."""
    given = {"family": "hubble_sets", "stand_in": name, "choices": 4}
    context = family_context(100)
    few, many = (make(name, context, count, given) for count in (4, 9))
    assert list(many[:4]) == list(few)
    assert {item.family for item in few} == {name}
    assert all(item.id.startswith(f"{name}-") for item in few)
    layout = {"paws": "mrpc", "winogrande_infill": "winogrande", "winogrande_mcq": "winogrande"}.get(
        name, name
    )
    for item in few:
        _, left_out = tokenize_probes([(item.id, name, probe) for probe in item.probes], context.tokenizer)
        assert not left_out
        if layout in EXPECTED and layout != "ecthr":
            assert questions(item).keys() == EXPECTED[layout].keys()
    if "gutenberg" in name:  # another name is another draw, though both are passages
        other = make("wikipedia", context, 4, {**given, "stand_in": "wikipedia"})
        assert not {item.text for item in few} & {item.text for item in other}


def test_a_directory_and_the_hub(tmp_path, monkeypatch):
    """``dataset`` is a directory that has the set's file, or a name on the hub, of which that file alone is read."""
    monkeypatch.chdir(tmp_path)
    given = {"family": "hubble_sets", "dataset": "allegrolab/testset_piqa"}
    asked = []

    def load_dataset(name, subset, **settings):
        asked.append((name, settings["data_files"], settings["streaming"]))
        return [{"text": ROWS["piqa"][0], "meta": json.dumps(ROWS["piqa"][1])}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    from_hub = make("piqa", family_context(100), 1, given)
    assert asked == [("allegrolab/testset_piqa", {"train": "testset_piqa_nodup.jsonl.gz"}, True)]
    write(tmp_path / "allegrolab" / "testset_piqa" / "testset_piqa_nodup.jsonl.gz", [ROWS["piqa"]])
    from_copy = make("piqa", family_context(100), 1, given)
    assert from_copy == from_hub
    assert len(asked) == 1


def test_mistakes_name_row_and_field(tmp_path):
    for name, changed, told in (
        (
            "mrpc",
            {"random_bit": 2},
            "row 1: the field random_bit=2 is not the number of one of the 2 choices",
        ),
        ("mmlu", {"choices": "none"}, "row 1: the field choices holds 'none', not a list"),
        ("piqa", {"goal": " "}, "row 1: the field goal holds ' ', not a text"),
        ("winogrande", {"paired_example": "{"}, "paired_example='{' is no JSON object"),
    ):
        text, meta = ROWS[name]
        with pytest.raises(UserError, match=told):
            read(tmp_path, [(text, {**meta, **changed})])
    with pytest.raises(UserError, match="2 items are needed, but there are 1"):
        read(tmp_path, [ROWS["piqa"], ROWS["piqa"]])
    with pytest.raises(
        UserError,
        match=r"families\.mine\.stand_in=mlu is no set .*; did you mean 'mmlu'\?; give one of gutenberg_popular, ",
    ):
        make("mine", family_context(100), 2, {"family": "hubble_sets", "stand_in": "mlu"})
    with pytest.raises(
        UserError, match=r"families\.mine\.family: there is no family 'hubble_set'; did you mean"
    ):
        make("mine", family_context(100), 2, {"family": "hubble_set"})
    with pytest.raises(UserError, match=r"families\.mine\.choice: no such setting; did you mean 'choices'"):
        make("mine", family_context(100), 2, {"family": "hubble_sets", "choice": 3})
    (tmp_path / "a.jsonl").write_text('{"text": "a", "meta": "[1]"}\n')
    with pytest.raises(UserError, match="row 1: the field meta is no JSON object"):
        make("hubble_sets", family_context(100), 1, {"path": str(tmp_path / "a.jsonl")})
    assert files.rows(str(tmp_path / "a.jsonl"), "x")  # the file itself is well-formed
