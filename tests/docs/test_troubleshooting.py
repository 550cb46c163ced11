"""Every message that docs/troubleshooting.md quotes still stands in the source."""

import ast
import re

import pytest

from tests.conftest import REPO

PAGE = (REPO / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^\*\*`(.+)`\*\*$", PAGE, re.MULTILINE)
WINGS = ("data", "insertion", "pretrain", "analysis", "launch")
GAP = "…"


def texts():
    """Each text of the source; what a formatted one puts in is a gap."""
    for wing in WINGS:
        for path in sorted((REPO / wing).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.fixture(scope="module")
def source():
    return list(dict.fromkeys(texts()))


def stands_in(message, text):
    """True if the fixed parts of a message stand in a text, in their order."""
    at = 0
    for part in message.split(GAP):
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def fixed(message):
    return max(message.split(GAP), key=len)


def test_messages_are_found_on_the_page():
    assert len(QUOTED) > 50
    assert len(set(QUOTED)) == len(QUOTED)
    assert PAGE.count("**`") == len(QUOTED)


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_stands_in_the_source(source, message):
    assert len(fixed(message)) >= 12, "quote more of it: this would stand anywhere"
    assert any(stands_in(message, text) for text in source)


def test_an_invented_message_does_not(source):
    invented = "the corpus is too large for … windows; buy another disk"
    assert not any(stands_in(invented, text) for text in source)
