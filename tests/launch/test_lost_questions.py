"""A plan that loses questions ends by saying so, and refuses when a family has none left."""

import json

import pytest


@pytest.mark.parametrize("lost", [1, 8])
def test_questions_whose_targets_begin_inside_a_token(prepared, tmp_path, lost):
    def probe(number):
        good = {"prompt": f"Number {number} of", "target": " the house"}
        return {"prompt": f"Number {number} of th", "target": "e house"} if number < lost else good

    rows = [{"text": f"Number {k} of the house.", "id": str(k), "probes": [probe(k)]} for k in range(8)]
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    own = ["insertion=table", f"insertion.families.table.path={path}", f"name=lost{lost}"]
    own += ["insertion.doses=[0,4]", "insertion.items_per_dose=4", "insertion.heldout_probes=8"]
    done = prepared.run("plan", *own)
    if lost == 8:
        assert done.status == 2
        assert "all 8 questions of family table are left out" in done.lines[-1]
    else:
        assert done.status == 0
        assert done.lines[-1].startswith("questions lost: 1 of ")
