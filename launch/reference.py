"""Training of models to compare with: one of the run's shape on the unmodified corpus in another order, for copyright
traps (``path: trained``) and order tests, or the end of the perturbed run again, with its windows in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.mixture import Reshuffled, Windows
from palimpsest.data.order import Order
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion import plan as plans
from palimpsest.insertion.families import registry
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import epoch_seed, open_order, order_of
from palimpsest.launch.process import locked, say
from palimpsest.pretrain.config import ParallelConfig, TrainConfig

_NO_EPOCH = 1 << 16
"""Constant used instead of an epoch's number in the seed of the reference model's order."""


def trained(experiment: Experiment, order: Order) -> Path:
    """Train a model of the experiment's shape on the unmodified corpus, or reuse it; returns the path of its
    checkpoint.

    Args:
        experiment: the settings; the model trains for as many steps as the runs.
        order: windows for the model, in another order than the pair's.

    Returns:
        ``reference/checkpoints/step_<number>`` of the run's directory.
    """
    train = replace(experiment.train, seed=order.seed)
    directory = experiment.directory / "reference"
    return _alone(experiment, replace(train, stop_at=None), order, None, directory)


def reshuffled(experiment: Experiment, start: Path, seed: int) -> Path:
    """Train the end of the perturbed run again, with the same windows and exposures in another order, or reuse it.

    Args:
        experiment: the settings.
        start: checkpoint of the perturbed run from which on the windows are reshuffled.
        seed: seed of their order.

    Returns:
        Path of the model's last checkpoint.
    """
    train = replace(experiment.train, start_from=str(start))
    batch = train.global_batch_size
    order = Reshuffled(open_order(experiment), train.begin * batch, train.end * batch, seed)
    plan = plans.read(experiment.directory / "plan").reshuffled(order.source)
    directory = experiment.directory / "reshuffled" / f"from_{train.begin:08d}" / f"seed_{seed}"
    return _alone(experiment, train, order, plan, directory)


def _alone(
    experiment: Experiment,
    train: TrainConfig,
    order: Windows,
    plan: plans.Plan | None,
    directory: Path,
) -> Path:
    """Train one model in this process, which keeps its last checkpoint alone; returns the path of that."""
    from palimpsest.pretrain import checkpoint, interrupts, parallel
    from palimpsest.pretrain.settings import Settings
    from palimpsest.pretrain.telemetry import Live
    from palimpsest.pretrain.trainer import Trainer

    train = replace(train, checkpoint_every=train.steps, checkpoint_at=(), checkpoint_after_last=())
    topology = ParallelConfig(tensor=1, pipeline=1)
    vocab_size = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    ).facts["vocab_size"]
    settings = Settings(
        model=experiment.model, optimizer=experiment.optimizer, train=train, parallel=topology
    )
    name = str(directory.relative_to(experiment.directory))
    with parallel.start(topology, experiment.runtime) as world, locked(directory):
        trainer = Trainer(settings, world, order=order, plan=plan, vocab_size=vocab_size, directory=directory)
        step = trainer.resume()
        if step < train.end:
            say(f"training the {name} model, in {directory}")
            with interrupts.listening() as signals:
                trainer.run([signals, Live(name, step, train.end)])
    return checkpoint.path_of(trainer.checkpointer.directory, train.end)


def in_another_order(experiment: Experiment) -> Path:
    """The checkpoint of :func:`trained`, on the corpus in an order that no epoch of the run has."""
    seed = epoch_seed(experiment.train.seed, _NO_EPOCH)
    order = order_of(experiment.corpus_directory, experiment.train.sequence_length, seed)
    return trained(experiment, order)


def references(experiment: Experiment, tokenizer: Tokenizer) -> Callable[[str], registry.Reference]:
    """Function that opens a reference model by its path, after training it if the path is ``trained``.

    torch is imported only when it is called.
    """

    def opened(path: str) -> registry.Reference:
        from palimpsest.pretrain.reference import open_reference

        if path == registry.TRAINED:
            path = str(in_another_order(experiment))
        return open_reference(path, tokenizer)

    return opened
