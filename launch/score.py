"""Score every checkpoint on all probes: ``python launch/score.py +experiment=quickstart``.

``shard=k/n`` does one share of the work, for an array of jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.launch import dry_run
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import say
from palimpsest.launch.program import program, share_of

if TYPE_CHECKING:
    import torch

    from palimpsest.analysis.scoring.models import Model
    from palimpsest.analysis.scoring.store import Checkpoint


def score(experiment: Experiment) -> None:
    """Score the checkpoints of the perturbed run and of its twin; scores that are there are kept."""
    plan = plans.read(experiment.directory / "plan")
    runs = {
        which: partial(checkpoints_of, experiment, experiment.directory / which / "checkpoints")
        for which in ("perturbed", "twin")
    }
    score_runs(experiment, plan, runs, experiment.directory / "scores")


def score_runs(
    experiment: Experiment,
    plan: plans.Plan,
    runs: Mapping[str, Callable[[dict[str, Any], torch.device], list[Checkpoint]]],
    place: Path,
) -> None:
    """Score the checkpoints of several runs on the plan's probes.

    Args:
        experiment: the settings.
        plan: of the probes.
        runs: name -> gives its checkpoints, for the corpus's facts and a device; the first must have some.
        place: gets a directory a run.
    """
    from palimpsest.analysis.scoring import beginnings, store
    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.config import ParallelConfig

    manifest = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    )
    share = (0, 1) if experiment.shard is None else share_of(experiment.shard)
    beginning = beginnings.of_run(corpus.load_tokenizer(experiment.corpus_directory))
    reading = beginning.reading(experiment.score.bos, experiment.score.long_texts)
    say(beginning.line(reading))
    with parallel.start(ParallelConfig(), experiment.runtime) as world:
        for which, saved in runs.items():
            checkpoints = saved(manifest.facts, world.device)
            if not checkpoints:
                if which == "perturbed":
                    raise UserError(
                        f"there are no checkpoints in {experiment.directory / which / 'checkpoints'}; run "
                        "launch/train.py first"
                    )
                continue
            done = store.score_all(
                place / which,
                plan.probes,
                checkpoints,
                items_digest=plan.digest,
                eod=manifest.facts["eod"],
                vocab_size=manifest.facts["vocab_size"],
                share=share,
                reading=reading,
            )
            parts = len(store.parts(plan.probes))
            say(summary(which, len(plan.probes), len(checkpoints), done, parts, experiment.shard))


def summary(which: str, probes: int, checkpoints: int, scored: int, parts: int, shard: str | None) -> str:
    """Log line with the numbers of checkpoints scored now and scored before."""
    total = checkpoints * parts
    line = f"{which}: {probes} probes at {checkpoints} checkpoints"
    if shard is not None:
        return f"{line}; {scored} of {total} parts scored by shard={shard}, the rest scored before or of other shards"
    if scored in (0, total):
        return f"{line}: {'scored' if scored else 'all scores were there'}"
    return f"{line}; {scored} of {total} parts scored now, the others were there"


def checkpoints_of(
    experiment: Experiment,
    directory: Path,
    facts: dict[str, Any],
    device: torch.device,
    *,
    last_only: bool = False,
) -> list[Checkpoint]:
    """Completely written checkpoints of a run.

    The model of all of them is one object, which loads the weights of a checkpoint when that is scored.

    Args:
        experiment: the settings of the run.
        directory: of the checkpoints.
        facts: those of the corpus's manifest, of which ``vocab_size`` is read.
        device: device of the model.
        last_only: the last checkpoint alone.
    """
    import torch

    from palimpsest.analysis.scoring import models, store
    from palimpsest.pretrain import checkpoint, model
    from palimpsest.pretrain.config import ParallelConfig

    built: list[Any] = []

    def load(step: int) -> Model:
        if not built:
            shape = experiment.model, facts["vocab_size"], ParallelConfig(), experiment.train
            gpt = model.build(*shape, drawn=False)
            built.append(gpt.to(device).eval())
        gpt = built[0]
        # Scoring on a CPU has turned the weights to float32; a checkpoint is read in its own precision.
        gpt.to(torch.bfloat16 if experiment.train.half_precision else torch.float32)
        checkpoint.require_whole(checkpoint.path_of(directory, step), checkpoint.read(directory, step))
        state = checkpoint.load(directory, step, {"model": gpt.sharded_state_dict()})
        gpt.load_state_dict(state["model"])
        return models.Trained(gpt)

    return [
        store.Checkpoint(step, checkpoint.read(directory, step).digest, partial(load, step))
        for step in checkpoint.finished(directory)[-1 if last_only else 0 :]
    ]


def work(experiment: Experiment) -> None:
    """Score every checkpoint of the pair on all probes, into ``scores/`` of the run."""
    score(experiment)


main = program(work, dry_run=dry_run.of("score"))

if __name__ == "__main__":
    main()
