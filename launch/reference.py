"""Reference model for copyright traps (``path: trained``) and order tests: trained here, in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.order import Order
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion.families import registry
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import epoch_seed, order_of
from palimpsest.launch.process import locked, say
from palimpsest.pretrain.config import ParallelConfig

_NO_EPOCH = 1 << 16
"""Constant used instead of an epoch's number in the seed of the reference model's order."""


def trained(experiment: Experiment, order: Order, vocab_size: int) -> Path:
    """Train a model of the experiment's shape on the unmodified corpus, or reuse it; returns the path of its
    checkpoint.

    Args:
        experiment: the settings; the model trains for as many steps as the runs.
        order: windows for the model, in another order than the pair's.
        vocab_size: size of the tokenizer's vocabulary.

    Returns:
        ``reference/checkpoints/step_<number>`` of the run's directory.
    """
    from palimpsest.pretrain import checkpoint, interrupts, parallel
    from palimpsest.pretrain.settings import Settings
    from palimpsest.pretrain.telemetry import Live
    from palimpsest.pretrain.trainer import Trainer

    directory, steps = experiment.directory / "reference", experiment.train.steps
    train = replace(
        experiment.train, seed=order.seed, checkpoint_every=steps, checkpoint_at=(), checkpoint_after_last=()
    )
    alone = ParallelConfig(tensor=1, pipeline=1)
    settings = Settings(model=experiment.model, optimizer=experiment.optimizer, train=train, parallel=alone)
    with parallel.start(alone, experiment.runtime) as world, locked(directory):
        trainer = Trainer(settings, world, order=order, plan=None, vocab_size=vocab_size, directory=directory)
        step = trainer.resume()
        if step < steps:
            say(f"training the reference model, in {directory}")
            with interrupts.listening() as signals:
                trainer.run([signals, Live("reference", step, steps)])
    return checkpoint.path_of(trainer.checkpointer.directory, steps)


def in_another_order(experiment: Experiment) -> Path:
    """The checkpoint of :func:`trained`, on the corpus in an order that no epoch of the run has."""
    seed = epoch_seed(experiment.train.seed, _NO_EPOCH)
    order = order_of(experiment.corpus_directory, experiment.train.sequence_length, seed)
    facts = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    ).facts
    return trained(experiment, order, facts["vocab_size"])


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
