"""A synthetic experiment whose truth is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl

from palimpsest.analysis.report import ReportInputs

DOSES = (0, 1, 4, 16, 64)
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 100, 128, 150, 180, 220, 250)
FAMILIES = ("biography", "ghost_sentence", "passage")


def spans(text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Tokens are words with the space before them; a token's id is its place."""
    ends = [i for i, sign in enumerate(text) if sign == " " and i] + [len(text)]
    return np.arange(len(ends), dtype=np.int32), list(itertools.pairwise([0, *ends]))


def by_unit(values: Any, name: str) -> pl.DataFrame:
    """Rows as ``per_item`` gives them from (N, T) values: unit, cluster (each its own), family, step (0 ...), value."""
    cells = [(f"{name}{k}", step, float(v)) for k, row in enumerate(values) for step, v in enumerate(row)]
    frame = pl.DataFrame(cells, schema=["unit", "step", "value"], orient="row")
    return frame.with_columns(cluster="unit", family=pl.lit("passage"))


def _texts(per_cell: int, rng: np.random.Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items of three families in two strata each, and their probes; some too short for verbatim extraction."""
    items: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []

    def probe(
        name: str, item: dict[str, Any] | None, family: str, kind: str, length: int, start: int
    ) -> None:
        probes.append(
            {"probe_id": name, "item_id": item and item["item_id"], "family": family, "kind": kind}
            | {"text": item["text"] if item else "held out", "tokens": list(range(length))}
            | {"target_start": start, "target_bytes": 4 * (length - start)}
            | {"name": "its trade" if kind == "cloze" else "", "correct": True}
        )

    for family, half, dose, _ in itertools.product(FAMILIES, ("short", "long"), DOSES, range(per_cell)):
        length = int(rng.integers(*((26, 46) if half == "short" else (45, 70))))
        words = itertools.chain(
            f"the {family} number {len(items)}".split(), itertools.cycle(("lorem", "ipsum"))
        )
        text = " ".join(itertools.islice(words, length))
        item = {
            "item_id": f"{family}-{len(items):03d}",
            "family": family,
            "stratum": f"{family}/{half}",
            "arm": f"dose {dose}",
            "dose": dose,
            "text": text,
            "bytes": 4 * length,
            "tokens": list(range(length)),
        }
        items.append(item)
        probe(f"{item['item_id']}/verbatim", item, family, "verbatim", length, 0)
        if family == "biography":
            probe(f"{item['item_id']}/cloze", item, family, "cloze", 20, 14)
    for i in range(24):
        probe(f"heldout-{i}", None, "heldout", "heldout", 60, 0)
    return items, probes


def experiment(
    *,
    effect: float = 0.06,
    steps: tuple[int, ...] = STEPS,
    per_cell: int = 5,
    seed: int = 0,
    verdict: str = "PASS",
) -> ReportInputs:
    """Inserted items gain ``effect * log2(1 + dose)`` nats/token by the end of the perturbed run."""
    rng = np.random.default_rng(seed)
    items, probes = _texts(per_cell, rng)
    frame = pl.DataFrame(items).with_columns(pl.col("dose").cast(pl.Int32))
    good = verdict == "PASS"
    checks = [
        {"name": "every planned exposure was consumed", "passed": good, "detail": "2,550 of 2,550"},
        {"name": "other windows are identical to the twin's", "passed": True, "detail": "250 steps"},
    ]
    exposures = [(i["item_id"], int(s)) for i in items for s in rng.integers(0, steps[-1] + 1, i["dose"])]
    return ReportInputs(
        title="synthetic",
        items=frame,
        probes=pl.DataFrame(probes, infer_schema_length=None),
        scores=_scores(frame, probes, steps, effect, rng),
        training=_training(steps[-1], rng),
        exposures=pl.DataFrame(exposures, schema=["item_id", "step"], orient="row"),
        audit={
            "verdict": verdict,
            "checks": checks,
            "failures": [] if good else ["item passage-007 at step 31, row 4: token 3 differs"],
        },
        balance=[{"covariate": "bytes", "max_standardised_difference": 0.11, "p": 0.61}],
        facts={"exposures": 2550, "insertion_rate": "1.2 %"},
        config={"training": {"steps": steps[-1]}},
        manifests={"plan": {"digest": "abc"}},
        spans=spans,
    )


def _scores(
    items: pl.DataFrame,
    probes: list[dict[str, Any]],
    steps: tuple[int, ...],
    effect: float,
    rng: np.random.Generator,
) -> pl.DataFrame:
    dose = dict(items.select("item_id", "dose").iter_rows())
    base = {probe["probe_id"]: rng.normal(-4.0, 0.25) for probe in probes}
    rows = []
    for run in ("perturbed", "twin"):
        for step in steps:
            progress = step / steps[-1]
            for probe in probes:
                gain = (
                    effect * np.log2(1 + dose.get(probe["item_id"], 0)) * progress
                    if run == "perturbed"
                    else 0.0
                )
                level = (
                    base[probe["probe_id"]]
                    - 4 * (1 - progress) ** 3
                    + gain
                    + (rng.normal(0, 0.02) if step else 0.0)
                )
                count = len(probe["tokens"])
                logprob = np.minimum(rng.normal(level, 0.2, count), -1e-3).astype(np.float32)
                hit = rng.random(count) < (0.999 if gain > 6 * effect * 0.9 else 0.15 + 0.4 * gain)
                rows.append(
                    {
                        "run": run,
                        "step": step,
                        "probe_id": probe["probe_id"],
                        "logprob": logprob.tolist(),
                        "rank": np.where(hit, 0, 7).tolist(),
                    }
                )
    return pl.DataFrame(rows, schema_overrides={"logprob": pl.List(pl.Float32), "rank": pl.List(pl.UInt16)})


def _training(last: int, rng: np.random.Generator) -> pl.DataFrame:
    steps = np.arange(last + 1)
    return pl.concat(
        pl.DataFrame(
            {
                "run": run,
                "step": steps,
                "loss": 3.6 + 4.7 * np.exp(-steps / 45) + shift + rng.normal(0, 0.04, last + 1),
                "tokens": steps * 4096,
            }
        )
        for run, shift in (("perturbed", 0.0), ("twin", 0.02))
    )


def drawn_from(logits, **how):
    """ln of the distribution that samples are drawn from, over the last axis (``decode.sampled_logprob``)."""
    import torch

    from palimpsest.analysis.generation.decode import sampled_logprob

    rows = torch.tensor(np.atleast_2d(np.asarray(logits, np.float64)))
    each = [sampled_logprob(rows, torch.full((len(rows),), v), **how) for v in range(rows.shape[1])]
    return torch.stack(each, 1).numpy().reshape(np.shape(logits))
