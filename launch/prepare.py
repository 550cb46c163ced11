"""Text to token windows: ``python launch/prepare.py +experiment=quickstart``."""

from __future__ import annotations

from data import prepare as corpus
from data.artifact import Manifest
from launch.config import Experiment, program, say


def prepare(experiment: Experiment) -> Manifest:
    """Prepare the experiment's corpus, or reuse it."""
    return corpus.prepare(
        experiment.corpus, experiment.corpus_directory, workers=experiment.runtime.workers, progress=say
    )


@program
def main(experiment: Experiment) -> None:
    """Prepare and say where."""
    manifest = prepare(experiment)
    facts = manifest.facts
    say(
        f"corpus {experiment.corpus_directory}: {facts['train_documents']:,} documents, {facts['train_words']:,} "
        f"words, {facts['train_tokens']:,} tokens"
    )


if __name__ == "__main__":
    main()
