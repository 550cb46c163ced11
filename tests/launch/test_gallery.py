"""The gallery's program: what it says, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest.analysis.figures import FIGURES
from palimpsest.analysis.figures import gallery as drawing
from palimpsest.data.errors import UserError
from palimpsest.launch import gallery


def test_it_draws_into_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = next(iter(FIGURES))
    monkeypatch.setattr(drawing, "FIGURES", {first: FIGURES[first]})
    caplog.set_level("INFO")
    assert gallery.work([str(tmp_path / "g"), "formats=svg,csv", "style=paper"]) == 0
    assert caplog.messages == [f"1 figures: {tmp_path / 'g' / 'README.md'}"]
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == [
        "01_dose_response.csv",
        "01_dose_response.svg",
        "README.md",
    ]
    drawn = (tmp_path / "g" / "01_dose_response.svg").read_text()
    assert 'width="6.75in"' in drawn
    assert "Simulated by a formula, not measured" in drawn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["DIRECTORY", "formats=jpg"], "formats='jpg'"),
        (["DIRECTORY", "stile=paper"], "stile=paper: there is no such setting; did you mean 'style'?"),
        ([], "one directory is needed"),
        (["DIRECTORY", "--formats"], "one directory is needed"),
    ],
)
def test_what_it_cannot_do_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    arguments = [argument.replace("DIRECTORY", str(tmp_path / "h")) for argument in arguments]
    with pytest.raises(UserError) as wrong:
        gallery.work(arguments)
    assert said in str(wrong.value)
    assert not (tmp_path / "h").exists()
