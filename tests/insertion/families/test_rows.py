"""Rows of items files: each error names its row, and encodings that people have are read or refused."""

import gzip
import json

import pytest

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files
from palimpsest.insertion.families.registry import FamilyContext, make
from palimpsest.insertion.settings import InsertionConfig


def rows(tmp_path, content, name="items.jsonl"):
    (tmp_path / name).write_bytes(content)
    return files.numbered(str(tmp_path / name), "table.path")


def test_a_bad_row_is_named(tmp_path):
    good = b'{"text": "fine"}\n'
    for bad, why in (
        (b'{"text": \n', "not valid JSON"),
        ('{"text": "caf\xe9"}\n'.encode("latin-1"), "invalid UTF-8"),
        (b'{"text": "\\ud800"}\n', "lone surrogate"),
        (b"[1]\n", "holds a list, not an object"),
    ):
        with pytest.raises(UserError, match=rf"table.path=.*items.jsonl row 4: .*{why}"):
            rows(tmp_path, good + b"\n" + good + bad + good)


def test_a_byte_order_mark_and_line_separators_are_read(tmp_path):
    content = '\ufeff{"text": "one\u2028line\u0085"}\r\n{"text": "two"}\n'.encode()
    assert rows(tmp_path, content) == [(1, {"text": "one\u2028line\u0085"}), (2, {"text": "two"})]
    assert rows(tmp_path, gzip.compress(content), "items.jsonl.gz")[1] == (2, {"text": "two"})
    assert rows(tmp_path, "\ufefftext,id\nabc,1\n".encode(), "items.csv") == [(1, {"text": "abc", "id": "1"})]
    with pytest.raises(UserError, match=r"items.csv line 2: invalid UTF-8"):
        rows(tmp_path, "text\ncaf\xe9\n".encode("latin-1"), "items.csv")


def test_a_small_archive_of_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST", 1 << 20)
    with pytest.raises(UserError, match="holds more than"):
        rows(tmp_path, gzip.compress(b" " * (1 << 22)), "items.jsonl.gz")
    with pytest.raises(UserError, match="cannot be read"):
        rows(tmp_path, gzip.compress(b'{"text": "abc"}' * 100)[:-9], "items.jsonl.gz")


def test_ids_that_lose_digits_are_refused(tmp_path):
    """Whole numbers are exact, however long; what became a floating-point number is not."""
    path = tmp_path / "items.jsonl"

    def ids(*values):
        path.write_text("".join(json.dumps({"text": f"t {v}", "id": v}) + "\n" for v in values))
        return {item.id for item in make("table", FamilyContext(1, None, []), 2, {"path": str(path)})}

    assert ids(2**70, 2**70 + 1) == {f"table-{2**70}", f"table-{2**70 + 1}"}
    with pytest.raises(UserError, match=r"row 2: id=1.5 must be a text or a whole number"):
        ids(1, 1.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"items_per_dose": 2**31}, "items of f; 10,000,000 are the most"),
        ({"doses": (0, 2**31), "items_per_dose": 10}, "exposures of f; 1,000,000,000 are the most"),
    ],
)
def test_designs_beyond_reason_are_refused_before_work(given, message):
    with pytest.raises(UserError, match=message):
        InsertionConfig(**{"families": {"f": {}}, "doses": (0, 1), "seed": 1, **given})
