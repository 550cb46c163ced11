"""The answer, with figures and tables: ``python launch/report.py +experiment=quickstart``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from analysis.metrics import Parameters
from analysis.report import ReportInputs, build
from data import artifact
from data import prepare as corpus
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
    scores, digests = _scores(directory)
    audit_manifest = None
    audit_result = None
    if (directory / "audit" / artifact.MANIFEST).is_file():
        audit_manifest = artifact.read(directory / "audit", kind=audits.KIND, schema_version=audits.VERSION)
        audit_result = json.loads((directory / "audit" / "audit.json").read_text(encoding="utf-8"))
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
        audit=audit_result,
        balance=plan.manifest.facts["balance"],
        facts={**text.facts, **plan.manifest.facts},
        config=resolved(experiment),
        manifests={
            "corpus": {"digest": text.digest, **text.made_by},
            "plan": {"digest": plan.digest, **plan.manifest.made_by},
        },
        parameters=Parameters(prefix=experiment.report.prefix_tokens, suffix=experiment.report.suffix_tokens),
    )
    with artifact.writing(
        directory / "report",
        kind=KIND,
        schema_version=VERSION,
        config=resolved(experiment)["report"],
        inputs={"plan": plan.digest, "audit": audit_manifest.digest if audit_manifest else "", **digests},
    ) as draft:
        return build(inputs, draft.path)


def _scores(directory: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """All scores of the pair, and the digest of each score artefact."""
    from analysis import scoring

    tables, digests = [], {}
    for which in ("perturbed", "twin"):
        for place in sorted((directory / "scores" / which).glob("step_*")):
            manifest = artifact.read(place, kind=scoring.KIND, schema_version=scoring.VERSION)
            step = manifest.facts["step"]
            digests[f"scores/{which}/{step}"] = manifest.digest
            tables.append(
                pl.read_parquet(place / "scores.parquet").with_columns(
                    run=pl.lit(which), step=pl.lit(step, dtype=pl.Int64)
                )
            )
    if not any(name.startswith("scores/perturbed/") for name in digests):
        raise UserError(f"there are no scores in {directory / 'scores'}; run launch/score.py first")
    return pl.concat(tables), digests


def _training(directory: Path) -> pl.DataFrame:
    tables = [
        pl.read_ndjson(path).with_columns(run=pl.lit(which))
        for which in ("perturbed", "twin")
        if (path := directory / which / "metrics.jsonl").is_file()
    ]
    if not tables:
        raise UserError(f"there is no metrics.jsonl in {directory / 'perturbed'}; run launch/train.py first")
    return pl.concat(tables)


@program
def main(experiment: Experiment) -> int:
    """Report; status 3 if the audit failed."""
    summary = report(experiment)
    say(summary["headline"])
    say(f"report: {experiment.directory / 'report' / 'report.html'}")
    return INTEGRITY if summary["verdict"] == "audit failed" else 0


if __name__ == "__main__":
    main()
