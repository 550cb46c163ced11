"""Checkpoints for ``transformers``: ``python launch/export.py +experiment=quickstart run=perturbed step=90``.

``run=twin`` is the twin, ``run=leave_out`` the leave-out twin, ``run=npo`` a post-trained run. All exports of a run are
revisions of one repository; ``step=all`` writes every checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import Manifest, json_digest
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.insertion.plan import Plan
from palimpsest.launch import pair_audit, posttrain
from palimpsest.launch.experiment import PAIR, Experiment
from palimpsest.launch.process import say
from palimpsest.launch.program import program

KIND = "export"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Source:
    """The run that is exported."""

    name: str
    directory: Path
    plan: Plan
    """Plan of the run's training; of a post-trained run, that of the perturbed one."""
    lineage: tuple[str, ...] = ()
    """Post-trainings, the last one first; none: the run was not post-trained."""
    pretrained: int | None = None
    """Steps of training that every checkpoint of a post-trained run has behind it."""
    forgotten: int = 0
    """Number of items to be forgotten."""

    def trained(self, step: int) -> int:
        """Steps of training behind a checkpoint, without those of post-training."""
        return step if self.pretrained is None else self.pretrained

    def seen_by_arm(self, experiment: Experiment, step: int) -> dict[str, int]:
        """Arm -> exposures of its items before a checkpoint; the twin has seen none."""
        counts = dict.fromkeys(self.plan.manifest.facts["arms"], 0)
        if self.name != "twin":
            windows = self.trained(step) * experiment.train.global_batch_size
            before = self.plan.exposures["position"].to_numpy() < windows
            items = self.plan.exposures["item"].to_numpy()[before]
            counts |= Counter(self.plan.items["arm"].gather(items).to_list())
        return counts


def source_of(experiment: Experiment) -> Source:
    """The run that ``run=`` names.

    Raises:
        UserError: if there is no such run, or it has no checkpoints.
    """
    from palimpsest.pretrain import checkpoint

    directory, plan = experiment.directory / experiment.run, plans.read(experiment.directory / "plan")
    if experiment.run not in PAIR:
        directory = posttrain.directory_of(experiment, plan)
    steps = checkpoint.finished(directory / "checkpoints")
    if not steps:
        raise UserError(f"there are no checkpoints in {directory / 'checkpoints'}; run launch/train.py first")
    if directory.name in PAIR:
        return Source(directory.name, directory, plan)
    settings = checkpoint.read(directory / "checkpoints", steps[-1]).config.get("posttrain")
    forgotten = len(posttrain.forget_set(experiment, plan))
    if settings is None:
        return Source(directory.name, directory, plans.read(directory.parent / "plan"), forgotten=forgotten)
    pretrained = experiment.train.end
    if settings["student"] == "first":
        pretrained = checkpoint.finished(experiment.directory / "perturbed" / "checkpoints")[0]
    lineage = posttrain.lineage(experiment, directory)
    return Source(directory.name, directory, plan, lineage, pretrained, forgotten)


def export(experiment: Experiment) -> list[Path]:
    """Write ``<run>/export/step_<number>/``: weights, configuration, tokenizer and a model card.

    Returns:
        The directories; ``AutoModelForCausalLM.from_pretrained`` reads them.

    Raises:
        UserError: if there is no such run or checkpoint.
    """
    from palimpsest.pretrain import checkpoint
    from palimpsest.pretrain.huggingface import files

    files.require()
    run = source_of(experiment)
    checkpoints = run.directory / "checkpoints"
    saved = checkpoint.finished(checkpoints)
    wanted = saved[-1] if experiment.step is None else experiment.step
    steps = saved if wanted == "all" else [wanted]
    if missing := sorted(set(steps) - set(saved)):
        raise UserError(f"step={missing[0]}: there is no such checkpoint in {checkpoints}; there are {saved}")
    audit = pair_audit.standing(experiment)
    written = [_export(experiment, run, step, audit) for step in steps]
    _write_repository(experiment, run, audit)
    return written


