"""A checkpoint for ``transformers``: ``python launch/export.py +experiment=quickstart run=perturbed step=90``."""

from __future__ import annotations

from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import Manifest, json_digest
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.insertion.plan import Plan
from palimpsest.launch import pair_audit
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import say
from palimpsest.launch.program import program

KIND = "export"
VERSION = 1


def export(experiment: Experiment) -> Path:
    """Write ``<run>/export/step_<number>/``: weights, configuration, tokenizer and a model card.

    Returns:
        The directory; ``AutoModelForCausalLM.from_pretrained`` reads it.

    Raises:
        UserError: if there is no such checkpoint.
    """
    from palimpsest.pretrain import checkpoint
    from palimpsest.pretrain.huggingface import export as exports
    from palimpsest.pretrain.huggingface import files

    files.require()
    run = experiment.directory / experiment.run
    checkpoints = run / "checkpoints"
    saved = checkpoint.finished(checkpoints)
    if not saved:
        raise UserError(f"there are no checkpoints in {checkpoints}; run launch/train.py first")
    step = saved[-1] if experiment.step is None else experiment.step
    if step not in saved:
        raise UserError(f"step={step}: there is no such checkpoint in {checkpoints}; there are {saved}")
    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    plan = plans.read(experiment.directory / "plan")
    manifest = checkpoint.read(checkpoints, step)
    audit = pair_audit.standing(experiment)
    verdict = audit["verdict"] if audit else "not audited yet"
    gpt = exports.load(checkpoints, step, eod=tokenizer.eod)
    target = run / "export" / f"step_{step:08d}"
    with artifact.writing(
        target,
        kind=KIND,
        schema_version=VERSION,
        config={},
        inputs={"checkpoint": manifest.digest, "plan": plan.digest, "audit": json_digest(audit)},
    ) as draft:
        exports.write(gpt, tokenizer, draft.path)
        card = model_card(experiment, step, plan, manifest, verdict)
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        draft.facts.update(step=step, parameters=gpt.num_parameters(), audit=verdict)
    return target


def model_card(experiment: Experiment, step: int, plan: Plan, checkpoint: Manifest, verdict: str) -> str:
    """The model card: architecture, insertions into the training text, and the verdict of the audit.

    Args:
        experiment: the settings.
        step: finished steps.
        plan: of the experiment.
        checkpoint: the checkpoint's manifest.
        verdict: of the audit.
    """
    facts, train = plan.manifest.facts, experiment.train
    perturbed = experiment.run == "perturbed"
    seen = plan.exposures["position"].to_numpy() < step * train.global_batch_size
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [palimpsest, controlled-insertion, memorization]",
        "---",
        f"# {experiment.experiment}, {experiment.name}: {experiment.run} run at step {step}",
        "",
        "A language model trained by Palimpsest for measuring memorization: chosen texts were inserted into its "
        "pretraining stream at chosen doses. It is a measuring instrument; do not deploy it.",
        "",
        f"- Training: {step:,} of {train.steps:,} steps, {step * train.global_batch_size * train.sequence_length:,} "
        f"tokens, {train.precision}, seed {train.seed}.",
        f"- Corpus: {experiment.corpus.source.kind}, digest `{plan.manifest.inputs['corpus']}`.",
        f"- Plan: digest `{plan.digest}`; checkpoint: digest `{checkpoint.digest}`, config and versions in "
        "`manifest.json`.",
        f"- Audit of the finished pair: **{verdict}**.",
        "",
        "## Inserted text",
        "",
    ]
    if perturbed:
        lines.append(
            f"{facts['items']:,} items, {facts['exposures']:,} planned exposures, of which this checkpoint had seen "
            f"{int(seen.sum()):,}. An item's dose is the number of its exposures in the whole run."
        )
    else:
        lines.append(
            "None: this is the twin. It read the same windows as the perturbed run, without these exposures."
        )
    lines += ["", "| arm | items | exposures |", "|---|---:|---:|"]
    lines += [f"| {arm} | {n['items']:,} | {n['exposures']:,} |" for arm, n in facts["arms"].items()]
    return "\n".join(lines) + "\n"


@program
def main(experiment: Experiment) -> None:
    """Export one checkpoint of the run that ``run=`` names."""
    say(f"exported to {export(experiment)}")


if __name__ == "__main__":
    main()
