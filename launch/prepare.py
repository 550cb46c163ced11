"""Text to token windows: ``python launch/prepare.py +experiment=quickstart``.

``shard=k/n`` does one share of the work, for an array of jobs; ``index=true`` builds the order of the windows as well;
``verify=true`` reads all of the corpus again; ``show=S`` prints what step S reads, with its sources.
"""

from __future__ import annotations

from palimpsest.data import artifact, inspect
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import MAIN
from palimpsest.launch import dry_run, preconditions
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import open_order
from palimpsest.launch.process import say
from palimpsest.launch.program import program, share_of


def prepare(experiment: Experiment) -> Manifest:
    """Prepare the experiment's corpora, or reuse them.

    Returns:
        The manifest of the first corpus.
    """
    manifests = [
        corpus.prepare(config, directory, workers=experiment.runtime.workers, progress=say)
        for config, directory in experiment.corpora.values()
    ]
    return manifests[0]


def _share(experiment: Experiment, text: str) -> None:
    share = share_of(text)
    for name, (config, directory) in experiment.corpora.items():
        if name != MAIN and not (experiment.corpus_directory / artifact.MANIFEST).is_file():
            say(f"{name}: comes when {MAIN}, whose tokenizer it has, is finished")
            continue
        corpus.prepare_share(config, directory, share=share, workers=experiment.runtime.workers, progress=say)


def _show(experiment: Experiment, step: int) -> None:
    """Print the batch of a step, without insertions.

    Raises:
        UserError: if the run has no such step.
    """
    if not 0 <= step < experiment.train.steps:
        raise UserError(f"show={step} is no step; the run has steps 0 to {experiment.train.steps - 1}")
    size = experiment.train.global_batch_size
    directories = [directory for _, directory in experiment.corpora.values()]
    order = open_order(experiment)
    order.require((step + 1) * size)
    positions = range(step * size, (step + 1) * size)
    for piece in inspect.pieces(order, directories, corpus.load_tokenizer(directories[0]), positions):
        where = f"window {piece.position} token {piece.offset}: {piece.source} row {piece.row}"
        say(f"{where}\n    {piece.text!r}")


def work(experiment: Experiment) -> None:
    """Prepare the corpora, and print their directories.

    Raises:
        UserError: before anything is read, naming all settings that no later stage would accept.
    """
    preconditions.require_fit(experiment)
    if experiment.shard is not None:
        _share(experiment, experiment.shard)
        return
    manifest = prepare(experiment)
    facts = manifest.facts
    say(
        f"corpus {experiment.corpus_directory}: {facts['train_documents']:,} documents, {facts['train_words']:,} "
        f"words, {facts['train_tokens']:,} tokens"
    )
    if experiment.verify:
        for _, directory in experiment.corpora.values():
            inspect.verify(directory)
        say("every file is as it was written, every id inside the vocabulary")
    if experiment.index:
        order = open_order(experiment)
        say(f"order of {len(order):,} windows: {order.identity}")
    if experiment.show is not None:
        _show(experiment, experiment.show)


main = program(work, dry_run=dry_run.of("prepare"))

if __name__ == "__main__":
    main()
