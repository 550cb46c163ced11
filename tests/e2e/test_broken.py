"""A trainer whose overlay is broken stops before the step, or the audit fails; item, step and row are named."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

ROW = 6
BATCH = 8


def train(place, fault, *overrides):
    script = str(Path(__file__).with_name("broken_train.py"))
    return subprocess.run(
        [sys.executable, script, fault, *place.overrides, *overrides],
        cwd=place.path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def planned(directory):
    exposures = pl.read_parquet(directory / "plan" / "exposures.parquet")
    items = pl.read_parquet(directory / "plan" / "items.parquet")
    return int(exposures["position"][ROW]), items["item_id"][exposures["item"][ROW]], exposures


@pytest.mark.parametrize("fault", ["skip", "token"])
def test_the_run_stops(prepared, fault):
    prepared.ok("plan", f"name={fault}")
    done = train(prepared, fault, f"name={fault}")
    position, item, _ = planned(prepared.directory(fault))
    assert done.returncode == 3
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith("palimpsest: planned tokens are not in the batch")
    assert f"item {item}, step {position // BATCH}, rank 0, row {position % BATCH}" in told
    # Nothing from that step on was saved.
    saved = sorted((prepared.directory(fault) / "perturbed" / "checkpoints").glob("step_*"))
    assert int(saved[-1].name[5:]) <= position // BATCH


@pytest.mark.slow
def test_the_audit_fails(prepared):
    """An exposure that is also applied where nothing was planned goes unseen by the trainer, not by the audit."""
    prepared.ok("plan", "name=twice")
    assert train(prepared, "twice", "name=twice").returncode == 0
    prepared.ok("train", "name=twice", "run=twin")
    done = prepared.run("audit", "name=twice")
    _, item, exposures = planned(prepared.directory("twice"))
    free = next(p for p in range(10, 160) if p not in set(exposures["position"]))
    assert done.status == 3
    assert "audit: FAIL" in done.out
    told = [line for line in done.lines if f"step {free // BATCH}, row {free % BATCH}" in line]
    assert told, done.out
    assert f"it holds item {item} at offset 10" in told[0]
