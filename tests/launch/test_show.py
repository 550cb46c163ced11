"""``launch/plan.py show``: the plan in words."""

import json
import subprocess
import sys

import polars as pl

from tests.conftest import REPO, Workplace


def item_of(place, dose):
    items = pl.read_parquet(place.directory() / "plan" / "items.parquet")
    return items.filter(pl.col("dose") == dose).row(0, named=True)


def test_summary(prepared):
    lines = prepared.ok("plan", "show").lines
    facts = json.loads((prepared.directory() / "plan" / "manifest.json").read_text())["facts"]
    assert f"{facts['exposures']:,} exposures" in lines[0]
    exposures = pl.read_parquet(prepared.directory() / "plan" / "exposures.parquet")
    assert lines[-1].endswith(f"step_{exposures['position'].max() // 8 + 1} is the first that has seen all")
    for arm in ("dose 0", "dose 1", "dose 4"):
        (line,) = [line for line in lines if line.startswith(arm)]
        bars = line.split("|")[1]
        assert len(bars) == 20  # a column a step
        assert bool(bars.strip()) == (arm != "dose 0")


def test_item(prepared):
    """Every exposure with its text in its place; with a checkpoint, those that it had seen and how long ago."""
    chosen = item_of(prepared, 4)
    lines = prepared.ok("plan", "show", f"item={chosen['item_id']}").lines
    own = str(chosen["item_id"]).partition("-")[2]  # as a user's table calls an item
    assert prepared.ok("plan", "show", f"item={own}").lines == lines
    shown = [line for line in lines if line.startswith("  step")]
    assert len(shown) == 4
    assert all(f">>{chosen['text']!r}<<" in line for line in shown)
    steps = [int(line.split()[1].rstrip(",")) for line in shown]
    assert all(f", seen from step_{step + 1} on" in line for line, step in zip(shown, steps, strict=True))
    seen = prepared.ok("plan", "show", f"item={chosen['item_id']}", "checkpoint=10").lines
    seen = [line for line in seen if line.startswith("  step")]
    assert len(seen) == sum(step < 10 for step in steps)
    for line, step in zip(seen, steps, strict=False):
        assert f"{10 - step - 1} steps before the checkpoint" in line


def test_step(prepared):
    """All rows of the step: sources, insertions, and the very tokens that the trainer would read."""
    exposures = pl.read_parquet(prepared.directory() / "plan" / "exposures.parquet")
    items = pl.read_parquet(prepared.directory() / "plan" / "items.parquet")
    step = exposures["position"][0] // 8
    out = prepared.ok("plan", "show", f"step={step}").out
    assert out.count(f"step {step}, row ") == 8
    assert "text.jsonl" in out
    planned = exposures.filter(pl.col("position") // 8 == step)
    assert out.count("> inserted at") == len(planned)
    for row in planned.iter_rows(named=True):
        assert f"> inserted at {row['offset']}: {items['item_id'][row['item']]}" in out


def test_mistakes(prepared):
    chosen = item_of(prepared, 1)["item_id"]
    for arguments, told in (
        ([f"item={chosen}x"], f"did you mean '{chosen}'"),
        (["step=20"], "the run has steps 0 to 19"),
        (["step=last"], "step=last must be a step number"),
    ):
        done = prepared.run("plan", "show", *arguments)
        assert done.status == 2
        assert told in done.lines[-1]


def test_family(prepared, tmp_path):
    """Five items of any family with their probes: without a corpus, and of the experiment's where there is one."""
    done = subprocess.run(
        [sys.executable, str(REPO / "launch" / "plan.py"), "family=canaries", "show=5"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("canary-")] == [
        f"canary-{k:05d}" for k in range(5)
    ]
    assert sum(line.startswith("  choice") for line in lines) == 50
    assert sum(line.startswith("  choice") and "(decoy)" not in line for line in lines) == 5
    lines = prepared.ok("plan", "family=passages", "show=3").lines
    assert sum(line.startswith("passage-") for line in lines) == 3
    for arguments, told in (
        (["family=pasages", "show=3"], "did you mean 'passages'"),
        (["family=canaries", "show=3"], "is not a family of the experiment"),
        (["family=passages", "show=0"], "show=0 must be at least 1"),
    ):
        done = prepared.run("plan", *arguments)
        assert done.status == 2
        assert told in done.lines[-1]


def test_a_word_too_many_leads_to_what_there_is(tmp_path):
    done = Workplace(tmp_path).run("show", "runs/mine", "exposures")
    assert done.status == 2
    assert "one of gains, items or item=ID (its exposures)" in done.out
