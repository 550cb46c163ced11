"""Every public function and class is used by the product itself, not by its tests alone."""

import ast
import re
import subprocess
from collections import Counter

from tests.conftest import REPO
from tests.docs import pages

BY_LIBRARIES = {
    *(
        "do_GET",
        "log_message",
        "find_class",
        "exec_module",
        "record_event",
        "wait_stream",
        "unique_identifiers",
    ),
    "emit",
}
"""Methods that a library calls by their names."""


def sources():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPO, check=True, capture_output=True, text=True)
    for name in listed.stdout.split():
        if not name.startswith(("tests/", "palimpsest/")) and (REPO / name).is_file():
            yield name, ast.parse((REPO / name).read_text())


def definitions(tree):
    """Public functions and classes without decorators, which register, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (
                part.name
                for part in node.body
                if isinstance(part, ast.FunctionDef) and not part.decorator_list
            )


def uses(name, tree):
    """Names that a module reads; strings that look like one count, but for the lists of what a package exports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not name.endswith("__init__.py")
        ):
            yield from (re.fullmatch(r"[\w.]+", node.value) and [node.value.rsplit(".", 1)[-1]]) or []


def test_nothing_is_called_by_its_tests_alone():
    parsed = list(sources())
    used = Counter(word for name, tree in parsed for word in uses(name, tree))
    for page in pages.PAGES:  # what a page shows is for the readers' own programs
        shown = [block.text for block in pages.blocks(page) if block.language == "python"]
        for text in [*shown, *(text for text in pages.code(page) if text.startswith("palimpsest."))]:
            used.update(uses(page.name, ast.parse(text)))
    alone = {
        word
        for _, tree in parsed
        for word in definitions(tree)
        if not word.startswith("_") and not used[word] and word not in BY_LIBRARIES
    }
    assert sorted(alone) == []
