"""Train one of the pair: ``torchrun launch/train.py +experiment=quickstart run=perturbed``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.insertion import explain
from palimpsest.insertion import plan as plans
from palimpsest.launch.experiment import Experiment, resolved
from palimpsest.launch.inputs import open_order
from palimpsest.launch.process import locked, say
from palimpsest.launch.program import program
from palimpsest.pretrain import estimate
from palimpsest.pretrain.config import ParallelConfig, padded_vocabulary

if TYPE_CHECKING:
    from palimpsest.pretrain.hooks import Hook
    from palimpsest.pretrain.parallel import World
    from palimpsest.pretrain.settings import Settings


def train(experiment: Experiment, which: str) -> None:
    """Train the perturbed run or its twin, from the last finished checkpoint on.

    Args:
        experiment: the settings.
        which: ``perturbed`` or ``twin``.

    Raises:
        UserError: if corpus or plan are missing, or a checkpoint belongs to something else.
        PlanViolation: if a batch is not what the plan says.
    """
    if experiment.insertion.adaptive is not None:
        raise UserError(
            "insertion.adaptive is carried out by launch/adaptive.py, segment by segment; run that"
        )
    from torch import distributed

    from palimpsest.pretrain import checkpoint, interrupts, parallel
    from palimpsest.pretrain.trainer import Trainer

    directory = experiment.directory / which
    settings, because = _settings(experiment)
    manifest = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    )
    plan = _plan(experiment)
    vocab_size = manifest.facts["vocab_size"]
    started = parallel.start(
        experiment.parallel, experiment.runtime, deterministic=experiment.train.deterministic
    )
    with started as world, contextlib.ExitStack() as stack:
        if world.main:
            stack.enter_context(locked(directory))
            order = open_order(experiment)
        distributed.barrier()
        if not world.main:
            order = open_order(experiment)
        if plan.manifest.inputs["order"] != order.identity:
            raise UserError(
                f"{experiment.directory / 'plan'} was made for another corpus or order; run launch/plan.py again"
            )
        trainer = Trainer(
            settings,
            world,
            order=order,
            plan=plan if which == "perturbed" else None,
            vocab_size=vocab_size,
            directory=directory,
            last_exposures=last_exposures(plan),
        )
        say(f"{which}: attention by {because}")
        step = trainer.resume()
        if step == experiment.train.end:
            say(f"{which}: finished at step {step}; nothing to do (to train again, set another name=...)")
            return
        if step:
            say(f"{which}: going on from step {step}")
        hooks: list[Hook] = [interrupts.Watchdog(experiment.runtime.hang_minutes)]
        hooks += _evaluation(experiment, plan, manifest.facts, world)
        if world.main:
            hooks += _telemetry(experiment, which, directory, step)
        with interrupts.listening() as signals:
            trainer.run([signals, *hooks])
        if world.main:
            place = trainer.checkpointer.directory
            say(f"{which}: {len(checkpoint.finished(place))} checkpoints in {place}")


def _settings(experiment: Experiment) -> tuple[Settings, str]:
    """The trainer's settings, and why it attends as it does."""
    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.settings import Settings

    machine = experiment.runtime, experiment.model, experiment.train, parallel.pick_device(experiment.runtime)
    attention, because = parallel.pick_attention(*machine)
    parallel.check_graphs(*machine)
    settings = Settings(
        model=experiment.model,
        optimizer=experiment.optimizer,
        train=experiment.train,
        parallel=experiment.parallel,
        attention=attention,
        graphs=experiment.runtime.cuda_graphs,
    )
    return settings, because + (", layers as CUDA graphs" if experiment.runtime.cuda_graphs else "")


def _plan(experiment: Experiment) -> plans.Plan:
    found = plans.read(experiment.directory / "plan")
    asked = plans.plan_config(experiment.insertion, experiment.shape)
    if different := artifact.differences(found.manifest, config=asked, inputs=found.manifest.inputs):
        raise UserError(f"{experiment.directory / 'plan'} is another experiment's plan ({different[0]})")
    return found


