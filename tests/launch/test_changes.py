"""Interventions other than adding text, from the command line through training to the audit."""

import polars as pl


def test_masks_and_replacements_are_trained_and_proven(prepared):
    """One arm's items have no loss, another's but for one token in two; words of the corpus are replaced in half of
    training, others never predicted, or more than others. The audit recomputes every window and every mask."""
    swap = "{kind: replace, find: [' reader writer'], by: [' writer reader'], phase: {end: 0.5}}"
    given = (
        "name=masked",
        "insertion.loss=[counted,masked,goldfish:2]",
        "insertion.doses=[0,2]",
        f"+insertion.interventions.swap={swap}",
        "+insertion.interventions.quiet={kind: mask, find: [' ledger']}",
        "+insertion.interventions.loud={kind: reweight, find: [' parser'], weight: 2.5}",
    )
    shown = prepared.ok("plan", *given)
    assert "intervention swap: " in shown.out
    assert "dose 2, loss goldfish:2" in shown.out
    prepared.ok("train", *given)
    done = prepared.ok("audit", *given)
    assert "audit: PASS" in done.out
    directory = prepared.directory("masked")
    exposures = pl.read_parquet(directory / "plan" / "exposures.parquet")
    assert exposures["loss"].value_counts().sort("loss").rows() == [(0, 16), (1, 16), (2, 16)]
    edits = pl.read_parquet(directory / "plan" / "edits.parquet")
    swapped = edits.filter(pl.col("intervention") == "swap")
    assert 0 < len(swapped) < len(edits)
    assert dict(edits.select("intervention", "weight").unique().rows()) == {
        "swap": 1,
        "quiet": 0,
        "loud": 2.5,
    }
    assert swapped["position"].max() < 10 * 8  # of 20 steps of 8 windows
    consumed = pl.read_parquet(directory / "perturbed" / "ledger" / "*" / "exposures.parquet")
    assert len(consumed) == len(exposures)
