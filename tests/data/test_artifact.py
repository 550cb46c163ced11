import json
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.data import artifact
from palimpsest.data.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


def make(directory, text="hello", config=None, inputs=None):
    with artifact.writing(
        directory, kind="corpus", schema_version=1, config=config or {"a": 1}, inputs=inputs or {}
    ) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "file.txt").write_text(text)
        draft.facts["words"] = 1
    return artifact.read(directory, kind="corpus", schema_version=1)


def leftovers(tmp_path):
    return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_written_is_read_and_verified(tmp_path):
    manifest = make(tmp_path / "x")
    assert manifest.facts == {"words": 1}
    assert list(manifest.contents) == ["sub/file.txt"]
    assert manifest.made_by["packages"]["numpy"]
    artifact.verify(tmp_path / "x", manifest)
    assert leftovers(tmp_path) == []


def test_digest_is_of_contents_not_of_place_or_time(tmp_path):
    one, two = make(tmp_path / "x"), make(tmp_path / "y")
    assert one.digest == two.digest
    assert replace(one, facts={}, made_by={}).digest == one.digest
    assert make(tmp_path / "z", text="other").digest != one.digest
    assert make(tmp_path / "z", config={"a": 2}).digest != one.digest
    assert make(tmp_path / "z", inputs={"b": "0"}).digest != one.digest


def test_a_failed_write_leaves_what_was_there(tmp_path):
    before = make(tmp_path / "x")

    def fail():
        with artifact.writing(tmp_path / "x", kind="corpus", schema_version=1, config={}, inputs={}) as draft:
            (draft.path / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert artifact.read(tmp_path / "x", kind="corpus", schema_version=1) == before
    assert leftovers(tmp_path) == []


def test_a_rewrite_replaces_the_old_one_whole(tmp_path):
    make(tmp_path / "x")
    (tmp_path / "x" / "derived").write_text("made from the old one")
    manifest = make(tmp_path / "x", text="new")
    artifact.verify(tmp_path / "x", manifest)
    assert not (tmp_path / "x" / "derived").exists()
    assert leftovers(tmp_path) == []


def test_someones_own_files_are_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="home holds files that are no artefact"):
        make(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_verify_names_the_file(tmp_path, damage):
    manifest = make(tmp_path / "x")
    file = tmp_path / "x" / "sub" / "file.txt"
    if damage == "change":
        file.write_text("hellp")
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"sub/file\.txt"):
        artifact.verify(tmp_path / "x", manifest)


def test_read_says_what_is_wrong(tmp_path):
    def read(name, kind="corpus", version=1):
        return artifact.read(tmp_path / name, kind=kind, schema_version=version)

    with pytest.raises(UserError, match=r"corpus .*gone does not exist"):
        read("gone")
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match="half is unfinished"):
        read("half")
    make(tmp_path / "x")
    with pytest.raises(UserError, match="holds a corpus of schema version 1, not a plan"):
        read("x", kind="plan")
    with pytest.raises(UserError, match="version 2"):
        read("x", version=2)
    path = tmp_path / "x" / artifact.MANIFEST
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "config": {"a": 2}}))
    with pytest.raises(UserError, match="was edited"):
        read("x")
    for text in ("", "[]", "{}", '{"digest": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a manifest"):
            read("x")


def test_differences_name_setting_and_input(tmp_path):
    manifest = make(tmp_path / "x", config={"a": {"b": 1, "c": [1]}}, inputs={"corpus": "00"})
    same = {"config": {"a": {"b": 1, "c": [1]}}, "inputs": {"corpus": "00"}}
    assert artifact.differences(manifest, **same) == []
    found = artifact.differences(manifest, config={"a": {"b": 2, "c": [1]}}, inputs={"corpus": "11"})
    assert len(found) == 2
    assert found[0].startswith("setting a.b: it was made with 1, asked for is 2")
    assert found[1].startswith("input corpus")


@given(JSON)
def test_json_digest_depends_on_the_value_not_on_the_order_of_keys(value):
    digest = artifact.json_digest(value)
    assert artifact.json_digest(json.loads(json.dumps(value))) == digest
    assert artifact.json_digest([value]) != digest
    if isinstance(value, dict):
        assert artifact.json_digest(dict(reversed(value.items()))) == digest


def test_results_that_programs_write_do_not_make_a_checkout_dirty(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    module = tmp_path / "data" / "artifact.py"
    module.write_text("")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        person = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *person, *words], check=True)
    monkeypatch.setattr(artifact, "__file__", str(module))

    def dirty():
        return artifact.provenance.__wrapped__()["git_dirty"]

    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "page.md").write_text("a page")
    assert dirty() is False
    module.write_text("changed = True")
    assert dirty() is True
