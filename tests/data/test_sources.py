import gzip
import json
import sysconfig
from collections import Counter

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.data.errors import UserError
from palimpsest.data.sources import Document, SourceConfig, files, inputs, lines, read, split

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PACK = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.ZstdCompressor().compress}


def jsonl(*paths, **settings):
    return SourceConfig(**{"kind": "jsonl", "paths": tuple(map(str, paths)), "min_words": 0, **settings})


def rows(config, counts=None):
    return list(read(config, counts))


def write(path, data):
    path.write_bytes(PACK["".join(path.suffixes[-2:])](data))
    return path


@given(st.lists(TEXT, min_size=1, max_size=8), st.sampled_from(sorted(PACK)), st.integers(1, 50))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_good_document_is_lost(tmp_path_factory, monkeypatch, texts, suffix, block):
    monkeypatch.setattr(lines, "_BLOCK", block)  # lines and archives straddle the blocks
    path = tmp_path_factory.mktemp("x") / f"a{suffix}"
    write(path, "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode())
    good = [(t, str(n)) for n, t in enumerate(texts, start=1) if t.strip()]
    counts = Counter()
    if not good:
        with pytest.raises(UserError, match="corpus is empty"):
            rows(jsonl(path), counts)
    else:
        assert rows(jsonl(path), counts) == [Document(text, path.name, row) for text, row in good]
    assert counts["documents_read"] == len(texts)
    assert counts["empty_dropped"] == len(texts) - len(good)


@given(st.binary(max_size=80), st.sampled_from(sorted(PACK)), st.booleans())
@settings(max_examples=200, deadline=None)
def test_random_bytes_give_documents_or_one_clear_line(tmp_path_factory, data, suffix, packed):
    path = tmp_path_factory.mktemp("x") / f"a{suffix}"
    path.write_bytes(PACK[suffix](data) if packed else data)
    message = None
    try:
        rows(jsonl(path))
    except UserError as error:
        message = str(error)
    assert message is None or (str(path) in message and "\n" not in message)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"{", "row 2: not valid JSON"),
        (b"[" * 100_000, "row 2: not valid JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "row 2: not valid JSON"),
        (b"[1]", "row 2: holds a list, not an object"),
        (b'"text"', "row 2: holds a str, not an object"),
        (b'{"txt": "x"}', "row 2: has no field 'text'; did you mean 'txt'.*source.text_field"),
        (b'{"text": 5}', "row 2: field 'text' holds a int, not a string"),
        (b'{"text": null}', "row 2: field 'text' holds a NoneType"),
        (b'{"text": "\xff"}', "row 2: invalid UTF-8 at byte 10"),
        (b'{"text": "a\\ud800"}', "row 2: .*lone surrogate at character 1"),
    ],
)
def test_bad_rows_name_file_row_and_fix(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + row + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl {message}"):
        rows(jsonl(path))


def test_a_directory_of_another_kind_names_the_corpus_that_reads_it(tmp_path):
    for name in ("a.txt", "b.txt", "c.parquet", "d.py"):
        (tmp_path / name).write_text("Plain text.\n")
    with pytest.raises(UserError, match=r"it holds no \.jsonl.*; corpus=text reads 2 of its 4 files"):
        rows(jsonl(tmp_path))
    with pytest.raises(UserError, match=r"a\.txt row 1: not valid JSON.*or read plain text with corpus=text"):
        rows(jsonl(tmp_path / "a.txt"))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "appended"])
def test_corrupt_archives_are_named_and_never_end_early(tmp_path, suffix, damage):
    data = b"".join(json.dumps({"text": f"document {i * i}"}).encode() + b"\n" for i in range(500))
    path = write(tmp_path / f"a{suffix}", data)
    packed = path.read_bytes()
    path.write_bytes(
        {"cut": packed[:-9], "garbage": b"no archive at all", "appended": packed + b"zzzzzzz"}[damage]
    )
    with pytest.raises(UserError, match=rf"a{suffix}: corrupt archive"):
        rows(jsonl(path))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_archives_of_several_members_are_read_whole(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"".join(PACK[suffix](b'{"text": "%d"}\n' % i) for i in range(3)))
    assert [d.text for d in rows(jsonl(path))] == ["0", "1", "2"]


def test_huge_lines_blank_lines_and_a_byte_order_mark_are_read(tmp_path):
    huge = "word " * 1_000_000
    path = write(
        tmp_path / "a.jsonl",
        b'\xef\xbb\xbf{"text": "first"}\r\n\r\n  \n' + json.dumps({"text": huge}).encode() + b"\n\n",
    )
    assert [(d.text, d.row) for d in rows(jsonl(path))] == [("first", "1"), (huge, "4")]


