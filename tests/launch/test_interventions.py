"""Changes to the corpus's own text, and what is looked for in items first, from the command line to the audit."""

import json

import polars as pl
import pytest

from palimpsest.insertion import plan as plans

CHANGES = {
    "swap": "{kind: replace, find: [' parser reader'], by: [' reader parser']}",
    "gone": "{kind: remove, find: [' The column object', ' The signal string'], phase: {end: 0.5}}",
    "quiet": "{kind: mask, find: [' policy ledger']}",
    "loud": "{kind: reweight, find: [' value string'], weight: 2}",
}


@pytest.mark.slow
def test_every_kind_in_one_run(prepared):
    """Planned, trained and proven; what is off, or counts twice, is that much of the ledger's word."""
    given = ["name=changes", *(f"+insertion.interventions.{name}={one}" for name, one in CHANGES.items())]
    prepared.ok("plan", *given)
    prepared.ok("train", *given)
    assert "audit: PASS" in prepared.ok("audit", *given).out
    made = plans.read(prepared.directory("changes") / "plan")
    facts = made.manifest.facts["interventions"]
    assert set(facts) == set(CHANGES)
    assert all(one["windows"] > 0 for one in facts.values()), facts
    weights = set(made.edits["weight"].unique().to_list())
    assert weights == {0.0, 1.0, 2.0}
    half = made.edits.filter(pl.col("intervention") == "gone")["position"]
    assert half.max() < 10 * 8
    refused = prepared.run(
        "plan", "+insertion.interventions.x={kind: replace, find: [' parser'], by: [' a b']}"
    )
    assert refused.status == 2
    assert "find a wording with as many" in refused.lines[-1]


def test_what_items_are_refused_for(prepared, tmp_path):
    """Each finding names its items and the one way to go on, which then works."""
    inside = json.loads((prepared.path / "text.jsonl").read_text().splitlines()[0])["text"]
    texts = [" ".join(f"{chr(97 + k)}{n * k}" for n in range(6)) for k in range(12)]
    texts[1:1] = [texts[0] + " ", inside[:200], "long " * 400]
    rows = [{"text": text, "id": f"row-{k}"} for k, text in enumerate(texts)]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = [
        "insertion=table",
        f"insertion.families.table.path={tmp_path / 'table.jsonl'}",
        *("insertion.doses=[0,1]", "insertion.items_per_dose=4", "name=refused"),
    ]
    findings = {"near_duplicate": "row-1", "in_corpus": "row-2", "too_long": "row-3"}
    for finding, item in findings.items():
        rules = [f"insertion.preflight.{one}=drop" for one in findings if one != finding]
        refused = prepared.run("plan", *own, *rules, f"insertion.preflight.{finding}=refuse")
        assert refused.status == 2, refused.out
        assert item in refused.lines[-1]
        assert f"insertion.preflight.{finding}=drop" in refused.lines[-1]
    prepared.ok("plan", *own, *(f"insertion.preflight.{one}=drop" for one in findings))
    made = plans.read(prepared.directory("refused") / "plan")
    kept = set(made.items["item_id"])
    for finding, item in findings.items():
        dropped = {line.split()[0] for line in made.manifest.facts["dropped"][finding]}
        # Of two that are alike the later one goes, in the order that was drawn.
        assert dropped & ({"table-row-0", "table-row-1"} if "near" in finding else {f"table-{item}"})
        assert not dropped & kept
    assert len(kept) == 8
