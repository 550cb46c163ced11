"""Continuations by checkpoints: ``python launch/generate.py +experiment=quickstart generate.samples=8``.

Each item's first tokens, and the prompts of questions, are continued greedily and by sampling; the report is then
written again. ``shard=k/n`` does one share of the work, for an array of jobs, and no report.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from palimpsest.analysis.generation.continuations import KIND
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import MANIFEST
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import INTEGRITY, say
from palimpsest.launch.program import program, share_of
from palimpsest.launch.report import place, report
from palimpsest.pretrain import saved


def steps_of(experiment: Experiment, which: str) -> list[int]:
    """Checkpoints of one of the pair that are asked for; none of a twin that was not trained.

    Raises:
        UserError: if the perturbed run has none, or not the one that is asked for.
    """
    directory = experiment.directory / which / "checkpoints"
    there = saved.finished(directory)
    if not there:
        if which == "perturbed":
            raise UserError(f"there are no checkpoints in {directory}; run launch/train.py first")
        return []
    if experiment.step == "all":
        return there
    step = there[-1] if experiment.step is None else experiment.step
    if step not in there:
        raise UserError(f"step={step}: there is no such checkpoint in {directory}; there are {there}")
    return [step]


def generate(experiment: Experiment) -> None:
    """Continue the prompts at the checkpoints of the perturbed run and of its twin; stored continuations are kept."""
    from palimpsest.analysis.generation import store
    from palimpsest.analysis.scoring import beginnings
    from palimpsest.analysis.scoring.store import Checkpoint
    from palimpsest.pretrain import checkpoint
    from palimpsest.pretrain.huggingface import files

    files.require()
    plan = plans.read(experiment.directory / "plan")
    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    facts = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    ).facts
    share = (0, 1) if experiment.shard is None else share_of(experiment.shard)
    begun = beginnings.of_run(tokenizer).reading(experiment.score.bos, experiment.score.long_texts).bos
    cut = store.parts(plan.probes, experiment.generate, begun=begun)
    for which in ("perturbed", "twin"):
        directory = experiment.directory / which / "checkpoints"
        steps = steps_of(experiment, which)
        checkpoints = [
            Checkpoint(
                step,
                checkpoint.read(directory, step).digest,
                partial(model_of, experiment, directory, step, tokenizer.eod),
            )
            for step in steps
        ]
        done = store.generate_all(
            experiment.directory / KIND / which,
            plan.probes,
            checkpoints,
            experiment.generate,
            begun=begun,
            items_digest=plan.digest,
            beginning=tokenizer.eod,
            ends=[tokenizer.eod],
            vocab_size=facts["vocab_size"],
            decode_text=tokenizer.decode,
            share=share,
        )
        if steps:
            shared = f" by shard={experiment.shard}" if experiment.shard else ""
            say(
                f"{which}: {sum(map(len, cut))} prompts at {'steps' if len(steps) > 1 else 'step'} "
                f"{', '.join(map(str, steps))}; {done} of {len(cut) * len(steps)} parts written now{shared}"
            )


def model_of(experiment: Experiment, directory: Path, step: int, eod: int) -> Any:
    """The model of a checkpoint; in float32 on CPUs, as in scoring."""
    import torch

    from palimpsest.pretrain.huggingface import export
    from palimpsest.pretrain.parallel import pick_device

    device = pick_device(experiment.runtime)
    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    model = export.load(directory, step, eod=eod)
    return model.float() if device.type == "cpu" else model.to(device)


def lines(experiment: Experiment) -> Iterator[str]:
    """Lines of ``dry_run=true``: the continuations that would be made."""
    settings = experiment.generate
    for which in ("perturbed", "twin"):
        at = experiment.directory / KIND / which
        steps = steps_of(experiment, which)
        there = sum((saved.path_of(at, step) / MANIFEST).is_file() for step in steps)
        if steps:
            yield f"generate {which}: {at}, {len(steps)} checkpoints, {there} of them continued before"
    ways = f"1 greedy continuation and {settings.samples} drawn"
    contexts = " and ".join(map(str, settings.prefix_tokens)) or "no"
    asked = ", and of each cloze prompt" if settings.questions else ""
    yield f"  {ways} after {contexts} tokens of each item{asked}, of {settings.max_tokens} tokens at most"


def reported(experiment: Experiment) -> int:
    """Write the report again, unless only a share was done or there are no scores; status 3 if the audit failed."""
    if experiment.shard is not None:
        return 0
    if not any((experiment.directory / "scores" / "perturbed").glob(f"step_*/{MANIFEST}")):
        say("no report: there are no scores; run launch/score.py, then launch/report.py")
        return 0
    summary = report(experiment)
    say(summary["headline"])
    say(f"report: {place(experiment) / 'report.html'}")
    return INTEGRITY if summary["verdict"] == "audit failed" else 0


def work(experiment: Experiment) -> int:
    """Generate, then report; status 3 if the audit failed."""
    generate(experiment)
    return reported(experiment)


main = program(work, dry_run=lines)

if __name__ == "__main__":
    main()
