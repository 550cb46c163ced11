"""``report.out=``: a report elsewhere, of a run that is only read."""

import json

from tests.conftest import SMALL, WHOLE, Workplace


def test_a_report_elsewhere_leaves_the_run_alone(finished, tmp_path):
    before = {path: path.lstat().st_mtime_ns for path in sorted(finished.rglob("*"))}
    done = Workplace(finished.parents[2], SMALL).ok("report", *WHOLE, f"report.out={tmp_path / 'mine'}")
    assert f"report: {tmp_path / 'mine' / 'report.html'}" in done.out
    ours, theirs = (
        json.loads((place / "summary.json").read_text()) for place in (tmp_path / "mine", finished / "report")
    )
    assert ours == theirs
    assert {path: path.lstat().st_mtime_ns for path in sorted(finished.rglob("*"))} == before
