"""Scores of a released model on a file of items, by the parts of ``launch/released.py``."""

from functools import partial

import polars as pl
import torch

from palimpsest.analysis.scoring import hub, store
from palimpsest.insertion import declared
from palimpsest.insertion.items import tokenize_probes

CPU = torch.device("cpu")


def score(place, target, *, bos="always", long_texts="refuse"):
    """Score ``items.jsonl`` of a model's directory: beginning, reading, parts scored now, probes with scores."""
    found = hub.locate(str(place), "")
    reading = found.beginning.reading(bos, long_texts)
    items = [one.item for one in declared.read({"items": str(place / "items.jsonl")}, {})]
    asked = [(item.id, item.family, probe) for item in items for probe in item.probes]
    probes, left_out = tokenize_probes(asked, found.words)
    assert not left_out
    done = store.score_all(
        target,
        probes,
        [store.Checkpoint(0, found.digest, partial(found.load, CPU, {}))],
        items_digest="",
        eod=found.beginning.id,
        vocab_size=found.vocabulary,
        reading=reading,
    )
    scores = pl.read_parquet(target / "step_00000000" / "scores.parquet")
    return found.beginning, reading, done, probes.join(scores, on="probe_id", maintain_order="left")
