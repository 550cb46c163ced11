"""Ask every checkpoint about every item: ``python launch/score.py +experiment=quickstart``.

``shard=k/n`` scores one share of the checkpoints, for an array of jobs.
"""

from __future__ import annotations

from data import artifact
from data import prepare as corpus
from data.errors import UserError
from insertion import plan as plans
from launch.config import Experiment, program, say, share_of


def score(experiment: Experiment) -> None:
    """Score the checkpoints of the perturbed run and of its twin; scores that are there are kept."""
    from analysis import scoring
    from pretrain import checkpoint, parallel
    from pretrain.config import ParallelConfig

    manifest = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    )
    plan = plans.read(experiment.directory / "plan")
    share = (0, 1) if experiment.shard is None else share_of(experiment.shard)
    with parallel.start(ParallelConfig(), experiment.runtime) as world:
        for which in ("perturbed", "twin"):
            checkpoints = experiment.directory / which / "checkpoints"
            if not checkpoint.finished(checkpoints):
                if which == "perturbed":
                    raise UserError(f"there are no checkpoints in {checkpoints}; run launch/train.py first")
                continue
            steps = scoring.score_run(
                checkpoints,
                experiment.directory / "scores" / which,
                plan.probes,
                plan_digest=plan.digest,
                shape=experiment.model,
                train=experiment.train,
                vocab_size=manifest.facts["vocab_size"],
                eod=manifest.facts["eod"],
                device=world.device,
                share=share,
            )
            say(f"{which}: {len(plan.probes)} probes scored at {len(steps)} checkpoints")


@program
def main(experiment: Experiment) -> None:
    """Score."""
    score(experiment)


if __name__ == "__main__":
    main()
