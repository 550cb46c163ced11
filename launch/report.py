"""The answer, with figures and tables: ``python launch/report.py +experiment=quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from analysis.metrics import Parameters
from analysis.report import ReportInputs, build
from data import artifact
from data import prepare as corpus
from data.artifact import json_digest
from data.errors import UserError
from insertion import plan as plans
from launch import audit as audits
from launch.config import INTEGRITY, Experiment, program, resolved, say

KIND = "report"
VERSION = 1


def report(experiment: Experiment) -> dict[str, Any]:
    """Build ``report/report.html`` and what lies beside it.

    Returns:
        The summary: ``verdict``, ``headline``, ``detail``, ...
    """
    directory = experiment.directory
    plan = plans.read(directory / "plan")
    scores, digests = scores_of(directory, plan.digest)
    audit = audits.standing(experiment)
    exposures = plan.exposures.join(
        plan.items.with_row_index("item").select(pl.col("item").cast(pl.Int32), "item_id"), on="item"
    ).with_columns(step=pl.col("position") // plan.shape.global_batch_size)
    text = artifact.read(experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION)
    inputs = ReportInputs(
        title=experiment.experiment,
        items=plan.items,
        probes=plan.probes,
        scores=scores,
        training=_training(directory),
        exposures=exposures,
        audit=audit,
        balance=plan.manifest.facts["balance"],
        facts={**text.facts, **plan.manifest.facts},
        config=resolved(experiment),
        manifests={
            "corpus": {"digest": text.digest, **text.made_by},
            "plan": {"digest": plan.digest, **plan.manifest.made_by},
        },
        spans=corpus.load_tokenizer(experiment.corpus_directory).encode_offsets,
        parameters=Parameters(prefix=experiment.report.prefix_tokens, suffix=experiment.report.suffix_tokens),
        metrics=experiment.report.metrics,
    )
    with artifact.writing(
        directory / "report",
        kind=KIND,
        schema_version=VERSION,
        config=resolved(experiment)["report"],
        inputs={"plan": plan.digest, "audit": json_digest(audit), **digests},
    ) as draft:
        return build(inputs, draft.path)


def scores_of(directory: Path, plan_digest: str) -> tuple[pl.DataFrame, dict[str, str]]:
    """All scores of the pair, and the digest of each score artefact."""
    from analysis import store

    tables, digests = [], {}
    for which in ("perturbed", "twin"):
        for place in sorted((directory / "scores" / which).glob("step_*")):
            manifest = artifact.read(place, kind=store.KIND, schema_version=store.VERSION)
            artifact.verify(place, manifest)
            if manifest.inputs["items"] != plan_digest:
                raise UserError(f"{place} was scored with another plan; run launch/score.py again")
            step = manifest.facts["step"]
            digests[f"scores/{which}/{place.name}"] = manifest.digest
            tables.append(
                pl.read_parquet(place / store.FILE).with_columns(
                    run=pl.lit(which), step=pl.lit(step, dtype=pl.Int64)
                )
            )
    if not any(name.startswith("scores/perturbed/") for name in digests):
        raise UserError(f"there are no scores in {directory / 'scores'}; run launch/score.py first")
    return pl.concat(tables), digests


def _training(directory: Path) -> pl.DataFrame:
    tables = [
        pl.read_ndjson(path, infer_schema_length=None).with_columns(run=pl.lit(which))
        for which in ("perturbed", "twin")
        if (path := directory / which / "metrics.jsonl").is_file()
    ]
    if not tables:
        raise UserError(f"there is no metrics.jsonl in {directory / 'perturbed'}; run launch/train.py first")
    return pl.concat(tables, how="diagonal")  # losses on inserted tokens are the perturbed run's alone


@program
def main(experiment: Experiment) -> int:
    """Report; status 3 if the audit failed."""
    summary = report(experiment)
    say(summary["headline"])
    say(f"report: {experiment.directory / 'report' / 'report.html'}")
    return INTEGRITY if summary["verdict"] == "audit failed" else 0


if __name__ == "__main__":
    main()
