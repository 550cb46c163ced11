"""What is missing mid-way never costs what was done: a reference model, a file of items, a stored order."""

import json
import shutil

import pytest

ITEMS = "+insertion.families.table={path: items.jsonl}"


def write_items(path):
    lines = (json.dumps({"text": f"item {k} of seven rivers and {k * k} stones"}) for k in range(40))
    path.write_text("\n".join(lines))


def test_a_plan_does_without_the_files_that_it_was_made_from(prepared):
    path = prepared.path / "items.jsonl"
    write_items(path)
    given = ["name=items", ITEMS]
    prepared.ok("plan", *given)
    path.unlink()
    assert "missing" not in prepared.ok("run", *given, "dry_run=true").out
    done = prepared.ok("plan", *given)
    assert "items.jsonl: there is no such file; the finished plan" in done.out
    assert "reusing" in done.out
    # Other settings need it again, and say so at once.
    for program in ("plan", "run"):
        refused = prepared.run(program, "name=other", ITEMS)
        assert refused.status == 2
        assert "insertion.families.table.path=items.jsonl" in refused.lines[-1]
    refused = prepared.run("plan", *given, "insertion.seed=5")
    assert refused.status == 2
    assert "items.jsonl: there is no such file" in refused.lines[-1]


@pytest.mark.slow
def test_a_run_goes_on_without_reference_model_and_stored_order(prepared):
    """Trained, planned by the model of that, stopped, and everything but plan, corpus and checkpoints removed."""
    pytest.importorskip("transformers")
    prepared.ok("train", "run=perturbed")
    model = prepared.path / "model" / "step_00000020"
    shutil.copytree(prepared.directory() / "perturbed" / "checkpoints" / model.name, model)
    given = [
        *("name=missing", "insertion.likelihood_quantiles=2", f"insertion.likelihood_model={model}"),
        "runtime.device=cpu",
    ]
    prepared.ok("plan", *given)
    plan = (prepared.directory("missing") / "plan" / "manifest.json").read_bytes()
    prepared.ok("train", *given, "run=twin")
    shutil.rmtree(prepared.path / "model")
    shutil.rmtree(prepared.corpus("missing") / "order")
    done = prepared.ok("run", *given)
    assert "there is no such file; the finished plan" in done.out
    assert "twin: finished at step 20; nothing to do" in done.out
    assert (prepared.directory("missing") / "plan" / "manifest.json").read_bytes() == plan
    assert (
        json.loads((prepared.directory("missing") / "audit" / "audit.json").read_text())["verdict"] == "PASS"
    )