def _export(experiment: Experiment, run: Source, step: int, audit: dict[str, Any] | None) -> Path:
    """Write one checkpoint."""
    from palimpsest.pretrain import checkpoint
    from palimpsest.pretrain.huggingface import export as exports

    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    manifest = checkpoint.read(run.directory / "checkpoints", step)
    gpt = exports.load(run.directory / "checkpoints", step, eod=tokenizer.eod)
    target = run.directory / "export" / f"step_{step:08d}"
    verdict = _verdict(audit)
    with artifact.writing(
        target,
        kind=KIND,
        schema_version=VERSION,
        config={},
        inputs={"checkpoint": manifest.digest, "plan": run.plan.digest, "audit": json_digest(audit)},
    ) as draft:
        exports.write(gpt, tokenizer, draft.path)
        card = model_card(experiment, run, step, manifest, verdict)
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        draft.facts.update(step=step, parameters=gpt.num_parameters(), audit=verdict)
    return target


def _verdict(audit: dict[str, Any] | None) -> str:
    return str(audit["verdict"]) if audit else "not audited yet"


def _write_repository(experiment: Experiment, run: Source, audit: dict[str, Any] | None) -> None:
    """Make all exports of the run revisions of one repository, with a common model card."""
    from palimpsest.pretrain.huggingface import export as exports

    place = run.directory / "export"
    manifests = {
        path.parent.name: artifact.read(path.parent, kind=KIND, schema_version=VERSION)
        for path in sorted(place.glob(f"step_*/{artifact.MANIFEST}"))
    }
    name = exports.repository_name(experiment.experiment, run.name)
    steps = {directory: int(manifest.facts["step"]) for directory, manifest in manifests.items()}
    revisions = {f"step{steps[at]}": (at, manifest.digest) for at, manifest in manifests.items()}
    exports.write_revisions(place, name, revisions)
    card = repository_card(experiment, run, name, steps, _verdict(audit))
    (place / "README.md").write_text(card, encoding="utf-8")


