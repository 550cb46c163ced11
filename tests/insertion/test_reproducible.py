"""The same seed makes the same bytes in every process and on every platform."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from palimpsest.insertion.families.registry import make
from tests.conftest import REPO
from tests.insertion.every_family import FIRST, GOLDEN, SHIPPED, digest, family_context, settings


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Digests made by a fresh process whose hashes of texts are others."""
    folder = tmp_path_factory.mktemp("elsewhere")
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-m", "tests.insertion.every_family", str(folder)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SHIPPED)
def test_same_bytes(name, elsewhere, tmp_path):
    golden = json.loads(GOLDEN.read_text())
    assert digest(name, tmp_path) == elsewhere[name] == golden[name], (
        "the family makes other items than it did; if that is meant, write golden_families.json again"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_first_items_stay_when_others_are_added(name, tmp_path):
    given = settings(name, tmp_path, 100)
    few, many = (make(name, family_context(100), count, given) for count in (FIRST, 30))
    assert list(many[:FIRST]) == list(few)
    other = make(name, replace(family_context(100), seed=2), FIRST, given)
    if name not in ("passages", "table"):  # whose texts are given
        assert not {item.text for item in other} & {item.text for item in few}
