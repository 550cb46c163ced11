"""The reference pages are those that the code writes, and describe all there is."""

import re

import pytest

from palimpsest.analysis.figures import FIGURES
from palimpsest.analysis.metrics import METRICS
from palimpsest.launch import manual, manual_text
from tests.conftest import REPO

PLACE = REPO / "docs" / "reference"


@pytest.mark.parametrize("name", list(manual.PAGES))
def test_committed_pages_are_what_the_code_writes(name):
    committed = (PLACE / f"{name}.md").read_text(encoding="utf-8")
    assert manual.PAGES[name]() + manual.MADE == committed, "run: palimpsest manual docs/reference"


def test_the_settings_have_type_default_and_meaning():
    page = (PLACE / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)`<br>(.*?) \|", page, re.MULTILINE))
    assert len(rows) > 200
    assert rows["train.steps"] == "whole number; `250`"
    assert rows["train.non_finite"] == "`stop` or `skip`; `stop`"
    assert rows["train.seed"] == "whole number; as `seed`"
    assert rows["insertion.doses"] == "list of whole numbers; `[0,1,4,16,64]`"
    assert rows["corpus.source.kind"] == "text; `installed_docs`"
    meanings = re.findall(r"^\| `[\w.]+`<br>.*? \| (.*) \|$", page, re.MULTILINE)
    assert [text for text in meanings if len(text) < 10] == []


def test_every_figure_has_its_picture():
    page = (PLACE / "figures.md").read_text()
    pictures = re.findall(r"!\[.+\]\((figures/.+)\)", page)
    assert len(pictures) == len(FIGURES)
    assert [name for name in pictures if not (PLACE / name).is_file()] == []


def test_every_metric_has_unit_and_source():
    assert [name for name, one in METRICS.items() if not (one.unit and one.source and one.formula)] == []


def test_a_table_of_a_docstring_becomes_one_of_markdown():
    text = """What it is.

    ======  =========
    column  meaning
    ======  =========
    ``a``   the first,
            in two lines
    ``b``   one | two
    ======  =========

    The rest, see :func:`~analysis.metrics.compute`.
    """
    assert manual_text.markdown(text).splitlines() == [
        "What it is.",
        "",
        "| column | meaning |",
        "| --- | --- |",
        "| `a` | the first, in two lines |",
        "| `b` | one &#124; two |",
        "",
        "The rest, see `compute`.",
    ]
