"""The gallery's program: what it says, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from analysis.figures import FIGURES
from launch import gallery


def test_it_draws_into_the_directory_and_a_wrong_form_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(FIGURES)[1:]:
        monkeypatch.delitem(FIGURES, name)
    monkeypatch.setattr(
        sys, "argv", ["gallery.py", str(tmp_path / "g"), "--formats", "svg,csv", "--style", "paper"]
    )
    assert gallery.main() == 0
    assert capsys.readouterr().out == f"1 figures: {tmp_path / 'g' / 'README.md'}\n"
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == [
        "01_dose_response.csv",
        "01_dose_response.svg",
        "README.md",
    ]
    drawn = (tmp_path / "g" / "01_dose_response.svg").read_text()
    assert 'width="6.75in"' in drawn
    assert "Simulated by a formula, not measured" in drawn
    monkeypatch.setattr(sys, "argv", ["gallery.py", str(tmp_path / "h"), "--formats", "jpg"])
    assert gallery.main() == 2
    assert capsys.readouterr().err.startswith("error: formats='jpg'")
    assert not (tmp_path / "h").exists()
