"""The answer, with figures and tables: ``python launch/report.py +experiment=quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis import Run
from palimpsest.analysis.metrics import Parameters
from palimpsest.analysis.report import build
from palimpsest.analysis.report.inputs import KIND, VERSION
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import json_digest
from palimpsest.launch import dry_run, pair_audit
from palimpsest.launch.experiment import Experiment, resolved
from palimpsest.launch.process import INTEGRITY, say
from palimpsest.launch.program import program
from palimpsest.pretrain.telemetry import WeightsAndBiases


def place(experiment: Experiment) -> Path:
    """Directory of the report."""
    return experiment.report.out or experiment.directory / "report"


def settings(experiment: Experiment) -> dict[str, Any]:
    """Settings of the report that determine its contents."""
    return {name: value for name, value in resolved(experiment)["report"].items() if name != "out"}


def report(experiment: Experiment) -> dict[str, Any]:
    """Build ``report.html`` and its accompanying files in :func:`place`.

    Returns:
        The summary, with ``verdict``, ``headline``, ``detail`` and others.
    """
    run = Run(experiment.directory)
    audit = pair_audit.standing(experiment)
    text = artifact.read(experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION)
    inputs = run.inputs(
        title=experiment.experiment,
        audit=audit,
        facts={**text.facts, **run.plan.manifest.facts},
        config=resolved(experiment),
        manifests={
            "corpus": {"digest": text.digest, **text.made_by},
            "plan": {"digest": run.plan.digest, **run.plan.manifest.made_by},
        },
        spans=corpus.load_tokenizer(experiment.corpus_directory).encode_offsets,
        parameters=Parameters(prefix=experiment.report.prefix_tokens, suffix=experiment.report.suffix_tokens),
        metrics=experiment.report.metrics,
        contrasts=experiment.report.contrasts,
    )
    with artifact.writing(
        place(experiment),
        kind=KIND,
        schema_version=VERSION,
        config=settings(experiment),
        inputs={"plan": run.plan.digest, "audit": json_digest(audit), **run.score_digests},
    ) as draft:
        summary = build(inputs, draft.path)
    if experiment.wandb != "off":
        _upload(experiment, run, summary["primary_metric"])
    return summary


def _upload(experiment: Experiment, run: Run, metric: str) -> None:
    """Upload to W&B: the primary metric of each dose at every checkpoint, and the report as an artefact."""
    name = f"{experiment.experiment}-{experiment.name}-report"
    assert experiment.wandb != "off"
    project = experiment.wandb_project, experiment.wandb_entity, experiment.wandb_group
    writer = WeightsAndBiases(experiment.wandb, name, resolved(experiment), run.directory, *project)
    rows = pl.read_csv(place(experiment) / "estimates.csv", infer_schema_length=None).filter(
        (pl.col("metric") == metric) & (pl.col("statistic") == "mean") & (pl.col("family") == "all")
    )
    for (step,), part in rows.sort("step").group_by("step", maintain_order=True):
        by_dose = {
            f"{metric}/{which}/dose {dose}": estimate
            for which, dose, estimate in part.select("run", "dose", "estimate").iter_rows()
        }
        writer.write({"step": step, **by_dose})
    writer.keep(place(experiment), "report")
    writer.close()


def work(experiment: Experiment) -> int:
    """Make the report; exit status 3 if the audit failed."""
    summary = report(experiment)
    say(summary["headline"])
    say(f"report: {place(experiment) / 'report.html'}")
    return INTEGRITY if summary["verdict"] == "audit failed" else 0


main = program(work, dry_run=dry_run.of("report"))

if __name__ == "__main__":
    main()
