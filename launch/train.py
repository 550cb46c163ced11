"""Train one of the pair: ``torchrun launch/train.py +experiment=quickstart run=perturbed``.

Corpus and plan are made first where they are missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.launch import missing_stages, shared_twin
from palimpsest.launch.dry_run import cost, vocabulary
from palimpsest.launch.experiment import Experiment, resolved
from palimpsest.launch.inputs import open_order
from palimpsest.launch.process import locked, say
from palimpsest.launch.program import program, take
from palimpsest.pretrain.config import ParallelConfig

if TYPE_CHECKING:
    import torch

    from palimpsest.pretrain.hooks import Hook
    from palimpsest.pretrain.parallel import World
    from palimpsest.pretrain.settings import Settings


def train(
    experiment: Experiment, which: str, *, plan: plans.Plan | None = None, directory: Path | None = None
) -> None:
    """Train the perturbed run or its twin, from the last finished checkpoint on.

    Args:
        experiment: the settings.
        which: ``perturbed`` or ``twin``; or, with the other two, the name of a run on another plan.
        plan: of the run; None: that of the experiment.
        directory: of the run; None: ``which`` in that of the experiment.

    Raises:
        UserError: if corpus or plan are missing, or a checkpoint belongs to another run.
        PlanViolation: if a batch differs from the plan.
    """
    if experiment.insertion.adaptive is not None:
        raise UserError("insertion.adaptive is set; train with launch/adaptive.py instead")
    from palimpsest.pretrain import checkpoint, interrupts, parallel
    from palimpsest.pretrain.trainer import Trainer

    directory = directory or experiment.directory / which
    settings, because = settings_of(experiment)
    manifest = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    )
    plan = plan or _plan(experiment)
    vocab_size = manifest.facts["vocab_size"]
    started = parallel.start(
        experiment.parallel, experiment.runtime, deterministic=experiment.train.deterministic
    )
    with started as world, contextlib.ExitStack() as stack:
        if world.main:
            stack.enter_context(locked(directory))
            order = open_order(experiment)
            if which == "twin":
                shared_twin.adopt(experiment, order.identity)
        world.barrier()
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
            plan=None if which == "twin" else plan,
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
            new = " with another " + " and ".join(changed) if (changed := _changed(plan, step)) else ""
            say(f"{which}: going on from step {step}{new}")
        hooks: list[Hook] = [interrupts.Watchdog(experiment.runtime.hang_minutes)]
        hooks += _evaluation(experiment, plan, manifest.facts, world)
        if world.main:
            hooks += _telemetry(experiment, which, directory, step)
        with interrupts.listening() as signals:
            trainer.run([signals, *hooks])
        if world.main:
            place = trainer.checkpointer.directory
            say(f"{which}: {len(checkpoint.finished(place))} checkpoints in {place}")


def _changed(plan: plans.Plan, step: int) -> list[str]:
    """Those of ``corpus`` and ``order`` in which a branch differs from its parent run."""
    changed: list[str] = plan.manifest.facts.get("changed_at_start", []) if step == plan.shape.begin else []
    return changed


def settings_of(experiment: Experiment) -> tuple[Settings, str]:
    """The trainer's settings, and the reason for its attention backend."""
    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.settings import Settings

    machine = experiment.runtime, experiment.model, experiment.train, parallel.pick_device(experiment.runtime)
    attention, because = parallel.pick_attention(*machine)
    if attention == "sdpa" and machine[-1].type == "cuda":
        because += f"; its kernel: {_kernel(experiment, machine[-1])}"
    settings = Settings(
        model=experiment.model,
        optimizer=experiment.optimizer,
        train=experiment.train,
        parallel=experiment.parallel,
        attention=attention,
    )
    return settings, because