def _evaluation(experiment: Experiment, plan: plans.Plan, facts: dict[str, Any], world: World) -> list[Hook]:
    """The evaluation while training, if any is asked for."""
    if not experiment.eval.enabled:
        return []
    from palimpsest.analysis.inloop import Probing
    from palimpsest.pretrain import model
    from palimpsest.pretrain.hooks import Evaluation

    probing = Probing(
        plan,
        rank=world.data_rank,
        ranks=world.data_size,
        eod=facts["eod"],
        vocab_size=facts["vocab_size"],
        build=partial(model.build, experiment.model, facts["vocab_size"], ParallelConfig(), experiment.train),
    )

    def evaluate(gpt: Any, due: str) -> dict[str, float]:
        return probing.ask(gpt, heldout_only=due == "heldout")

    return [Evaluation(experiment.eval, evaluate)]


def last_exposures(plan: plans.Plan) -> list[int]:
    """Finished steps with which each arm that has exposures had its last one."""
    arms = plan.items.with_row_index("item").select(pl.col("item").cast(pl.Int32), "arm")
    last = plan.exposures.join(arms, on="item").group_by("arm").agg(pl.col("position").max())
    return sorted(last["position"] // plan.shape.global_batch_size + 1)


def _telemetry(experiment: Experiment, which: str, directory: Path, step: int) -> list[Hook]:
    """Profiler and writers of telemetry, for the main rank; ``step``: finished steps at the start."""
    from palimpsest.pretrain.telemetry import JsonLines, Live, Profile, TensorBoard, WeightsAndBiases

    hooks: list[Hook] = [
        Profile(experiment.profile, directory / "profile"),
        JsonLines(directory / "metrics.jsonl", step),
        Live(which, step, experiment.train.end),
    ]
    if experiment.wandb != "off":
        name = f"{experiment.experiment}-{experiment.name}-{which}"
        hooks.append(WeightsAndBiases(experiment.wandb, name, resolved(experiment), directory))
    if experiment.tensorboard:
        hooks.append(TensorBoard(directory / "tensorboard", step))
    return hooks


def dry_run(experiment: Experiment) -> Iterator[str]:
    """What training would cost, and what would be inserted; needs neither a corpus nor a GPU."""
    vocab_size, known = experiment.corpus.tokenizer.vocab_size, "of the tokenizer to be trained"
    if experiment.corpus.tokenizer.kind != "train":
        vocab_size, known = experiment.model.tokenizer_size or vocab_size, f"of model={experiment.model.name}"
        if experiment.model.tokenizer_size is None:
            known = "assumed: the corpus is not prepared, and model.tokenizer_size is not set"
    if (experiment.corpus_directory / artifact.MANIFEST).is_file():
        manifest = artifact.read(
            experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
        )
        vocab_size, known = manifest.facts["vocab_size"], "of the prepared corpus"
    padded = padded_vocabulary(vocab_size)
    yield json.dumps(resolved(experiment), indent=2)
    yield f"vocabulary: {vocab_size:,} ({known}), padded to {padded:,}"
    yield from estimate.summary(
        experiment.model,
        padded,
        experiment.train,
        experiment.parallel,
        world_size=_world_size(experiment),
        optimizer_sharded=experiment.optimizer.kind != "muon",
    )
    if (experiment.directory / "plan" / artifact.MANIFEST).is_file():
        yield from explain.summary(plans.read(experiment.directory / "plan"))
    else:
        for name, asked in experiment.insertion.designs():
            yield (
                f"{name or 'insertion'}: families {', '.join(asked.families)}; doses {list(asked.doses)}, items a dose "
                f"and family: {asked.items_per_dose}; not planned yet (launch/plan.py)"
            )


def _world_size(experiment: Experiment) -> int:
    """Ranks of one training: torchrun's, those of the SLURM launcher, or the fewest that the topology allows."""
    launcher, least = experiment.launcher, experiment.parallel.min_world_size
    asked = launcher.nodes * launcher.processes if launcher.kind == "slurm" else 1
    ranks = int(os.environ.get("WORLD_SIZE", asked))
    return ranks if ranks % least == 0 else least


@program
def main(experiment: Experiment) -> None:
    """Train the run that ``run=`` names, or say what that would cost."""
    if experiment.dry_run:
        for line in dry_run(experiment):
            say(line)
    else:
        train(experiment, experiment.run)


if __name__ == "__main__":
    main()