_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [palimpsest, controlled-insertion, memorization]
---
"""


def repository_card(
    experiment: Experiment, run: Source, name: str, steps: Mapping[str, int], verdict: str
) -> str:
    """Model card of all exported checkpoints of a run, in Markdown: for each the number of exposures up to its step, in
    all and by arm, and the verdict of the run's audit.

    Args:
        experiment: the settings.
        run: the run.
        name: name of the repository.
        steps: directory of each exported checkpoint -> its finished steps.
        verdict: of the audit.
    """
    train, plan = experiment.train, run.plan
    arms = plan.manifest.facts["arms"]
    first, step = next(iter(steps.items()))
    exposures = {at: run.seen_by_arm(experiment, number) for at, number in steps.items()}
    lines = [
        f"# {experiment.experiment}, {experiment.name}: checkpoints of the {run.name} run",
        "",
        "Models trained by Palimpsest for measuring memorization: chosen texts were inserted into their pretraining "
        "stream at chosen doses. They are measuring instruments; do not deploy them.",
        "",
        f"- Plan: digest `{plan.digest}`.",
        f"- Audit of the finished pair: **{verdict}**.",
        f"- Seed of training {train.seed}, of items and assignment {experiment.seed}.",
        *_posttraining(run),
        "",
        "## Revisions",
        "",
        "| revision | folder | pretraining tokens | exposures seen | "
        + " | ".join(f"of {arm}" for arm in arms)
        + " |",
        "|---|---|---:|---:|" + "---:|" * len(arms),
    ]
    for at, number in steps.items():
        tokens = run.trained(number) * train.global_batch_size * train.sequence_length
        counts = [f"{exposures[at][arm]:,}" for arm in arms]
        lines.append(
            f"| step{number} | {at} | {tokens:,} | {sum(exposures[at].values()):,} | {' | '.join(counts)} |"
        )
    lines += [
        "",
        "The last one is `main`, too. In this directory, with `HF_HUB_OFFLINE=1`, any of these reads a checkpoint:",
        "",
        "```python",
        f'AutoModelForCausalLM.from_pretrained(".", subfolder="{first}")',
        f'AutoModelForCausalLM.from_pretrained("{name}", revision="step{step}", cache_dir=".")',
        "```",
        "",
        "```",
        f"HF_HUB_CACHE=. lm_eval --model hf --model_args pretrained={name},revision=step{step}",
        "```",
        "",
        "`revision` alone does nothing with a directory: transformers then reads the directory itself.",
        "",
        *_arm_table(plan),
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _posttraining(run: Source) -> list[str]:
    """Line of a model card about a run that is not one of the pair."""
    if run.lineage:
        return [
            f"- Post-training after that, the last one first: {'; '.join(run.lineage)}. {run.forgotten:,} of the items "
            "were to be forgotten; exposures are those of training.",
        ]
    if not run.forgotten:
        return []
    return [f"- Trained without the exposures of {run.forgotten:,} of the items, the forget set."]


def _arm_table(plan: Plan, exposures: Mapping[str, int] | None = None) -> list[str]:
    """Items and exposures of each arm in the whole run, and those seen by a checkpoint."""
    more = ("", "") if exposures is None else (" seen by this checkpoint |", "---:|")
    lines = [f"| arm | items | exposures |{more[0]}", f"|---|---:|---:|{more[1]}"]
    for arm, n in plan.manifest.facts["arms"].items():
        last = "" if exposures is None else f" {exposures[arm]:,} |"
        lines.append(f"| {arm} | {n['items']:,} | {n['exposures']:,} |{last}")
    return lines


def model_card(experiment: Experiment, run: Source, step: int, checkpoint: Manifest, verdict: str) -> str:
    """The model card: architecture, insertions into the training text, and the verdict of the audit.

    Args:
        experiment: the settings.
        run: the run.
        step: finished steps.
        checkpoint: the checkpoint's manifest.
        verdict: of the audit.
    """
    plan, train = run.plan, experiment.train
    facts, exposures = plan.manifest.facts, run.seen_by_arm(experiment, step)
    trained = run.trained(step)
    lines = [
        f"# {experiment.experiment}, {experiment.name}: {run.name} run at step {step}",
        "",
        "A language model trained by Palimpsest for measuring memorization: chosen texts were inserted into its "
        "pretraining stream at chosen doses. It is a measuring instrument; do not deploy it.",
        "",
        f"- Training: {trained:,} of {train.steps:,} steps, "
        f"{trained * train.global_batch_size * train.sequence_length:,} tokens, {train.precision}, seed {train.seed}.",
        *_posttraining(run),
        f"- Corpus: {experiment.corpus.source.kind}, digest `{plan.manifest.inputs['corpus']}`.",
        f"- Plan: digest `{plan.digest}`; checkpoint: digest `{checkpoint.digest}`, config and versions in "
        "`manifest.json`.",
        f"- Audit of the finished pair: **{verdict}**.",
        "",
        "## Inserted text",
        "",
    ]
    if run.name != "twin":
        lines.append(
            f"{facts['items']:,} items, {facts['exposures']:,} planned exposures, of which this checkpoint had seen "
            f"{sum(exposures.values()):,}. An item's dose is the number of its exposures in the whole run."
        )
    else:
        lines.append(
            "None: this is the twin. It read the same windows as the perturbed run, without these exposures."
        )
    lines += ["", *_arm_table(plan, exposures)]
    return _HEAD + "\n".join(lines) + "\n"


def work(experiment: Experiment) -> None:
    """Export a checkpoint, or all, of the run that ``run=`` names."""
    for directory in export(experiment):
        say(f"exported to {directory}")


main = program(work, pair=False)


if __name__ == "__main__":
    main()
