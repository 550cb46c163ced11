"""A run that grows, followed over HTTP: every figure on the page is the files'."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import polars as pl
import pytest

from palimpsest.analysis.run import open_run, progress
from palimpsest.data.errors import UserError
from palimpsest.launch import watch
from palimpsest.launch.program import plain
from tests.conftest import REPO
from tests.written import GAIN, LEVEL, Written


@contextmanager
def following(place):
    server = watch.serve(progress.Progress(open_run(place / "runs")), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address
    try:
        yield f"http://{host}:{port}"
    finally:
        server.shutdown()
        server.server_close()


def read(url):
    with urllib.request.urlopen(f"{url}/data.json", timeout=20) as answer:
        return json.load(answer)


def test_what_a_growing_run_shows(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0)
    written = Written(tmp_path, prepared)
    plan = written.plan
    step_of = plan.exposures["position"] // 8
    with following(tmp_path) as url:
        found = read(url)
        assert (found["state"], found["steps"], found["runs"], found["losses"]) == ("planned", 20, {}, {})
        assert found["exposures"]["done"] == 0
        assert found["exposures"]["to_come"] == plan.exposures.height
        assert found["probes"]["rows"] == []
        assert found["audit"] == {"verdict": None, "checks": []}

        written.log("perturbed", range(1, 4), loss_corpus=5.0, loss_inserted=None)
        written.log("perturbed", [4], loss_corpus=4.0, loss_inserted=3.5)
        with (written.directory / "perturbed" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')  # being written
        found = read(url)
        assert found["runs"]["perturbed"] == {
            "step": 4, "tokens": 2048, "loss": 5.6, "tokens_per_second": 256.0, "seconds_left": 32.0
        }  # fmt: skip
        assert found["losses"]["perturbed"] == {
            "step": [1, 2, 3, 4],
            "loss": [5.9, 5.8, 5.7, 5.6],
            "loss_corpus": [5.0, 5.0, 5.0, 4.0],
            "loss_inserted": [None, None, None, 3.5],
        }
        done = int((step_of < 4).sum())
        assert 0 < done < plan.exposures.height
        assert found["exposures"]["done"] == done
        assert found["exposures"]["to_come"] == plan.exposures.height - done
        assert found["exposures"]["timeline"] == [int((step_of == step).sum()) for step in range(20)]
        arms = {arm["dose"]: arm for arm in found["exposures"]["arms"]}
        assert {dose: (arm["items"], arm["planned"]) for dose, arm in arms.items()} == {
            0: (8, 0), 1: (8, 8), 4: (8, 32)
        }  # fmt: skip
        assert sum(arm["done"] for arm in arms.values()) == done

        written.save("perturbed", 0)
        written.save("perturbed", 4)
        (check,) = read(url)["audit"]["checks"]
        assert check["passed"]
        assert check["detail"] == f"{done} exposures up to step 4"

        # The training is stopped in step 6 and goes on from the checkpoint: what came after is gone.
        written.log("perturbed", [])
        path = written.directory / "perturbed" / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
        written.log("perturbed", [5])
        found = read(url)
        assert found["losses"]["perturbed"]["step"] == [1, 2, 3, 4, 5]
        assert found["state"] == "stopped"

        for step in (0, 4):
            written.score("perturbed", step)
        found = read(url)["probes"]
        assert (found["metric"], found["unit"]) == ("loglik_per_byte", "nats/byte")
        items = plan.items.join(
            plan.probes.filter(pl.col("kind") == "verbatim").select("item_id", "tokens"), on="item_id"
        ).with_columns(tokens=pl.col("tokens").list.len())
        for row in found["rows"]:
            level = LEVEL + GAIN * row["dose"] * (row["step"] > 0)
            own = items.filter(pl.col("dose") == row["dose"])
            assert row["value"] == pytest.approx((level * own["tokens"] / own["bytes"]).mean(), rel=1e-5)
            assert row["n"] == own.height
        assert {(row["step"], row["dose"]) for row in found["rows"]} == {
            (s, d) for s in (0, 4) for d in (0, 1, 4)
        }


def test_an_exposure_that_is_missing_is_told_at_once(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0)
    written = Written(tmp_path, prepared)
    for which in ("perturbed", "twin"):
        written.log(which, range(1, 11))
        written.save(which, 5)
    with following(tmp_path) as url:
        assert [check["passed"] for check in read(url)["audit"]["checks"]] == [True, True]
        right = written.exposures(5, 10)
        written.save("perturbed", 10, exposures=right[1:])
        written.save("twin", 10, exposures=right[:1])
        checks = read(url)["audit"]["checks"]
        assert [check["passed"] for check in checks] == [False, False]
        assert all("00000005-00000010" in check["detail"] for check in checks)
        written.audit("FAIL")
        assert read(url)["audit"]["verdict"] == "FAIL"


def test_the_page_asks_nobody_else(prepared, tmp_path):
    Written(tmp_path, prepared)
    with following(tmp_path) as url:
        with urllib.request.urlopen(url, timeout=20) as answer:
            page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert set(re.findall(r"https?://[^\"'` )]+", page)) == {
            "http://www.w3.org/2000/svg"
        }  # a name, not a request
        assert "innerHTML" not in page
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/../plan/items.parquet", timeout=20)


def program(place, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(REPO / "launch" / "watch.py"), *arguments],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_program_from_start_to_ctrl_c(prepared, tmp_path):
    Written(tmp_path, prepared)
    watching = program(tmp_path, "port=0")
    line = watching.stderr.readline()
    url = re.search(r"watching small/run-0123abcd: (http://127\.0\.0\.1:\d+) ", line)
    assert url, line
    assert read(url[1])["run"] == "small/run-0123abcd"
    port = int(url[1].rsplit(":", 1)[1])
    with pytest.raises(UserError, match=f"port={port} is not available: Address already in use"):
        watch.serve(progress.Progress(open_run(tmp_path / "runs")), "127.0.0.1", port)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 0
    assert watching.stderr.read() == "no longer watching small/run-0123abcd; the run goes on\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs/smal"], "there is no runs/smal"),
        ([], "there is no run in"),
        (["+experiment=quickstart"], "there is no such setting"),
        (["prt=3"], "did you mean 'port'"),
        (["port=-1"], "port=-1 must be a whole number"),
        (["one", "two"], "one run at a time"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["watch.py", *arguments])
    with pytest.raises(SystemExit) as end:
        plain(watch.__doc__, watch.work)
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("palimpsest: ")
    assert told in said[0]


def test_long_curves_are_averaged():
    records = [{"step": k, "loss": float(k), "tokens": k, "tokens_per_second": 1.0} for k in range(1, 1001)]
    found = progress.curve(records, points=100)
    assert found["step"] == [float(k) for k in range(10, 1001, 10)]
    assert found["loss"] == [k - 4.5 for k in found["step"]]
    assert "loss_inserted" not in found


def test_a_damaged_line_is_left_out_and_named(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0)
    written = Written(tmp_path, prepared)
    log = written.directory / "perturbed" / "metrics.jsonl"
    written.log("perturbed", [1])
    with log.open("ab") as file:
        file.write(
            b'\xff\xfe{"step": 2}\n{"step": 2, "loss": 5.0}\n[2]\n{"step": 2, "loss": "5", "tokens": 1}\n'
        )
    written.log("perturbed", [3])
    with following(tmp_path) as url:
        found = read(url)
        assert found["losses"]["perturbed"]["step"] == [1, 3]
        assert found["damaged"] == {str(log): 4}
    assert open_run(tmp_path / "runs").training["step"].to_list() == [1, 3]


def test_a_page_of_another_name_is_told_nothing(prepared, tmp_path):
    Written(tmp_path, prepared)
    with following(tmp_path) as url:
        asked = urllib.request.Request(f"{url}/data.json", headers={"Host": "evil.example:80"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(asked, timeout=20)
        for host in ("localhost:1", "[::1]:8642", "127.0.0.1"):
            asked = urllib.request.Request(f"{url}/data.json", headers={"Host": host})
            assert urllib.request.urlopen(asked, timeout=20).status == 200


def test_a_browser_that_goes_away_is_no_error(capsys):
    server = watch.Server.__new__(watch.Server)
    for error in (BrokenPipeError("gone"), ConnectionResetError("gone"), ValueError("a bug")):
        try:
            raise error
        except (OSError, ValueError):
            server.handle_error(None, ("127.0.0.1", 1))
    told = capsys.readouterr().err
    assert "gone" not in told
    assert "a bug" in told


def test_the_rate_is_the_current_one(prepared, tmp_path, monkeypatch):
    """A step that wrote a checkpoint does not slow down the others, and a damaged rate stops nothing."""
    monkeypatch.setattr(watch, "EVERY", 0)
    written = Written(tmp_path, prepared)
    written.log("perturbed", range(1, 9), tokens_per_second=1000.0)
    written.log("perturbed", [9], tokens_per_second=3.0)
    for rate in ("0", "NaN", "-5", "Infinity"):
        with (written.directory / "perturbed" / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": 10, "loss": 5.0, "tokens": 5120, "tokens_per_second": {rate}}}\n')
    written.log("perturbed", [10], tokens_per_second=1000.0, loss_corpus="five")
    with following(tmp_path) as url:
        found = read(url)
        assert found["runs"]["perturbed"]["tokens_per_second"] == 1000.0
        assert found["runs"]["perturbed"]["step"] == 10
        assert list(found["damaged"].values()) == [4]


def test_the_report_is_linked_once_there_is_one(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0)
    written = Written(tmp_path, prepared)
    with following(tmp_path) as url:
        assert read(url)["report"] is None
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/report/report.html", timeout=20)
        written.report()
        place = written.directory / "report"
        (place / "summary.json").write_text(json.dumps({"headline": "Not shown."}))
        (place / "report.html").write_text("<p>all of it</p>")
        assert read(url)["report"] == "Not shown."
        assert urllib.request.urlopen(f"{url}/report/report.html", timeout=20).read() == b"<p>all of it</p>"
        for outside in ("../plan/items.parquet", "..%2Fplan%2Fitems.parquet", ".lock", "a/b.csv"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{url}/report/{outside}", timeout=20)
        (place / "summary.json").write_text("[")
        assert read(url)["report"] == "the report"
