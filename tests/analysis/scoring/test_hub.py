"""Revisions and their steps, and models that are not there."""

import pytest

from palimpsest.analysis.scoring import hub
from palimpsest.data.errors import UserError


@pytest.mark.parametrize(
    ("revisions", "final", "wanted"),
    [
        ([], None, {0: ""}),
        ([], 48000, {48000: ""}),
        (["main", "step1000"], 143000, {1000: "step1000", 143000: "main"}),
        (["step1000:step5000:2000"], None, {1000: "step1000", 3000: "step3000", 5000: "step5000"}),
        (["48000"], None, {48000: "48000"}),
        (["stage1-step1000-tokens5B"], None, {1000: "stage1-step1000-tokens5B"}),
        (["0f3c9d2"], 7, {7: "0f3c9d2"}),
    ],
)
def test_steps(revisions, final, wanted):
    assert hub.steps(revisions, final) == wanted


@pytest.mark.parametrize(
    ("revisions", "message"),
    [
        (["main", "step10"], "step of 'main' is unknown"),
        (["step10", "step010"], "both have step 10; give one of them"),
        (["step10:step5:1"], "is no range"),
        (["step1:20:3"], "is no range"),
        (["step1:step9:0"], "is no range"),
    ],
)
def test_revisions_that_are_none(revisions, message):
    with pytest.raises(UserError, match=message):
        hub.steps(revisions, None)


def test_models_that_are_not_there(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="transformers cannot open"):
        hub.locate(str(tmp_path), "")
    (tmp_path / "step10").mkdir()
    with pytest.raises(UserError, match=r"has no revision step20 .*there are: step10"):
        hub.locate(str(tmp_path), "step20")
