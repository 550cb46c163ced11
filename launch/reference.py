"""The reference model of copyright traps, where ``path: trained`` asks for one that is made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from palimpsest.data.order import Order
from palimpsest.launch.config import Experiment, locked, say
from palimpsest.pretrain.config import ParallelConfig


def trained(experiment: Experiment, order: Order, vocab_size: int) -> Path:
    """Checkpoint of a model of the experiment's shape that has read the corpus alone; reused if there is one.

    Args:
        experiment: the settings; as many steps as its runs.
        order: what the model reads: the corpus in an order, and from initial weights, that neither run has.
        vocab_size: of the corpus's tokenizer.

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
            say(f"training the reference model of the traps, in {directory}")
            with interrupts.listening() as signals:
                trainer.run([signals, Live("reference", step, steps)])
    return checkpoint.path_of(trainer.checkpointer.directory, steps)