def test_files_directories_and_globs_come_in_a_stable_order_and_once(tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    for name in ("d/b.jsonl", "d/a.jsonl.gz", "d/sub/c.jsonl.zst", "z.jsonl"):
        write(tmp_path / name, json.dumps({"text": name}).encode())
    (tmp_path / "d" / "notes.txt").write_text("not JSON")
    config = jsonl(tmp_path / "z.jsonl", tmp_path / "d", tmp_path / "d" / "*.jsonl")
    assert [d.text for d in rows(config)] == ["z.jsonl", "d/a.jsonl.gz", "d/b.jsonl", "d/sub/c.jsonl.zst"]
    assert list(dict.fromkeys(part.path for part in split(config))) == [str(path) for path in files(config)]
    assert list(inputs(split(config))) == ["file 0", "file 1", "file 2", "file 3"]
    labels = [part.label for part in split(config)]
    assert labels == ["z.jsonl", "d/a.jsonl.gz", "d/b.jsonl", "d/sub/c.jsonl.zst"]


def test_relative_globs_and_the_input_digest_follow_the_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", b'{"text": "one"}')
    before = inputs(split(jsonl("*.jsonl")))
    assert list(before) == ["file 0"]
    write(tmp_path / "a.jsonl", b'{"text": "two"}')
    assert inputs(split(jsonl("*.jsonl"))) != before


@pytest.mark.parametrize("name", ["gone.jsonl", "*.jsonl", "empty"])
def test_paths_to_nothing_are_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"source\.paths"):
        rows(jsonl(tmp_path / name))


def test_short_and_empty_documents_are_counted(tmp_path):
    texts = ["", " \n", "one two", "one two three", "one two three four"]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"body": t}) for t in texts).encode())
    counts = Counter()
    kept = rows(jsonl(path, text_field="body", min_words=3), counts)
    assert [d.text for d in kept] == texts[3:]
    assert counts == {"documents_read": 5, "empty_dropped": 2, "short_dropped": 1, "files_read": 1}
    with pytest.raises(UserError, match=r"corpus is empty.*source\.min_words=9"):
        rows(jsonl(path, text_field="body", min_words=9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "jsnl", "paths": ("x",)}, r"source\.kind='jsnl'.*did you mean 'jsonl'"),
        ({"kind": "jsonl"}, r"source\.paths=\[\] is empty"),
        ({"kind": "jsonl", "paths": "x"}, r"source\.paths='x' is one string"),
        ({"kind": "jsonl", "paths": ("x",), "text_field": ""}, r"source\.text_field=''"),
        ({"kind": "jsonl", "paths": ("x",), "min_words": -1}, r"source\.min_words=-1"),
        ({"kind": "installed_docs", "paths": ("x",)}, r"source\.paths=\['x'\] has no effect"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        SourceConfig(**settings)


MODULE = '''"""The module."""
import os
if os.name:
    class A:
        """Class A.

            Indented.
        """
        def m(self):
            """Method m."""
            def inner():
                "Inner one."
try:
    def f(): "Function f."
except ImportError:
    async def g():
        """Function g. \\udc80"""
def no_docs(): pass
class B: x = lambda: "no docstring"
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small installation in place of the real one."""
    places = {"stdlib": tmp_path / "py" / "lib", "purelib": tmp_path / "venv" / "packages"}
    places["platlib"] = places["purelib"]
    for name, text in {
        "stdlib/b.py": MODULE,
        "stdlib/a/__init__.py": '"""Package a."""',
        "stdlib/test/x.py": '"""A test."""',
        "stdlib/site-packages/y.py": '"""Not the library."""',
        "stdlib/pydoc_data/topics.py": "topics = {'if': 'The statement.', 'for': 'The loop.'}",
        "purelib/p/core.py": '"""Package p."""',
        "purelib/p/broken.py": "def (",
        "purelib/p/null.py": "\0",
        "purelib/p/tests/t.py": '"""A test."""',
    }.items():
        root, _, rest = name.partition("/")
        path = places[root] / rest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(places[name]))
    return places


def test_docstrings_are_found_named_and_cleaned(library):
    found = rows(SourceConfig(kind="installed_docs", min_words=1, packages=False))
    assert [(d.source, d.row, d.text) for d in found] == [
        ("lib/a/__init__.py", "<module>", "Package a."),
        ("lib/b.py", "<module>", "The module."),
        ("lib/b.py", "A", "Class A.\n\nIndented."),
        ("lib/b.py", "A.m", "Method m."),
        ("lib/b.py", "A.m.inner", "Inner one."),
        ("lib/b.py", "f", "Function f."),
        ("lib/b.py", "g", "Function g. ?"),
        ("lib/pydoc_data/topics.py", "if", "The statement."),
        ("lib/pydoc_data/topics.py", "for", "The loop."),
    ]


def test_packages_are_added_and_files_that_do_not_parse_are_counted(library, caplog):
    counts = Counter()
    with caplog.at_level("INFO"):
        found = rows(SourceConfig(kind="installed_docs", min_words=1), counts)
    assert [d.source for d in found if not d.source.startswith("lib/")] == ["site-packages/p/core.py"]
    assert (counts["files_read"], counts["files_skipped"]) == (4, 2)
    assert "site-packages/p/broken.py: SyntaxError" in caplog.text


def test_named_packages_are_read_alone(library):
    one = rows(SourceConfig(kind="installed_docs", min_words=1, packages=("p",)))
    assert [(d.source, d.text) for d in one] == [("site-packages/p/core.py", "Package p.")]
    with pytest.raises(UserError, match="the package q is not installed beside palimpsest"):
        rows(SourceConfig(kind="installed_docs", min_words=1, packages=("p", "q")))


def test_the_standard_library_has_the_words_promised():
    one = rows(SourceConfig(kind="installed_docs", packages=False))
    assert sum(len(d.text.split()) for d in one) > 200_000
    assert min(len(d.text.split()) for d in one) >= 20
    assert "lib/json/decoder.py" in {d.source for d in one}
    assert not any("/test/" in d.source for d in one)
    assert [d.source for d in one] == sorted(d.source for d in one)
