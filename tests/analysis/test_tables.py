"""Tables are typeset as they read, whatever is in them, and carry their intervals."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import polars as pl
import pytest

from palimpsest.analysis import tables
from palimpsest.analysis.report.table import Table
from palimpsest.analysis.statistics import estimates
from palimpsest.data.errors import UserError


def body(latex: str) -> list[str]:
    inside = latex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    return [line for line in inside.splitlines() if line]


def balanced(latex: str) -> bool:
    depth = 0
    for character in re.sub(r"\\[{}\\]", "", latex):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def test_estimates_come_with_their_intervals_and_missing_ones_as_dashes() -> None:
    frame = pl.DataFrame(
        {
            "dose": [1, 64],
            "estimate": [-0.05, 1.23456],
            "low": [-0.11, None],
            "high": [0.01, None],
            "p": [0.25, 0.0004],
            "share": [0.123456, float("nan")],
        }
    )
    latex = tables.to_latex(frame, caption="Gain", label="tab:gain")
    assert body(latex) == [
        r"1 & $-$0.05 [$-$0.11, 0.01] & 0.25 & 0.1235 \\",
        r"64 & 1.23 & 0.0004 & -- \\",
    ]
    assert r"dose & estimate [95 \%] & p & share \\" in latex
    assert r"\begin{tabular}{rrrr}" in latex
    assert r"\caption{Gain}" in latex
    assert r"\label{tab:gain}" in latex
    assert tables.to_markdown(frame).splitlines() == [
        "| dose | estimate [95 %] | p | share |",
        "| ---: | ---: | ---: | ---: |",
        "| 1 | −0.05 [−0.11, 0.01] | 0.25 | 0.1235 |",
        "| 64 | 1.23 | 0.0004 | – |",
    ]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"50% & more_of #1 {x} $5", r"50\% \& more\_of \#1 \{x\} \$5"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a~b^c<d>|", r"a\textasciitilde{}b\textasciicircum{}c\textless{}d\textgreater{}\textbar{}"),
        ("two\nlines", "two lines"),
        ("--flag", "-{}-flag"),
        ("right\u202eleft", "right left"),
        ("≤ 5 − 3", r"$\leq$ 5 $-$ 3"),
    ],
)
def test_latex_typesets_what_is_written(text: str, latex: str) -> None:
    assert tables.escape_latex(text) == latex


def test_nasty_cells_break_no_row() -> None:
    nasty = [r"a & b \\ c", "[x]", "*", "%", "}{", "$", "\\", "", "<script>", "| pipe |", "`code`", "]]>"]
    frame = pl.DataFrame({"item": nasty, "n_items": range(len(nasty))})
    latex = tables.to_latex(frame, caption="50% of {it} & $x$")
    assert balanced(latex)
    rows = body(latex)
    assert len(rows) == len(nasty)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 1
        assert row.endswith(r" \\")
        assert not row.startswith(("[", "*"))
        assert "%" not in re.sub(r"\\%", "", row)
    assert r"\begin{tabular}{lr}" in latex
    markdown = tables.to_markdown(frame).splitlines()
    assert len(markdown) == len(nasty) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in markdown)
    assert "<script>" not in "".join(markdown)


def test_a_table_of_the_report_is_written_in_all_three_forms(tmp_path: Path) -> None:
    table = Table(
        ["dose", "perturbed", "p", "p"],
        [["1", "−0.1 [−0.2, 0.0]", "0.3", "≤ 0.001"]],
        "Gain by dose",
        frozenset(),
    )
    tables.save(table, tmp_path / "gains.tex", label="tab:g")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gains.csv", "gains.md", "gains.tex"]
    assert (tmp_path / "gains.csv").read_text() == 'dose,perturbed,p,p\n1,"-0.1 [-0.2, 0.0]",0.3,≤ 0.001\n'
    assert (tmp_path / "gains.md").read_text().startswith("Gain by dose\n\n| dose |")
    assert r"$\leq$ 0.001" in (tmp_path / "gains.tex").read_text()


def test_the_csv_of_a_frame_has_all_digits(tmp_path: Path) -> None:
    frame = pl.DataFrame({"estimate": [1 / 3], "low": [0.1], "high": [0.5], "tokens": [[1, 2]]})
    tables.save(frame, tmp_path / "t")
    read = pl.read_csv(tmp_path / "t.csv")
    assert read["estimate"][0] == 1 / 3
    assert read["tokens"][0] == "[1, 2]"


def rows() -> pl.DataFrame:
    return estimates(
        pl.DataFrame(
            [
                {"run": run, "step": step, "metric": "m", "statistic": "gain", "family": "all", "dose": dose,
                 "estimate": dose / 10 + step, "low": dose / 10 - 1, "high": dose / 10 + 9, "n": 30,
                 "p": 0.01 if run == "perturbed" else None}
                for run in ("twin", "perturbed") for step in (5, 9) for dose in (1, 4)
            ]
        )
    )  # fmt: skip


def test_results_have_a_row_a_dose_and_a_column_a_run() -> None:
    table = tables.results(rows(), "m")
    assert table.columns == [
        "dose", "n", "perturbed", "perturbed_low", "perturbed_high", "perturbed_p", "twin", "twin_low", "twin_high",
    ]  # fmt: skip
    assert table["perturbed"].to_list() == [9.1, 9.4]
    assert tables.results(rows(), "m", step=5)["twin"].to_list() == [5.1, 5.4]
    assert r"dose & n & perturbed [95 \%] & p & twin [95 \%] \\" in tables.to_latex(table)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match=r"metric='n'.*did you mean|metric='n'.*known: m"):
        tables.results(rows(), "n")
    with pytest.raises(UserError, match="step 7"):
        tables.results(rows(), "m", step=7)
    with pytest.raises(UserError, match="label='a b'"):
        tables.to_latex(rows(), label="a b")
    assert body(tables.to_latex(rows().head(0))) == []


FORMULAS = ['=HYPERLINK("http://x.org","a")', "+1+1", "@SUM(A1)", "-2+3", "\t=1", "=1"]


def test_no_csv_holds_a_live_formula(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item": FORMULAS, "value": [-1.5, 2.0, -3.0, 0.5, 1.0, 2.0], "=cell": "plain"})
    tables.save(frame, tmp_path / "frame")
    tables.save(Table(["=head", "n"], [[cell, "−0.5 [−1.0, 0.1]"] for cell in FORMULAS]), tmp_path / "table")
    for name in ("frame", "table"):
        read = list(csv.reader((tmp_path / f"{name}.csv").open(encoding="utf-8", newline="")))
        assert [row[0] for row in read[1:]] == [f"'{cell}" for cell in FORMULAS]
        assert not [cell for row in read for cell in row if cell.startswith(("=", "@", "\t", "+"))]
    assert read[1][1] == "-0.5 [-1.0, 0.1]"
    assert pl.read_csv(tmp_path / "frame.csv")["value"].to_list() == frame["value"].to_list()