def _kernel(experiment: Experiment, device: torch.device) -> str:
    """Name of the kernel of ``scaled_dot_product_attention`` for this training."""
    import torch

    from palimpsest.pretrain import attention

    model, train = experiment.model, experiment.train
    dtype = torch.bfloat16 if train.half_precision else torch.float32
    return attention.kernel_name(
        model.heads,
        model.query_groups,
        model.head_dim,
        length=train.sequence_length,
        masked=train.document_attention,
        dtype=dtype,
        device=device,
    )


def _plan(experiment: Experiment) -> plans.Plan:
    plan = plans.read(experiment.directory / "plan")
    asked = plans.plan_config(experiment.insertion, experiment.shape)
    if different := artifact.differences(plan.manifest, config=asked, inputs=plan.manifest.inputs):
        raise UserError(f"{experiment.directory / 'plan'} is another experiment's plan ({different[0]})")
    return plan


def _evaluation(experiment: Experiment, plan: plans.Plan, facts: dict[str, Any], world: World) -> list[Hook]:
    """Hook of the evaluation while training; None if it is switched off."""
    if not experiment.eval.enabled:
        return []
    from palimpsest.analysis.scoring.in_training import Probing
    from palimpsest.pretrain import model
    from palimpsest.pretrain.hooks import Evaluation

    probing = Probing(
        plan,
        rank=world.data_rank,
        ranks=world.data_size,
        eod=facts["eod"],
        vocab_size=facts["vocab_size"],
        build=lambda: model.build(
            experiment.model, facts["vocab_size"], ParallelConfig(), experiment.train, drawn=False
        ),
    )

    def evaluate(gpt: Any, due: str) -> dict[str, float]:
        return probing.ask(gpt, heldout_only=due == "heldout")

    return [Evaluation(experiment.eval, evaluate)]


def last_exposures(plan: plans.Plan) -> list[int]:
    """Number of finished steps once an arm's last exposure has been consumed, ascending, for arms with exposures."""
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
        place = experiment.wandb_project, experiment.wandb_entity, experiment.wandb_group
        hooks.append(WeightsAndBiases(experiment.wandb, name, resolved(experiment), directory, *place))
    if experiment.tensorboard:
        hooks.append(TensorBoard(directory / "tensorboard", step))
    return hooks


def dry_run(experiment: Experiment) -> Iterator[str]:
    """The whole configuration, and what training would cost; needs neither a corpus nor a GPU."""
    yield json.dumps(resolved(experiment), indent=2)
    yield from cost(experiment)


def work(experiment: Experiment) -> None:
    """Train the run that ``run=`` names, after making missing inputs."""
    missing_stages.make(experiment)
    train(experiment, experiment.run)


def rehearse(experiment: Experiment, asked: Mapping[str, str]) -> None:
    """Print memory and traffic of each pipeline stage for a number of ranks; needs neither a corpus nor a GPU.

    Args:
        experiment: the settings.
        asked: ``preflight``, the number of ranks, and ``gpu_gib``, the memory of a GPU, as typed.

    Raises:
        UserError: for a topology that does not divide, that the engine refuses, or that does not fit.
    """
    from palimpsest.pretrain import preflight
    from palimpsest.pretrain.settings import Settings

    settings = Settings(
        model=experiment.model,
        optimizer=experiment.optimizer,
        train=experiment.train,
        parallel=experiment.parallel,
    )
    try:
        ranks, gpu_gib = int(asked["preflight"]), float(asked.get("gpu_gib", preflight.GPU_GIB))
    except ValueError as error:
        raise UserError(f"preflight=RANKS and gpu_gib=GIB are numbers ({error})") from None
    vocab_size, known = vocabulary(experiment)
    for line in preflight.summary(settings, vocab_size, ranks, gpu_gib, known=known):
        say(line)


def main() -> None:
    """Train; with ``preflight=RANKS`` only rehearse the topology, without a GPU."""
    if asked := take("preflight", "gpu_gib"):
        program(lambda experiment: rehearse(experiment, asked))()
    else:
        program(work, dry_run=dry_run)()


if __name__ == "__main__":
    main()
